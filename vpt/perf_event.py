# SPDX-License-Identifier: BSD-2-Clause
"""perf_event_open(2): what kernel and processor count of one thread. No trace buffer, no perf binary."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from enum import IntEnum

from vpt.errors import MissingError

__all__ = ["HARDWARE_INSTRUCTIONS", "SOFTWARE_PAGE_FAULTS", "EventType", "open_counter", "read_counter"]

_SYSCALL = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "s390x": 331, "ppc64le": 319}
_ATTR_SIZE = 112
_FLAG_CLOEXEC = 8
_EXCLUDE_KERNEL = 1 << 5
_EXCLUDE_HYPERVISOR = 1 << 6

HARDWARE_INSTRUCTIONS = 1
SOFTWARE_PAGE_FAULTS = 2


class EventType(IntEnum):
    """PERF_TYPE_*; what a number means depends on it."""

    HARDWARE = 0
    SOFTWARE = 1
    TRACEPOINT = 2


def open_counter(kind: EventType, number: int, tid: int, *, user_only: bool = False) -> int:
    """A running counter of one thread; the caller closes the descriptor.

    user_only: what the kernel does for the thread is not counted; one's own threads need no privilege then.
    ProcessLookupError: no such thread. MissingError: no permission, or nobody counts this here.
    """
    syscall = _SYSCALL.get(platform.machine())
    if syscall is None:
        raise MissingError(f"perf_event_open is not known for {platform.machine()}")
    attr = ctypes.create_string_buffer(_ATTR_SIZE)
    struct.pack_into("=IIQ", attr, 0, kind, _ATTR_SIZE, number)
    struct.pack_into("=Q", attr, 40, _EXCLUDE_KERNEL | _EXCLUDE_HYPERVISOR if user_only else 0)
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(syscall, attr, tid, -1, -1, _FLAG_CLOEXEC)
    if fd >= 0:
        return fd
    code = ctypes.get_errno()
    if code == errno.ESRCH:
        raise ProcessLookupError(tid)
    if code in (errno.EACCES, errno.EPERM):
        raise MissingError("no permission to count events", hint="run as root or with CAP_PERFMON")
    if code in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV) and kind is EventType.HARDWARE:
        raise MissingError(
            "this processor counts no events", hint="a VM has to be given a PMU; perf stat true tells"
        )
    raise MissingError(f"perf_event_open: {os.strerror(code)}")


def read_counter(fd: int) -> int:
    """How often it has happened since the counter was opened."""
    return int(struct.unpack("=Q", os.read(fd, 8))[0])
