# SPDX-License-Identifier: BSD-2-Clause
"""M: what a hostile front-end can say about guest memory, and do to it afterwards."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.leaks import until_open
from support.scene import MAC_X, Scene
from support.waiting import until
from vpt.conform.frames import BROADCAST, MAC_A, MAC_B, frame, number
from vpt.conform.front_end import FrontEnd
from vpt.conform.guest_memory import GPA_BASE, MIB, PAGE, UVA_OFFSET, GuestMemory, Span
from vpt.conform.split_queue import Buffer
from vpt.daemon import descriptors
from vpt.daemon.descriptors import is_memory
from vpt.dataplane import Reason
from vpt.vhost_user import Log, MemReg, MemTable, Region, Request, Rule, VringAddr, VringFd, VringState

TOP = 1 << 64


def region(gpa: int = GPA_BASE, size: int = MIB, uva: int = GPA_BASE + UVA_OFFSET, offset: int = 0) -> Region:
    return Region(gpa, size, uva, offset)


@dataclass(frozen=True)
class Table:
    """A memory table that must be refused."""

    id: str
    regions: tuple[Region, ...]
    file_size: int = 4 * MIB


TABLES = [
    Table("M2 size 0", (region(size=0),)),
    Table("M3 gpa wraps", (region(gpa=TOP - PAGE),)),
    Table("M3 uva wraps", (region(uva=TOP - PAGE),)),
    Table("M3 offset wraps", (region(offset=TOP - PAGE),)),
    Table("M3 size wraps", (region(size=TOP - PAGE),)),
    Table("M4 same gpa", (region(), region(uva=1 << 40))),
    Table("M4 gpa overlap by a page", (region(), region(gpa=GPA_BASE + MIB - PAGE, uva=1 << 40))),
    Table("M4 uva overlap", (region(), region(gpa=1 << 40, uva=GPA_BASE + UVA_OFFSET + MIB - PAGE))),
    Table("M4 one inside the other", (region(), region(gpa=GPA_BASE + PAGE, size=PAGE, uva=1 << 40))),
    Table("M5 file too short", (region(size=5 * MIB),)),
    Table("M5 file too short for the offset", (region(offset=4 * MIB),)),
    Table("M5 empty file", (region(),), 0),
    Table("M9 size 2^63", (region(size=1 << 63),)),
    Table("M9 size 2^62", (region(size=1 << 62),)),
]


@pytest.mark.parametrize("how", ["table", "add"])
@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.id)
def test_a_table_that_lies_is_refused_whole(scene: Scene, table: Table, how: str) -> None:
    """Nothing of it stays: memory that was told before still carries the rings."""
    fe = scene.enter()
    fe.negotiate()
    fd = os.memfd_create("lie")
    os.ftruncate(fd, table.file_size)
    if how == "table":
        refused = fe.try_(Request.SET_MEM_TABLE, MemTable(table.regions), [fd] * len(table.regions))
    else:
        refused = [fe.try_(Request.ADD_MEM_REG, MemReg(r), [fd]) for r in table.regions][-1]
    os.close(fd)
    assert refused != 0
    assert scene.villain.faults[Rule.BAD_MEMORY] == 1
    scene.check(logged=False)


def unmappable(kind: str) -> int:
    """A descriptor that is no memory that can be shared for writing."""
    if kind == "read-only":
        fd = os.memfd_create("ro")
        os.ftruncate(fd, MIB)
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        os.close(fd)
        return again
    if kind == "O_PATH":
        return os.open("/proc/self/exe", os.O_PATH)
    if kind == "directory":
        return os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    if kind == "pipe":
        r, w = os.pipe()
        os.close(w)
        return r
    if kind == "device":
        return os.open("/dev/null", os.O_RDWR)
    return os.eventfd(0)


@pytest.mark.parametrize("kind", ["read-only", "O_PATH", "directory", "pipe", "eventfd", "device"])
def test_m7_what_cannot_be_mapped_is_refused(scene: Scene, kind: str) -> None:
    fe = scene.enter()
    fe.negotiate()
    fd = unmappable(kind)
    assert fe.try_(Request.SET_MEM_TABLE, MemTable((region(),)), [fd]) != 0
    assert fe.try_(Request.ADD_MEM_REG, MemReg(region()), [fd]) != 0
    os.close(fd)
    assert scene.villain.faults[Rule.BAD_MEMORY] == 2
    scene.check(logged=False)


@pytest.fixture
def disk_file(tmp_path: Path) -> Iterator[int]:
    """A file of 1 MiB that is on a disk."""
    with contextlib.ExitStack() as stack:
        for folder in (tmp_path, Path("/var/tmp")):
            file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            if not is_memory(file.fileno()):
                break
        else:
            pytest.skip("missing: a folder for temporary files that is on a disk")
        file.truncate(MIB)
        yield file.fileno()


def by_table(fe: FrontEnd, fd: int) -> None:
    assert fe.try_(Request.SET_MEM_TABLE, MemTable((region(size=PAGE),)), [fd]) != 0


def by_region(fe: FrontEnd, fd: int) -> None:
    assert fe.try_(Request.ADD_MEM_REG, MemReg(region(size=PAGE)), [fd]) != 0


def as_dirty_log(fe: FrontEnd, fd: int) -> None:
    fe.send(Request.SET_LOG_BASE, Log(MIB, 0), [fd])
    assert fe.closed_by_peer()


def as_record(fe: FrontEnd, fd: int) -> None:
    info = fe.ask_record().info
    assert fe.try_(Request.SET_INFLIGHT_FD, info, [fd]) != 0


@pytest.mark.parametrize("give", [by_table, by_region, as_dirty_log, as_record])
def test_m7_a_file_that_somebody_else_serves_is_refused(
    disk_file: int, scene: Scene, give: Callable[[FrontEnd, int], None]
) -> None:
    """A worker would wait for its pages, a disk's or a FUSE server's: the line says what to take instead."""
    fe = scene.enter()
    fe.negotiate()
    give(fe, disk_file)
    scene.check(logged=False)
    assert sum("neither a memfd nor a file in /dev/shm" in line for line in scene.lines) == 1


def test_m7_no_file_is_asked_for_its_identity_that_could_keep_us_waiting(
    disk_file: int, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fstat() of a file on FUSE waits for its server: also of a region that is there already."""
    fe = scene.enter().start()
    real, asked = os.fstat, []
    monkeypatch.setattr(os, "fstat", lambda fd: (asked.append(is_memory(fd)), real(fd))[1])
    held = fe.memory.regions[0]
    assert fe.add_region(held) == 0
    assert fe.try_(Request.ADD_MEM_REG, MemReg(held.info), [disk_file]) != 0
    assert set(asked) == {True}
    monkeypatch.undo()
    scene.check(logged=False)


