# SPDX-License-Identifier: BSD-2-Clause
"""wake: how long a lone packet takes from one app port through the switch to another, when nothing went
before.

The sender waits between packets, so that the worker does what its policy says when it is idle; the receiver
spins, so that only the worker's awakening counts. The clock is Python's: `poll` shows what is left without
any awakening.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import ClassVar

from vpt.bench.result import Metric, Plot
from vpt.bench.scenario import Measured, Params, Runnable, Scenario, Settings
from vpt.bench.scenarios._latency import PERCENTILES, log_log, percentile_metrics, percentiles
from vpt.bench.scenarios._ports import Ends, app_port, other_cpus, tasks, undisturbed, worker_cpu
from vpt.dataplane import Engine, Policy
from vpt.errors import TimeoutExpired

__all__ = ["SCENARIO"]

_GAPS_US = (20, 200, 2000)
_PACKETS = 300
_SLOTS = 64
_LIMIT_NS = 2_000_000_000
_POLICIES = {
    "poll": Policy.poll(),
    "adaptive 50 us": Policy.adaptive(50),
    "notify": Policy.notify(),
    "sleep 50 us": Policy.sleep(50),
}
_PAUSE = "gap_us", "pause between packets, us"


class _Wake(Scenario):
    name: ClassVar[str] = "wake"
    title: ClassVar[str] = "Latency of a lone packet from app port to app port, by policy"
    metrics: ClassVar[Sequence[Metric]] = percentile_metrics("Latency")
    reference: ClassVar[str | None] = "poll"
    plots: ClassVar[Sequence[Plot]] = (
        log_log("Median latency of a lone packet", "p50", *_PAUSE),
        log_log("99th percentile", "p99", *_PAUSE),
        Plot(
            title="Percentiles, after a pause of 200 us",
            x="",
            where={"gap_us": 200},
            y=list(PERCENTILES),
            x_label="percentile",
            y_label="us",
            style="profile",
        ),
    )

    def points(self, settings: Settings) -> Sequence[Params]:  # noqa: ARG002
        return [{"gap_us": gap} for gap in _GAPS_US]

    @contextmanager
    def session(self, params: Params, settings: Settings) -> Iterator[Mapping[str, Runnable]]:
        packets, gap = max(100, int(_PACKETS * settings.scale)), int(params["gap_us"])
        cpu = worker_cpu(settings.cpus)
        with other_cpus(settings.cpus):
            yield {
                name: partial(_wake, policy, gap, packets, cpu, settings.realtime)
                for name, policy in _POLICIES.items()
            }


def _wake(policy: Policy, gap_us: int, packets: int, cpu: int, realtime: bool) -> Measured:
    others = tasks().keys()
    with (
        Engine(workers=1, cpus=[cpu]) as engine,
        app_port(engine, engine.add_switch("s"), 1, policy, _SLOTS) as source,
        app_port(engine, source.port.switch, 2, policy, _SLOTS) as sink,
    ):
        frame = bytes.fromhex((sink.mac + source.mac).replace(":", "")) + b"\x88\xb5" + bytes(46)
        # A lap and more around the rings: each buffer's first touch is a page fault on either side.
        for _ in range(2 * _SLOTS):
            _lone(source, sink, frame)
        late = []
        with undisturbed(tasks().keys() - others, realtime):
            for _ in range(packets):
                _pause(gap_us)
                late.append(_lone(source, sink, frame) / 1000)
    return Measured(percentiles(late), {"latency_us": late})


def _pause(us: int) -> None:
    """Sleep; below a timer's precision, spin."""
    if us >= 1000:
        time.sleep(us / 1e6)
        return
    end = time.perf_counter_ns() + us * 1000
    while time.perf_counter_ns() < end:
        pass


def _lone(source: Ends, sink: Ends, frame: bytes) -> int:
    """Send one packet and wait for it; nanoseconds."""
    recv = sink.app.recv
    began = time.perf_counter_ns()
    source.app.send(0, frame)
    while recv(0) is None:
        if time.perf_counter_ns() - began > _LIMIT_NS:
            raise TimeoutExpired(f"a packet did not arrive within {_LIMIT_NS // 10**9} s")
    return time.perf_counter_ns() - began


SCENARIO = _Wake()
