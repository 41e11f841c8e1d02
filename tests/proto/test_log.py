# SPDX-License-Identifier: BSD-2-Clause
"""The dirty log of live migration: what the host writes is marked, and where it may not write it does not."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from support.host import Host, VhostPort
from support.leaks import open_things, until_open
from support.waiting import until
from vpt.conform.dirty_log import LOG_PAGE, DirtyLog, log_all, log_rings, set_log, start_log, stop_log
from vpt.conform.frames import MAC_A, MAC_B, frame, number
from vpt.conform.front_end import ALL_PROTOCOL, PLAIN, USUAL, FrontEnd
from vpt.conform.guest_memory import GPA_BASE, MIB, GuestMemory, Span
from vpt.vhost_user import U64, Log, MemReg, ProtocolFeature, Request, VirtioFeature, VringState

F = VirtioFeature
Connect = Callable[..., FrontEnd]
LAYOUTS = [
    pytest.param(int(PLAIN), id="split"),
    pytest.param(int(USUAL), id="split, mergeable"),
    pytest.param(int(USUAL | F.RING_PACKED), id="packed"),
    pytest.param(int(USUAL | F.RING_PACKED | F.IN_ORDER), id="packed in order"),
]
MEMORY = 4 * MIB
END = GPA_BASE + MEMORY


@pytest.fixture
def new_log() -> Iterator[Callable[..., DirtyLog]]:
    """new_log(end, offset=0): closed at the end."""
    with ExitStack() as stack:
        yield lambda end=END, **options: stack.enter_context(DirtyLog(end, **options))


@pytest.fixture
def ports(host: Host) -> tuple[VhostPort, VhostPort]:
    return host.vhost("a", mtu=9000), host.vhost("b", mtu=9000)


def small(connect: Connect, port: VhostPort, features: int = int(USUAL), **options: int) -> FrontEnd:
    """A front-end with little memory, to be compared byte by byte."""
    options = {"num": 32, "buffer_size": 4000} | options
    return connect(
        port, features=features | F.LOG_ALL, memory=GuestMemory([Span(GPA_BASE, MEMORY)]), **options
    )


def begin(fe: FrontEnd, *, fill: int | None = None) -> FrontEnd:
    """Started, with the log switched off yet."""
    fe.wanted &= ~int(F.LOG_ALL)
    return fe.start(fill=fill)


def delivered(port: VhostPort, count: int) -> None:
    """Wait until so many packets have been; they are counted after they are logged."""
    until(lambda: port.counters["rx_packets"] == count, f"{count} packets")


def changed(before: bytes, after: bytes) -> set[int]:
    """The guest's pages that differ."""
    return {
        (GPA_BASE + at) // LOG_PAGE
        for at in range(0, len(before), LOG_PAGE)
        if before[at : at + LOG_PAGE] != after[at : at + LOG_PAGE]
    }