def test_m10_memory_is_let_go_of_without_a_word_however_much_it_is(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed elsewhere all of it, and an honest front-end's counts for nothing."""
    monkeypatch.setattr(descriptors, "_SMALL_FILE", -1)
    fe = scene.enter().start()
    fe.share_memory()
    extra = fe.memory.add(Span(GPA_BASE + 64 * MIB, MIB))
    assert [fe.add_region(extra), fe.add_region(extra)] == [0, 0]
    assert [fe.remove_region(extra, with_fd=True) for _ in range(2)] == [0, 0]
    assert scene.villain.faults["slow_descriptors"] == 0
    scene.check(logged=False)


def memory_folders() -> list[Path]:
    """Where files are memory: tmpfs, and hugetlbfs where it is mounted."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path("/dev/shm"), *(Path(where) for _, where, kind, *_ in mounts if kind == "hugetlbfs")]


@pytest.mark.parametrize("huge", [False, True], ids=["tmpfs", "hugetlbfs"])
def test_m7_a_file_that_is_memory_is_taken(scene: Scene, huge: bool) -> None:
    """As QEMU's memory-backend-file has it, and libvirt's huge pages."""
    folders = memory_folders()[1 if huge else 0 :]
    if not folders or (huge and huge_pages_free() < 2):
        pytest.skip("missing: free huge pages and a hugetlbfs (mount -t hugetlbfs none /dev/hugepages)")
    fe = scene.enter().start(fill=0)
    at = GPA_BASE + 64 * MIB
    with tempfile.TemporaryFile(dir=folders[0]) as file:
        file.truncate(4 * MIB)
        assert fe.try_(Request.ADD_MEM_REG, MemReg(region(at, 4 * MIB, 1 << 40)), [file.fileno()]) == 0
        with mmap.mmap(file.fileno(), 4 * MIB) as memory:
            data = bytes(12) + frame(BROADCAST, MAC_X, 8)
            memory[: len(data)] = data
            fe.pairs[0].tx.add([Buffer(at, len(data))])
            fe.pairs[0].tx.kick(force=True)
            fe.flush()
    assert number(scene.two.receive()[0].frame) == 8
    scene.one.poll()
    scene.check(logged=False)


def test_m5_a_refused_table_leaves_running_rings_alone(scene: Scene) -> None:
    fe = scene.enter().start()
    fd = os.memfd_create("short")
    assert fe.try_(Request.SET_MEM_TABLE, MemTable((region(),)), [fd]) != 0
    os.close(fd)
    assert scene.villain.state().up
    fe.transmit(frame(MAC_A, b"\x52\x54\0\0\0\x99"))
    scene.check(logged=False)


def test_m11_a_table_without_the_running_rings_is_refused(scene: Scene) -> None:
    fe = scene.enter().start()
    other = fe.memory.add(Span(GPA_BASE + 64 * MIB, MIB))
    assert fe.try_(Request.SET_MEM_TABLE, MemTable((other.info,)), [other.fd]) != 0
    assert fe.remove_region(fe.memory.regions[0]) != 0
    assert scene.villain.state().up
    fe.transmit(frame(MAC_A, b"\x52\x54\0\0\0\x99"))
    scene.check(logged=False)


def test_m12_a_region_added_with_other_memory_is_refused(scene: Scene) -> None:
    """The same place again, in another file: the guest's memory stays what it was."""
    fe = scene.enter().start()
    held = fe.memory.regions[0]
    other = os.memfd_create("other")
    os.ftruncate(other, held.info.size)
    assert fe.try_(Request.ADD_MEM_REG, MemReg(held.info), [other]) != 0
    os.close(other)
    assert scene.villain.faults[Rule.BAD_MEMORY] == 1
    fe.transmit(frame(MAC_A, MAC_X))
    scene.check(logged=False)


def test_m12_a_region_added_again_and_again_is_held_once(scene: Scene) -> None:
    """And goes when it has been taken away as often; QEMU 7.2 does so, once for each queue pair."""
    fe = scene.enter().start()
    extra = fe.memory.add(Span(GPA_BASE + 64 * MIB, MIB))
    before = scene.host.open_things()
    assert [fe.add_region(extra) for _ in range(1000)] == [0] * 1000
    until_open(before + Counter({"mapped /memfd:guest (deleted)": 1, "/memfd:guest (deleted)": 1}))
    assert [fe.remove_region(extra) for _ in range(1001)] == [0] * 1000 + [1]
    until_open(before)
    assert fe.remove_region(fe.memory.regions[0]) != 0, "the rings are there"
    scene.check(logged=False)


def test_m14_a_region_that_was_never_added_is_not_taken_away(scene: Scene) -> None:
    fe = scene.enter().start()
    unknown = fe.memory.add(Span(GPA_BASE + 64 * MIB, MIB))
    assert fe.remove_region(unknown) != 0
    assert fe.remove_region(unknown, with_fd=True) != 0
    assert scene.villain.faults[Rule.BAD_MEMORY] == 2
    scene.check(logged=False)


def test_m13_no_more_regions_than_slots(scene: Scene) -> None:
    fe = scene.enter()
    fe.negotiate()
    slots = fe.ask_u64(Request.GET_MAX_MEM_SLOTS)
    fd = os.memfd_create("guest")
    os.ftruncate(fd, PAGE)
    added = [
        fe.try_(Request.ADD_MEM_REG, MemReg(region(GPA_BASE + n * MIB, PAGE, (1 << 40) + n * MIB)), [fd])
        for n in range(slots + 1)
    ]
    os.close(fd)
    assert added == [0] * slots + [1]
    assert scene.villain.faults[Rule.BAD_MEMORY] == 1
    scene.check()


def test_m13_no_more_memory_than_one_port_may_have(scene: Scene) -> None:
    """A sparse file costs its owner nothing; the addresses that it is mapped at are everybody's."""
    fe = scene.enter().start(fill=0)
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 3 << 40)
    answers = [fe.try_(Request.ADD_MEM_REG, MemReg(region(n << 43, 3 << 40, n << 43)), [fd]) for n in (1, 2)]
    os.close(fd)
    assert answers == [0, 1]
    assert scene.villain.faults[Rule.BAD_MEMORY] == 1
    scene.check(logged=False)


