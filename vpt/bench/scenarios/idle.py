# SPDX-License-Identifier: BSD-2-Clause
"""idle: what ports cost on which nothing happens.

The CPU time is that of the engine's own threads (/proc/self/task), so neither Python nor the terminal counts.
An application is attached to each port and has finished its handshake.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import ClassVar

from vpt.bench.result import Metric, Plot
from vpt.bench.scenario import Measured, Params, Runnable, Scenario, Settings
from vpt.bench.scenarios._ports import app_port, tasks
from vpt.dataplane import Engine, Policy, StatsReader

__all__ = ["SCENARIO"]

_PORTS = (1, 20, 100)
_SECONDS = 1.0
_SETTLE_S = 0.1
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
        ),
    )

    def points(self, settings: Settings) -> Sequence[Params]:  # noqa: ARG002
        return [{"ports": n} for n in _PORTS]

    @contextmanager
    def session(self, params: Params, settings: Settings) -> Iterator[Mapping[str, Runnable]]:
        seconds = _SECONDS * settings.scale
        ports = int(params["ports"])
        yield {name: partial(_idle, ports, policy, seconds) for name, policy in _POLICIES.items()}


def _idle(ports: int, policy: Policy, seconds: float) -> Measured:
    """One engine, made for this repetition: two at once would count each other's turns."""
    others = set(tasks())
    with ExitStack() as stack:
        engine = stack.enter_context(Engine(workers=1))
        switch = engine.add_switch("s")
        for i in range(ports):
            stack.enter_context(app_port(engine, switch, i + 1, policy, num_slots=64))
        stats = stack.enter_context(StatsReader(engine.stats_fd))
        time.sleep(_SETTLE_S)
        before, cpu = stats.read().workers[0].counters, _spent(others)
        began = time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        cpu, after = _spent(others) - cpu, stats.read().workers[0].counters
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
