# SPDX-License-Identifier: BSD-2-Clause
"""Producer and consumer on two threads: counts that hold however the machine schedules them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from vpt.dataplane import PcNotify, PcSpec, PolicyKind, bench_pc
from vpt.errors import DataplaneError

ITEMS = 1500
SPEC = PcSpec(
    policy=PolicyKind.NOTIFY,
    items=ITEMS,
    work_p_ns=300,
    work_c_ns=300,
    length=64,
    notify_after=48,
    spin_ns=2000,
    sleep_ns=20_000,
    notify_p_ns=500,
    notify_c_ns=500,
    start_p_ns=2000,
    start_c_ns=1000,
)


@pytest.mark.parametrize(
    ("policy", "by"),
    [
        (PolicyKind.POLL, PcNotify.EVENTFD),
        (PolicyKind.SLEEP, PcNotify.EVENTFD),
        (PolicyKind.SLEEP, PcNotify.EMULATED),
        *((policy, by) for policy in (PolicyKind.NOTIFY, PolicyKind.ADAPTIVE) for by in PcNotify),
    ],
)
@pytest.mark.parametrize(("work_p", "work_c"), [(0, 500), (500, 0), (300, 300)])
def test_every_item_passes_once_and_in_order(
    policy: PolicyKind, by: PcNotify, work_p: int, work_c: int
) -> None:
    r = bench_pc(replace(SPEC, policy=policy, notify_by=by, work_p_ns=work_p, work_c_ns=work_c))
    assert r.bad == 0
    assert (r.producer.late, r.consumer.late) == (0, 0)


_WORKING = """
from vpt.dataplane import PcNotify, PcSpec, PolicyKind, bench_pc
spec = PcSpec(PolicyKind.POLL, 2000, 1_000_000, 1_000_000, PcNotify.EMULATED)
print("now", flush=True)
r = bench_pc(spec)
print(r.producer.stalls, r.producer.stalled_ns, r.consumer.stalls, r.consumer.stalled_ns)
"""


def test_time_for_which_the_cpu_was_taken_away_is_counted() -> None:
    """A thread that works is stopped, and can't have seen the clock meanwhile."""
    stop_s, stops = 0.05, 5
    with subprocess.Popen([sys.executable, "-c", _WORKING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(stops):
            process.send_signal(signal.SIGSTOP)
            time.sleep(stop_s)
            process.send_signal(signal.SIGCONT)
            time.sleep(stop_s)
        producer, producer_ns, consumer, consumer_ns = map(int, process.stdout.readline().split())
    # The first stop may come before the threads do.
    assert min(producer, consumer) >= stops - 1
    assert min(producer_ns, consumer_ns) >= 1e9 * stop_s * (stops - 1)


@pytest.mark.parametrize("by", list(PcNotify))
def test_an_interrupt_means_that_many_slots(by: PcNotify) -> None:
    """The event index at work: a producer that waits is told after notify_after items, not after one."""
    r = bench_pc(replace(SPEC, notify_by=by, work_p_ns=0, work_c_ns=400))
    assert r.consumer.notifications > 0
    assert r.consumer.notifications * SPEC.notify_after <= ITEMS + SPEC.length


@pytest.mark.parametrize("by", list(PcNotify))
def test_nobody_is_notified_who_does_not_wait(by: PcNotify) -> None:
    """Each notification answers a wish of its own; one may be left from the warm-up."""
    r = bench_pc(replace(SPEC, notify_by=by, work_p_ns=2000, work_c_ns=0))
    assert 0 < r.producer.notifications <= ITEMS
    assert r.producer.notifications <= r.consumer.wishes + 1
    assert r.consumer.blocks <= r.consumer.wishes


@pytest.mark.parametrize("policy", [PolicyKind.POLL, PolicyKind.SLEEP])
def test_poll_and_sleep_never_notify(policy: PolicyKind) -> None:
    r = bench_pc(replace(SPEC, policy=policy, work_p_ns=1000))
    assert (r.producer.notifications, r.consumer.notifications) == (0, 0)
    assert (r.producer.blocks, r.consumer.blocks) == (0, 0)


def test_samples_are_as_many_as_asked_for() -> None:
    r = bench_pc(replace(SPEC, samples=100, sample_every=3, start_samples=10, work_p_ns=1500))
    assert len(r.latency) == 100
    assert all(0 < ns <= r.latency_max_ns + 1 for ns in r.latency)
    assert len(r.starts_consumer) == min(10, r.consumer.starts)


def test_no_more_samples_than_items() -> None:
    assert len(bench_pc(replace(SPEC, items=10, samples=100)).latency) == 10


@pytest.mark.parametrize(
    "change",
    [
        {"items": 0},
        {"length": 1},
        {"length": 65537},
        {"notify_after": 0},
        {"notify_after": 65},
        {"work_p_ns": 1_000_000_001},
        {"samples": 1, "sample_every": 0},
        {"cpu_producer": 1 << 20},
        {"realtime": True},
        {"realtime": True, "cpu_producer": 0, "cpu_consumer": 0},
    ],
)
def test_values_that_could_hang_or_overflow_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(DataplaneError, match="Invalid argument"):
        bench_pc(replace(SPEC, **change))


def test_a_cpu_that_is_not_there_is_an_error() -> None:
    absent = next(cpu for cpu in range(1023, -1, -1) if cpu not in os.sched_getaffinity(0))
    with pytest.raises(DataplaneError):
        bench_pc(replace(SPEC, cpu_consumer=absent))
