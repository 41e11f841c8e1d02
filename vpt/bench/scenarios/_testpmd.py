# SPDX-License-Identifier: BSD-2-Clause
"""dpdk-testpmd by its prompt: a generator of packets that is not ours, and a back-end to be compared with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from vpt.bench.scenarios._ports import thread_name, threads_of
from vpt.errors import ConflictError, MissingError, TimeoutExpired

__all__ = [
    "Rates",
    "Testpmd",
    "huge_pages_mib",
    "memory_is_huge",
    "parse_counts",
    "parse_rates",
    "parse_totals",
]

_PROMPT = "testpmd> "
_READY_S = 30.0
_ANSWER_S = 10.0
_LOOK_S = 0.002
_MEMORY_MIB = 256
_PROCESSES = 5  #: at a time: two back-ends, and a front-end for each of the three

_PORT = re.compile(r"NIC statistics for port (\d+) .*?Rx-pps:\s*(\d+).*?Tx-pps:\s*(\d+)", re.DOTALL)
_COUNTS = re.compile(r"NIC statistics for port (\d+) .*?RX-packets: (\d+).*?TX-packets: (\d+)", re.DOTALL)
_TOTALS = re.compile(r"statistics for all ports.*?RX-packets: (\d+).*?TX-packets: (\d+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Rates:
    """Packets per second of one port, by testpmd's own clock."""

    rx: float
    tx: float


def parse_rates(output: str) -> dict[int, Rates]:
    """What `show port stats all` printed, by port."""
    return {int(port): Rates(float(rx), float(tx)) for port, rx, tx in _PORT.findall(output)}


def parse_counts(output: str) -> dict[int, tuple[int, int]]:
    """Packets that each port has received and sent in all, from the same."""
    return {int(port): (int(rx), int(tx)) for port, rx, tx in _COUNTS.findall(output)}


def parse_totals(output: str) -> tuple[int, int] | None:
    """Packets received and sent by all ports since `start`, from what `stop` printed; None: not yet."""
    found = _TOTALS.search(output)
    return (int(found[1]), int(found[2])) if found else None


def huge_pages_mib(meminfo: str) -> int:
    """Memory in huge pages, used or not, by /proc/meminfo's text."""
    values = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+)", meminfo, re.MULTILINE)}
    return values.get("HugePages_Total", 0) * values.get("Hugepagesize", 0) // 1024


def memory_is_huge() -> bool:
    """Are there huge pages for all processes of a measurement?"""
    meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    return huge_pages_mib(meminfo) >= _PROCESSES * _MEMORY_MIB


class Testpmd:
    """One process on one CPU: a thread that moves packets, and one that takes commands and sleeps meanwhile.

    what: its part, for messages. devices: the values of --vdev. options: testpmd's own. eal: more of DPDK's.
    """

    def __init__(
        self,
        what: str,
        cpu: int,
        devices: Sequence[str],
        options: Sequence[str] = (),
        eal: Sequence[str] = (),
    ) -> None:
        program = shutil.which("dpdk-testpmd")
        if program is None:
            raise MissingError("dpdk-testpmd is not installed", hint="apt-get install dpdk dpdk-dev")
        self._what = what
        self._folder = tempfile.TemporaryDirectory(prefix="vpt-testpmd-")
        self._output = Path(self._folder.name, "output")
        # No busy loop may outlive a benchmark that is killed. By lines: stdio would keep output from a file.
        command = ["setpriv", "--pdeathsig", "KILL", "stdbuf", "-oL", program]
        command += ["--lcores", f"0@{cpu},1@{cpu}", "-m", str(_MEMORY_MIB), "--no-pci", "--no-telemetry"]
        # In memory: in memfds, which leave no files behind and need no mount.
        huge = ["--in-memory", "--single-file-segments", "--iova-mode=va"]
        command += huge if memory_is_huge() else ["--no-huge"]
        command += [*eal, *(f"--vdev={device}" for device in devices)]
        command += ["--", "-i", "--total-num-mbufs=8192", "--no-mlockall", "--no-flush-rx", *options]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"RUNTIME_DIRECTORY": self._folder.name},  # where DPDK keeps its own files
            )
        self._seen = 0

    def __enter__(self) -> Self:
        try:
            self._until(lambda text: _PROMPT in text, "its prompt", _READY_S)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ask it to go, and see to it that it does."""
        with suppress(ConflictError, subprocess.TimeoutExpired):
            self._say("quit")
            self._process.wait(_ANSWER_S)
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def ask(self, command: str) -> str:
        """Type a command; what it printed until the next prompt."""
        self._seen = self._output.stat().st_size
        self._say(command)
        return self._until(lambda text: text.count(_PROMPT) > 0, f"the answer to {command!r}", _ANSWER_S)

    def rates(self) -> dict[int, Rates]:
        """Of each port, since this was asked for last."""
        return parse_rates(self.ask("show port stats all"))

    def tell(self) -> str:
        """What each of its ports has received and sent in all, for an error's message."""
        counts = parse_counts(self.ask("show port stats all"))
        return ", ".join(f"port {port} received {rx} and sent {tx}" for port, (rx, tx) in counts.items())

    def stop(self) -> tuple[int, int]:
        """Stop moving packets; how many were received and sent since `start`."""
        totals = parse_totals(self.ask("stop"))
        if totals is None:
            raise TimeoutExpired(f"{self._what} stopped without telling its statistics{self._tail()}")
        return totals

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def threads(self) -> tuple[set[int], set[int]]:
        """The thread that moves packets, and the others."""
        every = threads_of(self._process.pid, self._what)
        moving = {tid for tid in every if "worker" in thread_name(tid)}
        return moving, every - moving

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ConflictError(f"{self._what} has ended{self._tail()}") from None

    def _text(self) -> str:
        with self._output.open("rb") as f:
            f.seek(self._seen)
            return f.read().decode(errors="replace")

    def _tail(self) -> str:
        self._seen = 0
        lines = self._text().strip().splitlines()[-5:]
        return "; it said last:\n" + "\n".join(lines) if lines else "; it said nothing"

    def _until(self, met: Callable[[str], bool], what: str, seconds: float) -> str:
        end = time.monotonic() + seconds
        while not met(text := self._text()):
            if self._process.poll() is not None:
                raise TimeoutExpired(f"{self._what} ended while {what} was awaited{self._tail()}")
            if time.monotonic() > end:
                raise TimeoutExpired(f"{self._what} did not give {what} within {seconds:g} s{self._tail()}")
            time.sleep(_LOOK_S)
        return text