def huge_pages_free() -> int:
    """How many a memfd could have."""
    path = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    return int(path.read_text()) if path.exists() else 0


@pytest.mark.parametrize("offset", [0x10, 0x1100, 3 * PAGE, MIB + 0x100], ids=hex)
@pytest.mark.parametrize("huge", [False, True], ids=["4 KiB pages", "2 MiB pages"])
def test_m8_a_region_that_begins_anywhere_in_its_file(scene: Scene, offset: int, huge: bool) -> None:
    """It is mapped by whole pages of whatever size the file has, and unmapped by them."""
    if huge and huge_pages_free() < 2:
        pytest.skip("missing: two free huge pages of 2 MiB (sysctl vm.nr_hugepages)")
    fe = scene.enter().start(fill=0)
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | (os.MFD_HUGETLB if huge else 0))
    os.ftruncate(fd, 4 * MIB)
    at = GPA_BASE + 64 * MIB + offset
    assert fe.try_(Request.ADD_MEM_REG, MemReg(region(at, MIB, (1 << 40) + offset, offset)), [fd]) == 0
    with mmap.mmap(fd, 4 * MIB) as memory:
        data = bytes(12) + frame(BROADCAST, MAC_X, 8)
        memory[offset : offset + len(data)] = data
        fe.pairs[0].tx.add([Buffer(at, len(data))])
        fe.pairs[0].tx.kick(force=True)
        fe.flush()
    os.close(fd)
    assert number(scene.two.receive()[0].frame) == 8
    scene.one.poll()
    scene.check(logged=False)


