# SPDX-License-Identifier: BSD-2-Clause
"""Who holds guests' memory: the keeper, a process that is started and found again, or a shelf in this one."""

from __future__ import annotations

import asyncio
import logging

from vpt.daemon.inventory import Inventory
from vpt.daemon.keeper_client import KeeperClient
from vpt.daemon.models import KeeperView
from vpt.daemon.shelf import Shelf
from vpt.errors import VptError

__all__ = ["Keeping"]

_log = logging.getLogger("vpt.daemon")

_KEEPER_RETRY_S = 1.0


class Keeping:
    """The holder of regions, kept there.

    keeper:   a process of its own; else they end with this one
    linger_s: how long the keeper outlives us when no peer is connected
    """

    def __init__(self, there: Inventory, *, keeper: bool, linger_s: float) -> None:
        self._there = there
        self._settled = False
        self._recovery: asyncio.Task[None] | None = None
        self.keeper: KeeperClient | None = None
        self._shelf: Shelf | None = None
        if keeper:
            self.keeper = KeeperClient(
                there.paths,
                linger_s=linger_s,
                log=_log,
                on_change=self._peer_changed,
                on_lost=self._lost,
            )
        else:
            self._shelf = Shelf(_log, self._peer_changed)

    @property
    def holder(self) -> KeeperClient | Shelf:
        holder = self.keeper or self._shelf
        assert holder is not None
        return holder

    async def find(self) -> None:
        """Connect to a keeper that is there already: it holds what the journal is going to name."""
        if self.keeper is not None and self._there.paths.keeper_socket.exists():
            await self.need()

    async def need(self) -> None:
        """Connect to the keeper, if there is to be one, and give a new one what we have. Under the lock."""
        if self.keeper is None or self.keeper.connected:
            return
        await self.keeper.connect()
        kept = set(await self.keeper.names())
        for name, managed in self._there.ports.items():
            if managed.ring is None or name in kept:
                continue
            try:
                await managed.ring.entrust()
            except VptError as error:
                managed.log.error("its socket is gone: %s", error)

    async def drop_unknown(self) -> None:
        """What a crash cut short is in the keeper and in nobody's journal."""
        if self.keeper is None or not self.keeper.connected:
            return
        for name in await self.keeper.names():
            if name not in self._there.ports:
                _log.warning("port=%s is in the keeper and not in the journal: dropped", name)
                await self.keeper.drop(name)

    async def settle(self) -> None:
        """No keeper is started any more."""
        self._settled = True
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)

    async def leave(self, *, keep: bool) -> None:
        """Part from the holder. keep: a keeper goes on holding what it has."""
        if self._shelf is not None:
            await self._shelf.close()
        if self.keeper is None:
            return
        if keep:
            await self.keeper.close()
            return
        try:
            await self.keeper.stop_keeper()
        except VptError as error:
            _log.warning("keeper: %s", error)

    def view(self) -> KeeperView | None:
        if self.keeper is None:
            return None
        return KeeperView(pid=self.keeper.pid, ports=self.keeper.held)

    def _peer_changed(self, name: str) -> None:
        managed = self._there.ports.get(name)
        if managed is not None and managed.ring is not None:
            managed.ring.peer_changed()

    def _lost(self) -> None:
        if not self._settled:
            _log.warning("the keeper is gone; guests go on, and a new one is started")
            self._recovery = asyncio.create_task(self._replace())

    async def _replace(self) -> None:
        while True:
            try:
                async with self._there.change:
                    await self.need()
                return
            except VptError as error:
                _log.error("keeper: %s", error)
            await asyncio.sleep(_KEEPER_RETRY_S)
