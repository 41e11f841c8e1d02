# SPDX-License-Identifier: BSD-2-Clause
"""pipeline: a chain of stages one of which is slow, where the others wait for each packet.

A stage that is faster than its neighbour finds the queue between them always empty, or always full. It goes
to sleep for each packet and has to be woken for each: as much notifying as packets, with nothing lost but
time. The remedies: to ask for a wake-up only when a batch has come together (the event index), to spin for
the length of the gap, to sleep without being told.

Two stages are two threads around one queue, with work of a given length. Three are a sender, the switch's
worker, and a receiver, on app ports; the receiver that is slow is Python's.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from vpt.bench.numbers import engineering
from vpt.bench.result import Metric, Plot, Point
from vpt.bench.scenario import Measured, Params, Runnable, Scenario, Settings
from vpt.bench.scenarios._ports import Ends, app_port, other_cpus, tasks, undisturbed, worker_cpu
from vpt.dataplane import (
    Engine,
    Feature,
    PcSpec,
    Policy,
    Receiver,
    Sender,
    Snapshot,
    StatsReader,
    bench_pc,
)
from vpt.errors import TimeoutExpired

__all__ = ["REMEDIES", "SCENARIO"]

_FAST_NS, _SLOW_NS = 1_000, 30_000
_LENGTH = 512
_WARM_UP = 600
_SECONDS = 0.3
_LEAST_SECONDS = 0.05
_SLOTS = 64
_LAST_PACKETS_S = 0.05
_SPIN_US, _SLEEP_US = 60, 50


@dataclass(frozen=True, slots=True)
class _Remedy:
    """What is done about it. batch: a wake-up is asked for when a batch is there, not when one packet is."""

    policy: Policy
    batch: bool = False


REMEDIES = {
    "none": _Remedy(Policy.notify()),
    "event index": _Remedy(Policy.notify(), batch=True),
    f"spin {_SPIN_US} us": _Remedy(Policy.adaptive(_SPIN_US)),
    f"sleep {_SLEEP_US} us": _Remedy(Policy.sleep(_SLEEP_US)),
}


class _Pipeline(Scenario):
    name: ClassVar[str] = "pipeline"
    title: ClassVar[str] = "A chain of stages with one that is slow: notifications with and without remedies"
    metrics: ClassVar[Sequence[Metric]] = (
        Metric(name="notifications", unit="per packet", better="lower", title="Notifications"),
        Metric(name="rate", unit="packets/s", better="higher", title="Rate"),
        Metric(name="cpu", unit="% of a core", better="lower", title="CPU of the stages that wait"),
    )
    reference: ClassVar[str | None] = "none"
    plots: ClassVar[Sequence[Plot]] = tuple(
        Plot(
            title=f"Notifications per packet, {stages} stages",
            x="slow",
            where={"stages": stages},
            y=["notifications"],
            x_label="the slow stage",
            y_label="per packet",
            style="bar",
        )
        for stages in (2, 3)
    )

    def points(self, settings: Settings) -> Sequence[Params]:  # noqa: ARG002
        return [{"stages": stages, "slow": slow} for stages in (2, 3) for slow in ("first", "last")]

    @contextmanager
    def session(self, params: Params, settings: Settings) -> Iterator[Mapping[str, Runnable]]:
        stages = {2: _two, 3: _three}[int(params["stages"])]
        last = worker_cpu(settings.cpus)
        with other_cpus(settings.cpus):
            yield {
                name: partial(stages, remedy, params["slow"] == "first", settings, last)
                for name, remedy in REMEDIES.items()
            }

    def notes(self, settings: Settings, points: Sequence[Point]) -> Sequence[str]:  # noqa: ARG002
        return [
            f"The slow stage takes {_SLOW_NS // 1000} us per packet, the others about {_FAST_NS // 1000} us.",
            *(_in_words(point) for point in points),
        ]


def _in_words(point: Point) -> str:
    said = []
    for variant in point.variants:
        notifications, rate = variant.summary("notifications"), variant.summary("rate")
        if notifications and rate:
            told = engineering(notifications.median)
            said.append(f"{variant.name} {told} at {engineering(rate.median / 1000)} k/s")
    where = "always empty" if point.params["slow"] == "first" else "always full"
    return f"{point.label} ({where}), notifications per packet: {', '.join(said)}."


def _seconds(settings: Settings) -> float:
    return max(_LEAST_SECONDS, _SECONDS * settings.scale)


def _two(remedy: _Remedy, slow_first: bool, settings: Settings, last: int) -> Measured:
    """A producer and a consumer in C; the faster one is the one that waits."""
    items = int(_seconds(settings) * 1e9 / _SLOW_NS)
    r = bench_pc(
        PcSpec(
            policy=remedy.policy.kind,
            items=items,
            # A queue that is to be full has to be filled first.
            warmup=50 if slow_first else _WARM_UP,
            work_p_ns=_SLOW_NS if slow_first else _FAST_NS,
            work_c_ns=_FAST_NS if slow_first else _SLOW_NS,
            length=_LENGTH,
            notify_after=_LENGTH * 3 // 4 if remedy.batch else 1,
            spin_ns=remedy.policy.spin_us * 1000,
            sleep_ns=remedy.policy.sleep_us * 1000,
            cpu_producer=min(os.sched_getaffinity(0)),
            cpu_consumer=last,
            realtime=settings.realtime,
        )
    )
    waits = r.consumer if slow_first else r.producer
    return Measured(
        {
            "notifications": (r.producer.notifications + r.consumer.notifications) / items,
            "rate": items / r.ns * 1e9,
            "cpu": waits.cpu_ns / r.ns * 100,
        }
    )


def _three(remedy: _Remedy, slow_first: bool, settings: Settings, last: int) -> Measured:
    """A sender, the worker, a receiver. What the switch cannot deliver waits in the sender's ring."""
    features = int(Feature.EVENT_IDX) if remedy.batch else 0
    others = set(tasks())
    with (
        Engine(workers=1, cpus=[last]) as engine,
        StatsReader(engine.stats_fd) as stats,
        app_port(
            engine, engine.add_switch("s"), 1, remedy.policy, _SLOTS, features=features, lossless=True
        ) as source,
        app_port(engine, source.port.switch, 2, remedy.policy, _SLOTS, features=features) as sink,
    ):
        _introduce(source, sink)
        workers = set(tasks()) - others
        with undisturbed(workers, settings.realtime):
            before, cpu, began = stats.read(), _cpu(workers), time.monotonic()
            received = _flow(source, sink, slow_first, _seconds(settings))
            took, cpu, after = time.monotonic() - began, _cpu(workers) - cpu, stats.read()
    return Measured(
        {
            "notifications": (_told(after) - _told(before)) / received,
            "rate": received / took,
            "cpu": cpu / took / 1e9 * 100,
        }
    )


