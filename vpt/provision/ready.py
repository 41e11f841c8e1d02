# SPDX-License-Identifier: BSD-2-Clause
"""Waiting until a guest is up, by two signs: READY on its console, then its ssh server's banner."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

from vpt.errors import GuestError, TimeoutExpired
from vpt.guest import READY_MARK
from vpt.qemu import console_text

__all__ = ["console_end", "wait_ready"]

_POLL_S = 0.1
_BANNER_S = 2.0
_CONSOLE_LINES = 12
# Of a console, whose guest may print for ever: what is looked through for the sign, and what is shown.
_WINDOW = 1 << 20
_PANIC = "Kernel panic"
# What it says behind that: registers, a call trace.
_PANIC_LINES = 200


def console_end(path: Path, lines: int = _CONSOLE_LINES) -> str:
    """The last lines of the console, fit for a terminal."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _WINDOW))
            text = console_text(file.read())
    except OSError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def _hint(console: Path) -> str:
    end = console_end(console)
    return f"its console ends with:\n{end}" if end else f"its console is empty ({console})"


def wait_ready(
    name: str, console: Path, ssh_port: int, is_running: Callable[[], bool], timeout_s: float
) -> None:
    """Return when the guest is up.

    TimeoutExpired says which sign was missing after `timeout_s` seconds, GuestError that the guest ended or
    panicked; both show the end of its console.
    """
    end = time.monotonic() + timeout_s
    # The console first: QEMU takes a connection to port 22 long before the guest listens.
    signs: list[tuple[str, Callable[[], bool]]] = [
        (f"{READY_MARK.decode()!r} on its console", _Sign(console)),
        (f"an ssh banner on 127.0.0.1 port {ssh_port}", lambda: _has_banner(ssh_port)),
    ]
    for what, seen in signs:
        while not seen():
            if not is_running():
                raise GuestError(f"guest {name} ended while it was waited for", hint=_hint(console))
            if _PANIC in console_end(console, _PANIC_LINES):
                raise GuestError(f"guest {name}: its kernel panicked", hint=_hint(console))
            if time.monotonic() > end:
                raise TimeoutExpired(
                    f"guest {name}: waited {timeout_s:.0f} s for {what}", hint=_hint(console)
                )
            time.sleep(_POLL_S)


class _Sign:
    """Has the console said it? Reads on from where it was."""

    def __init__(self, console: Path) -> None:
        self._console = console
        self._at = 0
        self._tail = b""

    def __call__(self) -> bool:
        with contextlib.suppress(FileNotFoundError), self._console.open("rb") as file:
            file.seek(self._at)
            while data := file.read(_WINDOW):
                self._at += len(data)
                seen = self._tail + data
                if READY_MARK in seen:
                    return True
                self._tail = seen[-len(READY_MARK) :]
        return False


def _has_banner(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), _BANNER_S) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
