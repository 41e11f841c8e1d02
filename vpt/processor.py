# SPDX-License-Identifier: BSD-2-Clause
"""What this processor calls itself, and how patient to be with what runs on it."""

from __future__ import annotations

import functools
from pathlib import Path

__all__ = ["cpuinfo", "emulated", "patience"]

#: An emulated processor takes 10 to 50 times as long, and a second machine on it its time from that.
_EMULATED_TIMES = 12


@functools.cache
def cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty if there are none."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def emulated() -> bool:
    """Is this an x86 processor that QEMU emulates, as it names itself? Counts hold there; times do not."""
    return cpuinfo().get("model name", "").startswith("QEMU TCG")


def patience(seconds: float) -> float:
    """How long to wait for what takes another program `seconds` at most; many times that where emulated.

    For limits beyond which something hangs, not for times that are measured.
    """
    return seconds * _EMULATED_TIMES if emulated() else seconds
