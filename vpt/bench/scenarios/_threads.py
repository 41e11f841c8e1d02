# SPDX-License-Identifier: BSD-2-Clause
"""What the scenarios `model` and `model-here` share: threads beside the model, point by point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from vpt.bench.costs import Costs, Policy
from vpt.bench.measure import Observation, Threads
from vpt.bench.model import Prediction, predict, predict_starts
from vpt.bench.numbers import engineering
from vpt.bench.result import Metric, Point
from vpt.bench.scenario import Measured, Params, Runnable, Settings
from vpt.bench.stats import Summary, percentile

__all__ = ["METRICS", "THREADS", "Case", "against_model", "agreement", "stalled"]

THREADS, MODEL, FED = "threads", "model", "model, start-ups of the run"

METRICS = (
    Metric(name="rate", unit="items/s", better="higher", title="Throughput"),
    Metric(name="notifications", unit="per item", better="lower", title="Notifications"),
    Metric(name="per_batch", unit="per item", better="lower", title="1/b, median cycle"),
    Metric(name="latency", unit="us", better="lower", title="Average latency"),
    Metric(name="preempted", unit="times", title="Threads preempted"),
    Metric(name="stalled", unit="% of the time", title="CPUs taken away"),
)


_CALLED = {"rate": "throughput", "notifications": "notifications per item", "per_batch": "1/b"}


@dataclass(frozen=True, slots=True)
class Case:
    """A point of a sweep."""

    params: Params
    costs: Costs
    policy: Policy


def _observed(o: Observation, slow: int) -> Measured:
    return Measured(
        {
            "rate": 1e9 / o.period * slow,
            "notifications": o.notifications,
            "per_batch": o.per_batch,
            "latency": o.latency / 1000 / slow,
            "preempted": float(o.preempted),
            "stalled": 100 * o.stalled,
        }
    )


def _predicted(p: Prediction) -> Measured:
    told = {"notifications": p.notifications, "per_batch": p.notifications}
    return Measured({"rate": p.rate, **told, "latency": p.latency / 1000})


def _slowed(c: Costs, by: int) -> Costs:
    times = ("wp", "wc", "np", "nc", "sp", "sc")
    return replace(c, **{name: getattr(c, name) * by for name in times})


@contextmanager
def against_model(
    case: Case, threads: Threads, settings: Settings, *, slow: int = 1, fed: bool = False
) -> Iterator[Mapping[str, Runnable]]:
    """Threads, the model, and if `fed` the model with the costs and start-ups that the threads last met with.

    slow: the threads play everything that much slower; results are in the model's time. Not with `fed`.
    """
    expected = predict(case.costs, case.policy)
    costs = _slowed(case.costs, slow)
    policy = replace(case.policy, spin=case.policy.spin * slow, sleep=case.policy.sleep * slow)
    last: Observation | None = None

    def run() -> Measured:
        nonlocal last
        last = threads.run(costs, policy, predict(costs, policy), settings.scale)
        return _observed(last, slow)

    def fed_model() -> Measured:
        return _predicted(predict_starts(last.costs, policy, last.starts) if last else expected)

    variants: dict[str, Runnable] = {THREADS: run, MODEL: lambda: _predicted(expected)}
    if fed:
        variants[FED] = fed_model
    yield variants


def agreement(
    points: Sequence[Point], against: str = MODEL, told: str = "notifications", within: float = 0.10
) -> list[str]:
    """How many points agree with the model, in throughput and in the metric `told`, and which do not.

    Where the model has no notifications at all there is nothing to divide by: fewer than one in 100 items
    agrees, for an interrupt of the host's own may keep a spinning thread from its clock. A point at which one
    of the two was not measured does not.
    """
    off = []
    for point in points:
        errors = {m: _error(point, m, against) for m in ("rate", told)}
        if any(abs(e) > within for e in errors.values()):
            told_off = ", ".join(f"{_CALLED[m]} {_by(e, point, m)}" for m, e in errors.items())
            off.append(f"{point.label}: {told_off}; {stalled([point])}")
    head = (
        f"{len(points) - len(off)} of {len(points)} points agree with '{against}' within {within:.0%}, "
        f"in throughput and in {_CALLED[told]} (medians)."
    )
    return [head, *(f"Off: {line}" for line in off)]


def stalled(points: Sequence[Point]) -> str:
    """How much of the time CPUs were taken away, over all points."""
    shares = [s.median for p in points if (v := p.variant(THREADS)) and (s := v.summary("stalled"))]
    return (
        f"CPUs taken away for {percentile(shares, 50):.2g} % of the time" if shares else "stalls not counted"
    )


def _by(error: float, point: Point, metric: str) -> str:
    """How far off; what there was, where the model has nothing to divide by."""
    if math.isfinite(error):
        return f"{error:+.1%}"
    seen = _summary(point, THREADS, metric)
    return f"{engineering(seen.median)} where the model has none" if seen else "not measured"


def _error(point: Point, metric: str, against: str) -> float:
    seen, said = _summary(point, THREADS, metric), _summary(point, against, metric)
    if seen is None or said is None:
        return math.inf
    if said.median == 0:
        told = _summary(point, THREADS, "notifications")
        return 0.0 if told and told.median < 1e-2 else math.inf
    return seen.median / said.median - 1


def _summary(point: Point, variant: str, metric: str) -> Summary | None:
    found = point.variant(variant)
    return found.summary(metric) if found else None
