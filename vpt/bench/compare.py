# SPDX-License-Identifier: BSD-2-Clause
"""Two result files against each other: what changed by more than its spread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from vpt.bench.result import Metric, Result, ScenarioResult
from vpt.bench.stats import LEAST_SAMPLES, Summary
from vpt.errors import UsageError

__all__ = ["Change", "compare", "differences", "only_in"]

Verdict = Literal["same", "better", "worse", "changed", "undecided"]

#: Below this a change is none, whatever the spread says: the middle half of a few samples may be very narrow.
_TIME_NOISE = 0.03
#: Of a count that varies: by more than this, with as many samples, all of one side beyond all of the other, a
#: change is one too. Times jump by as much where a machine has other work.
_LEAP, _LEAP_SAMPLES = 2, 3


@dataclass(frozen=True, slots=True)
class Change:
    """One metric at one point: before, after, and what to think of it."""

    scenario: str
    point: str
    variant: str
    metric: Metric
    before: Summary
    after: Summary
    verdict: Verdict

    @property
    def ratio(self) -> float | None:
        """After over before; None if before is 0."""
        return self.after.median / self.before.median if self.before.median else None

    def to_json(self) -> dict[str, object]:
        """For machines."""
        return asdict(self) | {"metric": self.metric.model_dump(), "ratio": self.ratio}


def judge(metric: Metric, before: Summary, after: Summary) -> Verdict:
    """Same, unless the middle halves are apart; of times, by 3 % of the median too.

    Undecided: they are, but of too few samples. Counts that do not vary from sample to sample tell with two,
    those that are all more than doubled or halved with three.
    """
    floor = _TIME_NOISE * abs(before.median) if metric.kind == "time" else 0.0
    if before.overlaps(after) or abs(after.median - before.median) <= floor:
        return "same"
    if min(before.n, after.n) < _needed(metric, before, after):
        return "undecided"
    if metric.better == "neither":
        return "changed"
    return "better" if (after.median > before.median) == (metric.better == "higher") else "worse"


def _needed(metric: Metric, before: Summary, after: Summary) -> int:
    """Samples on each side that tell a change of such a size."""
    if metric.kind != "count":
        return LEAST_SAMPLES
    if not before.spread and not after.spread:
        return 2
    less, more = sorted((before.median, after.median))
    return _LEAP_SAMPLES if before.apart(after) and more > _LEAP * less else LEAST_SAMPLES


def compare(before: Result, after: Result) -> Iterator[Change]:
    """All that both files hold, in the order of the first. UsageError: some of it can't be compared."""
    for old in before.scenarios:
        new = after.scenario(old.name)
        if new is None:
            continue
        _require_like(old, new)
        found = {(p.label, v.name, m.name): s for p, v, m, s in new.rows()}
        for point, variant, metric, summary in old.rows():
            other = found.get((point.label, variant.name, metric.name))
            if other is not None:
                verdict = judge(metric, summary, other)
                yield Change(old.name, point.label, variant.name, metric, summary, other, verdict)


def only_in(one: Result, other: Result, kind: str = "any") -> list[str]:
    """What one file holds and the other doesn't, a line for each metric: of counts only, or of any kind."""
    there = {(s.name, p.label, v.name, m.name) for s in other.scenarios for p, v, m, _ in s.rows()}
    return [
        f"{s.name}: {p.label}: {v.name}: {m.title or m.name}"
        for s in one.scenarios
        for p, v, m, _ in s.rows()
        if kind in ("any", m.kind) and (s.name, p.label, v.name, m.name) not in there
    ]


def _require_like(old: ScenarioResult, new: ScenarioResult) -> None:
    """An exit of one tier is not an exit of another."""
    for key in old.provenance.keys() | new.provenance.keys():
        one, other = old.provenance.get(key), new.provenance.get(key)
        if one != other:
            raise UsageError(
                f"{old.name}: not comparable: {key} is {one or 'unknown'} before, {other or 'unknown'} after",
                hint="run both on one host with one accelerator: vpt bench run --accel ...",
            )


def differences(before: Result, after: Result) -> list[str]:
    """Why times of these two can't be compared, if they can't: other processor, kernel or number of CPUs."""
    return [
        f"{key}: {before.machine.get(key)} before, {after.machine.get(key)} after"
        for key in ("cpu", "cpus", "kernel", "virtual")
        if before.machine.get(key) != after.machine.get(key)
    ]
