# SPDX-License-Identifier: BSD-2-Clause
"""The daemon as an object: engine, switches, ports, journal, keeper and control socket in one asyncio loop.

    daemon = Daemon(Settings(paths=locate("/tmp/x")))
    await daemon.start()
    await daemon.port_add(PortAdd(name="vm1", switch="sw0", kind="passthrough"))
    ...
    await daemon.stop()

What the control socket's methods do is here, as coroutines that take and return models; `vpt.daemon.methods`
is the table. Changes are made one at a time, in this order: the data plane and the sockets, the journal, the
answer. So what was acknowledged survives a crash, and what a crash cut short is found to be in nobody's
journal and cleared away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from vpt import __version__
from vpt.daemon import journal, models
from vpt.daemon.keeper_client import KeeperClient
from vpt.daemon.models import Acknowledged, PortConfig, PortDetail, PortView, SwitchConfig, SwitchView
from vpt.daemon.ports import Context, ManagedPort, bring_up, policy_of, socket_path
from vpt.daemon.ratelimit import PortLog
from vpt.daemon.rpc import Method, RpcServer
from vpt.daemon.runtime import Lock, RuntimePaths
from vpt.daemon.shelf import Shelf
from vpt.daemon.sockets import listen_unix
from vpt.dataplane import Engine, Feature, Reason, StatsReader, Switch
from vpt.errors import ConflictError, ExistsError, NotFoundError, VptError

__all__ = ["Daemon", "Settings"]

_log = logging.getLogger("vpt.daemon")

# Events handled before other clients of the loop get their turn.
_EVENTS_PER_WAKE = 64
_KEEPER_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How a daemon runs.

    keeper:   let a separate process hold guests' memory; without, it ends with this process
    keep:     at a clean stop, leave the keeper its guests
    group:    id of the group that the sockets belong to, none: the process's own
    linger_s: how long the keeper outlives us when no peer is connected
    """

    paths: RuntimePaths
    workers: int = 1
    cpus: tuple[int, ...] = ()
    keeper: bool = True
    keep: bool = True
    group: int | None = None
    linger_s: float = 60.0


@dataclass(slots=True)
class _ManagedSwitch:
    config: SwitchConfig
    switch: Switch
    ports: set[str] = field(default_factory=set)


