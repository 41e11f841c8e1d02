# SPDX-License-Identifier: BSD-2-Clause
"""What the data plane reports, handed to the transport of the port that it is about."""

from __future__ import annotations

import asyncio

from vpt.daemon.inventory import Inventory

__all__ = ["EventReader"]

# Events handled before other clients of the loop get their turn.
_EVENTS_PER_WAKE = 64


class EventReader:
    """Reads the engine's events in the running loop, between start() and stop()."""

    def __init__(self, there: Inventory) -> None:
        self._there = there

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._there.engine.event_fd, self._take)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._there.engine.event_fd)

    def _take(self) -> None:
        for _ in range(_EVENTS_PER_WAKE):
            event = self._there.engine.next_event()
            if event is None:
                return
            managed = self._there.ports.get(self._there.names_by_id.get(event.port_id, ""))
            if managed is not None and managed.transport is not None:
                managed.transport.on_event(event)
