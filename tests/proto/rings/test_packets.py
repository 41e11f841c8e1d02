# SPDX-License-Identifier: BSD-2-Clause
"""Packets through rings of every layout: sizes, bases, descriptors, buffers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.host import Host, VhostPort
from support.layouts import LAYOUTS
from support.waiting import until
from vpt.conform.frames import BROADCAST, MAC_A, MAC_B, frame, number
from vpt.conform.front_end import PLAIN, USUAL, VNET_HDR, FrontEnd
from vpt.conform.guest_memory import GPA_BASE, MIB, GuestMemory, Span
from vpt.conform.packed_queue import USED, WRAP, PackedQueue
from vpt.conform.split_queue import Buffer
from vpt.vhost_user import Request, VirtioFeature, VringState

F = VirtioFeature
Connect = Callable[..., FrontEnd]


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
