# SPDX-License-Identifier: BSD-2-Clause
"""A fault of QEMU's without KVM: it goes on watching the eventfds of an ivshmem-doorbell that has gone.

ivshmem_exit() closes them and leaves their handlers, with the numbers of the descriptors, in the main loop
(hw/misc/ivshmem.c, seen in 7.2). From then on a number is polled that is not open, which takes a core; and
whatever QEMU opens next under that number, a virtqueue's kick for instance, calls into freed memory when it
becomes readable. A handler goes when a descriptor of that number gets another one and gives it up, as that of
a socket netdev does: so the free numbers are filled with such, which are taken away at once. With KVM the
kernel has the eventfds.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from vpt.errors import VptError

__all__ = ["Monitor", "mended"]

#: Descriptors that are sent at the most to fill free numbers up to those that were closed.
_MOST = 256


class Monitor(Protocol):
    """A QEMU's monitor. VptError: QEMU refused, went away, or does not answer."""

    def __call__(self, command: str, *, files: Sequence[int] = (), **arguments: Any) -> Any:
        """Run a QMP command, with descriptors that go along with it. They stay the caller's."""


@contextmanager
def mended(monitor: Monitor, pid: int | None) -> Iterator[Callable[[], bool]]:
    """Around an unplugging: done() mends what it has left; False: that is there, or may be.

    pid: QEMU's, None: not known. Whose descriptors can't be looked at is not mended.
    """
    before = _open_files(pid)

    def done() -> bool:
        if before is None or (now := _open_files(pid)) is None:
            return False
        try:
            return _forget(monitor, pid, before.keys() - now.keys())
        except VptError:
            return False

    yield done


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
