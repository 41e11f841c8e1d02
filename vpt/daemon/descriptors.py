# SPDX-License-Identifier: BSD-2-Clause
"""Descriptors that peers send: telling what they are, and closing them without waiting for whoever is behind.

close() takes as long as the maker of a file likes: a TCP socket that lingers waits for its peer, a file on a
FUSE mount for its server, a pipe for whoever writes to it from memory that does not come, and a unix socket
closes all that waits in it to be read. Descriptors that a recvmsg() has no room for are closed by the kernel
inside of it, so there has to be room for as many as can be sent.

Standard library only: the keeper uses it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import termios
import threading
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vpt.daemon.sockets import close_fds

if TYPE_CHECKING:
    import logging

__all__ = ["MOST_PENDING", "Closer", "is_eventfd", "is_memory", "keep_urgent_inline"]

MOST_PENDING = 64
"""That many of a port's may be on their way; no connection is taken or kept beyond that."""

# Freeing a file's pages takes about 0.1 s per GiB: more than this is no matter of an instant.
_LARGE_FILE = 64 << 20


def is_memory(fd: int) -> bool:
    """Is it a memfd or a file on tmpfs or hugetlbfs? Nothing else has seals, and no server is asked."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def is_eventfd(fd: int) -> bool:
    """Is it an eventfd? A file or a pipe would be read and written like one, with other consequences."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"
    except OSError:
        return False


def keep_urgent_inline(sock: socket.socket) -> None:
    """Receive urgent bytes as others: the kernel drops them otherwise, and closes what came with them."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def _closes_at_once(fd: int) -> bool:
    # In this order: fstat() of a file on FUSE waits for its server.
    return is_eventfd(fd) or (is_memory(fd) and os.fstat(fd).st_blocks * 512 <= _LARGE_FILE)


def _is_drained(sock: socket.socket) -> bool:
    """Shut down and with nothing unread: then no descriptor waits in it.

    A record of no bytes may bring descriptors, too, and is not counted: only streams have none.
    """
    if sock.type != socket.SOCK_STREAM:
        return False
    try:
        return fcntl.ioctl(sock, termios.FIONREAD, bytes(4)) == bytes(4)
    except OSError:
        return False


class Closer:
    """Closes what the peers of one port send, and the connections to them.

    What is known to close at once is closed at once. All else goes to a thread, which lives as long as there
    is something to close: no other port's descriptors wait behind these. For the event loop's thread.
    """

    def __init__(self, log: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._waiting: deque[int] = deque()  # the first is being closed
        self.handed_over = 0  # peers' descriptors, ever

    @property
    def pending(self) -> int:
        """How many are not closed yet."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Must the peer send no more for now?"""
        return self.pending > MOST_PENDING

    @property
    def problem(self) -> str | None:
        """Why no connection is taken, if that is so."""
        if not self.full:
            return None
        return f"{self.pending} descriptors that a peer sent are still being closed"

    def close(self, fds: Iterable[int]) -> None:
        """Close each, at once or as soon as it can be."""
        slow = []
        for fd in fds:
            if _closes_at_once(fd):
                close_fds([fd])
            else:
                slow.append(fd)
        if not slow:
            return
        self.handed_over += len(slow)
        self._log.warning(
            "%d descriptors that may take long to close are closed in the background", len(slow)
        )
        self._hand_over(slow)

    def hang_up(self, sock: socket.socket) -> None:
        """End a connection: the peer notices at once, whatever it has left unread in it."""
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        if _is_drained(sock):
            sock.close()
        else:
            self._hand_over([sock.detach()])

    def _hand_over(self, fds: Iterable[int]) -> None:
        with self._lock:
            idle = not self._waiting
            self._waiting.extend(fds)
        if idle:
            threading.Thread(target=self._work, name="vpt-closer", daemon=True).start()

    def _work(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                os.close(self._waiting[0])
            with self._lock:
                self._waiting.popleft()
                if not self._waiting:
                    return
