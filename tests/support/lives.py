# SPDX-License-Identifier: BSD-2-Clause
"""Processes to be killed, one by one: back-ends, or front-ends in the middle of a burst.

A back-end is the real data plane and real vhost-user sessions: what vptd runs for its ports, without journal,
keeper and control socket, whose start would take most of the time. A process that has imported everything
forks each of them, so a life begins within some milliseconds.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from support.host import Host
from vpt.conform.frames import BROADCAST, MAC_A, MAC_B, MAC_C, frame
from vpt.conform.front_end import FrontEnd
from vpt.dataplane import Policy

PORTS = {"a": MAC_A, "b": MAC_B}
_PR_SET_PDEATHSIG = 1
_PTRACE_SINGLESTEP, _PTRACE_SEIZE, _PTRACE_INTERRUPT = 9, 0x4206, 0x4207
_WALL = 0x40000000


class Lives:
    """Start with `with`. begin() a life, kill() ends it.

    back-end: lossless ports a and b in that folder. front-end: broadcasts without end at that port's path.
    """

    def __init__(self, role: Literal["back-end", "front-end"], folder: Path) -> None:
        self.folder = folder
        tests = Path(__file__).parent.parent
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
        self._mother = subprocess.Popen(
            [sys.executable, "-m", "support.lives", role, str(folder)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._mother.stdin is not None
        if self.pid:
            self.kill()
        self._mother.stdin.close()
        assert self._mother.stdout is not None
        self._mother.stdout.close()
        self._mother.wait()

    def path(self, port: str) -> Path:
        """Where a front-end connects."""
        return self.folder / f"{port}.sock"

    def begin(self) -> None:
        """Another life. It takes packets once both ports have a front-end whose rings run."""
        assert self._mother.stdin is not None
        assert self._mother.stdout is not None
        self._mother.stdin.write("live\n")
        self._mother.stdin.flush()
        word, _, pid = self._mother.stdout.readline().partition(" ")
        assert word == "alive", "the process could not start: see its standard error"
        self.pid = int(pid)

    def kill(self, *, traced: int = 0) -> None:
        """SIGKILL, wherever it is; returns when it is no more. traced: a thread whose tracer we are."""
        fd = os.pidfd_open(self.pid)
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        if traced:
            os.waitpid(traced, _WALL)
        select.select([fd], [], [])
        os.close(fd)
        self.pid = 0

    def worker(self) -> int:
        """Thread id of the worker, of which there is one."""
        for tid in os.listdir(f"/proc/{self.pid}/task"):
            if Path(f"/proc/{self.pid}/task/{tid}/comm").read_text().startswith("vpt-worker"):
                return int(tid)
        raise AssertionError("there is no worker")


class Stepper:
    """The worker of a life, executed instruction by instruction (ptrace)."""

    def __init__(self, lives: Lives) -> None:
        self._lives = lives
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self._libc.ptrace.restype = ctypes.c_long
        self._tid = lives.worker()
        self._ptrace(_PTRACE_SEIZE)
        self._ptrace(_PTRACE_INTERRUPT)
        self._wait()

    def _ptrace(self, request: int) -> None:
        if self._libc.ptrace(request, self._tid, None, None):
            code = ctypes.get_errno()
            raise OSError(code, f"ptrace: {os.strerror(code)}")

    def _wait(self) -> None:
        _, status = os.waitpid(self._tid, _WALL)
        assert os.WIFSTOPPED(status), "it ended"

    def step(self, count: int = 1) -> None:
        """So many instructions."""
        for _ in range(count):
            self._ptrace(_PTRACE_SINGLESTEP)
            self._wait()

    def kill(self) -> None:
        """SIGKILL of the whole process, at the instruction that has been reached."""
        self._lives.kill(traced=self._tid)


# ---- the other side of the pipe ----


def _back_end(folder: Path) -> None:
    host = Host(folder)
    host.call(lambda: host.engine.hold(True))
    ports = [host.vhost(n, mac=m, lossless=True, policy=Policy.notify()) for n, m in PORTS.items()]
    print("alive", os.getpid(), flush=True)
    while not all(port.state().up for port in ports):
        time.sleep(0.0005)
    host.call(lambda: host.engine.hold(False))
    signal.pause()


def _front_end(port: Path) -> None:
    fe = FrontEnd(port, num=64).start()
    print("alive", os.getpid(), flush=True)
    while True:
        fe.transmit(*(frame(BROADCAST, MAC_C, n) for n in range(32)))
        fe.poll()


_ROLES: dict[str, Callable[[Path], None]] = {"back-end": _back_end, "front-end": _front_end}


def main() -> None:
    """Fork a life for each line read; the one before has ended by then."""
    live, where = _ROLES[sys.argv[1]], Path(sys.argv[2])
    gc.freeze()  # a life ends before it has garbage, and shares these pages as long as nobody writes to them
    gc.disable()
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            try:
                live(where)
            finally:
                os._exit(1)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
