# SPDX-License-Identifier: BSD-2-Clause
"""KVM's counters from the stats descriptors that a VMM already holds, borrowed with pidfd_getfd(2).

The cheapest way (some 35 us a reading) and the only one that leaves the VM alone. It needs a VMM that made
such descriptors with KVM_GET_STATS_FD and kept them; QEMU does from 8.1 on. They can't be made for it: KVM
refuses the ioctl to any process but the VMM.

The format describes itself (Documentation/virt/kvm/api.rst, 4.133): header, id, descriptors, data.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import select
import struct
from dataclasses import dataclass

from vpt.errors import GuestError, MissingError, NotFoundError, ProtocolError
from vpt.exits.meter import COUNTERS
from vpt.exits.sources.base import Source, Units
from vpt.exits.target import look_hint

__all__ = ["Counter", "StatsFd", "parse_counters"]

_SYS_PIDFD_GETFD = {"x86_64": 438, "aarch64": 438, "riscv64": 438, "s390x": 438, "ppc64le": 438}
_HEADER = struct.Struct("=6I")  # flags, name_size, num_desc, id_offset, desc_offset, data_offset
_DESC = struct.Struct("=IhHII")  # flags, exponent, size, offset, bucket_size; the name follows
_TYPE_MASK, _CUMULATIVE = 0xF, 0
_MAX_DESCRIPTORS, _MAX_NAME = 4096, 1024
_LINK = re.compile(r"anon_inode:kvm-vcpu-stats:(\d+)")
_YAMA = "/proc/sys/kernel/yama/ptrace_scope"


@dataclass(frozen=True, slots=True)
class Counter:
    """Where one counter lies: `offset` bytes into the file, 64 bits."""

    name: str
    offset: int


class StatsFd(Source):
    """Counters by vCPU, read with pread from borrowed descriptors."""

    name = "stats-fd"

    def __init__(self, pid: int) -> None:
        self._pidfd = -1
        self._vcpus: dict[str, tuple[int, list[Counter]]] = {}
        try:
            self._pidfd = _pidfd_open(pid)
            self._borrow(pid)
        except BaseException:
            self.close()
            raise

    def _borrow(self, pid: int) -> None:
        found = _find(pid)
        if not found:
            raise MissingError(
                f"process {pid} holds no KVM stats descriptor to borrow",
                hint="QEMU keeps them from 8.1 on; name an older one by its QMP socket (--source qmp)",
            )
        names: set[str] = set()
        for unit, number in found.items():
            fd = _pidfd_getfd(self._pidfd, number, pid)
            try:
                counters = parse_counters(_read_at(fd))
            except BaseException:
                os.close(fd)
                raise
            names.update(c.name for c in counters)
            self._vcpus[unit] = (fd, [c for c in counters if c.name in COUNTERS])
        self.missing = tuple(n for n in COUNTERS if n not in names)

    def read(self) -> Units:
        """All counters now. The descriptors outlive their VM, frozen: hence the look at the process."""
        if select.select([self._pidfd], [], [], 0)[0]:
            raise GuestError("the VM ended while it was measured", hint="start it again and keep it running")
        return {
            unit: {c.name: struct.unpack("=Q", os.pread(fd, 8, c.offset))[0] for c in counters}
            for unit, (fd, counters) in self._vcpus.items()
        }

    def close(self) -> None:
        """Close the borrowed descriptors; the VMM keeps its own."""
        for fd, _ in self._vcpus.values():
            os.close(fd)
        self._vcpus = {}
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class _ReadAt:
    """pread with the length checked: what a foreign descriptor holds is not to be trusted."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self, size: int, offset: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        if len(data) != size:
            raise ProtocolError(f"KVM stats: {len(data)} bytes at {offset} where {size} were announced")
        return data


def _read_at(fd: int) -> _ReadAt:
    return _ReadAt(fd)


def parse_counters(read: _ReadAt) -> list[Counter]:
    """Cumulative 64-bit counters that a stats file announces.

    ProtocolError: it is not a stats file, or lies about its sizes.
    """
    _, name_size, count, _, desc_offset, data_offset = _HEADER.unpack(read(_HEADER.size, 0))
    if count > _MAX_DESCRIPTORS or not 0 < name_size <= _MAX_NAME:
        raise ProtocolError(f"KVM stats: {count} descriptors with names of {name_size} bytes can't be")
    stride = _DESC.size + name_size
    table = read(stride * count, desc_offset)
    counters = []
    for at in range(0, stride * count, stride):
        flags, _, size, offset, _ = _DESC.unpack_from(table, at)
        if flags & _TYPE_MASK == _CUMULATIVE and size == 1:
            raw = table[at + _DESC.size : at + stride]
            counters.append(Counter(raw.partition(b"\0")[0].decode(errors="replace"), data_offset + offset))
    return counters


def _find(pid: int) -> dict[str, int]:
    """Unit name -> descriptor number in the VMM."""
    found: dict[str, int] = {}
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            try:
                match = _LINK.fullmatch(os.readlink(entry.path))
            except FileNotFoundError:
                continue  # closed meanwhile
            if match:
                found.setdefault(f"vcpu{match[1]}", int(entry.name))
    except PermissionError:
        raise MissingError(f"no permission to look at process {pid}", hint=look_hint()) from None
    except FileNotFoundError:
        raise NotFoundError(
            f"process {pid} has just ended", hint="pgrep -a qemu lists the VMs of this host"
        ) from None
    return found


def _pidfd_open(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise NotFoundError(
            f"there is no process {pid}", hint="pgrep -a qemu lists the VMs of this host"
        ) from None


def _pidfd_getfd(pidfd: int, number: int, pid: int) -> int:
    syscall = _SYS_PIDFD_GETFD.get(platform.machine())
    if syscall is None:
        raise MissingError(f"pidfd_getfd is not known for {platform.machine()}", hint="use --source qmp")
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(syscall, pidfd, number, 0)
    if fd >= 0:
        return fd
    code = ctypes.get_errno()
    if code == errno.EPERM:
        raise MissingError(f"no permission to borrow a descriptor of process {pid}{_yama()}", hint=_YAMA_HINT)
    raise MissingError(f"pidfd_getfd on process {pid}: {os.strerror(code)}", hint="use --source qmp")


_YAMA_HINT = "run as root or with CAP_SYS_PTRACE, or use --source qmp"


def _yama() -> str:
    """Yama's share in a refusal: same user is not enough where it restricts ptrace."""
    try:
        with open(_YAMA) as f:
            scope = f.read().strip()
    except OSError:
        return ""
    return f" (Yama: {_YAMA} is {scope})" if scope != "0" else ""
