# SPDX-License-Identifier: BSD-2-Clause
"""What the daemon asks of a transport."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from vpt.daemon.ratelimit import PortLog
    from vpt.dataplane import Event

__all__ = ["Transport", "say_broken"]


def say_broken(log: PortLog, event: Event) -> None:
    """The one line about a port that was taken down."""
    log.warning("broken: %s queue=%d detail=%#x", event.reason.label, event.queue, event.detail)


class Transport(Protocol):
    """Carries one port's memory and event fds to its peer. All methods run in the daemon's event loop."""

    async def start(self) -> None:
        """Make the port reachable. Raises VptError, and then has left nothing behind."""

    async def stop(self) -> None:
        """Let go of the peer and remove what start() created. The port itself is the caller's to delete."""

    def on_event(self, event: Event) -> None:
        """An event of this port from the data plane."""

    def set_link(self, up: bool) -> None:
        """The data plane knows of the port's administrative link: tell a peer that it cannot reach."""

    def describe(self) -> dict[str, Any]:
        """State and counters, ready for JSON."""
