# SPDX-License-Identifier: BSD-2-Clause
"""The host: processors, limits, memory, taps."""

from __future__ import annotations

import errno
import mmap
import os
import platform
import random
import resource
import statistics
import sys
import time
from pathlib import Path

from vpt.doctor._check import Check

__all__ = ["cpus", "huge_pages", "locked_memory", "open_files", "python", "tap"]

_AREA = 128 << 20
_FRAME = 1514
_COPIES = 20_000
_ROUNDS = 9


def python() -> Check:
    return Check("Python", "ok", f"{platform.python_version()}, {sys.executable}")


def cpus() -> Check:
    usable = len(os.sched_getaffinity(0))
    if usable < 3:
        return Check(
            "CPUs",
            "note",
            f"{usable} usable: guests and workers take turns on them",
            "leave the policy at adaptive; poll wants a CPU for each worker",
        )
    return Check("CPUs", "ok", f"{usable} usable")


def open_files() -> Check:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    what = f"{hard} per process"
    if hard != resource.RLIM_INFINITY and hard < 4096:
        return Check("open files", "note", f"{what}; a port takes 14 and more", "ulimit -Hn 65536, as root")
    return Check("open files", "ok", what)


def tap() -> Check:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        fix = "ls -l /dev/net/tun" if error.errno == errno.EACCES else "modprobe tun"
        return Check("tap", "note", f"/dev/net/tun: {error.strerror}; no tap ports", fix)
    os.close(fd)
    if _effective_capability(12):
        return Check("tap", "ok", "interfaces can be made (CAP_NET_ADMIN)")
    return Check(
        "tap",
        "note",
        "only interfaces that were made for this user can be used",
        f"sudo ip tuntap add dev tap0 mode tap vnet_hdr user {os.environ.get('USER', 'USER')}",
    )


def _effective_capability(number: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def locked_memory() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    return Check("locked memory", "ok", f"{limit}; vpt locks none")


def huge_pages() -> Check:
    """What they would gain, by copying packets from random places of memory with and without them."""
    info = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total = int(info.get("HugePages_Total", "0"))
    what = f"{total or 'none'} reserved; vpt needs none"
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, _AREA, flags) as small, mmap.mmap(-1, _AREA, flags) as huge:
        small.madvise(mmap.MADV_NOHUGEPAGE)
        huge.madvise(mmap.MADV_HUGEPAGE)
        before = _kib(info, "AnonHugePages")
        for area in (small, huge):
            for at in range(0, _AREA, mmap.PAGESIZE):
                area[at] = 1
        after = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        if (_kib(after, "AnonHugePages") - before) << 10 < _AREA // 2:
            return Check("huge pages", "ok", f"{what}; their gain was not measured: the kernel gave none")
        share = _copying(huge, small)
    return Check(
        "huge pages", "ok", f"{what}; copying packets from them took {share:.0%} of the time from small ones"
    )


def _kib(info: dict[str, str], key: str) -> int:
    return int(info.get(key, "0").split()[0])


def _copying(huge: mmap.mmap, small: mmap.mmap) -> float:
    """Time from huge pages over time from small ones: the median of rounds in which one follows the other."""
    places = random.Random(1).sample(range(0, _AREA - _FRAME, 64), _COPIES)
    return statistics.median(_copy(huge, places) / _copy(small, places) for _ in range(_ROUNDS))


def _copy(area: mmap.mmap, places: list[int]) -> float:
    """Seconds."""
    began = time.perf_counter()
    for at in places:
        area[at : at + _FRAME]
    return time.perf_counter() - began
