# SPDX-License-Identifier: BSD-2-Clause
"""What the daemon asks of a transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from vpt.daemon.ratelimit import PortLog
    from vpt.daemon.sockets import PeerCredentials
    from vpt.dataplane import Event

__all__ = ["Settings", "Transport", "say_broken"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What may change of a port while its peer is there, and concerns that peer.

    mtu: the longest IP packet. link_up: the administrative link. polls: the policy asks for no kicks.
    """

    mtu: int
    link_up: bool = True
    polls: bool = False


def say_broken(log: PortLog, event: Event) -> None:
    """The one line about a port that was taken down."""
    side = "rx" if event.rx else "tx"
    log.warning("broken: %s queue=%d %s detail=%#x", event.reason.label, event.queue, side, event.detail)


class Transport(Protocol):
    """Carries one port's memory and event fds to its peer. All methods run in the daemon's event loop."""

    async def start(self) -> None:
        """Make the port reachable. Raises VptError, and then has left nothing behind."""

    async def stop(self) -> None:
        """Let go of the peer and remove what start() created. The port itself is the caller's to delete."""

    def on_event(self, event: Event) -> None:
        """An event of this port from the data plane."""

    def adapt(self, settings: Settings) -> None:
        """Settings have changed, as the data plane knows: tell a peer what it cannot see there."""

    @property
    def peer(self) -> PeerCredentials | None:
        """Who is connected. None: nobody, or nobody can be."""

    def describe(self) -> dict[str, Any]:
        """State and counters, ready for JSON."""
