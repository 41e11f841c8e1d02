# SPDX-License-Identifier: BSD-2-Clause
"""What the scenarios that time single packets share: percentiles, as metrics, numbers and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from vpt.bench.result import Metric, Plot
from vpt.bench.stats import percentile
from vpt.percentile import tells

__all__ = ["PERCENTILES", "log_log", "percentile_metrics", "percentiles"]

PERCENTILES = {"min": 0, "p10": 10, "p50": 50, "p90": 90, "p99": 99}


def percentile_metrics(what: str) -> tuple[Metric, ...]:
    """A metric for each."""
    return tuple(Metric(name=p, unit="us", better="lower", title=f"{what}, {p}") for p in PERCENTILES)


def percentiles(us: Sequence[float]) -> dict[str, float]:
    """Their values; those that so few times do not have are left out."""
    return {name: percentile(us, p) for name, p in PERCENTILES.items() if tells(p, len(us))}


def log_log(
    title: str, y: str, x: str, x_label: str, where: Mapping[str, str | int | float] = MappingProxyType({})
) -> Plot:
    """One of them against a parameter, at those points."""
    return Plot(
        title=title, x=x, y=[y], x_label=x_label, y_label="us", log_x=True, log_y=True, where=dict(where)
    )
