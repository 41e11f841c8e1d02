# SPDX-License-Identifier: BSD-2-Clause
"""Packets through rings of every layout: all that shapes them, and what happens to rings while they run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from support.host import Host, VhostPort
from support.waiting import until
from vpt.conform.frames import BROADCAST, MAC_A, MAC_B, frame, number
from vpt.conform.front_end import ALL_PROTOCOL, PLAIN, USUAL, VNET_HDR, FrontEnd
from vpt.conform.guest_memory import GPA_BASE, MIB, PAGE, GuestMemory, Span
from vpt.conform.packed_queue import USED, WRAP, PackedQueue
from vpt.conform.split_queue import MAX_INDIRECT, Buffer
from vpt.dataplane import Policy
from vpt.vhost_user import Request, VirtioFeature, VringState

F = VirtioFeature
Connect = Callable[..., FrontEnd]


LAYOUTS = [
    pytest.param(0, id="split"),
    pytest.param(int(F.RING_PACKED), id="packed"),
    pytest.param(int(F.RING_PACKED | F.IN_ORDER), id="packed in order"),
]


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> int:
    """Features of a ring layout."""
    bits: int = request.param
    return bits


@pytest.fixture
def connect(connect: Connect, layout: int) -> Connect:
    """Front-ends with rings of that layout."""

    def make(port: VhostPort, *, features: int = int(USUAL), **options: Any) -> FrontEnd:
        return connect(port, features=features | layout, **options)

    return make


@pytest.fixture
def ports(host: Host) -> tuple[VhostPort, VhostPort]:
    """Two vhost-user ports of one switch."""
    return host.vhost("a"), host.vhost("b")


@pytest.mark.parametrize(
    "features",
    [PLAIN, PLAIN | F.MRG_RXBUF, PLAIN | F.EVENT_IDX, PLAIN | F.INDIRECT_DESC, USUAL],
    ids=["plain", "mergeable", "event index", "indirect", "usual"],
)
@pytest.mark.parametrize("num", [2, 64, 256])
def test_frames_arrive_whole_and_in_order(
    ports: tuple[VhostPort, VhostPort], connect: Connect, features: int, num: int
) -> None:
    """Many times around the ring, in bursts of all sizes."""
    a, b = ports
    one = connect(a, features=features, num=num).start()
    two = connect(b, features=features, num=max(num, 64)).start()
    sent = [frame(MAC_B, MAC_A, n, 60 + n % 1400) for n in range(300)]
    got: list[bytes] = []
    at = 0
    for burst in [1, 2, 3, 17, 40, 1, 60, 40, 60, 36, 40]:
        one.transmit(*sent[at : at + burst])
        at += burst
        got += [r.frame for r in two.receive(burst)]
    assert got == sent[:at]
    assert a.counters["tx_packets"] == b.counters["rx_packets"] == b.counters["copies"] == at


def test_every_ring_size(host: Host, connect: Connect, layout: int) -> None:
    """Split: the powers of two. Packed: any number."""
    a = host.vhost("a")
    two = connect(host.vhost("b"), num=64).start()
    sizes = [1 << shift for shift in range(16)]
    if layout:
        sizes += [3, 5, 6, 7, 9, 33, 255, 257, 1000, 32767]
    for num in sizes:
        memory = GuestMemory([Span(GPA_BASE, 32 * MIB)])
        with FrontEnd(a.path, num=num, buffer_size=64, memory=memory, features=USUAL | layout) as one:
            one.start(fill=0)
            for n in range(3 if num > 9 else 3 * num):  # the small ones go round several times
                one.transmit(frame(MAC_B, MAC_A, n, 40))
                assert number(two.receive()[0].frame) == n
        a.until_left()


def start_at(fe: FrontEnd, base: int) -> FrontEnd:
    """Rings that begin in the middle."""
    fe.negotiate()
    fe.share_memory()
    fe.make_queues()
    for index, queue in enumerate(fe.queues()):
        queue.restart(base)
        fe.start_ring(index)
        fe.enable_ring(index)
    fe.fill()
    return fe


@pytest.mark.parametrize("layout", LAYOUTS[:1], indirect=True)
@pytest.mark.parametrize("base", [1, 255, 65530, 65535])
def test_a_ring_starts_anywhere_and_its_index_wraps(
    ports: tuple[VhostPort, VhostPort], connect: Connect, base: int
) -> None:
    one, two = (start_at(connect(port, num=8), base) for port in ports)
    for n in range(20):
        one.transmit(frame(MAC_B, MAC_A, n))
        assert number(two.receive()[0].frame) == n
    assert one.stop_ring(1) == (base + 20) & 0xFFFF


@pytest.mark.parametrize("layout", LAYOUTS[1:], indirect=True)
@pytest.mark.parametrize("num", [1, 2, 7, 8])
@pytest.mark.parametrize("wrap", [0, WRAP], ids=["second lap", "first lap"])
@pytest.mark.parametrize("where", ["start", "end"])
def test_a_packed_ring_starts_anywhere_in_either_lap(
    ports: tuple[VhostPort, VhostPort], connect: Connect, num: int, wrap: int, where: str
) -> None:
    """A base has index and wrap counter, and the same again for the used side."""
    base = ((num - 1 if where == "end" else 0) | wrap) * 0x1_0001
    one, two = (start_at(connect(port, num=num), base) for port in ports)
    queues = one.queues()
    for n in range(5 * num):
        one.transmit(frame(MAC_B, MAC_A, n))
        assert number(two.receive()[0].frame) == n
        assert one.stop_ring(1) == queues[1].base
        one.start_ring(1)


@pytest.mark.parametrize("layout", LAYOUTS[1:], indirect=True)
def test_the_lower_half_of_a_packed_base_is_what_counts(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    """DPDK's virtio-user leaves the upper one zero; a net device has no difference between the two."""
    a, b = ports
    one, two = connect(a, num=5).start(), connect(b).start()
    for n in range(7):
        one.transmit(frame(MAC_B, MAC_A, n))
    two.receive(7)
    base = one.stop_ring(1)
    assert base == 2 * 0x1_0001  # index 2 of the second lap
    one.start_ring(1, base=base & 0xFFFF)
    one.transmit(frame(MAC_B, MAC_A, 7))
    assert number(two.receive()[0].frame) == 7


