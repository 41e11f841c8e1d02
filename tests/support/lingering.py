# SPDX-License-Identifier: BSD-2-Clause
"""Descriptors whose close() waits: TCP sockets that linger over what their peer does not read."""

from __future__ import annotations

import contextlib
import socket
import struct

from vpt.closing import Closing

_LINGER_S = 60


class Lingering(Closing):
    """That many sockets to give away. Who has them then waits a minute to close each, or until close()."""

    def __init__(self, count: int) -> None:
        self._given: list[socket.socket] = []
        self._peers: list[socket.socket] = []
        with socket.create_server(("127.0.0.1", 0), backlog=count) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for _ in range(count):
                self._connect(server)

    def _connect(self, server: socket.socket) -> None:
        sock = socket.socket()
        self._given.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.connect(server.getsockname())
        self._peers.append(server.accept()[0])
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(bytes(4096))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, _LINGER_S))

    @property
    def fds(self) -> list[int]:
        """The descriptors. They stay ours until given()."""
        return [sock.fileno() for sock in self._given]

    def given(self, count: int | None = None) -> None:
        """All of them, or the first so many, have been sent: whoever gets them is the last who has them."""
        given, self._given = self._given[:count], self._given[len(self._given[:count]) :]
        for sock in given:
            sock.close()

    def close(self) -> None:
        """Their peers reset them: nobody waits any longer."""
        for peer in self._peers:
            peer.close()
        self._peers.clear()
        self.given()
