# SPDX-License-Identifier: BSD-2-Clause
"""What may happen to memory below rings that run, and how descriptors may lie in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.host import Host, VhostPort
from support.waiting import until
from vpt.conform.frames import MAC_A, MAC_B, frame, number
from vpt.conform.front_end import ALL_PROTOCOL, VNET_HDR, FrontEnd
from vpt.conform.guest_memory import GPA_BASE, MIB, PAGE, GuestMemory, Span
from vpt.conform.split_queue import MAX_INDIRECT, Buffer
from vpt.vhost_user import Request

Connect = Callable[..., FrontEnd]


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
