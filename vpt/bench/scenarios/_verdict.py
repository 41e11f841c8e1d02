# SPDX-License-Identifier: BSD-2-Clause
"""How a claim that a run is held against is said: reached, missed, or not to be decided by this run. Pure."""

from __future__ import annotations

from vpt.bench.numbers import apart, engineering
from vpt.bench.stats import LEAST_SAMPLES, Summary

__all__ = ["at_most", "no_more", "pair", "said"]


def said(reached: bool | None, claim: str, numbers: str) -> str:
    """One sentence. reached: None if it can't be decided."""
    verdict = "Undecided" if reached is None else "Reached" if reached else "MISSED"
    return f"{verdict}: {claim}: {numbers}."


def no_more(ours: Summary, theirs: Summary, few: float = 0.0) -> bool | None:
    """Are our numbers no larger? None: they are, but by less than each varies by, or of too few samples."""
    if ours.median <= theirs.median + few:
        return True
    return None if ours.overlaps(theirs) or min(ours.n, theirs.n) < LEAST_SAMPLES else False


def at_most(ratio: Summary, bound: float) -> bool | None:
    """Is a ratio of pairs within a bound? None: no, but by less than it varies, or of too few pairs."""
    if ratio.median <= bound:
        return True
    return None if ratio.low <= bound or ratio.n < LEAST_SAMPLES else False


def pair(ours: Summary, theirs: Summary, unit: str = "") -> str:
    """Both with their middle halves; their medians look the same only where they are."""
    medians = apart(ours.median, theirs.median)
    halves = (f"({engineering(s.low)}..{engineering(s.high)}){unit}" for s in (ours, theirs))
    return " against ".join(f"{median} {half}" for median, half in zip(medians, halves, strict=True))
