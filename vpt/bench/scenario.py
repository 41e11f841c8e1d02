# SPDX-License-Identifier: BSD-2-Clause
"""What a scenario is. Each lives in a file of its own under vpt/bench/scenarios and ends in `SCENARIO =
...`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from vpt.bench.result import Metric, Plot, Point

__all__ = ["Measured", "Params", "Runnable", "Scenario", "Settings"]

Params = Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Settings:
    """How thorough to be.

    scale: length of one repetition, 1 is the scenario's own. cpus: those it may use. realtime: keep other
    programs off them while something is timed. full: all points, where a scenario has a short set by
    default. accel: what virtual machines run on. at: only the points at which a parameter has one of these
    values, as written, "" for those that do not have it; of all points.
    """

    repetitions: int = 7
    scale: float = 1.0
    cpus: tuple[int, ...] = ()
    realtime: bool = False
    full: bool = False
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    at: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """One repetition of one variant."""

    values: dict[str, float]
    series: dict[str, list[float]] = field(default_factory=dict)


Runnable = Callable[[], Measured]


class Scenario(ABC):
    """Something to measure at several points, and what to measure it against.

    `reference` names the variant that the others' numbers are divided by. `turns`: the variants' order turns
    with each repetition; to be switched off where one computes from what another measured. `programs`: those
    of vpt.bench.programs that it runs; a result holds their versions.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    metrics: ClassVar[Sequence[Metric]]
    reference: ClassVar[str | None] = None
    plots: ClassVar[Sequence[Plot]] = ()
    turns: ClassVar[bool] = True
    programs: ClassVar[Sequence[str]] = ()

    @abstractmethod
    def points(self, settings: Settings) -> Sequence[Params]:
        """The settings of the parameters to measure at."""

    @abstractmethod
    def session(self, params: Params, settings: Settings) -> AbstractContextManager[Mapping[str, Runnable]]:
        """All variants at one point, ready to be run in turn; set up and torn down outside of what is
        timed.
        """

    def provenance(self) -> Mapping[str, str]:
        """Where its numbers come from, if that may differ from run to run: results of which any of these
        differs are not compared. Asked for at the end of the run.
        """
        return {}

    def notes(self, settings: Settings, points: Sequence[Point]) -> Sequence[str]:  # noqa: ARG002 - for those that have any
        """What a reader of the numbers should know. Asked for at the end of the run."""
        return ()
