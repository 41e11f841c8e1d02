# SPDX-License-Identifier: BSD-2-Clause
"""The front-end's side of live migration: a dirty log, and what a migration asks of a back-end."""

from __future__ import annotations

import mmap
import os

from vpt.closing import Closing
from vpt.conform.front_end import FrontEnd
from vpt.vhost_user import U64, Log, Request, VirtioFeature, VringAddr

LOG_PAGE = 4096


class DirtyLog(Closing):
    """A bit per 4 KiB page of guest-physical address space, in a memfd; `offset` bytes into it."""

    def __init__(self, end: int, *, offset: int = 0) -> None:
        pages = -(-end // LOG_PAGE)
        self.size = -(-pages // 64) * 8
        self.offset = offset
        self.fd = os.memfd_create("log", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, offset + self.size)
        self._map = mmap.mmap(self.fd, offset + self.size)

    def close(self) -> None:
        """Unmap and close."""
        self._map.close()
        os.close(self.fd)

    def pages(self) -> set[int]:
        """The pages marked."""
        bits = self._map[self.offset :]
        return {8 * i + n for i, byte in enumerate(bits) if byte for n in range(8) if byte >> n & 1}

    def clear(self) -> None:
        """Mark none; not atomic, so only while nothing is written."""
        self._map[self.offset :] = bytes(self.size)

    def outside(self) -> bytes:
        """What precedes it in its file, which is nobody's to write."""
        return self._map[: self.offset]


def set_log(fe: FrontEnd, log: DirtyLog, *, size: int | None = None, offset: int | None = None) -> None:
    """Tell the back-end where the log is, and wait until it has let go of the one before."""
    payload = Log(log.size if size is None else size, log.offset if offset is None else offset)
    fe.send(Request.SET_LOG_BASE, payload, [log.fd])
    assert fe.reply().request == Request.SET_LOG_BASE


def log_rings(fe: FrontEnd, on: bool, *, at: dict[int, int] | None = None) -> None:
    """Repeat each ring's addresses with or without the flag; at: log addresses other than the used ring's."""
    for index, queue in enumerate(fe.queues()):
        a = queue.addresses(index)
        where = (at or {}).get(index, queue.used)
        addr = VringAddr(index, VringAddr.LOG if on else 0, a.desc, a.used, a.avail, where)
        fe.do(Request.SET_VRING_ADDR, addr)


def log_all(fe: FrontEnd, on: bool) -> None:
    """Switch VHOST_F_LOG_ALL, as QEMU does under running rings."""
    fe.features &= ~int(VirtioFeature.LOG_ALL)
    fe.features |= int(VirtioFeature.LOG_ALL) if on else 0
    fe.do(Request.SET_FEATURES, U64(fe.features))


def start_log(fe: FrontEnd, log: DirtyLog) -> None:
    """What QEMU sends when a migration begins, in its order."""
    set_log(fe, log)
    log_all(fe, True)
    log_rings(fe, True)


def stop_log(fe: FrontEnd) -> None:
    """And when it has ended."""
    log_all(fe, False)
    log_rings(fe, False)
