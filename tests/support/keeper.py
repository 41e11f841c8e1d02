# SPDX-License-Identifier: BSD-2-Clause
"""What the keeper is given to keep, and QEMU as its peer."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from vpt.closing import Closing
from vpt.daemon.shelf import Record
from vpt.daemon.sockets import close_fds
from vpt.dataplane import PEER_STATUS_OFS


def record(path: Path, protocol: str = "ivshmem", name: str = "p") -> Record:
    return Record(name, protocol, str(path), PEER_STATUS_OFS, meta={"mine": 1})  # type: ignore[arg-type]


def same_file(a: int, b: int) -> bool:
    return os.fstat(a).st_ino == os.fstat(b).st_ino


def counts_alike(a: int, b: int) -> bool:
    """Are both the same eventfd?"""
    os.eventfd_write(a, 3)
    try:
        return os.eventfd_read(b) == 3
    except BlockingIOError:
        os.eventfd_read(a)
        return False


class QemuEnd(Closing):
    """Reads an ivshmem server as QEMU does: eight bytes at a time, a descriptor with some."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(path))
        self.fds: list[int] = []

    def message(self) -> tuple[int, int | None]:
        data, fds, _, _ = socket.recv_fds(self.sock, 8, 4)
        self.fds += fds
        assert len(data) == 8, f"{data!r} instead of eight bytes"
        assert len(fds) <= 1
        return struct.unpack("<q", data)[0], fds[0] if fds else None

    def close(self) -> None:
        self.sock.close()
        close_fds(self.fds)


def gone_from(sock: socket.socket) -> bool:
    """Has the other side hung up?"""
    try:
        return sock.recv(4096) == b""
    except ConnectionError:
        return True
