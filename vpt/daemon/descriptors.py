# SPDX-License-Identifier: BSD-2-Clause
"""Descriptors that peers send: telling what they are, and closing them without waiting for whoever is behind.

close() takes as long as the maker of a file likes: a TCP socket that lingers waits for its peer, a file on a
FUSE mount for its server, a pipe for whoever writes to it from memory that does not come, and a unix socket
closes all that waits in it to be read. Descriptors that a recvmsg() has no room for are closed by the kernel
inside of it, so there has to be room for as many as can be sent. An eventfd waits for an epoll_wait() that
has it in its set and writes to memory that does not come. Memory waits for nobody, but to free it takes a
while, for whoever lets go of it last.

Standard library only: the keeper uses it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import termios
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging

__all__ = ["MOST_PENDING", "MOST_USUAL", "Closer", "Lane", "is_eventfd", "is_memory", "keep_urgent_inline"]

MOST_PENDING = 64
"""That many of a port's may be on their way; no connection is taken or kept beyond that."""
MOST_USUAL = 2048
"""The same of eventfds and memory: more than a connection may have in use, by its rings and regions."""

# Freeing a file's pages takes up to 0.5 s per GiB; this much, about as long as it takes to start a thread.
_SMALL_FILE = 256 << 10
_LANE_STAYS_S = 1.0


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
    return is_memory(fd) and os.fstat(fd).st_blocks * 512 <= _SMALL_FILE


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


class Lane:
    """Does what may take long, one thing after the other, in a thread that ends a while after the last one.

    What one lane waits for holds up no other. do() is for any thread; the jobs run in the lane's.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: deque[Callable[[], object]] = deque()  # the first is being done
        self._alive = False

    def __len__(self) -> int:
        """How many are not done yet."""
        return len(self._jobs)

    def do(self, job: Callable[[], object]) -> None:
        """After those that are there. An OSError that it raises is nobody's."""
        with self._changed:
            self._jobs.append(job)
            if self._alive:
                self._changed.notify()
                return
            self._alive = True
        try:
            threading.Thread(target=self._work, name="vpt-closer", daemon=True).start()
        except RuntimeError:  # no thread is to be had: they wait for the next ones
            self._alive = False

    def _work(self) -> None:
        while self._more():
            with contextlib.suppress(OSError):
                self._jobs[0]()
            self._jobs.popleft()

    def _more(self) -> bool:
        with self._changed:
            self._alive = self._changed.wait_for(lambda: bool(self._jobs), _LANE_STAYS_S)
            return self._alive


class Closer:
    """Closes what the peers of one port send, and the connections to them. For the event loop's thread.

    Eventfds and memory end in one lane, whoever had them last: it should take an instant, but who holds them
    in an epoll set, or has filled them, can make it longer. What is neither, and should not have come, ends
    in another.
    """

    def __init__(self, log: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        self._log = log
        self._usual = Lane()
        self._strange = Lane()
        self._others: weakref.WeakSet[Lane] = weakref.WeakSet()
        self.handed_over = 0  # descriptors that are neither eventfds nor memory, ever

    @property
    def pending(self) -> int:
        """How many are not closed yet."""
        return len(self._usual) + self._odd

    @property
    def _odd(self) -> int:
        return len(self._strange) + sum(map(len, self._others))

    @property
    def full(self) -> bool:
        """Must the peer send no more for now?"""
        return self._odd > MOST_PENDING or len(self._usual) > MOST_USUAL

    @property
    def problem(self) -> str | None:
        """Why no connection is taken, if that is so."""
        if not self.full:
            return None
        return f"{self.pending} descriptors that a peer sent are still being closed"

    def lane(self) -> Lane:
        """One more, for what is done with one of the peer's descriptors; what waits there is pending, too."""
        lane = Lane()
        self._others.add(lane)
        return lane

    def close(self, fds: Iterable[int]) -> None:
        """Close what nobody wants, each at once or as soon as it can be."""
        usual: list[int] = []
        strange: list[int] = []
        for fd in fds:
            (usual if is_memory(fd) or is_eventfd(fd) else strange).append(fd)
        self.let_go(usual)
        if not strange:
            return
        self.handed_over += len(strange)
        self._log.warning(
            "%d descriptors that may take long to close are closed in the background", len(strange)
        )
        for fd in strange:
            self._strange.do(partial(os.close, fd))

    def let_go(self, fds: Iterable[int]) -> None:
        """Close what was of use. Who has mapped memory unmaps it first, or it is he who frees its pages."""
        for fd in fds:
            if _closes_at_once(fd):
                os.close(fd)
            else:
                self._usual.do(partial(os.close, fd))

    def hang_up(self, sock: socket.socket) -> None:
        """End a connection: the peer notices at once, whatever it has left unread in it."""
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        if _is_drained(sock):
            sock.close()
        else:
            self._strange.do(partial(os.close, sock.detach()))
