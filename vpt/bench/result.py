# SPDX-License-Identifier: BSD-2-Clause
"""What a benchmark run leaves behind: schema vpt.bench/v1, every sample in it.

    Result ── ScenarioResult ── Point (a setting) ── Variant (a competitor) ── Sample (a repetition)

Summaries are never stored: they follow from the samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vpt.bench.stats import Summary, ratios, summarize
from vpt.errors import NotFoundError, UsageError

__all__ = [
    "SCHEMA",
    "Metric",
    "Plot",
    "Point",
    "Result",
    "Sample",
    "ScenarioResult",
    "Variant",
    "label",
    "load",
    "save",
]

SCHEMA = "vpt.bench/v1"


def label(params: Mapping[str, str | int | float]) -> str:
    """A setting in words, as tables have it."""
    return ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in params.items())


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Metric(_Record):
    """A number that each sample carries. kind: a count is the same on every machine, a time is not."""

    name: str
    unit: str
    better: Literal["higher", "lower", "neither"] = "neither"
    kind: Literal["time", "count"] = "time"
    title: str = ""


class Plot(_Record):
    """A picture that the report draws: metrics over a parameter, a curve (or group of bars) per variant.

    where: parameters that a point must have to be in it. A profile has the metrics themselves along x (as the
    percentiles of one time), of the first such point.
    """

    title: str
    x: str
    y: list[str]
    x_label: str
    y_label: str
    style: Literal["line", "bar", "profile"] = "line"
    log_x: bool = False
    log_y: bool = False
    where: dict[str, str | int | float] = Field(default_factory=dict)


class Sample(_Record):
    """One repetition. `at`: seconds since the run began. `series`: raw arrays behind the values, if any."""

    repetition: int
    at: float
    values: dict[str, float]
    series: dict[str, list[float]] = Field(default_factory=dict)


class Variant(_Record):
    """One competitor at one point."""

    name: str
    samples: list[Sample]

    def values(self, metric: str) -> list[float]:
        """The metric's samples, those that have it."""
        return [s.values[metric] for s in self.samples if metric in s.values]

    def summary(self, metric: str) -> Summary | None:
        """Median and quartiles; None if no sample has the metric."""
        values = self.values(metric)
        return summarize(values) if values else None


class Point(_Record):
    """One setting of the parameters."""

    params: dict[str, str | int | float]
    variants: list[Variant]

    def variant(self, name: str) -> Variant | None:
        """The competitor of that name."""
        return next((v for v in self.variants if v.name == name), None)

    @property
    def label(self) -> str:
        return label(self.params)


class ScenarioResult(_Record):
    """All that one scenario measured. `notes`: what a reader should know; `reference`: the variant others are
    divided by; `provenance`: where the numbers come from (tier, source), without which they mean nothing;
    `failed`: how many points, or variants at a point, could not be measured; the notes say why.
    """

    name: str
    title: str
    metrics: list[Metric]
    reference: str | None
    points: list[Point]
    plots: list[Plot] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    failed: int = 0
    provenance: dict[str, str] = Field(default_factory=dict)

    def metric(self, name: str) -> Metric | None:
        """The metric of that name."""
        return next((m for m in self.metrics if m.name == name), None)

    def ratio(self, point: Point, variant: Variant, metric: str) -> Summary | None:
        """Against the reference, repetition by repetition; None for the reference itself."""
        reference = point.variant(self.reference) if self.reference else None
        if reference is None or reference is variant:
            return None
        return ratios(variant.values(metric), reference.values(metric))

    def rows(self) -> Iterator[tuple[Point, Variant, Metric, Summary]]:
        """Everything there is a median of."""
        for point in self.points:
            for variant in point.variants:
                for metric in self.metrics:
                    if (summary := variant.summary(metric.name)) is not None:
                        yield point, variant, metric, summary


class Result(_Record):
    """A run. `created` is ISO 8601 with its zone."""

    schema_: Literal["vpt.bench/v1"] = Field(default="vpt.bench/v1", alias="schema")
    created: str
    machine: dict[str, str | int | float | None]
    versions: dict[str, str]
    revision: dict[str, str | bool | None]
    settings: dict[str, str | int | float | bool]
    scenarios: list[ScenarioResult]

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    def scenario(self, name: str) -> ScenarioResult | None:
        """The scenario of that name."""
        return next((s for s in self.scenarios if s.name == name), None)


def save(result: Result, path: Path) -> None:
    """Write a result file."""
    path.write_text(result.model_dump_json(by_alias=True, indent=1) + "\n")


def load(path: Path) -> Result:
    """Read a result file; UsageError names what is wrong with it."""
    try:
        return Result.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise NotFoundError(
            f"no result file {path}", hint="make one: vpt bench run NAME --output FILE"
        ) from None
    except OSError as err:
        raise UsageError(f"can't read {path}: {err.strerror}") from err
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(
            f"{path} is not a {SCHEMA} result: {where}: {first['msg']}",
            hint="make one: vpt bench run NAME --output FILE",
        ) from err
