# SPDX-License-Identifier: BSD-2-Clause
"""An engine, a switch and vhost-user ports in this process, their event loop in a thread of its own.

What vptd does, without vptd: the front-ends of a test block in the test's thread. All control calls go
through the loop's thread, as the data plane demands.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from support.apps import AppPeer
from support.leaks import open_things
from support.waiting import until
from vpt.closing import Closing
from vpt.daemon.ratelimit import PortLog
from vpt.daemon.sockets import PeerCredentials
from vpt.daemon.transports.base import Settings
from vpt.daemon.transports.vhost import Memory
from vpt.daemon.transports.vhost_user import VhostUserTransport
from vpt.dataplane import (
    Engine,
    Event,
    EventType,
    Kind,
    Policy,
    PolicyKind,
    Port,
    PortState,
    Rules,
    StatsReader,
    Switch,
)

T = TypeVar("T")
LOG = logging.getLogger("vpt.test")


@dataclass(slots=True)
class VhostPort:
    """A port, its transport and where to connect."""

    host: Host
    port: Port
    transport: VhostUserTransport
    path: Path
    settings: Settings

    def until_left(self) -> None:
        """Wait until its front-end has gone, and the transport has seen it."""
        until(lambda: not self.describe["connected"], f"the front-end of {self.port.name} to have left")

    def state(self) -> PortState:
        """As the data plane has it."""
        return self.host.call(self.port.state)

    def adapt(self, **changes: Any) -> None:
        """Change settings that concern the front-end, as vptd does; by the names of Settings."""
        self.settings = replace(self.settings, **changes)
        self.host.call(lambda: self.transport.adapt(self.settings))

    def set_mtu(self, mtu: int) -> None:
        """Change the MTU, as vptd does."""
        self.host.call(lambda: self.port.set_mtu(mtu))
        self.adapt(mtu=mtu)

    def set_policy(self, policy: Policy) -> None:
        """Change the policy, as vptd does."""
        self.host.call(lambda: self.port.set_policy(policy))
        self.adapt(polls=policy.kind is PolicyKind.POLL)

    def set_rules(self, rules: Rules) -> None:
        """What its peer may send, and gets."""
        self.host.call(lambda: self.port.set_rules(rules))

    @property
    def closing(self) -> int:
        """Descriptors that front-ends have sent and that are not closed yet."""
        return self.host.call(lambda: self.transport.closer.pending)

    @property
    def peer(self) -> PeerCredentials | None:
        """Its front-end, as the transport tells it."""
        return self.host.call(lambda: self.transport.peer)

    @property
    def describe(self) -> dict[str, Any]:
        """As the transport tells it."""
        return self.host.call(self.transport.describe)

    @property
    def faults(self) -> dict[str, int]:
        """The transport's counters."""
        counters: dict[str, int] = self.describe["counters"]
        return counters

    @property
    def counters(self) -> Counter[str]:
        """The data plane's counters."""
        return self.host.counters(self.port)


