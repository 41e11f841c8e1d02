# SPDX-License-Identifier: BSD-2-Clause
"""The daemon as an object: its life, in one asyncio loop, and what it says about itself.

    daemon = Daemon(Settings(paths=locate("/tmp/x")))
    await daemon.start()
    await daemon.ports.add(PortAdd(name="vm1", switch="sw0", kind="passthrough"))
    ...
    await daemon.stop()

What the control socket's methods do are coroutines that take and return models; `vpt.daemon.methods` is the
table. Changes are made one at a time, in this order: the data plane and the sockets, the journal, the answer.
So what was acknowledged survives a crash, and what a crash cut short is found to be in nobody's journal and
cleared away.

    inventory.py         engine, switches, ports, journal: what all the others share
    switch_methods.py    port_methods.py   changing and showing them
    changes.py           many changes as one
    captures.py          copies of packets for observers
    keeping.py           the keeper, or what stands in for it
    events.py            what the data plane reports
    faults.py            what nobody caught
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from vpt import __version__
from vpt.daemon import journal, models
from vpt.daemon.captures import Captures
from vpt.daemon.changes import Changes
from vpt.daemon.events import EventReader
from vpt.daemon.faults import Faults
from vpt.daemon.inventory import Inventory
from vpt.daemon.keeping import Keeping
from vpt.daemon.methods import method_table
from vpt.daemon.models import Acknowledged
from vpt.daemon.port_methods import Ports
from vpt.daemon.rpc import Method, RpcServer
from vpt.daemon.runtime import Lock, RuntimePaths
from vpt.daemon.sockets import Listener, listen_unix
from vpt.daemon.switch_methods import Switches
from vpt.dataplane import Engine

__all__ = ["Daemon", "Settings"]

_log = logging.getLogger("vpt.daemon")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a daemon runs.

    keeper:   let a separate process hold guests' memory; without, it ends with this process
    keep:     at a clean stop, leave the keeper its guests
    group:    id of the group that the sockets belong to, none: the process's own
    linger_s: how long the keeper outlives us when no peer is connected
    control:  the control socket, if somebody listens on it for us; the daemon's from then on
    """

    paths: RuntimePaths
    workers: int = 1
    cpus: tuple[int, ...] = ()
    keeper: bool = True
    keep: bool = True
    group: int | None = None
    linger_s: float = 60.0
    control: socket.socket | None = None


_OTHER_STATE = (
    "it has another runtime dir (XDG_RUNTIME_DIR differs); vpt --runtime-dir DIR names it. Another needs"
    " a state dir of its own: --state-dir, or --runtime-dir, which has room for both"
)


