# SPDX-License-Identifier: BSD-2-Clause
"""The daemon's side of passthrough and app ports: a region, attached to the data plane, kept by a holder.

Who serves the peer's socket is the holder's business (the keeper, or a shelf in this process). Here the
region is made, or found again after a restart, and the peer's status changes are acted on.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vpt.daemon.descriptors import Closer
from vpt.daemon.ratelimit import PortLog
from vpt.daemon.shelf import Holder, Record
from vpt.daemon.sockets import close_fds
from vpt.daemon.transports.base import Settings, say_broken
from vpt.daemon.transports.peer import Bundle
from vpt.dataplane import EventType, Reason, RegionOptions, region_create, vec_count
from vpt.errors import VptError

if TYPE_CHECKING:
    from vpt.daemon.sockets import PeerCredentials
    from vpt.dataplane import Event, Port, PortState

__all__ = ["RingTransport", "create_bundle", "record_meta"]

# A peer may ring its configuration doorbell as fast as it likes; it is looked at this often.
_STATUS_INTERVAL_S = 0.01
_DRIVER_OK = 4


class RingTransport:
    """One region and its peer. `record` says how the holder is to serve it, but for meta, which is ours."""

    def __init__(
        self, port: Port, *, options: RegionOptions, record: Record, holder: Holder, log: PortLog
    ) -> None:
        self._port = port
        self._options = options
        self._record = record
        self._holder = holder
        self._log = log
        self._closer = Closer(log)
        self._bundle: Bundle | None = None
        self._next_status = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ready = False
        self.resumed = False

    async def start(self) -> None:
        """Attach the region that the holder has from before, or a new one."""
        bundle = await self._kept()
        self.resumed = bundle is not None
        if bundle is None:
            bundle = create_bundle(self._options)
        try:
            if not self.resumed:
                await self._holder.put(self._record, bundle)
            try:
                self._port.ring_attach(bundle.memory, self._options, bundle.kicks, bundle.interrupts)
            except VptError:
                await self._holder.drop(self._record.name)
                raise
        except BaseException:
            bundle.close()
            raise
        self._bundle = bundle
        self._look()

    async def _kept(self) -> Bundle | None:
        found = await self._holder.fetch(self._record.name)
        if found is None:
            return None
        record, bundle = found
        if record == self._record:
            return bundle
        bundle.close()
        self._log.warning("what the keeper has is not what the journal says: starting over")
        await self._holder.drop(self._record.name)
        return None

    async def stop(self) -> None:
        """Have the holder forget it. leave() follows when the port has been deleted."""
        await self._holder.drop(self._record.name)

    async def entrust(self) -> None:
        """Give the region to a holder that has lost it: another keeper, after one that died."""
        assert self._bundle is not None
        await self._holder.put(self._record, self._bundle)

    def leave(self) -> None:
        """Let go of our own descriptors only. What the holder has goes on.

        The peer has them, too, and may make the last close() wait: that must not be one in the data plane.
        """
        if self._timer is not None:
            self._timer.cancel()
        if self._bundle is not None:
            self._closer.let_go(self._bundle.fds())
            self._bundle = None

    def on_event(self, event: Event) -> None:
        if event.type == EventType.BROKEN:
            say_broken(self._log, event)
        if event.type != EventType.STATUS or self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        wait = self._next_status - loop.time()
        if wait <= 0:
            self._act_on_status()
        else:
            self._timer = loop.call_later(wait, self._act_on_status)

    def _act_on_status(self) -> None:
        self._timer = None
        self._next_status = asyncio.get_running_loop().time() + _STATUS_INTERVAL_S
        try:
            self._port.ring_status()
        except VptError as error:
            self._log.warning("status not taken: %s", error)
        self._look()

    def _look(self) -> None:
        """Say when a driver has come or gone."""
        state = self._port.state()
        ready = state.reason == Reason.NONE and bool(state.peer_status & _DRIVER_OK)
        if ready and not self._ready:
            self._log.info("driver ready: %s features=%#x", _printable(state), state.features)
        elif self._ready and not ready:
            self._log.info("driver reset")
        self._ready = ready

    def peer_changed(self) -> None:
        """Of the holder: a peer has connected, or gone."""
        peer = self.peer
        self._log.info("peer %s", f"connected pid={peer.pid}" if peer else "disconnected")
        if peer is None:
            self._port.forget()  # as with a cable that is pulled out

    def adapt(self, settings: Settings) -> None:
        """Nothing to add to what the data plane does."""

    @property
    def peer(self) -> PeerCredentials | None:
        return self._holder.peer(self._record.name)

    def describe(self) -> dict[str, Any]:
        return {
            "protocol": self._record.protocol,
            "socket": self._record.socket,
            "connected": self.peer is not None,
            "vectors": vec_count(self._options.pairs),
            "resumed": self.resumed,
            "counters": {"second_peers": self._holder.second_peers(self._record.name)},
        }


def _printable(state: PortState) -> str:
    return state.driver or "unnamed"


def create_bundle(options: RegionOptions) -> Bundle:
    """A new region and the eventfds that go with it; the caller's to close."""
    fds = [region_create(options)]
    try:
        for _ in range(2 * vec_count(options.pairs)):
            fds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        return Bundle.from_fds(fds)
    except BaseException:
        close_fds(fds)
        raise


def record_meta(options: RegionOptions) -> dict[str, Any]:
    """What a kept region must have been made with to be used again."""
    return {"region": asdict(options)}
