# SPDX-License-Identifier: BSD-2-Clause
"""What a process has open, to be compared with what it had before.

Threads and event loops close things when their turn comes, QEMU swaps eventfds when it likes: who compares
waits. What was there before is looked at where nothing is under way, in the loop's thread or before it runs.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from pathlib import Path

from support.waiting import until


def open_fds(pid: int | str = "self") -> dict[int, str]:
    """A process's file descriptors and what they are."""
    fds = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile, as the one that listed the folder
            fds[int(fd)] = os.readlink(f"/proc/{pid}/fd/{fd}")
    return fds


def shared_mappings() -> Counter[str]:
    """This process's shared file mappings: regions, guests' memory, counters.

    But for the one that interrupts are sent through: made when the first is, and kept (fd.c).
    """
    maps = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    return Counter(fields[5] for fields in maps if fields[1][3] == "s" and not fields[5].startswith("/[aio]"))


def open_things() -> Counter[str]:
    """Both, by name. A leak shows, and of what."""
    held = Counter({f"mapped {name}": count for name, count in shared_mappings().items()})
    # A socket's or pipe's number says nothing.
    return held + Counter(name.split(":[")[0] for name in open_fds().values())


def until_open(before: Counter[str]) -> None:
    """Wait until nothing but the things of before is open.

    Fewer may be: what a test before had closed was perhaps not gone yet, for last closes have threads.
    """
    until(lambda: not open_things() - before, lambda: f"nothing to be left behind: {open_things() - before}")
