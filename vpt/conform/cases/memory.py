# SPDX-License-Identifier: BSD-2-Clause
"""M: what a hostile front-end can say about guest memory, and do to it afterwards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial
from struct import pack

from vpt.conform.case import Cases
from vpt.conform.front_end import Failure, FrontEnd
from vpt.conform.guest_memory import GPA_BASE, MIB, PAGE, UVA_OFFSET, Span
from vpt.conform.split_queue import Buffer
from vpt.conform.stage import Stage
from vpt.vhost_user import (
    MemReg,
    MemTable,
    Opaque,
    ProtocolFeature,
    Region,
    Request,
    VringAddr,
    VringFd,
    VringState,
)

CASES = Cases("memory", "checklist")
case = CASES.case
P = ProtocolFeature
TOP = 1 << 64
TX = 1


def region(gpa: int = GPA_BASE, size: int = MIB, uva: int = GPA_BASE + UVA_OFFSET, offset: int = 0) -> Region:
    """A region that is in order but for what is said."""
    return Region(gpa, size, uva, offset)


# ---- tables ----


def table_of(count: int, brought: int) -> Opaque:
    """A table that says count regions, and brings others."""
    return Opaque(
        pack("=II", count, 0) + b"".join(region(gpa=GPA_BASE + n * MIB).pack() for n in range(brought))
    )


for _name, _count, _brought, _fds in (
    ("none", 0, 0, 0),
    ("nine", 9, 9, 8),
    ("4-billion", 0xFFFFFFFF, 1, 1),
    ("more-than-brought", 3, 1, 1),
):

    @case(f"M1-regions-{_name}", "the number of regions is checked")
    def _(stage: Stage, count: int = _count, brought: int = _brought, fds: int = _fds) -> None:
        fe = stage.negotiated()
        fd = os.memfd_create("guest")
        os.ftruncate(fd, 16 * MIB)
        try:
            stage.refused(fe, Request.SET_MEM_TABLE, table_of(count, brought), [fd] * fds)
        finally:
            os.close(fd)


TABLES: dict[str, tuple[str, tuple[Region, ...]]] = {
    "M2-size-0": ("a region of no bytes is refused", (region(size=0),)),
    "M3-gpa-wraps": ("a region that wraps is refused", (region(gpa=TOP - PAGE),)),
    "M3-uva-wraps": ("a region that wraps is refused", (region(uva=TOP - PAGE),)),
    "M3-offset-wraps": ("an offset that wraps is refused", (region(offset=TOP - PAGE),)),
    "M3-size-wraps": ("a size that wraps is refused", (region(size=TOP - PAGE),)),
    "M4-gpa-overlap": (
        "regions that overlap for the guest are refused",
        (region(), region(gpa=GPA_BASE + MIB - PAGE, uva=1 << 40)),
    ),
    "M4-uva-overlap": (
        "regions that overlap for the front-end are refused",
        (region(), region(gpa=1 << 40, uva=GPA_BASE + UVA_OFFSET + MIB - PAGE)),
    ),
    "M5-file-too-short": ("a region longer than its file is refused", (region(size=5 * MIB),)),
    "M5-offset-beyond-file": ("a region behind the end of its file is refused", (region(offset=4 * MIB),)),
    "M9-size-2^63": ("a region of 2^63 bytes is refused (CVE-2026-86561)", (region(size=1 << 63),)),
    "M9-size-2^62": ("a region of 2^62 bytes is refused (CVE-2026-86561)", (region(size=1 << 62),)),
}


def _table(stage: Stage, regions: tuple[Region, ...], *, one_by_one: bool) -> None:
    fe = stage.negotiated()
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 4 * MIB)
    try:
        if not one_by_one:
            stage.refused(fe, Request.SET_MEM_TABLE, MemTable(regions), [fd] * len(regions))
            return
        for r in regions:
            if stage.answer(fe, Request.ADD_MEM_REG, MemReg(r), [fd]).refused:
                return
        raise Failure("accepted")
    finally:
        os.close(fd)


for _id, (_rule, _regions) in TABLES.items():
    CASES.add(_id, _rule, partial(_table, regions=_regions, one_by_one=False))
    CASES.add(
        f"{_id}-added",
        _rule,
        partial(_table, regions=_regions, one_by_one=True),
        protocol=P.CONFIGURE_MEM_SLOTS | P.REPLY_ACK,
    )


@case("M6-shrink-while-running", "memory that vanishes under a running ring takes down no other port")
def _(stage: Stage) -> None:
    fe = stage.started(guarded=False)  # from here on nobody may look into it
    fe.queue_frame(stage.frame(1))
    fe.pairs[0].tx.publish()
    os.ftruncate(fe.memory.regions[0].fd, 0)
    os.eventfd_write(fe.pairs[0].tx.kick_fd, 1)
    with contextlib.suppress(TimeoutError, ConnectionError, Failure):
        stage.settles(fe)
    if stage.has_neighbour:
        for n in range(10):
            stage.neighbour.transmit(stage.frame(n))


def unmappable(kind: str) -> int:
    """A descriptor that is no memory that can be shared for writing."""
    if kind == "read-only":
        fd = os.memfd_create("guest")
        os.ftruncate(fd, MIB)
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        os.close(fd)
        return again
    if kind == "path":
        return os.open("/proc/self/exe", os.O_PATH)
    return os.open("/", os.O_RDONLY | os.O_DIRECTORY) if kind == "directory" else os.eventfd(0)


for _kind in ("read-only", "path", "directory", "eventfd"):

    @case(f"M7-{_kind}", "what cannot be mapped for reading and writing is refused")
    def _(stage: Stage, kind: str = _kind) -> None:
        fe = stage.negotiated()
        fd = unmappable(kind)
        try:
            stage.refused(fe, Request.SET_MEM_TABLE, MemTable((region(),)), [fd])
        finally:
            os.close(fd)


@case("M8-odd-offset", "a region that begins inside of a page of its file works, or is refused")
def _(stage: Stage) -> None:
    fe = stage.started()
    extra = fe.memory.add(Span(GPA_BASE + 64 * MIB + 0x100, MIB, 0x1100))
    table = MemTable(tuple(r.info for r in fe.memory.regions))
    if stage.answer(fe, Request.SET_MEM_TABLE, table, [r.fd for r in fe.memory.regions]).refused:
        return
    data = bytes(12) + stage.frame(5)
    fe.memory.write(extra.info.gpa, data)
    fe.pairs[0].tx.add([Buffer(extra.info.gpa, len(data))])
    fe.pairs[0].tx.kick(force=True)
    fe.flush()
    if stage.has_neighbour:
        stage.arrive(stage.frame(5))


@case("M10-table-while-traffic-runs", "a new table under traffic loses nothing")
def _(stage: Stage) -> None:
    fe = stage.started()
    for n in range(30):
        for i in range(16):
            fe.queue_frame(stage.frame(n * 16 + i))
        fe.pairs[0].tx.kick()
        fe.share_memory()
        fe.flush()
        if stage.has_neighbour:
            stage.arrive(*(stage.frame(n * 16 + i) for i in range(16)))


@case("M11-table-without-rings", "a table that leaves out running rings is refused, or stops them")
def _(stage: Stage) -> None:
    fe = stage.started()
    other = fe.memory.add(Span(GPA_BASE + 64 * MIB, MIB))
    stage.answer(fe, Request.SET_MEM_TABLE, MemTable((other.info,)), [other.fd])
    with contextlib.suppress(ConnectionError):
        os.eventfd_write(fe.pairs[0].tx.kick_fd, 1)
        stage.settles(fe)


@case(
    "M11-remove-under-ring",
    "the region of a running ring is not taken away, or the ring stops",
    protocol=P.CONFIGURE_MEM_SLOTS | P.REPLY_ACK,
)
def _(stage: Stage) -> None:
    fe = stage.started()
    stage.answer(fe, Request.REM_MEM_REG, MemReg(fe.memory.regions[0].info))
    with contextlib.suppress(ConnectionError):
        fe.queue_frame(stage.frame(1))
        fe.pairs[0].tx.kick(force=True)
        stage.settles(fe)


@case(
    "M12-added-twice",
    "a region that is added again as it is, is no fault: QEMU does so for every pair of queues",
    source="QEMU 7.2, hw/virtio/vhost-user.c",
    protocol=P.CONFIGURE_MEM_SLOTS | P.REPLY_ACK,
)
def _(stage: Stage) -> None:
    fe = stage.started()
    held = fe.memory.regions[0]
    stage.accepted(fe, Request.ADD_MEM_REG, MemReg(held.info), [held.fd])
    stage.works(fe)


@case(
    "M12-other-memory",
    "a region is not added again with other memory",
    protocol=P.CONFIGURE_MEM_SLOTS | P.REPLY_ACK,
)
def _(stage: Stage) -> None:
    fe = stage.started()
    held = fe.memory.regions[0]
    other = os.memfd_create("other", os.MFD_CLOEXEC)
    os.ftruncate(other, held.info.size)
    try:
        stage.refused(fe, Request.ADD_MEM_REG, MemReg(held.info), [other])
    finally:
        os.close(other)


@case(
    "M13-more-than-slots",
    "no more regions than there are slots",
    protocol=P.CONFIGURE_MEM_SLOTS | P.REPLY_ACK,
)
def _(stage: Stage) -> None:
    fe = stage.negotiated()
    slots = fe.ask_u64(Request.GET_MAX_MEM_SLOTS)
    fd = os.memfd_create("guest")
    os.ftruncate(fd, PAGE)
    try:
        for n in range(slots):
            stage.accepted(fe, Request.ADD_MEM_REG, MemReg(small(n)), [fd])
        stage.refused(fe, Request.ADD_MEM_REG, MemReg(small(slots)), [fd])
    finally:
        os.close(fd)


def small(n: int) -> Region:
    """One page of its own."""
    return region(GPA_BASE + n * MIB, PAGE, GPA_BASE + UVA_OFFSET + n * MIB)


@case(
    "M14-remove-unknown",
    "a region that was never added cannot be taken away",
    protocol=P.CONFIGURE_MEM_SLOTS | P.REPLY_ACK,
)
def _(stage: Stage) -> None:
    fe = stage.started()
    stage.refused(fe, Request.REM_MEM_REG, MemReg(region(gpa=GPA_BASE + 64 * MIB, uva=1 << 40)))


# ---- rings in memory ----


Address = Callable[[VringAddr], VringAddr]
END = GPA_BASE + 4 * MIB + UVA_OFFSET  # behind the memory of a stage's front-end
ADDRESSES: dict[str, Address] = {
    "M19-descriptors-nowhere": lambda a: VringAddr(a.index, 0, 0x1000, a.used, a.avail, 0),
    "M19-available-nowhere": lambda a: VringAddr(a.index, 0, a.desc, a.used, 0x1000, 0),
    "M19-used-nowhere": lambda a: VringAddr(a.index, 0, a.desc, 0x1000, a.avail, 0),
    "M19-descriptors-misaligned": lambda a: VringAddr(a.index, 0, a.desc + 8, a.used, a.avail, 0),
    "M19-available-misaligned": lambda a: VringAddr(a.index, 0, a.desc, a.used, a.avail + 1, 0),
    "M19-used-misaligned": lambda a: VringAddr(a.index, 0, a.desc, a.used + 2, a.avail, 0),
    "M19-descriptors-end-past-region": lambda a: VringAddr(a.index, 0, END - 16, a.used, a.avail, 0),
    "M19-available-ends-past-region": lambda a: VringAddr(a.index, 0, a.desc, a.used, END - 4, 0),
    "M19-used-ends-past-region": lambda a: VringAddr(a.index, 0, a.desc, END - 4, a.avail, 0),
    "M19-descriptors-wrap": lambda a: VringAddr(a.index, 0, TOP - 16, a.used, a.avail, 0),
    "M19-all-zero": lambda a: VringAddr(a.index, 0, 0, 0, 0, 0),
}


def _ring_at(stage: Stage, where: Address, index: int) -> None:
    """Such a ring must not start: a message is refused, or what is in it is never taken."""
    fe = stage.negotiated()
    fe.share_memory()
    fe.make_queues()
    queue = fe.queues()[index]
    for request, payload, fds in (
        (Request.SET_VRING_NUM, VringState(index, fe.num), []),
        (Request.SET_VRING_BASE, VringState(index, 0), []),
        (Request.SET_VRING_ADDR, where(queue.addresses(index)), []),
        (Request.SET_VRING_KICK, VringFd(index), [queue.kick_fd]),
    ):
        if stage.answer(fe, request, payload, fds).refused:
            return
    with contextlib.suppress(ConnectionError, Failure):
        fe.enable_ring(index)
        fe.driver_ok()
        if index == TX:
            fe.queue_frame(stage.frame(1))
        queue.kick(force=True)
        stage.settles(fe)
    if stage.has_neighbour:
        stage.neighbour.transmit(*(stage.frame(n) for n in range(8)))
    if queue.used_idx:
        raise Failure("started, and used")


for _id, _where in ADDRESSES.items():
    for _index, _name in enumerate(("receive", "transmit")):
        CASES.add(
            f"{_id}-{_name}",
            "a ring outside of memory, or misaligned, is not started",
            partial(_ring_at, where=_where, index=_index),
        )


@case("M19-parts-on-one-spot", "three parts of a ring on one spot harm nobody else")
def _(stage: Stage) -> None:
    fe = stage.negotiated()
    fe.share_memory()
    fe.make_queues()
    with contextlib.suppress(ConnectionError, Failure):
        for index, queue in enumerate(fe.queues()):
            queue.avail = queue.used = queue.desc
            fe.start_ring(index)
            fe.enable_ring(index)
        fe.driver_ok()
        for _ in range(20):
            fe.memory.write(fe.queues()[1].desc, os.urandom(64))
            os.eventfd_write(fe.queues()[1].kick_fd, 1)
        stage.settles(fe)


@case("M20-received-into-the-ring", "receive buffers on the ring itself harm nobody else", peer=True)
def _(stage: Stage) -> None:
    fe: FrontEnd = stage.started(fill=0)
    rx = fe.pairs[0].rx
    for at in (rx.avail, rx.used, rx.desc):
        rx.add([Buffer(at, 512, True)])
    rx.kick(force=True)
    for n in range(20):
        stage.neighbour.transmit(stage.frame(n, 400))


@case("M20-sent-from-the-ring", "a frame that lies on the ring itself harms nobody else")
def _(stage: Stage) -> None:
    fe = stage.started()
    tx = fe.pairs[0].tx
    for at in (tx.avail, tx.used, tx.desc):
        tx.add([Buffer(at, 200)])
        tx.kick(force=True)
    stage.settles(fe)
