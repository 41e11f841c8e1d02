# SPDX-License-Identifier: BSD-2-Clause
"""The scenario `pipeline`: what each remedy guarantees in counts, whatever the machine's load."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest

from vpt.bench.scenario import Settings
from vpt.bench.scenarios.pipeline import REMEDIES, SCENARIO


@pytest.fixture
def settings() -> Settings:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("missing: a second CPU")
    return Settings(scale=0.1)


def notifications(settings: Settings, stages: int, slow: str, remedy: str) -> float:
    with SCENARIO.session({"stages": stages, "slow": slow}, settings) as variants:
        assert list(variants) == list(REMEDIES)
        values: Mapping[str, float] = variants[remedy]().values
    assert values["rate"] > 0
    return values["notifications"]


@pytest.mark.parametrize("slow", ["first", "last"])
def test_a_stage_that_sleeps_and_looks_is_never_told(settings: Settings, slow: str) -> None:
    assert notifications(settings, 2, slow, "sleep 50 us") == 0


def test_a_full_queue_with_event_index_is_one_notification_per_batch(settings: Settings) -> None:
    """A sender that waits for room is told when three quarters of the queue are empty, not one slot."""
    assert notifications(settings, 2, "last", "event index") <= 0.02


@pytest.mark.parametrize("slow", ["first", "last"])
@pytest.mark.parametrize("remedy", REMEDIES)
def test_three_stages_pass_packets_under_each_remedy(settings: Settings, slow: str, remedy: str) -> None:
    assert notifications(settings, 3, slow, remedy) >= 0


def test_affinity_is_given_back(settings: Settings) -> None:
    before = os.sched_getaffinity(0)
    with SCENARIO.session({"stages": 3, "slow": "last"}, settings):
        assert os.sched_getaffinity(0) != before
    assert os.sched_getaffinity(0) == before