def pages(gpa: int, size: int) -> set[int]:
    return set(range(gpa // LOG_PAGE, (gpa + size - 1) // LOG_PAGE + 1))


@pytest.mark.parametrize("features", LAYOUTS)
def test_every_page_that_is_written_is_marked_and_no_other(
    ports: tuple[VhostPort, VhostPort],
    connect: Connect,
    new_log: Callable[..., DirtyLog],
    features: int,
) -> None:
    """Sizes that end before, at and after the edges of pages and buffers, and several laps of the ring."""
    a, b = ports
    one, two = connect(a, num=32).start(), begin(small(connect, b, features))
    rx = two.pairs[0].rx
    log = new_log()
    start_log(two, log)
    sizes = [60, 1500, 3988, 4000, 4100, 60] if features & F.MRG_RXBUF else [60, 1500, 3988]
    sent = 0
    for lap in range(12):
        before = bytes(two.memory.regions[0].map)
        log.clear()
        for size in sizes:
            one.transmit(frame(MAC_B, MAC_A, lap, size))
        sent += len(sizes)
        delivered(b, sent)
        marked = log.pages()
        missed = changed(before, bytes(two.memory.regions[0].map)) - marked
        assert not missed, [hex(page * LOG_PAGE) for page in missed]
        own = pages(two.pairs[0].rx_buffers, two.num * two.buffer_size)
        own |= pages(rx.desc, 16 * rx.num) | pages(rx.used, 6 + 8 * rx.num)
        assert marked <= own
        assert len(marked) <= 3 * len(sizes) + 4
        two.receive(len(sizes))


@pytest.mark.parametrize("features", LAYOUTS)
def test_used_descriptors_of_transmit_rings_are_marked(
    ports: tuple[VhostPort, VhostPort],
    connect: Connect,
    new_log: Callable[..., DirtyLog],
    features: int,
) -> None:
    a, b = ports
    one = begin(small(connect, a, features))
    connect(b).start()
    log = new_log()
    start_log(one, log)
    tx = one.pairs[0].tx
    one.transmit(frame(MAC_B, MAC_A))
    ring = tx.desc if features & F.RING_PACKED else tx.used
    assert ring // LOG_PAGE in log.pages()


def test_used_rings_are_marked_where_their_log_address_says(
    ports: tuple[VhostPort, VhostPort], connect: Connect, new_log: Callable[..., DirtyLog]
) -> None:
    """It need not be their own, nor in memory at all; and without the flag they are not."""
    a, b = ports
    one, two = connect(a).start(), begin(small(connect, b))
    beyond = END + 16 * LOG_PAGE
    log = new_log(END + MIB)
    set_log(two, log)
    log_all(two, True)
    log_rings(two, True, at={0: beyond, 1: beyond + 4 * LOG_PAGE})
    one.transmit(frame(MAC_B, MAC_A))
    two.receive()
    rx = two.pairs[0].rx
    assert beyond // LOG_PAGE in log.pages()
    assert rx.used // LOG_PAGE not in log.pages() - pages(two.pairs[0].rx_buffers, two.num * two.buffer_size)
    log_rings(two, False)
    log.clear()
    one.transmit(frame(MAC_B, MAC_A))
    two.receive()
    assert log.pages() <= pages(two.pairs[0].rx_buffers, two.num * two.buffer_size)
    assert log.pages()


def test_nothing_is_marked_without_the_feature(
    ports: tuple[VhostPort, VhostPort], connect: Connect, new_log: Callable[..., DirtyLog]
) -> None:
    a, b = ports
    one, two = connect(a).start(), begin(small(connect, b))
    log = new_log()
    set_log(two, log)
    log_rings(two, True)
    one.transmit(frame(MAC_B, MAC_A))
    two.receive()
    assert log.pages() == set()


def test_only_the_log_may_be_switched_while_rings_run(
    ports: tuple[VhostPort, VhostPort], connect: Connect, new_log: Callable[..., DirtyLog]
) -> None:
    two = begin(small(connect, ports[1]))
    start_log(two, new_log())
    assert two.try_(Request.SET_FEATURES, U64(two.features ^ int(F.MRG_RXBUF))) != 0
    assert two.try_(Request.SET_FEATURES, U64(two.features)) == 0
    stop_log(two)
    assert two.try_(Request.SET_FEATURES, U64(two.features ^ int(F.EVENT_IDX | F.LOG_ALL))) != 0


def test_a_log_that_comes_after_the_rings_has_all_pages_marked(
    ports: tuple[VhostPort, VhostPort], connect: Connect, new_log: Callable[..., DirtyLog]
) -> None:
    """A guest reboots while it migrates: QEMU starts the rings, with the feature, then tells of the log."""
    a, b = ports
    one, two = connect(a).start(), small(connect, b).start()
    assert two.features & F.LOG_ALL
    one.transmit(frame(MAC_B, MAC_A))
    two.receive()
    log = new_log()
    set_log(two, log)
    assert log.pages() == pages(GPA_BASE, MEMORY)


def test_the_front_end_is_told_by_the_event_of_set_log_fd(
    ports: tuple[VhostPort, VhostPort], connect: Connect, new_log: Callable[..., DirtyLog]
) -> None:
    a, b = ports
    one, two = connect(a).start(), begin(small(connect, b))
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    two.do(Request.SET_LOG_FD, None, [event])
    start_log(two, new_log())
    one.transmit(frame(MAC_B, MAC_A))
    two.receive()
    until(lambda: select.select([event], [], [], 0)[0], "the log's eventfd to be signalled")
    with open("/dev/null") as file:
        assert two.try_(Request.SET_LOG_FD, None, [file.fileno()]) != 0
    os.close(event)


def test_without_log_shmfd_there_is_no_log(
    host: Host, connect: Connect, new_log: Callable[..., DirtyLog]
) -> None:
    port = host.vhost("a")
    fe = connect(port)
    fe.negotiate(int(ALL_PROTOCOL & ~ProtocolFeature.LOG_SHMFD))
    log = new_log()
    fe.send(Request.SET_LOG_BASE, Log(log.size, 0), [log.fd])
    assert fe.closed_by_peer()
    until(lambda: port.faults["not_negotiated"] == 1, "the fault to be counted")


# ---- what a front-end may get wrong ----


def refused(port: VhostPort, fe: FrontEnd, log: DirtyLog, size: int, offset: int) -> None:
    """SET_LOG_BASE has a reply of its own, which cannot say no: the connection ends."""
    fe.send(Request.SET_LOG_BASE, Log(size, offset), [log.fd])
    assert fe.closed_by_peer()
    until(lambda: port.faults["bad_memory"] == 1, "the fault to be counted")


@pytest.mark.usefixtures("bystanders")
@pytest.mark.parametrize("missing", [1, 8, 1000])
def test_m15_a_log_too_small_for_the_highest_address_is_refused(
    ports: tuple[VhostPort, VhostPort], connect: Connect, new_log: Callable[..., DirtyLog], missing: int
) -> None:
    a, b = ports
    one, two = connect(a).start(), begin(small(connect, b))
    log = new_log()
    refused(b, two, log, log.size - missing, 0)
    assert one.ask_u64(Request.GET_FEATURES)


@pytest.mark.usefixtures("bystanders")
def test_m15_memory_cannot_outgrow_the_log_in_use(
    ports: tuple[VhostPort, VhostPort], connect: Connect, new_log: Callable[..., DirtyLog]
) -> None:
    """QEMU sends the larger log first; and when the migration is over, the log is no limit any more."""
    two = begin(small(connect, ports[1]))
    start_log(two, new_log())
    region = two.memory.add(Span(END + 16 * MIB, MIB))
    assert two.try_(Request.ADD_MEM_REG, MemReg(region.info), [region.fd]) != 0
    set_log(two, new_log(END + 17 * MIB))
    assert two.add_region(region) == 0
    assert two.remove_region(region) == 0
    set_log(two, new_log())
    stop_log(two)
    assert two.add_region(region) == 0


@pytest.mark.usefixtures("bystanders")
def test_m15_a_used_ring_beyond_the_log_is_refused(
    ports: tuple[VhostPort, VhostPort], connect: Connect, new_log: Callable[..., DirtyLog]
) -> None:
    a, b = ports
    one, two = connect(a).start(), begin(small(connect, b))
    log = new_log()
    start_log(two, log)
    queue = two.pairs[0].rx
    end = log.size * 8 * LOG_PAGE
    used_size = 6 + 8 * queue.num
    addr = replace(queue.addresses(0), flags=1)
    for where, right in [(end - used_size, True), (end - used_size + 1, False), ((1 << 64) - 1, False)]:
        assert (two.try_(Request.SET_VRING_ADDR, replace(addr, log=where)) == 0) == right
    one.transmit(frame(MAC_B, MAC_A, 3))
    assert number(two.receive()[0].frame) == 3


@pytest.mark.usefixtures("bystanders")
@pytest.mark.parametrize(
    ("size", "offset"),
    [(1 << 63, 1 << 63), (1 << 64 - 13, 0), ((1 << 64) - 1, 2), (0, 0), (4096, 1 << 63), (1 << 40, 0)],
)
def test_m16_size_and_offset_that_wrap_or_exceed_the_file_are_refused(
    ports: tuple[VhostPort, VhostPort],
    connect: Connect,
    new_log: Callable[..., DirtyLog],
    size: int,
    offset: int,
) -> None:
    before = ports[1].host.open_things()
    with small(connect, ports[1]) as two:
        two.negotiate()
        refused(ports[1], two, new_log(), size, offset)

    def mapped() -> dict[str, int]:
        return {name: n for name, n in (open_things() - before).items() if name.startswith("mapped")}

    only_ours = {"mapped /memfd:log (deleted)": 1}
    until(lambda: mapped() == only_ours, lambda: f"no log but ours to be mapped: {mapped()}")


@pytest.mark.usefixtures("bystanders")
@pytest.mark.parametrize("offset", [4096, 100, 8192 + 17])
def test_m16_the_offset_is_applied_once(
    ports: tuple[VhostPort, VhostPort], connect: Connect, new_log: Callable[..., DirtyLog], offset: int
) -> None:
    """Twice, and the marks would lie behind the log (CVE-2026-86563); not at all, and before it."""
    a, b = ports
    one, two = connect(a).start(), begin(small(connect, b))
    log = new_log(offset=offset)
    start_log(two, log)
    one.transmit(frame(MAC_B, MAC_A))
    two.receive()
    first = two.pairs[0].rx_buffers
    assert first // LOG_PAGE in log.pages()
    assert log.pages() <= pages(GPA_BASE, MEMORY)
    assert not any(log.outside())


@pytest.mark.usefixtures("bystanders")
def test_m17_a_log_that_was_replaced_is_not_written_any_more(
    ports: tuple[VhostPort, VhostPort], connect: Connect, new_log: Callable[..., DirtyLog]
) -> None:
    """Swapped under traffic, again and again: after the answer each mark is in the new one."""
    a, b = ports
    one, two = connect(a).start(), begin(small(connect, b))
    old = new_log()
    start_log(two, old)
    for n in range(30):
        one.queue_frame(frame(MAC_B, MAC_A, n))
        one.pairs[0].tx.kick()
        new = new_log()
        set_log(two, new)
        was = old.pages()
        one.transmit(frame(MAC_B, MAC_A, n))
        two.receive(1)
        delivered(b, 2 * (n + 1))
        two.poll()
        assert old.pages() == was
        assert new.pages()
        old = new


@pytest.mark.usefixtures("bystanders")
def test_m6_a_log_that_shrinks_takes_down_its_port_only(
    ports: tuple[VhostPort, VhostPort], connect: Connect, new_log: Callable[..., DirtyLog]
) -> None:
    a, b = ports
    one, two = connect(a).start(), begin(small(connect, b))
    log = new_log()
    start_log(two, log)
    os.ftruncate(log.fd, 0)
    one.transmit(frame(MAC_B, MAC_A))
    until(lambda: b.counters["broken_sigbus"] == 1, "the port to be taken down")
    assert two.closed_by_peer()
    assert one.ask_u64(Request.GET_FEATURES)
    os.ftruncate(log.fd, log.size)


@pytest.mark.usefixtures("bystanders")
def test_l5_migration_started_and_stopped_again_and_again(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    a, b = ports
    one, two = connect(a).start(), begin(small(connect, b))
    before = b.host.open_things()
    for n in range(20):
        with DirtyLog(END) as log:
            start_log(two, log)
            one.transmit(frame(MAC_B, MAC_A, n))
            assert number(two.receive()[0].frame) == n
            assert log.pages()
            stop_log(two)
            seen = log.pages()
            one.transmit(frame(MAC_B, MAC_A, n))
            two.receive()
            assert log.pages() == seen, "not logged any more"
        until_open(before)


@pytest.mark.usefixtures("bystanders")
@pytest.mark.parametrize("features", LAYOUTS)
def test_l6_after_the_rings_have_stopped_nothing_is_written_nor_marked(
    ports: tuple[VhostPort, VhostPort],
    connect: Connect,
    new_log: Callable[..., DirtyLog],
    features: int,
) -> None:
    """The last round of a migration copies what is marked; what came later would be lost."""
    a, b = ports
    one, two = connect(a).start(), begin(small(connect, b, features))
    log = new_log()
    start_log(two, log)
    one.transmit(*(frame(MAC_B, MAC_A, n) for n in range(10)))
    for index in (0, 1):
        two.stop_ring(index)
    seen, memory = log.pages(), bytes(two.memory.regions[0].map)
    calls = [queue.take_calls() for queue in two.queues()]
    one.transmit(*(frame(MAC_B, MAC_A, n) for n in range(50)))
    assert (log.pages(), bytes(two.memory.regions[0].map)) == (seen, memory)
    assert [queue.take_calls() for queue in two.queues()] == [0, 0], calls


@pytest.mark.usefixtures("bystanders")
def test_l5_a_reset_in_the_middle_of_a_migration_ends_the_log(
    ports: tuple[VhostPort, VhostPort], connect: Connect, new_log: Callable[..., DirtyLog]
) -> None:
    a, b = ports
    one, two = connect(a).start(), begin(small(connect, b))
    log = new_log()
    start_log(two, log)
    two.do(Request.RESET_DEVICE)
    log.clear()
    two.features = int(USUAL)
    two.do(Request.SET_FEATURES, U64(two.features))
    for index, queue in enumerate(two.queues()):
        queue.restart()
        two.start_ring(index)
        two.do(Request.SET_VRING_ENABLE, VringState(index, 1))
    two.fill()
    one.transmit(frame(MAC_B, MAC_A, 9))
    assert number(two.receive()[0].frame) == 9
    assert log.pages() == set()
