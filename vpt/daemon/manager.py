# SPDX-License-Identifier: BSD-2-Clause
"""The service manager that started vptd, if one did: systemd's notification protocol, sd_notify(3)."""

from __future__ import annotations

import os
import socket

__all__ = ["notify"]

_ENV_SOCKET = "NOTIFY_SOCKET"


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
