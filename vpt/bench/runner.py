# SPDX-License-Identifier: BSD-2-Clause
"""Run scenarios: at each point, the variants in turn, as often as asked for.

The order of the variants turns with each repetition, so that none always runs in the wake of the same other.
One repetition goes before those that count, to warm caches and to let page faults happen. One that could not
be measured (GuestError: the host was too busy, say) is taken again, with all variants, and a note says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from vpt.bench.machine import emulated, machine, revision, versions
from vpt.bench.result import Point, Result, Sample, ScenarioResult, Variant
from vpt.bench.scenario import Measured, Params, Runnable, Scenario, Settings
from vpt.errors import GuestError, UsageError

__all__ = ["Progress", "run"]

_EMULATED = "This processor is emulated: times mean nothing here, counts hold."

#: How often a repetition is begun, before a run of an hour is given up for it.
_TRIES = 3

#: Called with (steps done, steps in all, what comes next).
Progress = Callable[[int, int, str], None]


class _Steps:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress
        self.began = time.monotonic()
        self.again: list[str] = []

    def next(self, what: str) -> None:
        if self.progress:
            self.progress(self.done, self.total, what)
        self.done += 1

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.began, 3)


def turn(names: Sequence[str], repetition: int) -> list[str]:
    """The order of this repetition."""
    at = repetition % len(names)
    return [*names[at:], *names[:at]]


def _in_turn(
    variants: Mapping[str, Runnable], order: Sequence[str], steps: _Steps
) -> dict[str, tuple[float, Measured]]:
    """One repetition: of each variant when it began, in seconds of the run, and what was measured."""
    return {name: (steps.seconds, variants[name]()) for name in order}


def _point(
    params: Params, variants: Mapping[str, Runnable], settings: Settings, steps: _Steps, scenario: Scenario
) -> Point:
    label = f"{scenario.name}: " + ", ".join(f"{k} {v}" for k, v in params.items())
    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    for repetition in range(-1, settings.repetitions):
        steps.next(f"{label}, repetition {repetition + 1} of {settings.repetitions}")
        order = turn(list(variants), repetition if scenario.turns else 0)
        for left in reversed(range(_TRIES)):
            try:
                taken = _in_turn(variants, order, steps)
                break
            except GuestError as error:
                if not left:
                    raise
                steps.again.append(f"Taken again, {label}, repetition {repetition + 1}: {error.message}.")
        if repetition < 0:
            continue
        for name, (at, measured) in taken.items():
            samples[name].append(
                Sample(repetition=repetition, at=at, values=measured.values, series=measured.series)
            )
    return Point(params=dict(params), variants=[Variant(name=n, samples=s) for n, s in samples.items()])


def points_of(scenario: Scenario, settings: Settings) -> list[Params]:
    """The points to measure at. UsageError: none is left of what was asked for."""
    every = scenario.points(replace(settings, full=settings.full or bool(settings.at)))
    wanted = [p for p in every if all(str(p.get(key, "")) in values for key, values in settings.at.items())]
    if wanted:
        return wanted
    asked = ", ".join(f"{key}={value}" for key, values in settings.at.items() for value in values)
    keys = dict.fromkeys(key for params in every for key in params)
    known = (f"{key}={'|'.join(dict.fromkeys(str(p[key]) for p in every if key in p))}" for key in keys)
    raise UsageError(f"scenario {scenario.name} has no point at {asked}", hint=f"it has {', '.join(known)}")


def _scenario(scenario: Scenario, settings: Settings, steps: _Steps) -> ScenarioResult:
    points = []
    steps.again.clear()
    for params in points_of(scenario, settings):
        with scenario.session(params, settings) as variants:
            points.append(_point(params, variants, settings, steps, scenario))
    return ScenarioResult(
        name=scenario.name,
        title=scenario.title,
        metrics=list(scenario.metrics),
        reference=scenario.reference,
        points=points,
        plots=list(scenario.plots),
        notes=[*([_EMULATED] if emulated() else []), *scenario.notes(settings, points), *steps.again],
        provenance=dict(scenario.provenance()),
    )


def run(scenarios: Sequence[Scenario], settings: Settings, progress: Progress | None = None) -> Result:
    """Run them one after another and return all samples."""
    total = sum(len(points_of(s, settings)) for s in scenarios) * (settings.repetitions + 1)
    steps = _Steps(total, progress)
    created = datetime.now().astimezone().isoformat(timespec="seconds")
    before = machine()
    results = [_scenario(s, settings, steps) for s in scenarios]
    return Result(
        created=created,
        machine=before,
        versions=versions(),
        revision=revision(),
        settings={
            "repetitions": settings.repetitions,
            "scale": settings.scale,
            "realtime": settings.realtime,
            "full": settings.full,
            "at": ", ".join(f"{key}={value}" for key, values in settings.at.items() for value in values),
            "seconds": steps.seconds,
        },
        scenarios=results,
    )