def test_m6_huge_pages_that_are_not_there_are_refused(scene: Scene) -> None:
    """A file of them can be made without any; the first access would raise SIGBUS."""
    fe = scene.enter().start(fill=0)
    size = (huge_pages_free() + 2) * 2 * MIB
    try:
        fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_HUGETLB)
    except OSError as error:
        pytest.skip(f"no memfd of huge pages: {error}")
    os.ftruncate(fd, size)
    assert fe.try_(Request.ADD_MEM_REG, MemReg(region(1 << 40, size, 1 << 40)), [fd]) != 0
    os.close(fd)
    assert scene.villain.faults[Rule.BAD_MEMORY] == 1
    scene.check(logged=False)


def test_m6_huge_pages_that_vanish_take_down_their_port(scene: Scene) -> None:
    """A mapping of huge pages can only be replaced by whole ones."""
    if huge_pages_free() < 2:
        pytest.skip("missing: two free huge pages of 2 MiB (sysctl vm.nr_hugepages)")
    fe = scene.enter().start(fill=0)
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_HUGETLB)
    os.ftruncate(fd, 4 * MIB)
    assert fe.try_(Request.ADD_MEM_REG, MemReg(region(1 << 40, 4 * MIB, 1 << 40)), [fd]) == 0
    os.ftruncate(fd, 0)
    os.close(fd)
    fe.pairs[0].tx.add([Buffer((1 << 40) + MIB + PAGE, 128)])
    fe.pairs[0].tx.kick(force=True)
    assert fe.closed_by_peer()
    assert scene.villain.counters["broken_sigbus"] == 1
    scene.check()


