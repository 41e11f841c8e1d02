# SPDX-License-Identifier: BSD-2-Clause
"""Messages with descriptors, on sockets that do not block, in an asyncio loop. Standard library only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from vpt.daemon.descriptors import Closer
from vpt.daemon.sockets import MAX_FDS, close_fds
from vpt.errors import ConflictError

__all__ = ["receive", "receive_data", "send"]


async def send(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send all of `data`, the fds with its first byte."""
    while True:
        try:
            sent = (
                socket.send_fds(sock, [data], fds, socket.MSG_NOSIGNAL)
                if fds
                else sock.send(data, socket.MSG_NOSIGNAL)
            )
        except BlockingIOError:
            await _ready(sock, write=True)
            continue
        data, fds = data[sent:], ()
        if not data:
            return


async def receive(sock: socket.socket, size: int, max_fds: int = 0) -> tuple[bytes, list[int]]:
    """One receive of up to `size` bytes and `max_fds` fds, which are the caller's to close. b"" at the end.

    Raises ConflictError if there was more of either; nothing is leaked then.
    """
    data, fds, flags = await _receive(sock, size, max_fds)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_fds(fds)
        raise _too_much()
    return data, fds


async def receive_data(sock: socket.socket, size: int, closer: Closer) -> bytes:
    """As receive(), from a peer that has no descriptors to send and is not to be trusted with its own."""
    data, fds, flags = await _receive(sock, size, MAX_FDS)
    closer.close(fds)
    if fds or flags & socket.MSG_TRUNC:
        raise _too_much()
    return data


async def _receive(sock: socket.socket, size: int, max_fds: int) -> tuple[bytes, list[int], int]:
    """Data, descriptors, flags."""
    while True:
        try:
            data, fds, flags, _ = socket.recv_fds(sock, size, max_fds, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            await _ready(sock, write=False)
        else:
            return data, list(fds), flags


def _too_much() -> ConflictError:
    return ConflictError("message too long, or with more descriptors than it may have")


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _ready(sock: socket.socket, *, write: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    fd = sock.fileno()
    watch, unwatch = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    watch(fd, _resolve, ready)
    try:
        await ready
    finally:
        unwatch(fd)
