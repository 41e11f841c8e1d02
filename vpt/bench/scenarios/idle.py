# SPDX-License-Identifier: BSD-2-Clause
"""idle: what ports cost on which nothing happens.

The CPU time is that of the threads that were started for it (/proc/self/task): the engine's, and vptd's own.
An application is attached to each port and has finished its handshake.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from typing import ClassVar

from vpt.bench.result import Metric, Plot
from vpt.bench.scenario import Measured, Params, Runnable, Scenario, Settings
from vpt.bench.scenarios._ports import app_port, tasks
from vpt.daemon.daemon import Settings as DaemonSettings
from vpt.daemon.embedded import EmbeddedDaemon
from vpt.daemon.models import PortAdd, SwitchAdd
from vpt.daemon.runtime import private
from vpt.daemon.transports.unix import open_app
from vpt.dataplane import Engine, Policy, StatsReader

__all__ = ["SCENARIO"]

_PORTS = (1, 20, 100)
_SECONDS = 1.0
_SETTLE_S = 0.1
_SLOTS = 64
_POLICIES = {
    "adaptive": Policy.adaptive(),
    "notify": Policy.notify(),
    "sleep 1000 us": Policy.sleep(1000),
}


class _Idle(Scenario):
    name: ClassVar[str] = "idle"
    title: ClassVar[str] = "CPU of a data plane with ports on which nothing happens"
    metrics: ClassVar[Sequence[Metric]] = (
        Metric(name="cpu", unit="% of a core", better="lower", title="CPU"),
        Metric(name="loops", unit="per s", better="lower", title="Turns of the worker"),
        Metric(name="syscalls", unit="per s", better="lower", title="System calls of the worker"),
    )
    reference: ClassVar[str | None] = "notify"
    plots: ClassVar[Sequence[Plot]] = (
        Plot(
            title="CPU of idle ports",
            x="ports",
            y=["cpu"],
            x_label="ports",
            y_label="% of a core",
            style="bar",
            log_y=True,
        ),
    )

    def points(self, settings: Settings) -> Sequence[Params]:  # noqa: ARG002
        return [{"ports": n} for n in _PORTS]

    @contextmanager
    def session(self, params: Params, settings: Settings) -> Iterator[Mapping[str, Runnable]]:
        ports, seconds = int(params["ports"]), _SECONDS * settings.scale
        variants: dict[str, Runnable] = {
            name: partial(_measure, partial(_engine, policy, ports), seconds)
            for name, policy in _POLICIES.items()
        }
        yield {"vptd, adaptive": partial(_measure, partial(_vptd, ports), seconds), **variants}


Counters = Callable[[], dict[str, int]]


@contextmanager
def _engine(policy: Policy, ports: int) -> Iterator[Counters]:
    """An engine with one worker; yields a way to read that worker's counters."""
    with ExitStack() as stack:
        engine = stack.enter_context(Engine(workers=1))
        switch = engine.add_switch("s")
        for i in range(ports):
            stack.enter_context(app_port(engine, switch, i + 1, policy, num_slots=_SLOTS))
        stats = stack.enter_context(StatsReader(engine.stats_fd))
        yield lambda: stats.read().workers[0].counters


@contextmanager
def _vptd(ports: int) -> Iterator[Counters]:
    """The whole daemon in a thread of its own, its sockets included; ports as it makes them by default."""
    with ExitStack() as stack:
        paths = private(stack.enter_context(TemporaryDirectory(prefix="vpt-bench-")))
        daemon = stack.enter_context(EmbeddedDaemon(DaemonSettings(paths, keeper=False)))
        daemon.call(lambda d: d.switches.add(SwitchAdd(name="s")))
        for i in range(ports):
            port = PortAdd(name=f"p{i}", switch="s", kind="app", slots=_SLOTS)
            view = daemon.add_port(port)
            stack.callback(open_app(str(view.socket)).close)
        stats = stack.enter_context(StatsReader(paths.stats))
        yield lambda: stats.read().workers[0].counters


def _measure(make: Callable[[], AbstractContextManager[Counters]], seconds: float) -> Measured:
    """Made anew for each repetition: two at once would count each other's turns."""
    others = set(tasks())
    with make() as counters:
        time.sleep(_SETTLE_S)
        before, cpu = counters(), _spent(others)
        began = time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        cpu, after = _spent(others) - cpu, counters()
    return Measured(
        {
            "cpu": cpu / took / 1e9 * 100,
            "loops": (after["loops"] - before["loops"]) / took,
            "syscalls": (after["syscalls"] - before["syscalls"]) / took,
        }
    )


def _spent(others: set[int]) -> int:
    """Nanoseconds of CPU of the threads that were not there before."""
    return sum(ns for tid, ns in tasks().items() if tid not in others)


SCENARIO = _Idle()