class Daemon:
    """One vptd. start() and stop() once each; everything in the thread of the loop that started it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.paths = settings.paths
        self.stopping = asyncio.Event()
        self.keep = settings.keep
        self._there = Inventory(self.paths)
        self._keeping = Keeping(self._there, keeper=settings.keeper, linger_s=settings.linger_s)
        self.switches = Switches(self._there)
        self.captures = Captures(self._there, group=settings.group)
        self.ports = Ports(
            self._there,
            self._keeping,
            workers=settings.workers,
            group=settings.group,
            on_added=self.captures.port_added,
        )
        self.changes = Changes(self._there, self.switches, self.ports)
        self._events = EventReader(self._there)
        self._methods: dict[str, Method] = method_table(self)
        self._rpc = RpcServer(self._methods, _log, shown_by=self._there.typed("daemon", "methods"))
        self._cleanup = contextlib.AsyncExitStack()
        self._started = time.monotonic()

    # ---- life ----

    async def start(self) -> None:
        """Come up as the journal says, then listen. Raises VptError, and leaves nothing behind then."""
        try:
            await self._start()
        except BaseException:
            await self.stop(keep=True)
            raise

    async def _start(self) -> None:
        faults = Faults(_log)
        faults.start()
        self._cleanup.callback(faults.stop)
        self.paths.create()
        self._cleanup.callback(Lock(self.paths.lock, "vptd").release)
        if self.paths.state != self.paths.runtime:
            self._cleanup.callback(Lock(self.paths.state / "lock", "vptd", _OTHER_STATE).release)
        state = journal.load(self.paths.journal)
        self._open_engine()
        await self._keeping.find()
        # Whoever comes back first has nobody to send to yet: its packets wait in its rings.
        self._there.engine.hold(True)
        await self._restore(state)
        self._there.engine.hold(False)
        await self._rpc.start(self._listener())
        _log.info("listening on %s", self.paths.control)

    def _listener(self) -> Listener:
        path = self.paths.control
        if self.settings.control is not None:
            return Listener(self.settings.control, str(path), lent=True)
        return listen_unix(path, mode=0o660, group=self.settings.group, replace_stale=True)

    def _open_engine(self) -> None:
        fd = _new_stats_file(self.paths.stats)
        self._cleanup.callback(self.paths.stats.unlink, missing_ok=True)
        try:
            self._there.open(Engine(self.settings.workers, self.settings.cpus or None, fd))
        finally:
            os.close(fd)
        self._events.start()

    async def _restore(self, state: journal.State) -> None:
        for switch in state.switches:
            self.switches.bring_up(switch)
        for port in state.ports:
            await self.ports.restore(port, state.owners.get(port.name))
        await self._keeping.drop_unknown()

    async def stop(self, *, keep: bool | None = None) -> None:
        """Stop forwarding and remove our sockets.

        keep: leave the keeper what it holds. Harmless the second time.
        """
        keep = self.keep if keep is None else keep
        self.stopping.set()
        await self._keeping.settle()
        await self._rpc.stop()
        await self.captures.stop()
        async with self._there.change:
            await self._stop_forwarding()
        await self._keeping.leave(keep=keep)
        await self._cleanup.aclose()

    async def _stop_forwarding(self) -> None:
        if not self._there.running:
            return
        # What is not taken any more is still there when we come back.
        self._there.engine.hold(True)
        await self.ports.leave_peers()
        self._events.stop()
        self._there.close()

    # ---- all of it ----

    async def list_all(self, _request: models.Empty) -> models.EverythingView:
        return models.EverythingView(switches=self.switches.views(), ports=self.ports.views())

    async def config(self, _request: models.Empty) -> models.Configuration:
        # Not in the middle of a change: whoever gave up waiting for one wants to know what became of it.
        async with self._there.change:
            return models.Configuration(
                switches=[managed.config for managed in self._there.switches.values()],
                ports=[managed.config for managed in self._there.ports.values()],
                failed={name: managed.error for name, managed in self._there.ports.items() if managed.error},
                owners=self._there.owners(),
            )

    async def stats(self, _request: models.Empty) -> models.StatsView:
        snapshot = self._there.stats.read()
        names = self._there.names_by_id
        return models.StatsView(
            time=time.time(),
            path=str(self.paths.stats),
            ports={
                names[port_id]: dict(counters)
                for port_id, counters in snapshot.by_port().items()
                if port_id in names
            },
            workers=[worker.counters for worker in snapshot.workers],
        )

    async def status(self, _request: models.Empty) -> models.Status:
        views = self.ports.views()
        return models.Status(
            version=__version__,
            pid=os.getpid(),
            runtime_dir=str(self.paths.runtime),
            state_dir=str(self.paths.state),
            uptime_s=round(time.monotonic() - self._started, 3),
            workers=self.settings.workers,
            switches=len(self._there.switches),
            ports=len(views),
            ports_up=sum(view.state == "up" for view in views),
            clients=self._rpc.clients,
            keeper=self._keeping.view(),
        )

    async def methods(self, _request: models.Empty) -> models.MethodList:
        return models.MethodList(
            methods=[
                models.MethodView(
                    name=method.name,
                    doc=method.doc,
                    params=method.params.model_json_schema(),
                    result=method.result.model_json_schema(mode="serialization"),
                )
                for method in self._methods.values()
            ]
        )

    async def request_stop(self, request: models.StopRequest) -> Acknowledged:
        """Whoever runs the daemon waits for `stopping`, and stops it once this has been answered."""
        if request.keep is not None:
            self.keep = request.keep
        self.stopping.set()
        return Acknowledged(changed=True)


def _new_stats_file(path: Path) -> int:
    """A new file under the old name: whoever still maps the old one keeps it as it was."""
    beside = path.with_suffix(".new")
    fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    beside.rename(path)
    return fd