def _introduce(source: Ends, sink: Ends) -> None:
    """The switch learns where the sink is, and each slot's page is touched."""
    there = bytes.fromhex((source.mac + sink.mac).replace(":", "")) + b"\x88\xb5" + bytes(46)
    back = bytes.fromhex((sink.mac + source.mac).replace(":", "")) + b"\x88\xb5" + bytes(46)
    for _ in range(2 * _SLOTS):
        for one, other, frame in ((sink, source, there), (source, sink, back)):
            one.app.send(0, frame)
            if not other.app.wait(0, timeout=2):
                raise TimeoutExpired("a packet did not arrive within 2 s")
            other.app.recv(0)


def _flow(source: Ends, sink: Ends, slow_first: bool, seconds: float) -> int:
    """Packets received in that time."""
    sender = Sender(
        source.app,
        dst=sink.mac,
        src=source.mac,
        burst=1,
        pps=10**9 // _SLOW_NS if slow_first else 0,
    )
    thread = threading.Thread(target=sender.run, args=(seconds,))
    thread.start()
    try:
        if slow_first:
            receiver = Receiver(sink.app)
            receiver.run(seconds + _LAST_PACKETS_S)
            return max(1, receiver.received)
        return max(1, _slow_receiver(sink, seconds))
    finally:
        thread.join()


def _slow_receiver(sink: Ends, seconds: float) -> int:
    """Takes a packet and works on it for a while, again and again."""
    received, now = 0, time.perf_counter_ns()
    end = now + int(seconds * 1e9)
    while now < end:
        if sink.app.recv(0) is None:
            sink.app.wait(0, timeout=0.01)
        else:
            received += 1
            done = now + _SLOW_NS
            while time.perf_counter_ns() < done:
                pass
        now = time.perf_counter_ns()
    return received


def _told(snapshot: Snapshot) -> int:
    """Kicks and interrupts of all ports so far."""
    kinds = ("kicks", "tx_interrupts", "rx_interrupts")
    return sum(queue.counters[kind] for queue in snapshot.queues for kind in kinds)


def _cpu(threads: set[int]) -> int:
    return sum(ns for tid, ns in tasks().items() if tid in threads)


SCENARIO = _Pipeline()
