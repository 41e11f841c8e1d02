# SPDX-License-Identifier: BSD-2-Clause
"""Where and with what a number was measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import vpt
from vpt.errors import MissingError, UsageError
from vpt.processor import cpuinfo

__all__ = ["machine", "two_cpus", "versions"]


def machine() -> dict[str, str | int | float | None]:
    """Processor, memory, kernel and how busy it is. Nothing that names the machine or its owner."""
    info = cpuinfo()
    page = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "cpus": len(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in info.get("flags", "").split(),
        "memory_mib": page >> 20,
        "kernel": platform.release(),
        "arch": platform.machine(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """vpt, Python and what the data plane is called through."""
    found = {
        "vpt": vpt.__version__,
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
    }
    with suppress(PackageNotFoundError):
        found["cffi"] = version("cffi")
    return found


def two_cpus(cpus: Sequence[int], why: str) -> Sequence[int]:
    """These CPUs, or all that this process may use. Raises where there are not two; `why` they are needed."""
    usable = cpus or sorted(os.sched_getaffinity(0))
    if len(usable) >= 2:
        return usable
    if cpus:
        raise UsageError(f"{why}, and --cpus names one only", hint="name another, too: --cpus 0,1")
    raise MissingError(
        f"{why}, and this process may use one only", hint="give it another: taskset -c 0,1 vpt bench ..."
    )
