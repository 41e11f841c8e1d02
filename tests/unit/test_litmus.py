# SPDX-License-Identifier: BSD-2-Clause
"""The two fence halves of notify.h lose no wake-up; without the producer's fence they do: the test bites."""

from __future__ import annotations

import platform

import pytest

from vpt.dataplane import litmus

pytestmark = pytest.mark.native

ROUNDS = 10_000_000
TRIES = 6


def test_q27_no_wakeup_is_lost_with_the_fence(cpus: tuple[int, int]) -> None:
    assert litmus(ROUNDS, fence=True, cpu_a=cpus[0], cpu_b=cpus[1]) == 0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="which reorderings show depends on the CPU")
def test_wakeups_are_lost_without_the_fence(cpus: tuple[int, int]) -> None:
    """A store buffer lets the look overtake the publication; how often depends on what else runs."""
    assert any(litmus(ROUNDS // 2, fence=False, cpu_a=cpus[0], cpu_b=cpus[1]) for _ in range(TRIES))