class Host(Closing):
    """One engine and one switch. workers: how many threads move packets.

    events: of the vhost-user ports, so far.
    """

    def __init__(self, directory: Path, *, workers: int = 1) -> None:
        self._directory = directory
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="host")
        self._thread.start()
        self._transports: dict[int, VhostUserTransport] = {}
        self._apps: dict[int, AppPeer] = {}
        self.vhost_ports: list[VhostPort] = []
        self.events: list[Event] = []
        self.engine: Engine = self.call(lambda: Engine(workers))
        self.switch: Switch = self.call(lambda: self.engine.add_switch("sw0"))
        self.stats = StatsReader(self.engine.stats_fd)
        self._loop.call_soon_threadsafe(self._loop.add_reader, self.engine.event_fd, self._on_events)

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the loop's thread."""

        async def run() -> T:
            return function()

        return self.run(run())

    def open_things(self) -> Counter[str]:
        """What this process holds, looked at while the loop is not in the middle of anything.

        Nor a closer: what front-ends have left behind is closed in threads.
        """
        closers = [transport.closer for transport in self._transports.values()]
        until(lambda: not self.call(lambda: sum(c.pending for c in closers)), "all to be closed")
        return self.call(open_things)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The loop takes nothing that arrives meanwhile, and then all of it."""
        held, go_on = threading.Event(), threading.Event()
        self._loop.call_soon_threadsafe(lambda: (held.set(), go_on.wait()))
        held.wait()
        try:
            yield
        finally:
            go_on.set()

    def vhost(
        self,
        name: str,
        *,
        pairs: int = 1,
        mtu: int = 1500,
        mac: str | bytes | None = None,
        in_band: bool = False,
        message_timeout_s: float = 10.0,
        watch_s: float = 2.0,
        calm_s: float = 1.0,
        remember: bool = False,
        switch: Switch | None = None,
        **port: Any,
    ) -> VhostPort:
        """Add a vhost-user port, to the first switch if to no other, and listen."""
        sw = switch or self.switch
        port.setdefault("policy", Policy.adaptive(20))
        p = self.call(lambda: sw.add_port(name, Kind.VHOST_USER, pairs=pairs, mtu=mtu, mac=mac, **port))
        path = self._directory / f"{name}.sock"
        settings = Settings(mtu=mtu, polls=port["policy"].kind is PolicyKind.POLL)
        transport = VhostUserTransport(
            p,
            socket_path=path,
            log=PortLog(LOG, name),
            max_pairs=pairs,
            settings=settings,
            mac=bytes.fromhex(mac.replace(":", "")) if isinstance(mac, str) else mac,
            in_band=in_band,
            message_timeout_s=message_timeout_s,
            memory=Memory(self._directory / f"{name}.negotiated") if remember else None,
            watch_s=watch_s,
            calm_s=calm_s,
        )
        self.run(transport.start())
        self._transports[p.id] = transport
        self.vhost_ports.append(VhostPort(self, p, transport, path, settings))
        return self.vhost_ports[-1]

    def app(self, name: str, *, switch: Switch | None = None, **port: Any) -> AppPeer:
        """Add an app port with an application that is ready, to the first switch if to no other."""
        port.setdefault("policy", Policy.adaptive(20))

        def add() -> AppPeer:
            peer = AppPeer(switch or self.switch, name, **port)
            self._apps[peer.port.id] = peer
            return peer

        peer = self.call(add)
        until(peer.open().step, f"the handshake of {name}")
        return peer

    def remove_app(self, peer: AppPeer) -> None:
        """Take an app port and its application away."""
        del self._apps[peer.port.id]
        self.call(peer.close)

    def null(self, name: str) -> Port:
        """Add a port that swallows all."""
        return self.call(lambda: self.switch.add_port(name, Kind.NULL, touch=True))

    def counters(self, port: Port) -> Counter[str]:
        """A port's counters, summed over its queues."""
        return self.stats.read().port(port.id)

    def remove(self, port: VhostPort) -> None:
        """Take a vhost-user port away."""
        self.begin_removal(port).result(30)

    def begin_removal(self, port: VhostPort) -> Future[None]:
        """As soon as the loop has its turn."""

        async def remove() -> None:
            await port.transport.stop()
            del self._transports[port.port.id]
            self.vhost_ports.remove(port)
            port.port.delete()

        return asyncio.run_coroutine_threadsafe(remove(), self._loop)

    def close(self) -> None:
        """Stop all."""
        for transport in self._transports.values():
            self.run(transport.stop())
        self.call(lambda: self._loop.remove_reader(self.engine.event_fd))
        self.stats.close()
        self.call(self.engine.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _on_events(self) -> None:
        for event in self.engine.events():
            if event.port_id in self._apps:
                if event.type is EventType.STATUS:
                    self._apps[event.port_id].port.ring_status()
                continue
            self.events.append(event)
            transport = self._transports.get(event.port_id)
            if transport is not None:
                transport.on_event(event)
