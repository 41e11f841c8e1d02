# SPDX-License-Identifier: BSD-2-Clause
"""Medians, spreads and ratios. Pure, small, no numpy: samples number in the tens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vpt.errors import UsageError

__all__ = ["LEAST_SAMPLES", "Summary", "percentile", "ratios", "summarize"]

#: Fewer samples of what varies tell no change: the middle halves of one thing measured twice are apart in one
#: case of three with 3 samples each, in one of five with 5, in one of twelve with 7.
LEAST_SAMPLES = 7


@dataclass(frozen=True, slots=True)
class Summary:
    """Median, quartiles and extremes of `n` samples. The spread is what the middle half of them covers."""

    n: int
    median: float
    low: float
    high: float
    least: float
    most: float

    @property
    def spread(self) -> float:
        """Interquartile range."""
        return self.high - self.low

    def overlaps(self, other: Summary) -> bool:
        """Do the middle halves share a value? Then the difference is not to be called one."""
        return self.low <= other.high and other.low <= self.high

    def apart(self, other: Summary) -> bool:
        """Is each sample of one beyond all of the other?"""
        return self.most < other.least or other.most < self.least


def percentile(values: Sequence[float], p: float) -> float:
    """The p-th percentile (0..100), linear between ranks."""
    if not values:
        raise UsageError("no samples to take a percentile of")
    ordered = sorted(values)
    rank = (len(ordered) - 1) * p / 100
    below = int(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def summarize(values: Sequence[float]) -> Summary:
    """Median, quartiles and extremes."""
    median, low, high, least, most = (percentile(values, p) for p in (50, 25, 75, 0, 100))
    return Summary(len(values), median, low, high, least, most)


def ratios(values: Sequence[float], reference: Sequence[float]) -> Summary | None:
    """Each sample over its partner of the same repetition; None where no partner differs from 0.

    Pairs, because what disturbs a machine for seconds disturbs both of a pair.
    """
    pairs = [a / b for a, b in zip(values, reference, strict=False) if b]
    return summarize(pairs) if pairs else None
