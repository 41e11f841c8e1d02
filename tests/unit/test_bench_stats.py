# SPDX-License-Identifier: BSD-2-Clause
"""Medians, spreads, ratios, and when a change is one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpt.bench.compare import judge
from vpt.bench.result import Metric
from vpt.bench.stats import percentile, ratios, summarize
from vpt.errors import UsageError

samples = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=30)


def test_percentiles_are_linear_between_ranks() -> None:
    assert [percentile([4, 1, 3, 2], p) for p in (0, 50, 100)] == [1, 2.5, 4]
    assert percentile([7], 99) == 7


@given(samples)
def test_quartiles_enclose_the_median(values: list[float]) -> None:
    s = summarize(values)
    assert min(values) <= s.low <= s.median <= s.high <= max(values)


@given(samples, st.floats(0, 100))
def test_order_does_not_matter(values: list[float], p: float) -> None:
    assert percentile(values, p) == percentile(sorted(values, reverse=True), p)


def test_no_samples_is_an_error_and_not_a_zero() -> None:
    with pytest.raises(UsageError):
        summarize([])


def test_ratios_pair_repetitions() -> None:
    """A disturbance that hits both of a pair leaves the ratio alone; medians over each side would not."""
    ratio = ratios([10, 20, 1000], [5, 10, 500])
    assert ratio is not None
    assert (ratio.median, ratio.spread) == (2, 0)


def test_a_reference_of_zero_gives_no_ratio() -> None:
    assert ratios([1, 2], [0, 0]) is None


TIME = Metric(name="t", unit="ns", better="lower")
COUNT = Metric(name="c", unit="per packet", better="lower", kind="count")
RATE = Metric(name="r", unit="Mpps", better="higher")
NEUTRAL = Metric(name="n", unit="")


SEVEN = [100, 100, 100, 101, 102, 102, 102]


def plus(percent: float, values: list[float] = SEVEN) -> list[float]:
    return [v + percent for v in values]


@pytest.mark.parametrize(
    ("metric", "before", "after", "verdict"),
    [
        (TIME, SEVEN, plus(1), "same"),
        (TIME, [100] * 7, [102] * 7, "same"),
        (TIME, SEVEN, plus(10), "worse"),
        (TIME, SEVEN, plus(-10), "better"),
        (RATE, SEVEN, plus(-10), "worse"),
        (COUNT, [1] * 7, [1.01] * 7, "worse"),
        (COUNT, [0] * 7, [0] * 7, "same"),
        (NEUTRAL, [1] * 7, [2] * 7, "changed"),
    ],
)
def test_a_change_is_one_when_spreads_are_apart(
    metric: Metric, before: list[float], after: list[float], verdict: str
) -> None:
    """A count that moves by a hundredth has changed; a time has to move by more than 3 %."""
    assert judge(metric, summarize(before), summarize(after)) == verdict


@pytest.mark.parametrize(
    ("metric", "before", "after", "verdict"),
    [
        (TIME, [100, 101], [200, 201], "undecided"),
        (TIME, SEVEN, plus(10)[:6], "undecided"),
        (TIME, [100, 102], [101, 103], "same"),
        (COUNT, [1, 1.1], [2, 2.1], "undecided"),
        (COUNT, [1, 1], [2, 2], "worse"),
        (COUNT, [1], [2], "undecided"),
        (COUNT, [2e-4, 2.1e-4, 3e-4], [0.99, 1, 1], "worse"),
        (COUNT, [0.99, 1, 1], [2e-4, 2.1e-4, 3e-4], "better"),
        (COUNT, [0, 0, 0], [0.1, 0.2, 0.3], "worse"),
        (COUNT, [1, 1.1, 1.2], [2, 2.1, 2.2], "undecided"),
        (COUNT, [1, 1.1, 4], [3, 5, 6, 7], "undecided"),
        (COUNT, [1, 1.1], [5, 5.1], "undecided"),
        (TIME, [1, 1.1, 1.2], [5, 5.1, 5.2], "undecided"),
    ],
)
def test_few_samples_tell_nothing_but_of_a_count_that_does_not_vary_or_leaps(
    metric: Metric, before: list[float], after: list[float], verdict: str
) -> None:
    assert judge(metric, summarize(before), summarize(after)) == verdict
