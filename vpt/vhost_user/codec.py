# SPDX-License-Identifier: BSD-2-Clause
"""From bytes and descriptors to messages, and back.

The decoder keeps no policy of its own: it applies the table in ``messages``. What it hands out has been
validated as far as a single message can be; what depends on the connection's state (negotiation, rings) is
the session's to check.

Descriptors have one owner at any time: the caller of ``feed`` gives them to the decoder, which closes them or
passes them on in a message; the message's owner takes or closes them.
"""

from __future__ import annotations

import contextlib
import os
import socket
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vpt.closing import Closing
from vpt.vhost_user.messages import (
    HEADER,
    MAX_FDS,
    SPECS,
    VERSION,
    Empty,
    Flag,
    MessageSpec,
    Opaque,
    Payload,
    Request,
    Rule,
    RuleError,
)

# A plain number: the complement of an IntFlag knows its own bits only.
_KNOWN_FLAGS = int(Flag.VERSION_MASK | Flag.REPLY | Flag.NEED_REPLY)
# SCM_MAX_FD of the kernel: what there is no room for is closed inside of recvmsg(), which can take long.
_ANCILLARY = socket.CMSG_LEN(253 * array("i").itemsize)

Discard = Callable[[Iterable[int]], None]


def close_fds(fds: Iterable[int]) -> None:
    """Close each; an fd is gone whatever close() returns."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


@dataclass(slots=True)
class Message(Closing):
    """One message and the descriptors that came with it. As a context manager, closes those nobody took."""

    request: int
    payload: Payload
    flags: int = VERSION
    fds: list[int] = field(default_factory=list)
    discard: Discard = close_fds

    @property
    def spec(self) -> MessageSpec | None:
        """Its rules; None if the request is unknown."""
        return SPECS.get(self.request)

    @property
    def name(self) -> str:
        """For people."""
        return Request(self.request).name if self.request in SPECS else f"request {self.request:#x}"

    @property
    def need_reply(self) -> bool:
        """The sender asked for an acknowledgement; to be honoured only if REPLY_ACK was negotiated."""
        return bool(self.flags & Flag.NEED_REPLY)

    def take_fd(self) -> int | None:
        """Hand the first descriptor that is left to the caller, who closes it."""
        return self.fds.pop(0) if self.fds else None

    def close(self) -> None:
        """Close what was not taken."""
        fds, self.fds = self.fds, []
        self.discard(fds)


def encode(
    request: int, payload: Payload | None = None, *, reply: bool = False, need_reply: bool = False
) -> bytes:
    """A message's bytes. The descriptors travel beside them, see send_message()."""
    body = (payload or Empty()).pack()
    flags = VERSION | (Flag.REPLY if reply else 0) | (Flag.NEED_REPLY if need_reply else 0)
    return HEADER.pack(request, flags, len(body)) + body


