# SPDX-License-Identifier: BSD-2-Clause
"""The back-end's own requests to its front-end, on the socket of SET_BACKEND_REQ_FD.

At most one request of a kind is on its way: what is asked for meanwhile is asked once more after the answer,
so a front-end that never reads costs a few bytes. An error ends the channel, not the connection.

The front-end has made the socket and may have it still: while it reads there itself, into memory that does
not come, or has the kernel drop urgent bytes and what came with them, a recvmsg() of ours waits. The last
close() may, too. Neither is for the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import termios
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from vpt.daemon.descriptors import Closer, keep_urgent_inline
from vpt.vhost_user import (
    BACKEND_SPECS,
    U64,
    BackendRequest,
    Decoder,
    Payload,
    Piece,
    Rule,
    RuleError,
    close_fds,
    decode,
    encode,
    read,
    send_some,
)

Answered = Callable[[bool], None]


@dataclass(slots=True)
class _Pending:
    """A request, and what it was asked for again with since it was sent."""

    request: BackendRequest
    payload: Payload | None
    fds: list[int]
    answered: Answered | None


class Channel:
    """One such socket; owns it. acknowledge: REPLY_ACK was negotiated, so each request asks for an answer."""

    def __init__(self, fd: int, *, acknowledge: bool, closer: Closer) -> None:
        """Takes over fd; RuleError(BAD_FD) if it is not one of a pair of stream sockets."""
        self._closer = closer
        self._sock = _stream_socket(fd, closer)
        self._lane = closer.lane()
        self.acknowledge = acknowledge
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder(BACKEND_SPECS, replies=True, discard=closer.close)
        self._out = bytearray()
        self._queue: list[_Pending] = []  # the first is being sent
        self._in_flight: list[_Pending] = []  # sent, not answered; answers come in order
        self._writing = False
        self._reading = False  # in the lane
        self._heard: Callable[[], None] | None = None  # waits until nothing is unheard
        self.open = True
        self._loop.add_reader(self._sock, self._readable)

    def request(
        self,
        request: BackendRequest,
        payload: Payload | None = None,
        fd: int = -1,
        answered: Answered | None = None,
    ) -> None:
        """Send a request, as soon as an equal one that is on its way has been answered.

        fd: goes with it, and stays the caller's. answered: told whether the front-end did what was asked;
        False too when the channel ends first. Without REPLY_ACK it is never called with True.
        """
        if not self.open:
            if answered is not None:
                answered(False)
            return
        for waiting in self._queue[1 if self._writing else 0 :]:
            if (waiting.request, waiting.payload) == (request, payload) and answered is None:
                return
        self._queue.append(_Pending(request, payload, [os.dup(fd)] if fd >= 0 else [], answered))
        self._pump()

    def close(self, successor: Channel | None = None) -> None:
        """Hang up. successor: may have been given the same socket, and goes on with it."""
        if not self.open:
            return
        self.open = False
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        if successor is None or not os.path.sameopenfile(self._sock.fileno(), successor._sock.fileno()):
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        if self._reading:
            self._lane.do(self._sock.close)
        else:
            self._closer.let_go([self._sock.detach()])
        self._decoder.close()
        lost = self._in_flight + self._queue
        self._queue, self._in_flight = [], []
        for pending in lost:
            close_fds(pending.fds)
            if pending.answered is not None:
                pending.answered(False)
        self._call_heard()

    def _busy(self, pending: _Pending) -> bool:
        return any((p.request, p.payload) == (pending.request, pending.payload) for p in self._in_flight)

    def _pump(self) -> None:
        """Send what may be sent, in order."""
        try:
            while self._queue and not self._busy(self._queue[0]):
                head = self._queue[0]
                if not self._writing:
                    self._out += encode(head.request, head.payload, need_reply=self.acknowledge)
                    self._writing = True
                if send_some(self._sock, self._out, head.fds):
                    close_fds(head.fds)
                    head.fds = []
                if self._out:
                    self._loop.add_writer(self._sock, self._pump)
                    return
                self._writing = False
                self._queue.pop(0)
                if self.acknowledge:
                    self._in_flight.append(head)
            self._loop.remove_writer(self._sock)
        except OSError:
            self.close()

    @property
    def _unheard(self) -> bool:
        return self._reading or fcntl.ioctl(self._sock, termios.FIONREAD, bytes(4)) != bytes(4)

    def hear_first(self, then: Callable[[], None]) -> bool:
        """Has the front-end said something here that was not heard yet? Then `then` is called once it was."""
        if not self.open or not self._unheard:
            return False
        self._heard = then
        return True

    def _readable(self) -> None:
        self._reading = True
        self._loop.remove_reader(self._sock)
        self._lane.do(partial(self._read, self._decoder.want))

    def _read(self, size: int) -> None:
        """In the lane."""
        piece: Piece | None
        try:
            keep_urgent_inline(self._sock)  # each time: the front-end may have undone it
            piece = read(self._sock, size)
        except BlockingIOError:
            piece = None
        except OSError:
            piece = Piece(b"")
        try:
            self._loop.call_soon_threadsafe(self._hear, piece)
        except RuntimeError:  # the loop has ended
            close_fds(piece.fds if piece is not None else ())

    def _hear(self, piece: Piece | None) -> None:
        """What was read, if there was anything."""
        self._reading = False
        if not self.open:
            self._closer.close(piece.fds if piece is not None else ())
            return
        try:
            messages = decode(piece, self._decoder) if piece is not None else []
            for message in messages or ():
                with message:
                    assert isinstance(message.payload, U64)
                    self._answer(message.request, message.payload.value == 0)
        except RuleError:
            messages = None
        if messages is None:
            self.close()
        elif self.open:
            self._loop.add_reader(self._sock, self._readable)
            self._pump()
        self._call_heard()

    def _call_heard(self) -> None:
        if not self.open or not self._unheard:
            heard, self._heard = self._heard, None
            if heard is not None:
                heard()

    def _answer(self, request: int, done: bool) -> None:
        if not self._in_flight or self._in_flight[0].request != request:
            raise RuleError(Rule.UNKNOWN_REQUEST, f"an answer to {request}, which was not asked")
        answered = self._in_flight.pop(0).answered
        if answered is not None:
            answered(done)


def _stream_socket(fd: int, closer: Closer) -> socket.socket:
    """Take over fd, one end of a pair.

    What is connected to a listener finds that one's name at its other end, and is refused: held here, the
    front-end's own end of its connection, or of one to another port, would keep that open for ever after.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        closer.close([fd])
        raise RuleError(Rule.BAD_FD, "not a socket") from error
    try:
        in_pair = sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM and not sock.getpeername()
    except OSError:
        in_pair = False  # not connected
    if not in_pair:
        closer.close([sock.detach()])
        raise RuleError(Rule.BAD_FD, "not one of a pair of stream sockets of AF_UNIX")
    sock.setblocking(False)
    return sock
