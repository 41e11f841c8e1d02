# SPDX-License-Identifier: BSD-2-Clause
"""The service manager that started vptd, if one did.

sd_notify(3), and sd_listen_fds(3) for the control socket that it may listen on in our place.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from vpt.errors import UsageError

__all__ = ["inherited_socket", "notify"]

_ENV_SOCKET = "NOTIFY_SOCKET"
_FIRST_FD = 3


def notify(state: str) -> None:
    """Tell it "READY=1" or "STOPPING=1". Without one that wants to know, nothing happens.

    A manager that cannot be told is no reason to end: it has a time-out of its own, and says so in its log.
    """
    address = os.environ.get(_ENV_SOCKET, "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(address)
            sock.send(state.encode())
        except OSError:
            return


def inherited_socket(control: Path) -> socket.socket | None:
    """The control socket, if the manager has made it (vptd.socket); the caller's to close.

    UsageError where what it passes on is not a listening unix socket at `control`.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or count in ("", "0"):
        return None
    if count != "1":
        raise UsageError(
            f"the service manager passes {count} sockets on", hint="one ListenStream= in vptd.socket"
        )
    os.set_inheritable(_FIRST_FD, False)
    sock = socket.socket(fileno=_FIRST_FD)
    name = sock.getsockname() if sock.family == socket.AF_UNIX else "no unix socket"
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if name != str(control) or sock.type != socket.SOCK_STREAM or not listens:
        sock.close()
        raise UsageError(
            f"the service manager's socket is {name}, and `vpt` looks for {control}",
            hint="make ListenStream= of vptd.socket and --runtime-dir of vptd.service agree",
        )
    sock.setblocking(False)
    return sock
