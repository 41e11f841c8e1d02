# SPDX-License-Identifier: BSD-2-Clause
"""A fault of QEMU's without KVM: it goes on watching the eventfds of an ivshmem-doorbell that has gone.

ivshmem_exit() closes them and leaves their handlers, with the numbers of the descriptors, in the main loop
(hw/misc/ivshmem.c, seen in 7.2). From then on a number is polled that is not open, which takes a core; and
whatever QEMU opens next under that number, a virtqueue's kick for instance, calls into freed memory when it
becomes readable; so would a connection to its monitor. A handler goes when a descriptor of that number gets
another one and gives it up, as that of a socket netdev does: so the free numbers are filled with such, which
are taken away at once. With KVM the kernel has the eventfds.

Which they were is seen while the device is there: an eventfd that QEMU has no more under its number may be
one of them. So a device may go at any time after that.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

from vpt.errors import VptError

__all__ = ["Monitor", "eventfds", "mend"]

#: Descriptors that are sent at the most to fill free numbers up to those that were closed.
_MOST = 256
_EVENTFD = "anon_inode:[eventfd]"


class Monitor(Protocol):
    """A QEMU's monitor. VptError: QEMU refused, went away, or does not answer."""

    def __call__(self, command: str, *, files: Sequence[int] = (), **arguments: Any) -> Any:
        """Run a QMP command, with descriptors that go along with it. They stay the caller's."""


def eventfds(pid: int | None, holder: int | None = None) -> list[str]:
    """The device's in QEMU, NUMBER-ID each; to be asked before it is unplugged. pid: QEMU's, None: not known.

    holder: a process that has them, too; without it, they are all that QEMU has. ID: the kernel's, "" before
    Linux 5.2. Empty: what QEMU has open can't be looked at.
    """
    files = _open_files(pid) or {}
    found = [f"{number}-{_id(pid, number)}" for number, what in sorted(files.items()) if what == _EVENTFD]
    held = {_id_in(each) for each in eventfds(holder)} - {""} if holder is not None else set()
    return [each for each in found if _id_in(each) in held] or found


def mend(monitor: Monitor, pid: int | None, were: Iterable[str]) -> bool:
    """Have QEMU forget its handlers of those that have gone. False: they are there, or may be.

    were: what eventfds() found while the device was there. Others' may be among them and have gone as well,
    which does no harm; but where a number has been opened again since, QEMU is not mended.
    """
    gone = {int(each.partition("-")[0]) for each in set(were) - set(eventfds(pid))}
    if not gone or _open_files(pid) is None:
        return False
    try:
        return _forget(monitor, pid, gone)
    except VptError:
        return False


def _forget(monitor: Monitor, pid: int | None, gone: set[int]) -> bool:
    """Have QEMU forget its handlers of these numbers. False: one has been opened again meanwhile."""
    ours: set[str] = set()
    left, now = set(gone), {}
    with ExitStack() as undo:
        while left and len(ours) < _MOST:
            kept, sent = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            undo.callback(kept.close)
            name = f"vpt-forget-{len(ours)}"
            with sent:
                ours.add(f"socket:[{os.fstat(sent.fileno()).st_ino}]")
                monitor("getfd", files=(sent.fileno(),), fdname=name)
            undo.callback(_quietly, monitor, "closefd", fdname=name)
            monitor("netdev_add", type="socket", id=name, fd=name)
            undo.callback(_quietly, monitor, "netdev_del", id=name)
            now = _open_files(pid) or {}
            left = {number for number in left if number not in now}
        return not left and all(now[number] in ours for number in gone)


def _quietly(monitor: Monitor, command: str, **arguments: Any) -> None:
    """A netdev that takes a descriptor leaves nothing of its name to close."""
    with suppress(VptError):
        monitor(command, **arguments)


def _id_in(eventfd: str) -> str:
    return eventfd.partition("-")[2]


def _id(pid: int | None, number: int) -> str:
    """By which an eventfd is told from another one that has got its number."""
    with suppress(OSError):
        found = re.search(r"eventfd-id:\s*(\d+)", Path(f"/proc/{pid}/fdinfo/{number}").read_text())
        return found[1] if found else ""
    return ""


def _open_files(pid: int | None) -> dict[int, str] | None:
    """What is open under which number; None: that can't be known."""
    found = {}
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found[int(entry.name)] = os.readlink(entry)
    except OSError:
        return None
    return found
