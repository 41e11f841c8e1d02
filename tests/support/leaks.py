# SPDX-License-Identifier: BSD-2-Clause
"""What this process has open, to be compared with what it had before."""

from __future__ import annotations

import os
from pathlib import Path


def open_fds() -> dict[int, str]:
    """This process's file descriptors and what they are."""
    fds = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            fds[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the one that listed the folder
    return fds


def shared_mappings() -> list[str]:
    """This process's shared file mappings: regions, guests' memory, counters.

    But for the one that interrupts are sent through: made when the first is, and kept (fd.c).
    """
    maps = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    return sorted(fields[5] for fields in maps if fields[1][3] == "s" and not fields[5].startswith("/[aio]"))
