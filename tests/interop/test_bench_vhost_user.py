# SPDX-License-Identifier: BSD-2-Clause
"""The vhost-user scenario with a real dpdk-testpmd, in short."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest

from vpt.bench.scenario import Settings
from vpt.bench.scenarios import _testpmd, vhost_user, vhost_user_latency
from vpt.errors import TimeoutExpired

pytestmark = pytest.mark.needs("dpdk-testpmd")


@pytest.fixture
def two_cpus() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("missing: a second CPU, for the back-end")


@pytest.mark.parametrize("path", ["guest-host", "guest-guest"])
def test_both_back_ends_take_packets_and_leave_no_process(path: str, two_cpus: None) -> None:
    """Twice each: what goes round must still be there after a stop."""
    params: Mapping[str, str | int] = {"path": path, "ring": "packed", "mrg": "yes", "bytes": 64}
    with vhost_user.SCENARIO.session(params, Settings(scale=1.0)) as variants:
        for _ in range(2):
            values = {name: measure().values for name, measure in variants.items()}
            assert {"vpt", "testpmd"} <= values.keys()
            assert all(v["rate"] > 0 for v in values.values())
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_packet_at_a_time_comes_through_both_back_ends_and_kicks_only_who_sleeps(two_cpus: None) -> None:
    with vhost_user_latency.SCENARIO.session({"pps": 1000}, Settings(scale=0.2)) as variants:
        values = {name: measure().values for name, measure in variants.items()}
    assert all(v["lost"] == 0 and 0 < v["p50"] <= v["p99"] for v in values.values())
    assert values["testpmd"]["kicks"] == 0
    assert values["vpt notify"]["kicks"] > 0.5


def test_a_testpmd_that_ends_is_reported_with_its_last_words() -> None:
    cpu = min(os.sched_getaffinity(0))
    with (
        pytest.raises(TimeoutExpired, match=r"the one that fails ended while its prompt(.|\n)*nonsense"),
        _testpmd.Testpmd("the one that fails", cpu, ["net_nonsense0"]),
    ):
        pass
