# SPDX-License-Identifier: BSD-2-Clause
"""Dispatches to QEMU's device model, from its trace events over QMP: what stands in for exits under TCG.

QEMU's `log` trace backend (the usual one in distributions) prints a line per access; it is pointed at a
FIFO that a thread here counts from, so that nothing is stored. A full FIFO makes the guest wait, so none is
lost. The count is exact; the guest's timing is not its own meanwhile: count, don't time. What an ioeventfd
absorbs does not appear.

Before the first number is believed, one access is made on purpose (a read of I/O port 0x80): if that line
does not arrive, this QEMU writes its traces somewhere else, and a zero would be a lie.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import shutil
import tempfile
import threading
from pathlib import Path

from vpt.errors import GuestError, MissingError
from vpt.exits.model import Quantity
from vpt.exits.sources.base import Source, Units
from vpt.processor import patience
from vpt.qemu.qmp import QmpCommandError, QmpSession

__all__ = ["QemuTrace", "parse_line"]

_EVENTS = "memory_region_ops_*"
_LINE = re.compile(rb"memory_region_ops_(read|write) cpu (-?\d+) mr \S+ addr (\S+) .*name '(.*)'")
_CONTROL_S = patience(3.0)
_POLL_S = 0.2


class QemuTrace(Source):
    """Reads and writes by region name; `dispatches` is their sum."""

    name = "qemu-trace"
    quantity = Quantity.DISPATCHES

    def __init__(self, session: QmpSession, pid: int | None) -> None:
        self._qmp = session
        self._log_before = _log_target(pid)
        self._units: Units = {}
        self._lines = 0
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._stop = threading.Event()
        self._switched = False
        self._folder = Path(tempfile.mkdtemp(prefix="vpt-exits-"))
        fifo = self._folder / "trace"
        os.mkfifo(fifo, 0o600)
        # Both ends: with no writer left, reading would give an endless end of file.
        self._fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._drain, name="vpt-exits-trace", daemon=True)
        self._thread.start()
        try:
            self._switch_on(fifo)
        except BaseException:
            self.close()
            raise

    def read(self) -> Units:
        """Units are region names."""
        # The answer to a command follows the lines of all that this QEMU did before.
        self._qmp.execute("query-status")
        self._drained()
        with self._lock:
            return {unit: dict(counters) for unit, counters in self._units.items()}

    def close(self) -> None:
        """Switch tracing off, give QEMU its log back, and only then remove the FIFO."""
        if self._switched:
            # The VM may be gone, and then there is nothing to undo.
            with contextlib.suppress(GuestError):
                self._qmp.execute("trace-event-set-state", name=_EVENTS, enable=False)
                self._qmp.hmp("log none")
                self._qmp.hmp(f"logfile {self._log_before}")
            self._switched = False
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        shutil.rmtree(self._folder, ignore_errors=True)

    def _switch_on(self, fifo: Path) -> None:
        try:
            states = self._qmp.execute("trace-event-get-state", name=_EVENTS)
        except QmpCommandError as error:
            if error.error_class != "CommandNotFound":
                raise
            states = []
        if not any(state["state"] != "unavailable" for state in states):
            raise MissingError(
                f"this QEMU was built without the trace events {_EVENTS}",
                hint="use Debian's qemu-system-x86, or build with --enable-trace-backends=log",
            )
        self._switched = True
        refused = self._qmp.hmp(f"logfile {fifo}").strip()
        if refused:
            raise MissingError(
                f"QEMU can't write to {fifo}: {refused}",
                hint="QEMU must be able to open files of this user (not sandboxed, same user or root)",
            )
        # `log` sets the switch of the log backend, which trace-event-set-state alone leaves off.
        self._qmp.hmp(f"log trace:{_EVENTS}")
        self._control()

    def _control(self) -> None:
        """One access made on purpose must arrive."""
        self._qmp.hmp("i /b 0x80")
        with self._news:
            if not self._news.wait_for(lambda: self._lines > 0, _CONTROL_S):
                raise MissingError(
                    "this QEMU does not print its trace events: it was built with another trace backend",
                    hint="use Debian's qemu-system-x86, or build with --enable-trace-backends=log",
                )

    def _drain(self) -> None:
        rest = b""
        while not self._stop.is_set():
            if not select.select([self._fd], [], [], _POLL_S)[0]:
                continue
            # Read under the lock: who finds the FIFO empty and takes the lock knows that all of it is
            # counted.
            with self._news:
                *lines, rest = (rest + os.read(self._fd, 1 << 20)).split(b"\n")
                for line in lines:
                    self._add(line)
                self._lines += len(lines)
                self._news.notify_all()

    def _add(self, line: bytes) -> None:
        access = parse_line(line)
        if access is None:
            return
        region, direction = access
        unit = self._units.setdefault(region, {"dispatches": 0, "reads": 0, "writes": 0})
        unit["dispatches"] += 1
        unit[direction] += 1

    def _drained(self) -> None:
        """Wait until the FIFO is empty and what came out of it is counted."""
        while select.select([self._fd], [], [], 0)[0]:
            with self._news:
                self._news.wait(_POLL_S)
        with self._lock:
            pass


def parse_line(line: bytes) -> tuple[str, str] | None:
    """Region name and "reads" or "writes"; None for another line, and for accesses that no vCPU made."""
    match = _LINE.search(line)
    if match is None or int(match[2]) < 0:
        return None
    return match[4].decode(errors="replace") or "(unnamed)", "reads" if match[1] == b"read" else "writes"


def _log_target(pid: int | None) -> str:
    """Where QEMU's log went before: QEMU can't be asked, its command line can."""
    if pid is not None:
        with contextlib.suppress(OSError):
            cmdline = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            for option, value in itertools.pairwise(cmdline):
                if option in ("-D", "--D"):
                    return value
    return "/dev/stderr"
