# SPDX-License-Identifier: BSD-2-Clause
"""The vhost-user scenario with a real dpdk-testpmd, in short."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import pytest

from support.waiting import until
from vpt.bench.scenario import Settings
from vpt.bench.scenarios import _testpmd, vhost_user, vhost_user_latency
from vpt.bench.scenarios._ports import other_cpus, worker_cpu
from vpt.bench.scenarios._vhost_backs import Vptd
from vpt.daemon.models import PortSet
from vpt.errors import TimeoutExpired

pytestmark = pytest.mark.needs("dpdk-testpmd")


@pytest.fixture
def two_cpus() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("missing: a second CPU, for the back-end")


@pytest.mark.parametrize(
    ("path", "ring"),
    [
        ("guest-host", "packed"),
        ("guest-guest", "packed"),
        ("guest-guest", "split, vectorized"),
        ("guest-guest", "packed in order, vectorized"),
    ],
)
def test_both_back_ends_take_packets_and_leave_no_process(path: str, ring: str, two_cpus: None) -> None:
    """Twice each: what goes round must still be there after a stop."""
    params: Mapping[str, str | int] = {"path": path, "ring": ring, "mrg": "no", "bytes": 64}
    if params not in vhost_user.SCENARIO.points(Settings(full=True)):
        pytest.skip("missing: vectors of 512 bits, for the front-end")
    with vhost_user.SCENARIO.session(params, Settings(scale=1.0)) as variants:
        for _ in range(2):
            values = {name: measure().values for name, measure in variants.items()}
            assert {"vpt", "testpmd"} <= values.keys()
            assert all(v["rate"] > 0 and v["line"] > 0 for v in values.values())
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def apart(two_cpus: None) -> Iterator[tuple[vhost_user._FrontEnd, Vptd, vhost_user._Point]]:
    """A front-end with two devices, on a vptd that lets nothing pass between them."""
    point = vhost_user._Point("guest-guest", "packed", "no", 64)
    cpu = worker_cpu(())
    with other_cpus(()), ExitStack() as stack:
        back = Vptd(stack, cpu, point.devices)
        front = vhost_user._FrontEnd(stack, point, min(os.sched_getaffinity(0)), back.sockets)
        isolate(back, True)
        yield front, back, point


def isolate(back: Vptd, on: bool) -> None:
    for name in ("p0", "p1"):
        request = PortSet(name=name, isolated=on)
        back.daemon.call(lambda d: d.ports.change(request))  # noqa: B023 - it waits


def test_packets_that_a_back_end_lost_at_the_start_are_put_in_again(
    apart: tuple[vhost_user._FrontEnd, Vptd, vhost_user._Point],
) -> None:
    """Nobody else would send another: a fixed number goes round."""
    front, back, point = apart
    front.start()
    until(lambda: back.daemon.counters("p1")["tx_packets"] >= 32 * vhost_user._BURSTS, "all to be lost")
    front.stop()
    isolate(back, False)
    assert vhost_user._measure(front, back, point, Settings(scale=0.1), None).values["rate"] > 0


def test_a_back_end_that_lets_nothing_through_is_reported_with_what_both_sides_saw(
    apart: tuple[vhost_user._FrontEnd, Vptd, vhost_user._Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vhost_user, "_FIRST_S", 0.1)
    front, back, point = apart
    sent = 32 * vhost_user._BURSTS
    said = (
        r"through the back-end at guest-guest, .*\n"
        rf"front-end: port 0 received 0 and sent {sent}, port 1 received 0 and sent {sent}; \d+ ms.*\n"
        rf"back-end: p0: tx_packets {sent}, .*; p1: tx_packets {sent}, .*; \d+ ms"
    )
    with pytest.raises(TimeoutExpired, match=said):
        vhost_user._measure(front, back, point, Settings(scale=0.1), None)


def test_a_packet_at_a_time_comes_through_both_back_ends_and_kicks_only_who_sleeps(two_cpus: None) -> None:
    params: Mapping[str, str | int] = {"pps": 1000, "arrival": "even"}
    with vhost_user_latency.SCENARIO.session(params, Settings(scale=0.2)) as variants:
        values = {name: measure().values for name, measure in variants.items()}
    assert all(v["lost"] == 0 and 0 < v["p50"] <= v["p99"] for v in values.values())
    assert values["testpmd"]["kicks"] == 0
    assert values["vpt notify"]["kicks"] > 0.5


def test_packets_that_come_on_and_off_all_arrive_and_adaptive_sleeps_between(two_cpus: None) -> None:
    params: Mapping[str, str | int] = {"pps": 20_000, "arrival": "on-off"}
    with vhost_user_latency.SCENARIO.session(params, Settings(scale=0.3)) as variants:
        values = {name: variants[name]().values for name in ("vpt adaptive", "testpmd")}
    assert all(v["lost"] == 0 for v in values.values())
    assert values["testpmd"]["kicks"] == 0
    assert values["vpt adaptive"]["kicks"] > 0  # it was asleep when the first of each train came


def test_a_testpmd_that_ends_is_reported_with_its_last_words() -> None:
    cpu = min(os.sched_getaffinity(0))
    with (
        pytest.raises(TimeoutExpired, match=r"the one that fails ended while its prompt(.|\n)*nonsense"),
        _testpmd.Testpmd("the one that fails", cpu, ["net_nonsense0"]),
    ):
        pass
