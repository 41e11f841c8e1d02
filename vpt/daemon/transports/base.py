# SPDX-License-Identifier: BSD-2-Clause
"""What the daemon asks of a transport."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from vpt.dataplane import Event

__all__ = ["Transport"]


class Transport(Protocol):
    """Carries one port's memory and event fds to its peer. All methods run in the daemon's event loop."""

    async def start(self) -> None:
        """Make the port reachable. Raises VptError, and then has left nothing behind."""

    async def stop(self) -> None:
        """Let go of the peer and remove what start() created. The port itself is the caller's to delete."""

    def on_event(self, event: Event) -> None:
        """An event of this port from the data plane."""

    def describe(self) -> dict[str, Any]:
        """State and counters, ready for JSON."""