class Decoder(Closing):
    """Incremental decoder of one direction of one connection.

    specs: the table of the side that asks, the front-end's by default. replies: decode what is answered
    instead of what is asked. discard: closes descriptors that nobody takes, also those of the messages that
    it returns. After a RuleError the stream has no meaning any more: the decoder holds no
    descriptor and must not be fed again.
    """

    def __init__(
        self,
        specs: Mapping[int, MessageSpec] = SPECS,
        *,
        replies: bool = False,
        discard: Discard = close_fds,
    ) -> None:
        self.discard = discard
        self._specs = specs
        self._replies = replies
        self._head: tuple[int, int, int] | None = None
        self._buffer = bytearray()
        self._fds: list[int] = []

    @property
    def want(self) -> int:
        """Bytes missing to the end of the header or of the payload.

        A reader asks the socket for no more than that: descriptors come with the bytes they were sent with,
        and reading across the end of a message would leave open which one they belong to.
        """
        return (self._head[2] if self._head else HEADER.size) - len(self._buffer)

    @property
    def mid_message(self) -> bool:
        """A message has begun and is not complete."""
        return bool(self._head or self._buffer or self._fds)

    def close(self) -> None:
        """Close the descriptors of an incomplete message."""
        fds, self._fds = self._fds, []
        self.discard(fds)

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> list[Message]:
        """Take bytes, and descriptors that belong to the message that the first byte is part of.

        Returns the messages completed. Raises RuleError; then all descriptors given to it, and those of
        messages not returned, are closed.
        """
        done: list[Message] = []
        self._fds.extend(fds)
        rest = memoryview(data)
        try:
            if len(self._fds) > MAX_FDS:
                raise RuleError(Rule.BAD_FD_COUNT, f"{len(self._fds)} descriptors with one message")
            while True:
                piece = rest[: self.want]
                rest = rest[len(piece) :]
                self._buffer += piece
                if self.want:
                    return done
                if self._head is None:
                    self._head = self._parse_head()
                else:
                    done.append(self._complete(self._head))
        except RuleError:
            self.close()
            for message in done:
                message.close()
            raise

    def _parse_head(self) -> tuple[int, int, int]:
        """Check the header, so that a lying size is refused before its first byte is waited for."""
        request, flags, size = HEADER.unpack(self._buffer)
        self._buffer.clear()
        if flags & Flag.VERSION_MASK != VERSION:
            raise RuleError(Rule.BAD_VERSION, f"version {flags & Flag.VERSION_MASK}, request {request:#x}")
        if flags & ~_KNOWN_FLAGS:
            raise RuleError(Rule.RESERVED_FLAGS, f"flags {flags:#x}, request {request:#x}")
        if bool(flags & Flag.REPLY) != self._replies:
            raise RuleError(Rule.REPLY_FLAG, f"flags {flags:#x}, request {request:#x}")
        if not self._payload_type(request).size_ok(size):
            raise RuleError(Rule.BAD_SIZE, f"{size} bytes of payload for request {request:#x}")
        return request, flags, size

    def _payload_type(self, request: int) -> type[Payload]:
        spec = self._specs.get(request)
        if spec is None:
            return Opaque
        return spec.reply_payload if self._replies else spec.payload

    def _complete(self, head: tuple[int, int, int]) -> Message:
        """Parse the payload, count the descriptors and start over."""
        request, flags, _ = head
        body = bytes(self._buffer)
        self._buffer.clear()
        self._head = None
        payload = self._payload_type(request).unpack(body)
        spec = self._specs.get(request)
        if spec is not None:
            fewest, most = spec.reply_fds if self._replies else spec.fds
            if not fewest <= len(self._fds) <= most:
                raise RuleError(
                    Rule.BAD_FD_COUNT, f"{len(self._fds)} with {spec.request.name}, {fewest}..{most} allowed"
                )
            if not self._replies:
                payload.check_fds(len(self._fds))
        fds, self._fds = self._fds, []
        return Message(request, payload, flags, fds, self.discard)


@dataclass(frozen=True, slots=True)
class Piece:
    """What one recvmsg() has brought. Owns the descriptors until a decoder has them. No bytes: the end."""

    data: bytes
    fds: Sequence[int] = ()
    truncated: bool = False


def read(sock: socket.socket, size: int) -> Piece:
    """Read once, so many bytes at most.

    Raises OSError: BlockingIOError if there is nothing to read, unless the socket has a time-out. Whoever
    made the socket may have it still, and make it blocking: that is not relied upon.
    """
    how = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    data, ancillary, flags, _ = sock.recvmsg(size, _ANCILLARY, how)
    fds = array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return Piece(data, fds, bool(flags & socket.MSG_CTRUNC))


def decode(piece: Piece, decoder: Decoder) -> list[Message] | None:
    """The messages that it completes; None at the end of the stream. Raises RuleError."""
    if piece.truncated:
        decoder.discard(piece.fds)
        raise RuleError(
            Rule.TRUNCATED_FDS, f"no descriptor is free in this process after {len(piece.fds)} of them"
        )
    if not piece.data:
        decoder.discard(piece.fds)
        return None
    return decoder.feed(piece.data, piece.fds)


def receive(sock: socket.socket, decoder: Decoder) -> list[Message] | None:
    """Read once, at most to the end of what the decoder is at: what read() and decode() say."""
    return decode(read(sock, decoder.want), decoder)


def send_message(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send all of a message on a blocking socket, descriptors with its first byte. They stay the caller's."""
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    sent = sock.sendmsg([data], control)
    if sent < len(data):
        sock.sendall(data[sent:])


def send_some(sock: socket.socket, data: bytearray, fds: Sequence[int] = ()) -> int:
    """Send and remove what the socket takes at once, descriptors with the first byte; bytes sent."""
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    try:
        sent = sock.sendmsg([data], control, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return 0
    del data[:sent]
    return sent
