# SPDX-License-Identifier: BSD-2-Clause
"""model-here: two threads that wake each other by eventfd, beside the model with costs measured on this
machine.

The model is asked twice: with costs measured once, on a side that was fast asleep, and with those that the
very run met with. They differ where the waits are so short that a sleeper is called back before it has gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import ClassVar

from vpt.bench.costs import Costs, Kind, Policy
from vpt.bench.measure import Threads, measure_costs
from vpt.bench.result import Metric, Plot, Point
from vpt.bench.scenario import Params, Runnable, Scenario, Settings
from vpt.bench.scenarios._threads import FED, METRICS, Case, against_model, agreement

__all__ = ["SCENARIO"]

_WC = 5000
_WPS = (
    500,
    1000,
    2000,
    3000,
    3500,
    4000,
    5500,
    6000,
    7000,
    8000,
    9000,
    10000,
    12000,
    15000,
    20000,
    30000,
    40000,
)
_SPINS = (0, 5, 10, 20, 40)
_SPIN_WP = 20000


class _ModelHere(Scenario):
    name: ClassVar[str] = "model-here"
    title: ClassVar[str] = (
        "The notification model, with this machine's costs, against two threads and eventfds"
    )
    metrics: ClassVar[Sequence[Metric]] = METRICS
    reference: ClassVar[str | None] = "model"
    turns: ClassVar[bool] = False
    plots: ClassVar[Sequence[Plot]] = (
        Plot(
            title="Throughput against the producer's time per item, notify",
            x="wp",
            where={"policy": "notify"},
            y=["rate"],
            log_x=True,
            x_label=f"Wp, ns (Wc is {_WC})",
            y_label="items/s",
        ),
        Plot(
            title="Notifications per item, notify",
            x="wp",
            where={"policy": "notify"},
            y=["notifications"],
            log_x=True,
            log_y=True,
            x_label=f"Wp, ns (Wc is {_WC})",
            y_label="per item",
        ),
        Plot(
            title="Notifications per item against the length of a spin, adaptive",
            x="spin_us",
            y=["notifications"],
            x_label=f"spin, us (the gap is {(_SPIN_WP - _WC) // 1000})",
            y_label="per item",
        ),
    )

    def __init__(self) -> None:
        self._threads: Threads | None = None
        self._costs = Costs(wp=1, wc=_WC)

    def points(self, settings: Settings) -> Sequence[Params]:  # noqa: ARG002
        notify: list[Params] = [{"policy": "notify", "wp": wp} for wp in _WPS]
        spin: list[Params] = [{"policy": "adaptive", "spin_us": s} for s in _SPINS]
        return notify + spin

    def session(self, params: Params, settings: Settings) -> AbstractContextManager[Mapping[str, Runnable]]:
        if self._threads is None:
            self._threads = Threads(cpus=settings.cpus)
            self._costs = measure_costs(self._threads, self._costs)
        if params["policy"] == "notify":
            case = Case(params, replace(self._costs, wp=float(params["wp"])), Policy(Kind.NOTIFY))
        else:
            spin = 1000 * float(params["spin_us"])
            case = Case(params, replace(self._costs, wp=_SPIN_WP), Policy(Kind.ADAPTIVE, spin=spin))
        return against_model(case, self._threads, settings, fed=True)

    def notes(self, settings: Settings, points: Sequence[Point]) -> Sequence[str]:  # noqa: ARG002
        c = self._costs
        return [
            f"Measured costs: Np {c.np:.0f} ns, Sc {c.sc:.0f} ns, Nc {c.nc:.0f} ns, Sp {c.sp:.0f} ns.",
            *agreement(points),
            *agreement(points, FED),
        ]


SCENARIO = _ModelHere()
