# SPDX-License-Identifier: BSD-2-Clause
"""V, M, L: what lets a guest move, and a back-end return: the dirty log, the record of what is in flight."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vpt.conform.case import Cases
from vpt.conform.dirty_log import LOG_PAGE, DirtyLog, log_all, log_rings, set_log, start_log, stop_log
from vpt.conform.front_end import PLAIN, Failure, FrontEnd
from vpt.conform.guest_memory import GPA_BASE, MIB
from vpt.conform.stage import Stage
from vpt.vhost_user import Inflight, Log, ProtocolFeature, Request, VirtioFeature

F = VirtioFeature
P = ProtocolFeature
CASES = Cases("migration", "checklist")
case = CASES.case
SIZE = 4 * MIB  # of the memory of a stage's front-end
END = GPA_BASE + SIZE
TOP = 1 << 64
MIGRATION = "vhost-user, Migration"
INFLIGHT = "vhost-user, Inflight I/O tracking"


def written(before: bytes, after: bytes) -> set[int]:
    """Numbers of the pages that differ."""
    return {
        (GPA_BASE + at) // LOG_PAGE
        for at in range(0, SIZE, LOG_PAGE)
        if before[at : at + LOG_PAGE] != after[at : at + LOG_PAGE]
    }


def receive(stage: Stage, fe: FrontEnd, count: int) -> None:
    """So many frames come in; they are left where they are."""
    rx = fe.pairs[0].rx
    before = rx.used_idx
    stage.neighbour.transmit(*(stage.frame(n, 1000) for n in range(count)))
    stage.wait(lambda: (rx.used_idx - before) & 0xFFFF >= count, f"{count} frames to come")


def _marked(stage: Stage, layout: int, offset: int) -> None:
    fe = stage.started(features=int(PLAIN) | layout | int(F.MRG_RXBUF))
    with DirtyLog(END, offset=offset) as log:
        start_log(fe, log)
        before = fe.memory.read(GPA_BASE, SIZE)
        receive(stage, fe, 8)

        def all_marked() -> bool:
            return written(before, fe.memory.read(GPA_BASE, SIZE)) <= log.pages()

        stage.wait(all_marked, "every page that was written to be marked")
        if log.outside() != bytes(offset):
            raise Failure("what precedes the log in its file was written")
        stage.leave(fe)


for _name, _bits in (("split", 0), ("packed", int(F.RING_PACKED))):

    @case(
        f"V36-log-marks-what-is-written-{_name}",
        "each page that is written while a log is kept is marked",
        source=MIGRATION,
        virtio=F.LOG_ALL | F.MRG_RXBUF | _bits,
        protocol=P.LOG_SHMFD,
        peer=True,
    )
    def _(stage: Stage, bits: int = _bits) -> None:
        _marked(stage, bits, 0)


@case(
    "M16-offset-once",
    "the log's offset in its file is applied once (CVE-2026-86563)",
    virtio=F.LOG_ALL | F.MRG_RXBUF,
    protocol=P.LOG_SHMFD,
    peer=True,
)
def _(stage: Stage) -> None:
    _marked(stage, 0, 8192)


@case(
    "V37-log-ends",
    "without VHOST_F_LOG_ALL nothing is marked any more",
    source=MIGRATION,
    virtio=F.LOG_ALL,
    protocol=P.LOG_SHMFD,
    peer=True,
)
def _(stage: Stage) -> None:
    fe = stage.started()
    with DirtyLog(END) as log:
        start_log(fe, log)
        receive(stage, fe, 4)
        stop_log(fe)
        fe.ask(Request.GET_FEATURES)
        log.clear()
        receive(stage, fe, 4)
        if log.pages():
            raise Failure(f"{len(log.pages())} pages were marked")
        stage.leave(fe)


@case(
    "L5-log-twice",
    "a migration may begin and end twice",
    virtio=F.LOG_ALL,
    protocol=P.LOG_SHMFD,
    peer=True,
)
def _(stage: Stage) -> None:
    fe = stage.started()
    for _ in range(2):
        with DirtyLog(END) as log:
            start_log(fe, log)
            receive(stage, fe, 4)
            stage.wait(log.pages, "a page to be marked")
            stop_log(fe)
            fe.ask(Request.GET_FEATURES)
    stage.works(fe)


@case(
    "M15-log-too-small",
    "a log too small for memory is refused, or not written beyond its end",
    virtio=F.LOG_ALL,
    protocol=P.LOG_SHMFD,
    peer=True,
)
def _(stage: Stage) -> None:
    fe = stage.started()
    with DirtyLog(END) as log:
        fe.send(Request.SET_LOG_BASE, Log(8, 0), [log.fd])
        with suppress(ConnectionError, Failure):
            if stage.settles(fe):
                log_all(fe, True)
                log_rings(fe, True)
        stage.neighbour.transmit(*(stage.frame(n) for n in range(8)))
        if any(page >= 64 for page in log.pages()):
            raise Failure("written beyond its end")
        stage.leave(fe)


for _name, _size, _offset in (
    ("size-and-offset-wrap", TOP - LOG_PAGE, 2 * LOG_PAGE),
    ("offset-beyond-file", 64 << 10, 1 << 40),
    ("size-2^63", 1 << 63, 0),
    ("size-0", 0, 0),
):

    @case(
        f"M16-{_name}",
        "a log that is not in its file does no harm (CVE-2020-10722)",
        virtio=F.LOG_ALL,
        protocol=P.LOG_SHMFD,
    )
    def _(stage: Stage, size: int = _size, offset: int = _offset) -> None:
        fe = stage.started()
        with DirtyLog(END) as log:
            fe.send(Request.SET_LOG_BASE, Log(size, offset), [log.fd])
            stage.settles(fe)
            stage.leave(fe)


@case(
    "M17-log-swapped",
    "a log may be swapped for another while frames come",
    virtio=F.LOG_ALL,
    protocol=P.LOG_SHMFD,
    peer=True,
)
def _(stage: Stage) -> None:
    fe = stage.started()
    with DirtyLog(END) as first:
        start_log(fe, first)
        for n in range(30):
            stage.neighbour.queue_frame(stage.frame(n))
            stage.neighbour.pairs[0].tx.kick()
            with DirtyLog(END) as log:
                set_log(fe, log)
                set_log(fe, first)
            stage.neighbour.flush()
            fe.poll()
        stop_log(fe)
        stage.works(fe)
        stage.leave(fe)


# ---- the record of what is in flight ----


@contextmanager
def record_file() -> Iterator[int]:
    """A file of a MiB that says it is a record."""
    fd = os.memfd_create("inflight")
    os.ftruncate(fd, MIB)
    try:
        yield fd
    finally:
        os.close(fd)


@case(
    "V38-inflight",
    "a record is made on request, and taken back before rings start",
    source=INFLIGHT,
    protocol=P.INFLIGHT_SHMFD,
)
def _(stage: Stage) -> None:
    fe = stage.enter()
    fe.start(record=True)
    stage.works(fe)


@case(
    "L1-reconnect-with-record",
    "a front-end that comes back with its record goes on where it was",
    source=f"{INFLIGHT}; checklist",
    protocol=P.INFLIGHT_SHMFD,
)
def _(stage: Stage) -> None:
    fe = stage.enter()
    fe.start(record=True)
    for lap in range(5):
        fe.transmit(*(stage.frame(lap * 8 + n) for n in range(8)))
        stage.resume(fe)
    stage.works(fe)


for _name, _queues, _queue_size in (
    ("no-queues", 0, 64),
    ("65535-queues", 65535, 64),
    ("queues-of-0", 2, 0),
    ("queues-of-65535", 2, 65535),
):

    @case(
        f"M18-{_name}",
        "a record for queues that cannot be is refused (CVE-2021-3839)",
        protocol=P.INFLIGHT_SHMFD | P.REPLY_ACK,
    )
    def _(stage: Stage, queues: int = _queues, queue_size: int = _queue_size) -> None:
        fe = stage.negotiated()
        with record_file() as fd:
            stage.refused(fe, Request.SET_INFLIGHT_FD, Inflight(MIB, 0, queues, queue_size), [fd])


for _name, _size, _offset in (
    ("too-small", 64, 0),
    ("longer-than-its-file", 64 * MIB, 0),
    ("wraps", MIB, TOP - LOG_PAGE),
):

    @case(
        f"M18-{_name}",
        "a record that is not in its file is refused",
        protocol=P.INFLIGHT_SHMFD | P.REPLY_ACK,
    )
    def _(stage: Stage, size: int = _size, offset: int = _offset) -> None:
        fe = stage.negotiated()
        with record_file() as fd:
            stage.refused(fe, Request.SET_INFLIGHT_FD, Inflight(size, offset, 2, 64), [fd])


@case(
    "M18-noise",
    "a record of noise harms nobody else",
    protocol=P.INFLIGHT_SHMFD | P.REPLY_ACK,
)
def _(stage: Stage) -> None:
    fe = stage.negotiated()
    fe.share_memory()
    fe.make_queues()
    record = fe.ask_record()
    os.pwrite(record.fd, os.urandom(record.info.mmap_size), record.info.mmap_offset)
    with suppress(ConnectionError, Failure):
        fe.give_record()
        fe.start_rings()
        fe.queue_frame(stage.frame(1))
        fe.pairs[0].tx.kick(force=True)
    stage.settles(fe)


@case(
    "S14-two-descriptors",
    "one descriptor too many with a record is not kept (CVE-2022-0669)",
    protocol=P.INFLIGHT_SHMFD | P.REPLY_ACK,
)
def _(stage: Stage) -> None:
    fe = stage.negotiated()
    with record_file() as fd:
        stage.refused(fe, Request.SET_INFLIGHT_FD, Inflight(MIB, 0, 2, 64), [fd, fd])