def test_m10_a_new_table_under_traffic_loses_nothing(scene: Scene) -> None:
    fe = scene.enter().start()
    got: list[int] = []
    for n in range(40):
        for i in range(16):
            fe.queue_frame(frame(MAC_B, MAC_X, n * 16 + i))
        fe.pairs[0].tx.kick()
        fe.share_memory()
        fe.flush()
        scene.one.transmit(frame(BROADCAST, MAC_A))
        got += [number(r.frame) for r in scene.two.poll() if r.frame[6:12] == MAC_X]
    assert got == list(range(640))
    assert len(fe.receive(40)) == 40
    scene.check(logged=False)


@pytest.mark.parametrize("sealed", [False, True], ids=["unsealed", "sealed"])
def test_m6_memory_that_shrinks_under_a_running_ring_takes_down_its_port(scene: Scene, sealed: bool) -> None:
    """ftruncate() of the file behind it: SIGBUS at the next access, unless the file is sealed against it."""
    fe = scene.enter(memory=GuestMemory([Span(GPA_BASE, 16 * MIB)]))
    if sealed:
        fe.memory.regions[0].seal()
    fe.start()
    fe.queue_frame(frame(BROADCAST, b"\x52\x54\0\0\0\x99"))
    if sealed:
        with pytest.raises(PermissionError):
            os.ftruncate(fe.memory.regions[0].fd, 0)
        fe.pairs[0].tx.kick()
        fe.flush()
        scene.check(logged=False)
        return
    fe.pairs[0].tx.publish()
    os.ftruncate(fe.memory.regions[0].fd, 0)
    os.eventfd_write(fe.pairs[0].tx.kick_fd, 1)
    scene.one.transmit(frame(BROADCAST, MAC_A))
    assert fe.closed_by_peer()
    assert scene.villain.counters["broken_sigbus"] == 1
    assert any(e.reason == Reason.SIGBUS for e in scene.host.events)
    scene.check()


def test_m6_memory_that_shrinks_while_packets_flow_into_it(scene: Scene) -> None:
    """The neighbours' broadcasts are being copied there."""
    for _ in range(5):
        fe = scene.enter().start()
        fe.transmit(frame(BROADCAST, b"\x52\x54\0\0\0\x99"))
        os.ftruncate(fe.memory.regions[0].fd, PAGE)
        until(
            lambda: (scene.one.transmit(frame(BROADCAST, MAC_A)), not scene.villain.describe["connected"])[1],
            "the villain to be dropped",
        )
        scene.two.poll()
        scene.one.poll()
        scene.villain_leaves()
    assert scene.villain.counters["broken_sigbus"] == 5
    scene.check()


ADDRESSES: dict[str, Callable[[VringAddr], VringAddr]] = {
    "M19 descriptors nowhere": lambda a: VringAddr(a.index, 0, 0x1000, a.used, a.avail, 0),
    "M19 avail nowhere": lambda a: VringAddr(a.index, 0, a.desc, a.used, 0x1000, 0),
    "M19 used nowhere": lambda a: VringAddr(a.index, 0, a.desc, 0x1000, a.avail, 0),
    "M19 guest-physical instead of user": lambda a: VringAddr(
        a.index, 0, a.desc - UVA_OFFSET, a.used - UVA_OFFSET, a.avail - UVA_OFFSET, 0
    ),
    "M19 descriptors misaligned": lambda a: VringAddr(a.index, 0, a.desc + 8, a.used, a.avail, 0),
    "M19 avail misaligned": lambda a: VringAddr(a.index, 0, a.desc, a.used, a.avail + 1, 0),
    "M19 used misaligned": lambda a: VringAddr(a.index, 0, a.desc, a.used + 2, a.avail, 0),
    "M19 descriptors end past the region": lambda a: VringAddr(a.index, 0, end() - 16, a.used, a.avail, 0),
    "M19 avail ends past the region": lambda a: VringAddr(a.index, 0, a.desc, a.used, end() - 4, 0),
    "M19 used ends past the region": lambda a: VringAddr(a.index, 0, a.desc, end() - 4, a.avail, 0),
    "M19 descriptors wrap": lambda a: VringAddr(a.index, 0, TOP - 16, a.used, a.avail, 0),
    "M19 all of it zero": lambda a: VringAddr(a.index, 0, 0, 0, 0, 0),
    "M19 unknown flag": lambda a: VringAddr(a.index, 2, a.desc, a.used, a.avail, 0),
}


