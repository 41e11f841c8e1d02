# SPDX-License-Identifier: BSD-2-Clause
"""Who kicks and who interrupts whom, and when not."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from support.host import Host, VhostPort
from support.waiting import until
from vpt.conform.frames import MAC_A, MAC_B, frame, number
from vpt.conform.front_end import PLAIN, FrontEnd
from vpt.dataplane import Policy
from vpt.vhost_user import VirtioFeature

F = VirtioFeature
Connect = Callable[..., FrontEnd]


def test_a_burst_needs_one_kick_at_most(ports: tuple[VhostPort, VhostPort], connect: Connect) -> None:
    a, b = ports
    one, two = connect(a).start(), connect(b).start()
    for _ in range(20):
        one.transmit(*(frame(MAC_B, MAC_A, n) for n in range(32)))
        two.receive(32)
    tx = one.pairs[0].tx
    assert tx.kicks <= 20
    assert a.counters["kicks"] <= tx.kicks + two.pairs[0].rx.kicks + one.pairs[0].rx.kicks
    assert a.counters["tx_packets"] == 640


@pytest.mark.parametrize("features", [PLAIN, PLAIN | F.EVENT_IDX], ids=["flag", "event index"])
def test_a_driver_that_wants_no_interrupt_gets_none(
    ports: tuple[VhostPort, VhostPort], connect: Connect, features: int
) -> None:
    a, b = ports
    one, two = connect(a).start(), connect(b, features=features).start()
    rx = two.pairs[0].rx
    rx.want_calls(wanted=False)
    one.transmit(*(frame(MAC_B, MAC_A, n) for n in range(10)))
    two.receive(10)
    assert rx.take_calls() == 0
    assert b.counters["rx_interrupts"] == 0
    assert b.counters["rx_interrupts_suppressed"] > 0


@pytest.mark.parametrize("features", [PLAIN, PLAIN | F.EVENT_IDX], ids=["flag", "event index"])
def test_a_driver_that_wants_an_interrupt_gets_it(
    ports: tuple[VhostPort, VhostPort], connect: Connect, features: int
) -> None:
    a, b = ports
    one, two = connect(a).start(), connect(b, features=features).start()
    rx = two.pairs[0].rx
    for n in range(5):
        rx.want_calls()
        one.transmit(frame(MAC_B, MAC_A, n))
        assert rx.take_calls(10) == 1
        assert number(two.receive()[0].frame) == n
    assert b.counters["rx_interrupts"] == 5


def test_the_event_index_delays_the_interrupt(ports: tuple[VhostPort, VhostPort], connect: Connect) -> None:
    """Asked to be told of the tenth packet, the driver hears nothing of the nine before it."""
    a, b = ports
    one, two = connect(a).start(), connect(b).start()
    rx = two.pairs[0].rx
    rx.want_calls(after=9)
    start = rx.last_used
    for n in range(9):
        one.transmit(frame(MAC_B, MAC_A, n))
    until(lambda: rx.used_idx == start + 9, "all packets")
    assert rx.take_calls() == 0
    one.transmit(frame(MAC_B, MAC_A, 9))
    assert rx.take_calls(10) == 1


@pytest.mark.parametrize("features", [PLAIN, PLAIN | F.EVENT_IDX], ids=["flag", "event index"])
def test_an_idle_worker_asks_for_a_kick_and_wakes_by_it(host: Host, connect: Connect, features: int) -> None:
    a = host.vhost("a", policy=Policy.notify())
    b = host.vhost("b", policy=Policy.notify())
    one, two = connect(a, features=features).start(), connect(b).start()
    for n in range(50):
        one.transmit(frame(MAC_B, MAC_A, n))
        assert number(two.receive()[0].frame) == n
    assert 0 < a.counters["kicks"] <= one.pairs[0].tx.kicks
    assert all(w.counters["late_wakes"] == 0 for w in host.stats.read().workers)


def test_packets_far_apart_are_not_spun_for(host: Host, connect: Connect) -> None:
    """Policy adaptive: a spin that finds nothing is tried less and less often."""
    adaptive = Policy.adaptive(50)
    one = connect(host.vhost("a", policy=adaptive)).start()
    two = connect(host.vhost("b", policy=adaptive)).start()
    worker = lambda: host.stats.read().workers[0].counters  # noqa: E731
    before = worker()
    for n in range(200):
        sleeps = worker()["sleeps"]
        one.transmit(frame(MAC_B, MAC_A, n))
        assert number(two.receive()[0].frame) == n
        until(lambda sleeps=sleeps: worker()["sleeps"] > sleeps, "the worker to sleep")  # type: ignore[misc]
    now = worker()
    spins, vain = (now[name] - before[name] for name in ("spins", "spins_vain"))
    assert vain <= spins
    assert vain <= 200 / 4, "nothing came within the spin, and it was tried all the same"


def test_a_polled_port_wants_no_kicks(host: Host, connect: Connect) -> None:
    a, b = host.vhost("a", policy=Policy.poll()), host.vhost("b")
    one, two = connect(a).start(), connect(b).start()
    one.transmit(frame(MAC_B, MAC_A))
    two.receive()
    one.pairs[0].tx.kicks = 0
    for n in range(50):
        one.transmit(frame(MAC_B, MAC_A, n))
    assert one.pairs[0].tx.kicks == 0


def test_rings_without_kick_and_call_descriptors_are_polled(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    """NOFD in both messages."""
    a, b = ports
    two = connect(b).start()
    one = connect(a)
    one.negotiate()
    one.share_memory()
    one.make_queues()
    for index in (0, 1):
        one.start_ring(index, kick=False, call=False)
        one.enable_ring(index)
    one.queue_frame(frame(MAC_B, MAC_A, 5))
    one.pairs[0].tx.publish()
    assert number(two.receive()[0].frame) == 5


def test_descriptors_may_be_replaced_on_a_running_ring(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    """As QEMU does when the guest masks an interrupt vector."""
    a, b = ports
    one, two = connect(a).start(), connect(b).start()
    rx, tx = two.pairs[0].rx, one.pairs[0].tx
    for n in range(10):
        for queue, which in ((rx, "call_fd"), (tx, "kick_fd")):
            os.close(getattr(queue, which))
            setattr(queue, which, os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        two.set_call(0, rx.call_fd)
        one.set_kick(1, tx.kick_fd)
        rx.want_calls()
        one.transmit(frame(MAC_B, MAC_A, n))
        assert rx.take_calls(10) >= 1  # the new one may be rung at once, for what the old one did not tell
        assert number(two.receive()[0].frame) == n
