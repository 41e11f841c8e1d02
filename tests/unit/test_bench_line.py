# SPDX-License-Identifier: BSD-2-Clause
"""What a cache line takes from one CPU to another: the yardstick beside rates of rings."""

from __future__ import annotations

import os
import threading

import pytest

from vpt.dataplane import line_ns
from vpt.errors import DataplaneError

pytestmark = pytest.mark.native


def test_a_line_takes_time_and_leaves_the_caller_as_it_was(cpus: tuple[int, int]) -> None:
    before, threads = os.sched_getaffinity(0), threading.active_count()
    assert line_ns(*cpus) > 0
    assert os.sched_getaffinity(0) == before
    assert threading.active_count() == threads


@pytest.mark.parametrize("other", [0, 1023], ids=["the same", "not there"])
def test_between_a_cpu_and_itself_or_one_that_is_not_there_nothing_is_measured(
    cpus: tuple[int, int], other: int
) -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(DataplaneError, match=f"send a line between CPUs {cpus[0]} and "):
        line_ns(cpus[0], cpus[0] if other == 0 else other)
    assert os.sched_getaffinity(0) == before
