# SPDX-License-Identifier: BSD-2-Clause
"""A network namespace for one thread, so that a test leaves the host's interfaces alone."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

__all__ = ["enter_new_netns", "set_up"]

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1


def enter_new_netns() -> None:
    """Move the calling thread, and only it, to a new namespace; what it opens there stays there."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"unshare(CLONE_NEWNET): {os.strerror(code)}")


def set_up(sock: socket.socket, ifname: str) -> None:
    """ip link set dev IFNAME up, in the namespace of the socket."""
    fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH22x", ifname.encode(), _IFF_UP))