class Daemon:
    """One vptd. start() and stop() once each; everything in the thread of the loop that started it."""

    def __init__(self, settings: Settings) -> None:
        from vpt.daemon.methods import method_table

        self.settings = settings
        self.paths = settings.paths
        self.stopping = asyncio.Event()
        self.keep = settings.keep
        self._switches: dict[str, _ManagedSwitch] = {}
        self._ports: dict[str, ManagedPort] = {}
        self._names_by_id: dict[int, str] = {}
        self._change = asyncio.Lock()
        self._cleanup = contextlib.AsyncExitStack()
        self._engine: Engine | None = None
        self._stats: StatsReader | None = None
        self._methods: dict[str, Method] = method_table(self)
        self._rpc = RpcServer(self._methods, _log)
        self._keeper: KeeperClient | None = None
        self._shelf: Shelf | None = None
        self._recovery: asyncio.Task[None] | None = None
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
        self.paths.create()
        self._cleanup.callback(Lock(self.paths.lock, "vptd").release)
        if self.paths.state != self.paths.runtime:
            self._cleanup.callback(Lock(self.paths.state / "lock", "vptd").release)
        state = journal.load(self.paths.journal)
        self._open_engine()
        if self.settings.keeper:
            self._keeper = KeeperClient(
                self.paths,
                linger_s=self.settings.linger_s,
                log=_log,
                on_change=self._peer_changed,
                on_lost=self._keeper_lost,
            )
            if self.paths.keeper_socket.exists():
                await self._need_keeper()
        else:
            self._shelf = Shelf(_log, self._peer_changed)
        # Whoever comes back first has nobody to send to yet: its packets wait in its rings.
        assert self._engine is not None
        self._engine.hold(True)
        await self._restore(state)
        self._engine.hold(False)
        await self._rpc.start(
            listen_unix(self.paths.control, mode=0o660, group=self.settings.group, replace_stale=True)
        )
        _log.info("listening on %s", self.paths.control)

    def _open_engine(self) -> None:
        fd = _new_stats_file(self.paths.stats)
        self._cleanup.callback(self.paths.stats.unlink, missing_ok=True)
        try:
            self._engine = Engine(self.settings.workers, self.settings.cpus or None, fd)
        finally:
            os.close(fd)
        self._stats = StatsReader(self._engine.stats_fd)
        asyncio.get_running_loop().add_reader(self._engine.event_fd, self._take_events)

    async def _restore(self, state: journal.State) -> None:
        for switch in state.switches:
            self._add_switch(switch)
        for port in state.ports:
            await self._restore_port(port)
        if self._keeper is not None and self._keeper.connected:
            for name in await self._keeper.names():
                if name not in self._ports:
                    _log.warning("port=%s is in the keeper and not in the journal: dropped", name)
                    await self._keeper.drop(name)

    async def _restore_port(self, config: PortConfig) -> None:
        try:
            await self._bring_up(config, restoring=True)
        except VptError as error:
            log = PortLog(_log, config.name)
            log.error("could not be restored: %s%s", error, f" ({error.hint})" if error.hint else "")
            self._ports[config.name] = ManagedPort(config, log, error=str(error))
            self._switches[config.switch].ports.add(config.name)

    async def stop(self, *, keep: bool | None = None) -> None:
        """Stop forwarding and remove our sockets.

        keep: leave the keeper what it holds. Harmless the second time.
        """
        keep = self.keep if keep is None else keep
        self.stopping.set()
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)
        await self._rpc.stop()
        async with self._change:
            await self._stop_forwarding()
        await self._leave_keeper(keep)
        await self._cleanup.aclose()

    async def _stop_forwarding(self) -> None:
        if self._engine is not None:
            # What is not taken any more is still there when we come back.
            self._engine.hold(True)
        for managed in self._ports.values():
            if managed.ring is not None and self._keeper is not None:
                managed.ring.leave()
            elif managed.transport is not None:
                await managed.transport.stop()
        self._ports.clear()
        if self._stats is not None:
            self._stats.close()
        if self._engine is not None:
            asyncio.get_running_loop().remove_reader(self._engine.event_fd)
            self._engine.close()
            self._engine = None
        if self._shelf is not None:
            await self._shelf.close()

    async def _leave_keeper(self, keep: bool) -> None:
        if self._keeper is None:
            return
        if keep:
            await self._keeper.close()
            return
        try:
            await self._keeper.stop_keeper()
        except VptError as error:
            _log.warning("keeper: %s", error)

    # ---- events ----

    def _take_events(self) -> None:
        assert self._engine is not None
        for _ in range(_EVENTS_PER_WAKE):
            event = self._engine.next_event()
            if event is None:
                return
            managed = self._ports.get(self._names_by_id.get(event.port_id, ""))
            if managed is None or managed.transport is None:
                continue
            managed.transport.on_event(event)

    def _peer_changed(self, name: str) -> None:
        managed = self._ports.get(name)
        if managed is not None and managed.ring is not None:
            peer = self._holder().peer(name)
            managed.log.info("peer %s", f"connected pid={peer.pid}" if peer else "disconnected")

    def _keeper_lost(self) -> None:
        if not self.stopping.is_set():
            _log.warning("the keeper is gone; guests go on, and a new one is started")
            self._recovery = asyncio.create_task(self._replace_keeper())

    async def _replace_keeper(self) -> None:
        while True:
            try:
                async with self._change:
                    await self._need_keeper()
                return
            except VptError as error:
                _log.error("keeper: %s", error)
            await asyncio.sleep(_KEEPER_RETRY_S)

    async def _need_keeper(self) -> None:
        """Connect to the keeper, if there is to be one, and give a new one what we have. Under the lock."""
        if self._keeper is None or self._keeper.connected:
            return
        await self._keeper.connect()
        kept = set(await self._keeper.names())
        for name, managed in self._ports.items():
            if managed.ring is None or name in kept:
                continue
            try:
                await managed.ring.entrust()
            except VptError as error:
                managed.log.error("its socket is gone: %s", error)

    # ---- switches ----

    def _add_switch(self, config: SwitchConfig) -> None:
        assert self._engine is not None
        switch = self._engine.add_switch(config.name, config.mac_entries, config.mac_age_s)
        self._switches[config.name] = _ManagedSwitch(config, switch)

    def _switch(self, name: str) -> _ManagedSwitch:
        switch = self._switches.get(name)
        if switch is None:
            raise NotFoundError(
                f"no switch {name!r}", hint=f"add it: vpt switch add {name}; see: vpt switch list"
            )
        return switch

    async def switch_add(self, request: models.SwitchAdd) -> Acknowledged:
        async with self._change:
            config = request.config()
            existing = self._switches.get(config.name)
            if existing is not None and request.may_exist:
                _same_settings(existing.config, config)
                return Acknowledged(changed=False)
            self._check_name(config.name)
            self._add_switch(config)
            try:
                await self._save()
            except BaseException:
                self._switches.pop(config.name).switch.delete()
                raise
            _log.info("switch=%s added", config.name)
            return Acknowledged(changed=True)

    async def switch_del(self, request: models.SwitchRemove) -> Acknowledged:
        async with self._change:
            if request.name not in self._switches and request.if_exists:
                return Acknowledged(changed=False)
            managed = self._switch(request.name)
            if managed.ports:
                names = ", ".join(sorted(managed.ports)[:5])
                raise ConflictError(
                    f"switch {request.name!r} still has ports: {names}",
                    hint=f"delete them first: vpt port del {sorted(managed.ports)[0]}",
                )
            del self._switches[request.name]
            try:
                await self._save()
            except BaseException:
                self._switches[request.name] = managed
                raise
            managed.switch.delete()
            _log.info("switch=%s deleted", request.name)
            return Acknowledged(changed=True)

    async def switch_list(self, _request: models.Empty) -> models.SwitchList:
        return models.SwitchList(switches=self._switch_views())

    async def switch_macs(self, request: models.SwitchName) -> models.MacList:
        managed = self._switch(request.name)
        macs = [
            models.MacView(mac=entry.mac, port=self._names_by_id.get(entry.port_id, "?"), age_s=entry.age_s)
            for entry in managed.switch.macs()
        ]
        return models.MacList(switch=request.name, macs=macs)

    def _switch_views(self) -> list[SwitchView]:
        return [
            SwitchView(
                name=name,
                mac_entries=managed.config.mac_entries,
                mac_age_s=managed.config.mac_age_s,
                macs=managed.switch.mac_count(),
                ports=sorted(managed.ports),
            )
            for name, managed in sorted(self._switches.items())
        ]

    # ---- ports ----

    async def _bring_up(self, config: PortConfig, *, restoring: bool) -> None:
        switch = self._switch(config.switch)
        if config.worker is not None and config.worker >= self.settings.workers:
            raise ConflictError(
                f"port {config.name!r} asks for worker {config.worker}, and this vptd has"
                f" {self.settings.workers}, counted from 0",
                hint="leave worker out, or start vptd with more: vpt daemon start --workers NUMBER",
            )
        if config.kind in models.RING_KINDS:
            await self._need_keeper()
        context = Context(self.paths, self._holder(), self.settings.group, restoring)
        managed = await bring_up(config, switch.switch, context)
        assert managed.port is not None
        self._ports[config.name] = managed
        self._names_by_id[managed.port.id] = config.name
        switch.ports.add(config.name)

    async def _take_down(self, managed: ManagedPort) -> None:
        """Undo _bring_up(); a transport that fails in this is logged, the port goes all the same."""
        name = managed.config.name
        self._ports.pop(name, None)
        self._switches[managed.config.switch].ports.discard(name)
        if managed.transport is not None:
            try:
                await managed.transport.stop()
            except VptError as error:
                managed.log.warning("not stopped cleanly: %s", error)
        if managed.port is not None:
            self._names_by_id.pop(managed.port.id, None)
            managed.port.delete()

    def _holder(self) -> KeeperClient | Shelf:
        holder = self._keeper or self._shelf
        assert holder is not None
        return holder

    def _port(self, name: str) -> ManagedPort:
        managed = self._ports.get(name)
        if managed is None:
            raise NotFoundError(f"no port {name!r}", hint="see them with: vpt port list")
        return managed

    async def port_add(self, request: models.PortAdd) -> PortView:
        async with self._change:
            config = request.config()
            existing = self._ports.get(config.name)
            if existing is not None and request.may_exist:
                _same_settings(existing.config, config)
                return self._view(existing)
            self._check_name(config.name)
            self._check_socket(config)
            await self._bring_up(config, restoring=False)
            managed = self._ports[config.name]
            try:
                await self._save()
            except BaseException:
                await self._take_down(managed)
                raise
            _log.info("port=%s added kind=%s switch=%s", config.name, config.kind, config.switch)
            return self._view(managed)

    async def port_del(self, request: models.PortRemove) -> Acknowledged:
        async with self._change:
            if request.name not in self._ports and request.if_exists:
                return Acknowledged(changed=False)
            managed = self._port(request.name)
            del self._ports[request.name]
            try:
                await self._save()
            except BaseException:
                self._ports[request.name] = managed
                raise
            await self._take_down(managed)
            _log.info("port=%s deleted", request.name)
            return Acknowledged(changed=True)

    async def port_set(self, request: models.PortSet) -> PortView:
        async with self._change:
            managed = self._port(request.name)
            if managed.port is None:
                raise ConflictError(
                    f"port {request.name!r} is not there: {managed.error}",
                    hint=f"delete it and add it again: vpt port del {request.name}",
                )
            before = managed.config
            after = _changed(before, request)
            self._apply(managed, after)
            try:
                await self._save()
            except BaseException:
                self._apply(managed, before)
                raise
            return self._view(managed)

    def _apply(self, managed: ManagedPort, config: PortConfig) -> None:
        assert managed.port is not None
        if config.policy != managed.config.policy:
            managed.port.set_policy(policy_of(config.policy))
        if config.link != managed.config.link:
            managed.port.set_link(config.link == "up")
        managed.config = config

    async def port_list(self, request: models.NullableName) -> models.PortList:
        if request.switch is not None:
            self._switch(request.switch)
        return models.PortList(ports=self._views(request.switch))

    async def port_show(self, request: models.PortName) -> PortDetail:
        managed = self._port(request.name)
        features, counters = 0, {}
        if managed.port is not None:
            assert self._stats is not None
            features = managed.port.state().features
            counters = dict(self._stats.read().port(managed.port.id))
        return PortDetail(
            **self._view(managed).model_dump(),
            lossless=managed.config.lossless,
            max_macs=managed.config.max_macs,
            features=_feature_names(features),
            transport=managed.transport.describe() if managed.transport else {},
            counters=counters,
        )

    def _views(self, switch: str | None = None) -> list[PortView]:
        return [
            self._view(managed)
            for _, managed in sorted(self._ports.items())
            if switch is None or managed.config.switch == switch
        ]

    def _view(self, managed: ManagedPort) -> PortView:
        config = managed.config
        view = PortView(
            name=config.name,
            switch=config.switch,
            kind=config.kind,
            id=None,
            state="failed",
            reason=managed.error,
            link=config.link,
            pairs=config.pairs,
            mac=config.mac,
            mtu=config.mtu,
            policy=config.policy,
            worker=None,
            driver=None,
            socket=socket_path(config, self.paths),
        )
        if managed.port is None:
            return view
        state = managed.port.state()
        view.id = managed.port.id
        view.worker = state.worker
        view.driver = state.driver or None
        if state.reason != Reason.NONE:
            view.state, view.reason = "broken", state.reason.label
        else:
            view.state, view.reason = "up" if state.up else "down", None
        return view

    # ---- all of it ----

    async def list_all(self, _request: models.Empty) -> models.EverythingView:
        return models.EverythingView(switches=self._switch_views(), ports=self._views())

    async def config(self, _request: models.Empty) -> models.Configuration:
        # Not in the middle of a change: whoever gave up waiting for one wants to know what became of it.
        async with self._change:
            return models.Configuration(
                switches=[managed.config for managed in self._switches.values()],
                ports=[managed.config for managed in self._ports.values()],
                failed={name: managed.error for name, managed in self._ports.items() if managed.error},
            )

    async def stats(self, _request: models.Empty) -> models.StatsView:
        assert self._stats is not None
        snapshot = self._stats.read()
        return models.StatsView(
            time=time.time(),
            path=str(self.paths.stats),
            ports={
                self._names_by_id[port_id]: dict(counters)
                for port_id, counters in snapshot.by_port().items()
                if port_id in self._names_by_id
            },
            workers=[worker.counters for worker in snapshot.workers],
        )

    async def status(self, _request: models.Empty) -> models.Status:
        views = self._views()
        keeper = None
        if self._keeper is not None:
            held = sum(managed.ring is not None for managed in self._ports.values())
            keeper = models.KeeperView(pid=self._keeper.pid, ports=held)
        return models.Status(
            version=__version__,
            pid=os.getpid(),
            runtime_dir=str(self.paths.runtime),
            state_dir=str(self.paths.state),
            uptime_s=round(time.monotonic() - self._started, 3),
            workers=self.settings.workers,
            switches=len(self._switches),
            ports=len(views),
            ports_up=sum(view.state == "up" for view in views),
            clients=self._rpc.clients,
            keeper=keeper,
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

    # ---- helpers ----

    def _check_name(self, name: str) -> None:
        """Switches and ports share one space of names, so that `vpt show NAME` is never ambiguous."""
        taken = "switch" if name in self._switches else "port" if name in self._ports else None
        if taken:
            raise ExistsError(
                f"there is a {taken} {name!r} already",
                hint=f"see it: vpt show {name}; --may-exist accepts one that is the same",
            )

    def _check_socket(self, config: PortConfig) -> None:
        path = socket_path(config, self.paths)
        for other in self._ports.values():
            if path is not None and socket_path(other.config, self.paths) == path:
                raise ExistsError(
                    f"port {other.config.name!r} uses the socket {path}", hint="choose another path"
                )

    async def _save(self) -> None:
        state = journal.State(
            switches=[managed.config for managed in self._switches.values()],
            ports=[managed.config for managed in self._ports.values()],
        )
        try:
            await asyncio.to_thread(journal.store, self.paths.journal, state)
        except OSError as error:
            raise ConflictError(
                f"the journal can't be written, so nothing was changed: {error.strerror}",
                hint=f"df -h {self.paths.state}; ls -l {self.paths.journal}",
            ) from error


def _new_stats_file(path: Path) -> int:
    """A new file under the old name: whoever still maps the old one keeps it as it was."""
    beside = path.with_suffix(".new")
    fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    beside.rename(path)
    return fd


def _same_settings(existing: SwitchConfig | PortConfig, wanted: SwitchConfig | PortConfig) -> None:
    """--may-exist accepts what is there only if it is what was asked for."""
    have, want = existing.model_dump(), wanted.model_dump()
    different = [f"{key} is {have[key]!r}, not {want[key]!r}" for key in want if have[key] != want[key]]
    if different:
        raise ExistsError(
            f"{wanted.name!r} exists with other settings: {'; '.join(different)}",
            hint="delete it first, or ask for what it is",
        )


def _changed(config: PortConfig, request: models.PortSet) -> PortConfig:
    policy = config.policy.model_copy(
        update={
            key: value
            for key, value in (
                ("kind", request.policy),
                ("spin_us", request.spin_us),
                ("sleep_us", request.sleep_us),
            )
            if value is not None
        }
    )
    return config.model_copy(update={"policy": policy, "link": request.link or config.link})


def _feature_names(features: int) -> str:
    known = [flag.name.lower() for flag in Feature if features & flag and flag.name]
    rest = features & ~sum(Feature)
    return " ".join([*known, *([hex(rest)] if rest else [])])
