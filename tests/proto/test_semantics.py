# SPDX-License-Identifier: BSD-2-Clause
"""What the specification says of rings' states, and other back-ends got wrong; for both layouts.

Tests are named after the rule. Those about packets through rings in these states are in rings/.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from support.host import Host, VhostPort
from support.leaks import until_open
from vpt.conform.frames import MAC_A, MAC_B, frame, number
from vpt.conform.front_end import USUAL, FrontEnd
from vpt.conform.guest_memory import GPA_BASE, MIB, PAGE, Span
from vpt.dataplane import Policy, PolicyKind
from vpt.vhost_user import Request, VirtioFeature, VringFd, VringState

F = VirtioFeature
Connect = Callable[..., FrontEnd]


@pytest.fixture(params=[0, int(F.RING_PACKED)], ids=["split", "packed"])
def connect(connect: Connect, request: pytest.FixtureRequest) -> Connect:
    """Front-ends with rings of that layout."""

    def make(port: VhostPort, *, features: int = int(USUAL), **options: Any) -> FrontEnd:
        return connect(port, features=features | request.param, **options)

    return make


@pytest.fixture
def ports(host: Host) -> tuple[VhostPort, VhostPort]:
    return host.vhost("a"), host.vhost("b")


def test_a_ring_is_stopped_until_it_has_its_kick(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    """Size, base, addresses and being enabled are not enough."""
    a, b = ports
    two, one = connect(b).start(), connect(a)
    one.negotiate()
    one.share_memory()
    one.make_queues()
    one.queue_frame(frame(MAC_B, MAC_A, 5))
    tx = one.pairs[0].tx
    one.do(Request.SET_VRING_NUM, VringState(1, tx.num))
    one.do(Request.SET_VRING_ADDR, tx.addresses(1))
    one.enable_ring(1)
    tx.publish()
    assert not a.state().up
    assert one.stop_ring(1) in (0, 0x8000_8000), "nothing taken"
    one.set_kick(1, tx.kick_fd)
    assert number(two.receive()[0].frame) == 5


POLICIES = [Policy.notify(), Policy.sleep(50), Policy.poll(), Policy.adaptive(20)]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind.name.lower())
@pytest.mark.parametrize("event_idx", [0, int(F.EVENT_IDX)], ids=["flags", "event-idx"])
@pytest.mark.parametrize("first", ["enabled", "kicked"])
def test_a_ring_that_starts_disabled_is_left_alone_until_it_is_enabled_or_kicked(
    host: Host, connect: Connect, policy: Policy, event_idx: int, first: str
) -> None:
    """What a front-end brings along is sent if it enables the ring first, and discarded if it kicks first.

    A kick from before the start does not count: it may have been meant for a back-end that has died.
    """
    a = host.vhost("a", policy=policy)
    two, one = connect(host.vhost("b")).start(), connect(a, features=int(USUAL) & ~F.EVENT_IDX | event_idx)
    one.negotiate()
    one.share_memory()
    one.make_queues()
    tx = one.pairs[0].tx
    base = tx.base
    for n in range(3):
        one.queue_frame(frame(MAC_B, MAC_A, n))
    tx.kick(force=True)
    one.start_ring(1, base=base)
    two.transmit(*(frame(MAC_A, MAC_B, n) for n in range(100)))  # by the same worker
    assert tx.unfinished == 3
    if first == "kicked":
        one.queue_frame(frame(MAC_B, MAC_A, 3))
        assert tx.kick(), "it is asked for"
        one.flush()
        assert a.counters["tx_drop_disabled"] == 4
    one.enable_ring(1)
    if first == "enabled":
        assert [number(r.frame) for r in two.receive(3)] == [0, 1, 2]
        assert a.counters["tx_drop_disabled"] == 0
    one.transmit(frame(MAC_B, MAC_A, 9))
    assert number(two.receive()[0].frame) == 9
    if policy.kind in (PolicyKind.POLL, PolicyKind.SLEEP):
        one.queue_frame(frame(MAC_B, MAC_A, 10))
        assert not tx.kick(), "it is not asked for any more"


def test_get_vring_base_stops_the_ring_and_kicks_mean_nothing_then(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    a, b = ports
    one, two = connect(a).start(), connect(b).start()
    base = one.stop_ring(1)
    one.queue_frame(frame(MAC_B, MAC_A, 6))
    one.pairs[0].tx.kick(force=True)
    two.transmit(frame(MAC_A, MAC_B), frame(MAC_A, MAC_B))  # the worker has gone round meanwhile
    assert one.stop_ring(1) == base, "asked again, the same"
    assert a.counters["tx_packets"] == 0
    one.start_ring(1, base=base)
    assert number(two.receive()[0].frame) == 6


def test_stopping_one_ring_leaves_the_others_running(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    a, b = ports
    one, two = connect(a).start(), connect(b).start()
    one.stop_ring(0)
    one.transmit(frame(MAC_B, MAC_A, 7))
    assert number(two.receive()[0].frame) == 7


def test_all_rings_stopped_is_a_suspended_device(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    """It reads nothing, writes nothing and calls nobody, whatever its driver and its peers do."""
    a, b = ports
    one, two = connect(a).start(), connect(b).start()
    for index in (0, 1):
        two.stop_ring(index)
    two.queue_frame(frame(MAC_A, MAC_B))
    two.pairs[0].tx.kick(force=True)
    two.pairs[0].rx.want_calls()
    for queue in two.queues():
        queue.take_calls()
    before = bytes(two.memory.regions[0].map)
    one.transmit(*(frame(MAC_B, MAC_A, n) for n in range(64)))
    assert bytes(two.memory.regions[0].map) == before
    assert [queue.take_calls() for queue in two.queues()] == [0, 0]
    assert b.counters["tx_packets"] == 0


@pytest.mark.parametrize("packets", [0, 1, 12, 13, 25, 26, 40])
def test_the_base_of_a_packed_ring_carries_both_indices_and_both_wrap_counters(
    host: Host, packets: int
) -> None:
    """Of 13 descriptors, so that the laps end at odd places."""
    a, b = host.vhost("a"), host.vhost("b")
    with (
        FrontEnd(a.path, features=int(USUAL | F.RING_PACKED), num=13) as one,
        FrontEnd(b.path, features=int(USUAL)) as two,
    ):
        one.start()
        two.start()
        for n in range(packets):
            one.transmit(frame(MAC_B, MAC_A, n))
        lap, index = divmod(packets, 13)
        half = index | (0 if lap % 2 else 0x8000)
        assert one.stop_ring(1) == half | half << 16


def test_rem_mem_reg_with_a_descriptor_is_tolerated_and_the_descriptor_closed(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    fe = connect(ports[0]).start()
    region = fe.memory.add(Span(GPA_BASE + 64 * MIB, 2 * PAGE))
    before = ports[0].host.open_things()
    for n in range(20):
        assert fe.add_region(region) == 0
        assert fe.remove_region(region, with_fd=bool(n % 2)) == 0
    until_open(before)


# held: by the session, which lets go of it last, and by the data plane, if that uses it
@pytest.mark.parametrize(
    ("request_", "held"),
    [(Request.SET_VRING_KICK, 2), (Request.SET_VRING_CALL, 2), (Request.SET_VRING_ERR, 0)],
)
def test_bit_8_says_that_no_descriptor_comes(
    ports: tuple[VhostPort, VhostPort], connect: Connect, request_: Request, held: int
) -> None:
    """And takes back the one there was."""
    fe = connect(ports[0]).start()
    before = ports[0].host.open_things()
    event = os.eventfd(0, os.EFD_CLOEXEC)
    fe.do(request_, VringFd(1), [event])
    fe.do(request_, VringFd(1 | VringFd.NOFD))
    os.close(event)
    until_open(before - Counter({"anon_inode": held}))
    assert ports[0].state().up


def test_a_ring_may_be_disabled_and_enabled_before_it_runs(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    """Being enabled belongs to the ring, not to its being started; stopping does not forget it."""
    a, b = ports
    one, two = connect(a).start(), connect(b).start()
    base = one.stop_ring(1)
    one.enable_ring(1, False)
    one.enable_ring(1, True)
    one.start_ring(1, base=base)
    one.transmit(frame(MAC_B, MAC_A, 9))
    assert number(two.receive()[0].frame) == 9


def test_a_ring_that_is_disabled_while_stopped_starts_disabled(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    a, b = ports
    one, two = connect(a).start(), connect(b).start()
    base = one.stop_ring(1)
    one.enable_ring(1, False)
    one.start_ring(1, base=base)
    one.transmit(frame(MAC_B, MAC_A, 9))
    assert a.counters["tx_drop_disabled"] == 1
    assert two.poll() == []
