# SPDX-License-Identifier: BSD-2-Clause
"""switch-copy: packets from one app port through the switch to another, one worker that polls, beside a plain
memcpy.

Two threads: the worker, and one in C that fills the one port's tx ring and empties the other's rx ring. Every
frame is checked on arrival. The memcpy moves the same bytes between buffers laid out as the two rings', in
the calling thread: the part of the work that no switch can save.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar

from vpt.bench.result import Metric, Plot, Point
from vpt.bench.scenario import Measured, Params, Runnable, Scenario, Settings
from vpt.bench.scenarios._ports import app_port, other_cpus, tasks, undisturbed, worker_cpu
from vpt.dataplane import CopyResult, Engine, Policy, StatsReader, bench_copy, bench_memcpy

__all__ = ["SCENARIO"]

_FRAMES = (64, 1500)
_PACKETS = 2_000_000
#: Enough for the two ports to be known to the switch.
_LEARN = 1000


def _measured(r: CopyResult, copies: float) -> Measured:
    ns = r.ns / r.received
    return Measured(
        {
            "rate": 1000 / ns,
            "ns": ns,
            "gbit": 8 * r.frame_len / ns,
            "copies": copies,
            "lost": float(r.sent - r.received),
            "bad": float(r.bad),
        }
    )


class _SwitchCopy(Scenario):
    name: ClassVar[str] = "switch-copy"
    title: ClassVar[str] = (
        "From one app port to another through the switch, one polling worker, against memcpy"
    )
    metrics: ClassVar[Sequence[Metric]] = (
        Metric(name="rate", unit="Mpps", better="higher", title="Rate"),
        Metric(name="ns", unit="ns/packet", better="lower", title="Time"),
        Metric(name="gbit", unit="Gbit/s", better="higher", title="Throughput"),
        Metric(name="copies", unit="per packet", better="lower", kind="count", title="Copies"),
        Metric(name="lost", unit="packets", better="lower", title="Sent but not received"),
        Metric(name="bad", unit="packets", better="lower", kind="count", title="Not as sent"),
    )
    reference: ClassVar[str | None] = "memcpy"
    plots: ClassVar[Sequence[Plot]] = (
        Plot(
            title="Packets per second",
            x="bytes",
            y=["rate"],
            x_label="frame, bytes",
            y_label="Mpps",
            style="bar",
        ),
        Plot(title="Time per packet", x="bytes", y=["ns"], x_label="frame, bytes", y_label="ns", style="bar"),
    )

    def points(self, settings: Settings) -> Sequence[Params]:  # noqa: ARG002
        return [{"bytes": size} for size in _FRAMES]

    @contextmanager
    def session(self, params: Params, settings: Settings) -> Iterator[Mapping[str, Runnable]]:
        size, packets = int(params["bytes"]), max(_LEARN, int(_PACKETS * settings.scale))
        cpu = worker_cpu(settings.cpus)
        before_engine = tasks().keys()
        with (
            other_cpus(settings.cpus),
            Engine(workers=1, cpus=[cpu]) as engine,
            app_port(engine, engine.add_switch("s"), 1, Policy.poll()) as source,
            app_port(engine, source.port.switch, 2, Policy.poll()) as sink,
            StatsReader(engine.stats_fd) as stats,
        ):
            bench_copy(source.app, sink.app, frame_len=size, packets=_LEARN)
            worker = tasks().keys() - before_engine

            def through_switch() -> Measured:
                before = stats.read().port(sink.port.id)
                with undisturbed(worker, settings.realtime):
                    result = bench_copy(source.app, sink.app, frame_len=size, packets=packets)
                after = stats.read().port(sink.port.id)
                moved = after["rx_packets"] - before["rx_packets"]
                return _measured(result, (after["copies"] - before["copies"]) / max(1, moved))

            def plain() -> Measured:
                with undisturbed((), settings.realtime):
                    result = bench_memcpy(frame_len=size, packets=packets)
                return _measured(result, 1.0)

            yield {"switch": through_switch, "memcpy": plain}

    def notes(self, settings: Settings, points: Sequence[Point]) -> Sequence[str]:  # noqa: ARG002
        return ["Frames are as counted by the application: without preamble, gap and checksum of a wire."]


SCENARIO = _SwitchCopy()
