# SPDX-License-Identifier: BSD-2-Clause
"""Where and with what a number was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import vpt

__all__ = ["emulated", "machine", "revision", "versions"]


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def emulated() -> bool:
    """Is this an x86 processor that QEMU emulates, as it names itself? Counts hold there; times do not."""
    return _cpuinfo().get("model name", "").startswith("QEMU TCG")


def machine() -> dict[str, str | int | float | None]:
    """Processor, memory, kernel and how busy it is. Nothing that names the machine or its owner."""
    info = _cpuinfo()
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


def _git(*args: str) -> str | None:
    folder = Path(vpt.__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def revision() -> dict[str, str | bool | None]:
    """The checkout's commit and whether it was changed since; None for an installed package."""
    inside = _git("ls-files", "--error-unmatch", "__init__.py") is not None
    commit = _git("rev-parse", "HEAD") if inside else None
    changed = bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None
    return {"commit": commit, "modified": changed}
