# SPDX-License-Identifier: BSD-2-Clause
"""The back-end under test as a process: its sockets, its life, what it holds, how to start it again."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vpt.daemon.sockets import is_stale, listen_unix
from vpt.errors import NotFoundError, TimeoutExpired

__all__ = ["Backend", "Door", "Holdings"]

_LOOK_S = 0.01
_GRACE_S = 5.0  #: for a back-end that was asked to end
_TAIL = 400  #: bytes of its output that are shown when it died


class Door:
    """One port's socket: the back-end listens there, or (listen) comes to us there."""

    def __init__(self, path: Path, *, listen: bool = False) -> None:
        self.path = path
        self._listener = listen_unix(path, replace_stale=True) if listen else None

    def open(self, timeout_s: float) -> socket.socket:
        """A connection. OSError: nobody is there; TimeoutError: nobody came."""
        if self._listener is not None:
            self._listener.sock.settimeout(timeout_s)
            return self._listener.sock.accept()[0]
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout_s)
        try:
            sock.connect(str(self.path))
        except OSError:
            sock.close()
            raise
        return sock

    @property
    def listens(self) -> bool:
        """Do we listen, and the back-end connects?"""
        return self._listener is not None

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.close()


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a process holds: file descriptors, and mappings of files that others share."""

    fds: int
    mappings: int


class Backend:
    """pid: the back-end's process; found out by the socket's credentials if it is not given.

    restart: a shell command that runs the back-end in the foreground. Then this object starts it, and again
    when it died. counted: whether descriptors and mappings of the process shall be looked at.
    """

    def __init__(
        self, door: Door, peer: Door | None, *, pid: int | None, restart: str | None, patience_s: float
    ) -> None:
        self.door = door
        self.peer = peer
        self.counted = pid is not None or restart is not None
        self.pid = pid
        self._restart = restart
        self._patience_s = patience_s
        self._process: subprocess.Popen[bytes] | None = None
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self.starts = 0

    @property
    def can_restart(self) -> bool:
        """Can it be started by us?"""
        return self._restart is not None

    def start(self) -> None:
        """Start it, if that is ours to do, and wait until it can be connected to."""
        if self._restart is not None:
            self.stop()
            for door in self._doors():
                if not door.listens and is_stale(door.path):
                    door.path.unlink(missing_ok=True)
            self._output.truncate(0)
            # Its input stays open and silent: there are back-ends that end when it does. It outlives nobody.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "/bin/sh", "-c", f"exec {self._restart}"],
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.pid = self._process.pid
            self.starts += 1
        for door in self._doors():
            self._await(door)

    def _doors(self) -> list[Door]:
        return [self.door, self.peer] if self.peer else [self.door]

    def _await(self, door: Door) -> None:
        end = time.monotonic() + self._patience_s
        while True:
            try:
                with door.open(self._patience_s) as sock:
                    if self.pid is None and not door.listens:
                        self.pid = _pid_of_peer(sock)
                    return
            except OSError as error:
                if self._restart is None and not door.listens:
                    raise NotFoundError(
                        f"{door.path}: {error.strerror or error}",
                        hint="start the back-end first, or give --restart COMMAND",
                    ) from error
                if self.gone():
                    raise TimeoutExpired(f"the back-end ended at once: {self.epitaph()}") from error
            if time.monotonic() > end:
                raise TimeoutExpired(
                    f"no back-end at {door.path} within {self._patience_s:g} s: {self.last_words()}"
                )
            time.sleep(_LOOK_S)

    def gone(self) -> bool:
        """Has the process ended?"""
        if self._process is not None:
            return self._process.poll() is not None
        if self.pid is None:
            return False
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        return stat.rpartition(")")[2].split()[0] in "ZX"

    def epitaph(self) -> str:
        """How it ended."""
        code = self._process.returncode if self._process is not None else None
        if code is None:
            return "the process is gone"
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        words = self.last_words()
        return f"{how}; it said: {words}" if words else how

    def last_words(self) -> str:
        """The last line that it printed."""
        size = os.fstat(self._output.fileno()).st_size
        text = os.pread(self._output.fileno(), _TAIL, max(0, size - _TAIL)).decode(errors="replace")
        lines = text.strip().splitlines()
        return lines[-1] if lines else ""

    def holdings(self) -> Holdings | None:
        """What it holds now; None if that can't be seen."""
        if self.pid is None or not self.counted:
            return None
        try:
            fds = len(os.listdir(f"/proc/{self.pid}/fd"))
            with open(f"/proc/{self.pid}/maps") as maps:
                mapped = sum("memfd:guest" in line for line in maps)
        except OSError:
            return None
        return Holdings(fds, mapped)

    def stop(self) -> None:
        """End it, if it is ours."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None

    def close(self) -> None:
        """End it, and stop listening."""
        self.stop()
        for door in self._doors():
            door.close()
        self._output.close()


def _pid_of_peer(sock: socket.socket) -> int | None:
    """Who made the socket that we are connected to; None if that process is in another namespace."""
    pid: int = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return pid or None
