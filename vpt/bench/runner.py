# SPDX-License-Identifier: BSD-2-Clause
"""Run scenarios: at each point, the variants in turn, as often as asked for.

The order of the variants turns with each repetition, so that none always runs in the wake of the same
other. One repetition goes before those that count, to warm caches and to let page faults happen. One that
could not be measured (the host was too busy, say) is taken again, with all variants, and a note says so;
a point is set up again if it does not stand up, or if none of its variants could be measured. A variant
that can't be measured at all at some point is left out there: nobody's fault costs an hour's run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from vpt.bench.machine import machine, versions
from vpt.bench.programs import versions_of
from vpt.bench.result import Point, Result, Sample, ScenarioResult, Variant
from vpt.bench.scenario import Measured, Params, Runnable, Scenario, Settings
from vpt.errors import MissingError, UsageError, VptError
from vpt.processor import emulated
from vpt.revision import revision

__all__ = ["Progress", "run"]

_EMULATED = "This processor is emulated: times mean nothing here, counts hold."

#: How often a repetition is begun, before the variant that fails is given up.
_TRIES = 3

#: What ends a run: it would fail at each point.
_ENDS = (UsageError, MissingError)

#: Called with (steps done, steps in all, what comes next).
Progress = Callable[[int, int, str], None]


class _Steps:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress
        self.began = time.monotonic()
        self.again: list[str] = []
        self.failed: list[str] = []
        self.error: VptError | None = None

    def next(self, what: str) -> None:
        if self.progress:
            self.progress(self.done, self.total, what)
        self.done += 1

    def mark(self) -> tuple[int, int]:
        """For back_to(), where a point is begun once more."""
        return self.done, len(self.failed)

    def back_to(self, mark: tuple[int, int]) -> None:
        self.done, failed = mark
        del self.failed[failed:]

    def once_more(self, note: str) -> None:
        """Something is done again, which is said at once, for it takes time."""
        self.again.append(note)
        if self.progress:
            self.progress(max(0, self.done - 1), self.total, note)

    def give_up(self, what: str, error: VptError) -> None:
        self.failed.append(f"NOT MEASURED: {what}: {error.message}.")
        self.error = error

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.began, 3)


def turn(names: Sequence[str], repetition: int) -> list[str]:
    """The order of this repetition."""
    at = repetition % len(names)
    return [*names[at:], *names[:at]]


@dataclass(frozen=True, slots=True)
class _Failure:
    name: str
    error: VptError


def _in_turn(
    variants: Mapping[str, Runnable], order: Sequence[str], steps: _Steps
) -> dict[str, tuple[float, Measured]] | _Failure:
    """One repetition: of each variant when it began, in seconds of the run, and what was measured."""
    taken = {}
    for name in order:
        began = steps.seconds
        try:
            taken[name] = began, variants[name]()
        except _ENDS:
            raise
        except VptError as error:
            return _Failure(name, error)
    return taken


def _repetition(
    variants: dict[str, Runnable], order: list[str], steps: _Steps, label: str, number: int
) -> dict[str, tuple[float, Measured]]:
    """The same, until it could be measured; who fails each time is taken out of `variants`."""
    tries = 0
    while isinstance(found := _in_turn(variants, order, steps), _Failure):
        tries += 1
        if tries < _TRIES:
            steps.once_more(f"Taken again, {label}, repetition {number}: {found.error.message}.")
            continue
        steps.give_up(f"{label}: {found.name}", found.error)
        order.remove(found.name)
        del variants[found.name]
        tries = 0
    return found


def _point(
    params: Params, variants: Mapping[str, Runnable], settings: Settings, steps: _Steps, scenario: Scenario
) -> Point:
    label = _label(scenario, params)
    left = dict(variants)
    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    for repetition in range(-1, settings.repetitions):
        number = repetition + 1
        steps.next(f"{label}, repetition {number} of {settings.repetitions}")
        order = [n for n in turn(list(variants), repetition if scenario.turns else 0) if n in left]
        taken = _repetition(left, order, steps, label, number)
        if not left:
            break
        if repetition < 0:
            continue
        for name, (at, measured) in taken.items():
            samples[name].append(
                Sample(repetition=repetition, at=at, values=measured.values, series=measured.series)
            )
    return Point(params=dict(params), variants=[Variant(name=n, samples=samples[n]) for n in left])


def _set_up_and_measure(
    params: Params, settings: Settings, steps: _Steps, scenario: Scenario
) -> tuple[Point | None, VptError | None]:
    """The point, if it stood up, and why it did not, or left something behind."""
    point = None
    try:
        with scenario.session(params, settings) as variants:
            point = _point(params, variants, settings, steps, scenario)
    except _ENDS:
        raise
    except VptError as error:
        return point, error
    return point, None


def _measured(params: Params, settings: Settings, steps: _Steps, scenario: Scenario) -> list[Point]:
    """The point, set up as often as a repetition is tried, until some variant could be measured."""
    label = _label(scenario, params)
    for left in reversed(range(_TRIES)):
        before = steps.mark()
        point, error = _set_up_and_measure(params, settings, steps, scenario)
        if left and not (point and point.variants):
            # It did not stand up; or all that stood on it fell, as when a guest that they share has died.
            why = error or steps.error
            steps.back_to(before)
            steps.once_more(f"Set up again, {label}: {why.message if why else 'nothing to measure'}.")
            continue
        if error:
            steps.give_up(label, error)
        break
    return [point] if point else []


def _label(scenario: Scenario, params: Params) -> str:
    return f"{scenario.name}: " + ", ".join(f"{k} {v}" for k, v in params.items())


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
    steps.failed.clear()
    for params in points_of(scenario, settings):
        begun = steps.done
        points += _measured(params, settings, steps, scenario)
        # Also where it was left early, or never stood up.
        steps.done = begun + settings.repetitions + 1
    points = [point for point in points if point.variants]
    if not points and steps.error:
        raise steps.error
    return ScenarioResult(
        name=scenario.name,
        title=scenario.title,
        metrics=list(scenario.metrics),
        reference=scenario.reference,
        points=points,
        plots=list(scenario.plots),
        notes=[
            *([_EMULATED] if emulated() else []),
            *scenario.notes(settings, points),
            *steps.again,
            *steps.failed,
        ],
        failed=len(steps.failed),
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
        versions=versions() | versions_of(program for s in scenarios for program in s.programs),
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
