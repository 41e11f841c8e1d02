# SPDX-License-Identifier: BSD-2-Clause
"""What ring transports share: the fds a peer is handed, and a socket that serves one peer at a time.

The connection is the peer's claim on the port. When it ends, the peer is gone and can't say so itself, so its
status word is reset in its place, and its doorbell rung: for the host that is a driver's ordinary reset.
(QEMU's ivshmem keeps its connection as long as the device exists; a guest that reboots resets by its own
driver.)

Standard library only: it runs in vptd or in the keeper, and can't tell where.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import mmap
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from vpt.daemon.aio import receive_data
from vpt.daemon.descriptors import Closer, keep_urgent_inline
from vpt.daemon.sockets import Listener, PeerCredentials, close_fds, peer_credentials
from vpt.errors import UsageError, VptError

__all__ = ["Bundle", "PeerServer"]

# How long a peer may take to read what it is handed.
_GREET_TIMEOUT_S = 10.0
# That many others at a time are told that the port is in use; who comes beyond that is hung up on.
_MOST_TOLD = 8
# How often those who count hear of it.
_TELL_REFUSALS_S = 1.0
# How often to look whether what peers sent has been closed, where too much of it is not.
_CLOSER_POLL_S = 0.5
_WANTED_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


@dataclass(frozen=True, slots=True)
class Bundle:
    """A region and its eventfds, one of each kind per vector. Owns them."""

    memory: int
    kicks: tuple[int, ...]
    interrupts: tuple[int, ...]

    @classmethod
    def from_fds(cls, fds: Sequence[int]) -> Self:
        """Takes over the fds if they can be a bundle (UsageError otherwise, and they stay the caller's)."""
        vectors = (len(fds) - 1) // 2
        if vectors < 1 or len(fds) != 2 * vectors + 1:
            raise UsageError(f"{len(fds)} descriptors can't be a region and pairs of eventfds")
        if fcntl.fcntl(fds[0], fcntl.F_GET_SEALS) & _WANTED_SEALS != _WANTED_SEALS:
            raise UsageError("the region can shrink or grow", hint="create it with region_create()")
        return cls(fds[0], tuple(fds[1 : vectors + 1]), tuple(fds[vectors + 1 :]))

    @property
    def vectors(self) -> int:
        return len(self.kicks)

    def fds(self) -> list[int]:
        """In from_fds()'s order."""
        return [self.memory, *self.kicks, *self.interrupts]

    def duplicate(self) -> Bundle:
        """Another bundle with the same files, that lives on its own."""
        copies: list[int] = []
        try:
            for fd in self.fds():
                copies.append(os.dup(fd))
        except OSError:
            close_fds(copies)
            raise
        return type(self).from_fds(copies)

    def reset_peer(self, status_ofs: int) -> None:
        """Write the peer's status word in its place: reset.

        Then ring its configuration doorbell, the last vector.
        """
        with mmap.mmap(self.memory, status_ofs + 4) as header:
            struct.pack_into("<I", header, status_ofs, 0)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self.kicks[-1], 1)

    def close(self) -> None:
        close_fds(self.fds())


class PeerServer:
    """Serves a bundle to one peer at a time. Subclasses say how a peer is greeted.

    on_change is called after a peer has come or gone, and a while after others have been refused.
    """

    def __init__(
        self,
        listener: Listener,
        bundle: Bundle,
        *,
        status_ofs: int,
        log: logging.Logger | logging.LoggerAdapter[Any],
        on_change: Callable[[], None],
    ) -> None:
        self._listener = listener
        self._bundle = bundle
        self._status_ofs = status_ofs
        self._log = log
        self._on_change = on_change
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.closer = Closer(log)
        self.peer: PeerCredentials | None = None
        self.second_peers = 0  # refused, for there was one already
        self._told = 0  # at this moment
        self._telling: asyncio.TimerHandle | None = None

    async def greet(self, conn: socket.socket, bundle: Bundle) -> None:
        """Hand the bundle over. Raises VptError or OSError if the peer is not up to it."""
        raise NotImplementedError

    async def refuse(self, conn: socket.socket, message: str) -> None:
        """Tell a peer that it can't be served, where the protocol has words for it."""

    def start(self) -> None:
        self._spawn(self._accept_all())

    async def stop(self) -> None:
        """Hang up and stop listening. The region and its eventfds stay as they are."""
        self._stopping = True
        if self._telling is not None:
            self._telling.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close(self.closer.hang_up)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self.closer.full:
                self._log.warning("no peer is accepted: %s", self.closer.problem)
            while self.closer.full:
                await asyncio.sleep(_CLOSER_POLL_S)
            try:
                conn, _ = await loop.sock_accept(self._listener.sock)
            except OSError as error:
                # Out of descriptors, for instance: the waiting peer would wake us at once again.
                self._log.warning("can't accept a peer: %s", error.strerror)
                await asyncio.sleep(1)
                continue
            self._spawn(self._serve(conn))
            await asyncio.sleep(0)  # where a crowd waits, accepting is always possible

    async def _serve(self, conn: socket.socket) -> None:
        try:
            credentials = peer_credentials(conn)
            keep_urgent_inline(conn)
            try:
                if self.peer is not None:
                    await self._turn_away(conn, credentials, self.peer)
                else:
                    await self._serve_only(conn, credentials)
            except (VptError, OSError, TimeoutError) as error:
                self._log.warning("peer dropped: pid=%d %s", credentials.pid, _reason(error))
        finally:
            self.closer.hang_up(conn)

    async def _turn_away(
        self, conn: socket.socket, credentials: PeerCredentials, peer: PeerCredentials
    ) -> None:
        self.second_peers += 1
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(_TELL_REFUSALS_S, self._tell_refusals)
        self._log.warning("second peer refused: pid=%d", credentials.pid)
        if self._told >= _MOST_TOLD:
            return
        self._told += 1
        try:
            async with asyncio.timeout(_GREET_TIMEOUT_S):
                await self.refuse(conn, f"process {peer.pid} uses this port")
        finally:
            self._told -= 1

    def _tell_refusals(self) -> None:
        self._telling = None
        self._on_change()

    async def _serve_only(self, conn: socket.socket, credentials: PeerCredentials) -> None:
        self.peer = credentials
        try:
            async with asyncio.timeout(_GREET_TIMEOUT_S):
                await self.greet(conn, self._bundle)
            self._log.info("peer connected: pid=%d uid=%d", credentials.pid, credentials.uid)
            self._on_change()
            await self._until_gone(conn)
        finally:
            # Not when stop() hangs up: then the peer is still there and its status word its own.
            if not self._stopping:
                self._bundle.reset_peer(self._status_ofs)
            self.peer = None
            self._on_change()

    async def _until_gone(self, conn: socket.socket) -> None:
        try:
            data = await receive_data(conn, 1, self.closer)
        except OSError as error:
            if error.errno != errno.ECONNRESET:
                raise
            data = b""
        if data:
            raise UsageError("it sent data after the greeting, which the protocol does not know")
        self._log.info("peer disconnected")


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"took longer than {_GREET_TIMEOUT_S:.0f} s to take what it was handed"
    return str(error)