def end() -> int:
    """The first address behind the memory, in the front-end's terms."""
    return GPA_BASE + 16 * MIB + UVA_OFFSET


@pytest.mark.parametrize("name", ADDRESSES)
@pytest.mark.parametrize("index", [0, 1], ids=["receive", "transmit"])
def test_ring_addresses_that_lie_are_refused(scene: Scene, name: str, index: int) -> None:
    fe = scene.enter()
    fe.negotiate()
    fe.share_memory()
    fe.make_queues()
    addr = ADDRESSES[name](fe.queues()[index].addresses(index))
    fe.do(Request.SET_VRING_NUM, VringState(index, fe.num))
    answers = [
        fe.try_(Request.SET_VRING_ADDR, addr),
        fe.try_(Request.SET_VRING_KICK, VringFd(index), [fe.queues()[index].kick_fd]),
    ]
    assert any(answers)
    assert not scene.villain.state().up
    scene.check(logged=False)


def test_m19_a_ring_across_regions_is_served_or_refused(scene: Scene) -> None:
    """Contiguous for the front-end, in two mappings here; a real guest's rings never lie like that."""
    edge = GPA_BASE + 16 * MIB
    fe = scene.enter(memory=GuestMemory([Span(GPA_BASE, 16 * MIB), Span(edge, MIB)]))
    fe.negotiate()
    fe.share_memory()
    fe.make_queues()
    fe.queues()[1].desc = edge - 64
    fe.do(Request.SET_VRING_NUM, VringState(1, fe.num))
    fe.do(Request.SET_VRING_ADDR, fe.queues()[1].addresses(1))
    if fe.try_(Request.SET_VRING_KICK, VringFd(1), [fe.queues()[1].kick_fd]) == 0:
        fe.enable_ring(1)
        fe.transmit(frame(MAC_A, b"\x52\x54\0\0\0\x99"))
    scene.check(logged=False)


def test_m19_three_parts_on_one_spot(scene: Scene) -> None:
    """Nonsense, but all of it inside the guest's own memory: whatever happens, happens to that port."""
    fe = scene.enter()
    fe.negotiate()
    fe.share_memory()
    fe.make_queues()
    for index, queue in enumerate(fe.queues()):
        queue.avail = queue.used = queue.desc
        fe.start_ring(index)
        fe.enable_ring(index)
    for n in range(50):
        fe.memory.write(fe.queues()[1].desc, os.urandom(64))
        os.eventfd_write(fe.queues()[1].kick_fd, 1)
        scene.one.transmit(frame(BROADCAST, MAC_A, n))
    scene.two.poll()
    scene.check(logged=False)


def test_m20_packets_received_into_the_ring_itself(scene: Scene) -> None:
    """The receive buffers lie on the receive queue's own available and used rings."""
    fe = scene.enter()
    fe.start(fill=0)
    rx = fe.pairs[0].rx
    for at in (rx.avail, rx.used, rx.desc, rx.used - 100):
        rx.add([Buffer(at, 2048, True)])
    rx.kick()
    for n in range(50):
        scene.one.transmit(frame(BROADCAST, MAC_A, n, 1000))
    scene.two.poll()
    scene.check(logged=False)


def test_m20_a_frame_sent_from_the_ring_itself(scene: Scene) -> None:
    fe: FrontEnd = scene.enter().start()
    tx = fe.pairs[0].tx
    for at in (tx.avail, tx.used, tx.desc):
        tx.add([Buffer(at, 200)])
        tx.kick()
    fe.flush()
    scene.two.poll()
    scene.check(logged=False)
