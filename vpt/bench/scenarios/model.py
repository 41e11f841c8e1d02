# SPDX-License-Identifier: BSD-2-Clause
"""model: two threads with the costs that the model's authors published, beside the model.

The costs are emulated: a kick takes 1.1 us and the consumer starts 0.42 us after it, an interrupt takes 0.58
us and the producer starts 29 us after it, whatever this machine's would be. The queue, the indices, the wish
and the look are the data plane's own and are for real.

They cost too: some 60 to 200 ns per item pass between the end of an item's work and the look at the other
side's index, for a cache line has to come over from the other core. To keep that small beside a gap of, say,
68 ns per item, everything is played in slow motion, and the results are given in the model's own time.

A cycle in which a CPU was taken away has another batch. So 1/b is taken from the median cycle of a run; the
notifications per item, the mean over all cycles, stand beside it, how many points agree by them, and for
which share of the time a CPU was away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import ClassVar

from vpt.bench.costs import PUBLISHED, Kind, Policy
from vpt.bench.measure import Threads
from vpt.bench.result import Metric, Plot, Point
from vpt.bench.scenario import Params, Runnable, Scenario, Settings
from vpt.bench.scenarios._threads import METRICS, Case, against_model, agreement, stalled
from vpt.dataplane import PcNotify

__all__ = ["SCENARIO", "cases"]

#: How much slower than in the model everything goes.
SLOW_MOTION = 8
#: Producers, ns per item, against a consumer of 2000. Around 2000 + 422 / n the batch makes its steps.
_FAST_PRODUCERS = (220, 400, 600, 800, 1000, 1200, 1400, 1500, 1600, 1700)
_STEPS = (2040, 2050, 2068, 2080, 2100, 2120, 2170, 2180, 2250, 2300, 2350, 2400)
_FAST_CONSUMERS = (2481, 2550, 2600, 2700, 2910, 3200, 3600, 4000, 5000)
#: Sleeps of a consumer of 1000 behind a producer of 2000; the queue bears 1021 us.
_SLEEPS = (5, 10, 20, 40, 80, 160, 325, 650)
#: Spins against a producer of 2500: below and above the gap of 500.
_SPINS = (100, 300, 450, 600, 1000)


def cases() -> list[Case]:
    """The points of the sweep."""
    out = [
        Case({"policy": "notify", "wp": wp}, replace(PUBLISHED, wp=wp), Policy(Kind.NOTIFY))
        for wp in (*_FAST_PRODUCERS, *_STEPS, *_FAST_CONSUMERS)
    ]
    slow = replace(PUBLISHED, wp=2000, wc=1000)
    out += [Case({"policy": "sleep", "us": us}, slow, Policy(Kind.SLEEP, sleep=us * 1000)) for us in _SLEEPS]
    gap = replace(PUBLISHED, wp=2500)
    out += [Case({"policy": "adaptive", "spin_ns": s}, gap, Policy(Kind.ADAPTIVE, spin=s)) for s in _SPINS]
    out += [
        Case({"policy": "poll", "wp": wp}, replace(PUBLISHED, wp=wp), Policy(Kind.POLL))
        for wp in (1000, 2500)
    ]
    return out


class _Model(Scenario):
    name: ClassVar[str] = "model"
    title: ClassVar[str] = "The notification model, with its authors' costs, against two threads"
    metrics: ClassVar[Sequence[Metric]] = METRICS
    reference: ClassVar[str | None] = "model"
    turns: ClassVar[bool] = False
    plots: ClassVar[Sequence[Plot]] = (
        Plot(
            title="Throughput against the producer's time per item, notify",
            x="wp",
            where={"policy": "notify"},
            y=["rate"],
            x_label="Wp, ns (Wc is 2000)",
            y_label="items/s",
        ),
        Plot(
            title="Notifications per item, notify",
            x="wp",
            where={"policy": "notify"},
            y=["per_batch"],
            log_y=True,
            x_label="Wp, ns (Wc is 2000)",
            y_label="per item",
        ),
        Plot(
            title="Latency against the length of a sleep",
            x="us",
            y=["latency"],
            log_x=True,
            log_y=True,
            x_label="sleep, us",
            y_label="average, us",
        ),
        Plot(
            title="Notifications per item against the length of a spin, adaptive",
            x="spin_ns",
            y=["per_batch"],
            x_label="spin, ns (the gap is 500)",
            y_label="per item",
        ),
    )

    def __init__(self) -> None:
        self._threads: Threads | None = None

    def points(self, settings: Settings) -> Sequence[Params]:  # noqa: ARG002
        return [case.params for case in cases()]

    def session(self, params: Params, settings: Settings) -> AbstractContextManager[Mapping[str, Runnable]]:
        case = next(c for c in cases() if c.params == params)
        if self._threads is None:
            self._threads = Threads(PcNotify.EMULATED, settings.cpus)
        return against_model(case, self._threads, settings, slow=SLOW_MOTION)

    def notes(self, settings: Settings, points: Sequence[Point]) -> Sequence[str]:  # noqa: ARG002
        priority = (
            ""
            if self._threads and self._threads.realtime
            else ("Without real-time priority (root, or CAP_SYS_NICE): other programs took part.")
        )
        by_mean, *_ = agreement(points)
        stolen = f"{stalled(points)} (median of the points)."
        return [*agreement(points, told="per_batch"), by_mean, stolen, *([priority] if priority else [])]


SCENARIO = _Model()