@pytest.mark.parametrize("layout", LAYOUTS[1:], indirect=True)
def test_a_packed_ring_whose_base_was_never_set_begins_with_its_first_lap(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    one, two = connect(ports[0]), connect(ports[1]).start()
    one.negotiate()
    one.share_memory()
    one.make_queues()
    tx = one.queues()[1]
    assert one.stop_ring(1) == 0x8000_8000
    one.do(Request.SET_VRING_NUM, VringState(1, tx.num))
    one.do(Request.SET_VRING_ADDR, tx.addresses(1))
    one.set_call(1, tx.call_fd)
    one.set_kick(1, tx.kick_fd)
    one.enable_ring(1)
    one.transmit(frame(MAC_B, MAC_A, 1))
    assert number(two.receive()[0].frame) == 1


@pytest.mark.parametrize("layout", LAYOUTS[2:], indirect=True)
def test_in_order_one_used_descriptor_stands_for_a_batch(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    """Transmitted in one burst, given back by one write (virtio 1.2, 2.8.9)."""
    one = connect(ports[0]).start()
    connect(ports[1]).start()
    tx = one.pairs[0].tx
    assert isinstance(tx, PackedQueue)
    for n in range(32):
        one.queue_frame(frame(MAC_B, MAC_A, n), sizes=[12] if n % 2 else [])
    tx.kick(force=True)
    until(lambda: tx.used_idx == 32, "all to be taken")
    marked = [tx.flags_at(position) & USED for position in range(48)]
    assert marked[0]
    assert sum(map(bool, marked)) < 32
    assert len(list(tx.take_used())) == 32
    one.transmit(frame(MAC_B, MAC_A, 32))


@pytest.mark.parametrize(
    "sizes",
    [[12], [1] * 12, [10, 2], [11], [12, 14], [13], [12, 1, 1, 1, 1], [26]],
    ids=lambda s: "+".join(map(str, s)),
)
@pytest.mark.parametrize("indirect", [False, True], ids=["chain", "indirect"])
def test_a_packet_may_be_cut_anywhere(
    ports: tuple[VhostPort, VhostPort], connect: Connect, sizes: list[int], indirect: bool
) -> None:
    """The header has no descriptor of its own, and may have several."""
    a, b = ports
    one, two = connect(a).start(), connect(b).start()
    sent = frame(MAC_B, MAC_A, 7, 200)
    one.transmit(sent, sizes=sizes, indirect=indirect)
    assert two.receive()[0].frame == sent


def test_a_receive_buffer_may_be_a_chain(ports: tuple[VhostPort, VhostPort], connect: Connect) -> None:
    """Old drivers put the header into a buffer of its own."""
    a, b = ports
    one, two = connect(a).start(), connect(b).start(fill=0)
    rx = two.pairs[0].rx
    at = two.memory.alloc(2048)
    rx.add([Buffer(at, 12, True), Buffer(at + 100, 50, True), Buffer(at + 1000, 1000, True)])
    rx.kick()
    sent = frame(MAC_B, MAC_A, 7, 200)
    one.transmit(sent)
    ((_, size),) = until(lambda: list(rx.take_used()), "a packet")
    assert size == VNET_HDR + 200
    assert two.memory.read(at + 100, 50) + two.memory.read(at + 1000, 150) == sent


def test_the_mergeable_header_counts_the_buffers(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    a, b = ports
    one = connect(a, features=USUAL).start()
    two = connect(b, features=USUAL, buffer_size=128).start()
    for size, buffers in [(60, 1), (116, 1), (117, 2), (244, 2), (245, 3), (1514, 12)]:
        sent = frame(MAC_B, MAC_A, size, size)
        one.transmit(sent)
        (got,) = two.receive()
        assert (got.frame, got.buffers) == (sent, buffers)


def test_without_mergeable_a_packet_that_does_not_fit_is_dropped_and_counted(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    a, b = ports
    one, two = connect(a).start(), connect(b, features=PLAIN, buffer_size=128).start()
    one.transmit(frame(MAC_B, MAC_A, 1, 200), frame(MAC_B, MAC_A, 2, 100))
    assert [number(r.frame) for r in two.receive()] == [2]
    assert b.counters["rx_drop_too_big"] == 1


def test_the_one_buffer_header_says_so(ports: tuple[VhostPort, VhostPort], connect: Connect) -> None:
    """VERSION_1 without MRG_RXBUF: num_buffers is there and must be 1 (virtio 1.2, 5.1.6.4)."""
    a, b = ports
    one, two = connect(a).start(), connect(b, features=PLAIN).start()
    one.transmit(frame(MAC_B, MAC_A))
    assert two.receive()[0].header == bytes(10) + b"\x01\x00"


def test_no_receive_buffers_is_the_receivers_loss_only(host: Host, connect: Connect) -> None:
    a, b, c = (host.vhost(name) for name in "abc")
    one = connect(a).start()
    connect(b).start(fill=0)
    three = connect(c).start()
    one.transmit(*(frame(BROADCAST, MAC_A, n) for n in range(100)))
    assert [number(r.frame) for r in three.receive(100)] == list(range(100))
    assert b.counters["rx_drop_full"] == 100


def test_several_pairs_all_carry_packets(host: Host, connect: Connect) -> None:
    a, b = host.vhost("a", pairs=4), host.vhost("b", pairs=4)
    one = connect(a, pairs=4, num=64).start()
    two = connect(b, pairs=4, num=64).start()
    for pair in range(4):
        one.transmit(*(frame(MAC_B, MAC_A, 10 * pair + n) for n in range(10)), pair=pair)
    got: list[int] = []

    def all_there() -> bool:
        for pair in range(4):
            got.extend(number(r.frame) for r in two.poll(pair))
        return len(got) == 40

    until(all_there, "all packets")
    assert sorted(got) == list(range(40))


# ---- notifications ----


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


# ---- enabled, disabled, suspended ----


def test_without_protocol_features_rings_are_enabled(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    a, b = ports
    one, two = connect(a).start(protocol=None), connect(b).start(protocol=None)
    one.transmit(frame(MAC_B, MAC_A, 3))
    assert number(two.receive()[0].frame) == 3
    assert all(ring["enabled"] for ring in a.describe["session"]["rings"])


def test_a_disabled_transmit_ring_is_emptied_and_nothing_is_forwarded(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    a, b = ports
    one, two = connect(a).start(), connect(b).start()
    one.enable_ring(1, False)
    one.transmit(*(frame(MAC_B, MAC_A, n) for n in range(10)))
    assert a.counters["tx_drop_disabled"] == 10
    one.enable_ring(1, True)
    one.transmit(frame(MAC_B, MAC_A, 10))
    assert [number(r.frame) for r in two.receive()] == [10]


def test_a_disabled_receive_ring_is_not_filled(ports: tuple[VhostPort, VhostPort], connect: Connect) -> None:
    a, b = ports
    one, two = connect(a).start(), connect(b).start()
    two.enable_ring(0, False)
    one.transmit(*(frame(MAC_B, MAC_A, n) for n in range(10)))
    assert two.pairs[0].rx.used_idx == 0
    two.enable_ring(0, True)
    one.transmit(frame(MAC_B, MAC_A, 10))
    assert [number(r.frame) for r in two.receive()] == [10]


def test_a_ring_not_yet_enabled_is_disabled(ports: tuple[VhostPort, VhostPort], connect: Connect) -> None:
    a, b = ports
    two = connect(b).start()
    one = connect(a)
    one.negotiate()
    one.share_memory()
    one.make_queues()
    one.start_ring(1)
    one.transmit(frame(MAC_B, MAC_A, 1))
    assert a.counters["tx_drop_disabled"] == 1
    assert two.poll() == []


def test_a_suspended_device_writes_nothing(ports: tuple[VhostPort, VhostPort], connect: Connect) -> None:
    """All rings stopped: no byte of guest memory changes and nobody is called."""
    a, b = ports
    one, two = connect(a).start(), connect(b).start()
    one.transmit(frame(MAC_B, MAC_A, 1))
    two.receive()
    for index in (0, 1):
        two.stop_ring(index)
    for queue in two.queues():
        queue.take_calls()
    region = two.memory.regions[0]
    before = bytes(region.map)
    two.pairs[0].tx.kick(force=True)
    one.transmit(*(frame(MAC_B, MAC_A, n) for n in range(50)))
    assert bytes(region.map) == before
    assert [queue.take_calls() for queue in two.queues()] == [0, 0]


# ---- memory ----


def test_memory_may_be_told_again_while_packets_flow(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    a, b = ports
    one, two = connect(a).start(), connect(b).start()
    for n in range(30):
        one.transmit(frame(MAC_B, MAC_A, n))
        (one if n % 2 else two).share_memory()
        assert number(two.receive()[0].frame) == n


def test_regions_come_and_go_while_packets_flow(ports: tuple[VhostPort, VhostPort], connect: Connect) -> None:
    a, b = ports
    one, two = connect(a).start(), connect(b).start()
    for n in range(20):
        region = one.memory.add(Span(GPA_BASE + (64 + n) * MIB, 2 * PAGE))
        assert one.add_region(region) == 0
        sent = frame(MAC_B, MAC_A, n, 100)
        one.memory.write(region.info.gpa, bytes(VNET_HDR) + sent)
        one.pairs[0].tx.add([Buffer(region.info.gpa, VNET_HDR + 100)])
        one.pairs[0].tx.kick()
        assert two.receive()[0].frame == sent
        one.flush()
        assert one.remove_region(region, with_fd=bool(n % 2)) == 0
        one.memory.remove(region)


def test_the_whole_memory_table_may_come_region_by_region(host: Host, connect: Connect) -> None:
    """QEMU with CONFIGURE_MEM_SLOTS never sends SET_MEM_TABLE."""
    a, b = host.vhost("a"), host.vhost("b")
    two = connect(b).start()
    one = connect(a, memory=GuestMemory([Span(GPA_BASE + i * 16 * MIB, 16 * MIB) for i in range(20)]))
    one.negotiate()
    for region in one.memory.regions:
        assert one.add_region(region) == 0
    one.make_queues()
    for index in (0, 1):
        one.start_ring(index)
        one.enable_ring(index)
    one.transmit(frame(MAC_B, MAC_A, 1))
    assert number(two.receive()[0].frame) == 1


def test_a_region_that_a_running_ring_needs_is_not_taken_away(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    a, b = ports
    one, two = connect(a).start(), connect(b).start()
    assert one.remove_region(one.memory.regions[0]) != 0
    assert a.faults["bad_memory"] == 1
    one.transmit(frame(MAC_B, MAC_A, 1))
    assert number(two.receive()[0].frame) == 1


@pytest.mark.parametrize("offset", [0, PAGE, 5 * PAGE])
def test_a_region_may_start_anywhere_in_its_file(
    ports: tuple[VhostPort, VhostPort], connect: Connect, offset: int
) -> None:
    a, b = ports
    one = connect(a, memory=GuestMemory([Span(GPA_BASE, 4 * MIB, offset)])).start()
    two = connect(b).start()
    one.transmit(frame(MAC_B, MAC_A, 1))
    assert number(two.receive()[0].frame) == 1


@pytest.mark.parametrize("cut", [1, 11, 12, 13, 26, 100])
def test_a_buffer_may_cross_regions_that_touch(
    ports: tuple[VhostPort, VhostPort], connect: Connect, cut: int
) -> None:
    """Contiguous for the guest, in two mappings here: legal, both to read and to write."""
    a, b = ports
    edge = GPA_BASE + 16 * MIB
    spans = [Span(GPA_BASE, 16 * MIB), Span(edge, MIB)]
    one = connect(a, memory=GuestMemory(spans)).start()
    two = connect(b, memory=GuestMemory(spans)).start(fill=0)
    two.pairs[0].rx.add([Buffer(edge - cut, 2048, True)])
    two.pairs[0].rx.kick()
    sent = frame(MAC_B, MAC_A, 1, 500)
    one.memory.write(edge - cut, bytes(VNET_HDR) + sent)
    one.pairs[0].tx.add([Buffer(edge - cut, VNET_HDR + 500)])
    one.pairs[0].tx.kick()
    ((_, size),) = until(lambda: list(two.pairs[0].rx.take_used()), "a packet")
    assert size == VNET_HDR + 500
    assert two.memory.read(edge - cut, size)[VNET_HDR:] == sent


@pytest.mark.parametrize("below", [16, 24, 32])
def test_an_indirect_table_may_cross_regions_that_touch(
    ports: tuple[VhostPort, VhostPort], connect: Connect, below: int
) -> None:
    """Between two descriptors, or in the middle of one: the table has no alignment of its own."""
    a, b = ports
    edge = GPA_BASE + 16 * MIB
    one = connect(a, memory=GuestMemory([Span(GPA_BASE, 16 * MIB), Span(edge, MIB)]))
    one.negotiate()
    one.share_memory()
    one.make_queues()
    tx = one.pairs[0].tx
    two = connect(b).start()
    for index in (0, 1):
        one.start_ring(index)
        one.enable_ring(index)
    (head,) = tx.peek_free(1)
    tx.tables = edge - below - 16 * MAX_INDIRECT * head
    one.transmit(frame(MAC_B, MAC_A, 4, 200), sizes=[12, 50, 50], indirect=True)
    assert number(two.receive()[0].frame) == 4


def test_many_regions(host: Host, connect: Connect) -> None:
    """As many as are offered, and not one more."""
    port = host.vhost("a")
    fe = connect(port, memory=GuestMemory([Span(GPA_BASE, 4 * MIB)]))
    fe.negotiate(int(ALL_PROTOCOL))
    slots = fe.ask_u64(Request.GET_MAX_MEM_SLOTS)
    for n in range(slots):
        region = fe.memory.regions[0] if n == 0 else fe.memory.add(Span(GPA_BASE + (8 + n) * MIB, PAGE))
        assert fe.add_region(region) == 0
    assert fe.add_region(fe.memory.add(Span(GPA_BASE + 4096 * MIB, PAGE))) != 0
    assert fe.remove_region(fe.memory.regions[1]) == 0
    assert fe.add_region(fe.memory.regions[-1]) == 0
