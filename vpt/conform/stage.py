# SPDX-License-Identifier: BSD-2-Clause
"""What a case has at hand: connections to the back-end, a neighbour behind the peer port, and judgements.

A case sees what any front-end sees: replies, the end of a connection, its rings, its memory.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vpt.conform.backend import Backend, Door
from vpt.conform.case import Skip
from vpt.conform.frames import BROADCAST, frame
from vpt.conform.front_end import (
    ALL_PROTOCOL,
    PLAIN,
    USUAL,
    VNET_HDR,
    Failure,
    FrontEnd,
    Received,
    eventually,
)
from vpt.conform.guest_memory import GPA_BASE, MIB, GuestMemory, Span
from vpt.vhost_user import Payload, ProtocolFeature, Request
from vpt.vhost_user.messages import HEADER, VERSION

__all__ = ["MAC_GUEST", "Answer", "Stage", "come_in", "head", "same"]

MAC_GUEST = bytes.fromhex("525400c0f001")
GUARD = 64 << 10
_LOOK_S = 0.005
_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class Answer:
    """What a message brought about: an acknowledgement's value, or the end of the connection (None)."""

    value: int | None

    @property
    def refused(self) -> bool:
        """By a negative acknowledgement, or by closing."""
        return self.value is None or self.value != 0


def same(what: str, seen: object, wanted: object) -> None:
    """Fail unless they are equal."""
    if seen != wanted:
        raise Failure(f"{what}: {seen}, not {wanted}")


def head(request: int, flags: int = VERSION, size: int = 0) -> bytes:
    """A message's header, which may say anything."""
    return HEADER.pack(request, flags, size)


def come_in(door: Door, limit_s: float, **options: Any) -> FrontEnd:
    """A connection that is answered; whoever was there before has limit_s to be gone."""
    end = time.monotonic() + limit_s
    while True:
        fe = FrontEnd(door.open(limit_s), timeout_s=limit_s, **options)
        try:
            fe.ask(Request.GET_FEATURES)
        except OSError:
            fe.disconnect()
            if "memory" not in options or time.monotonic() > end:
                fe.close()
            if time.monotonic() > end:
                raise
            time.sleep(_LOOK_S)
        else:
            return fe


class Stage:
    """For one case; close() ends the connections it made. limit_s: how long to wait for anything."""

    def __init__(self, backend: Backend, neighbour: FrontEnd | None, limit_s: float) -> None:
        self.backend = backend
        self.limit_s = limit_s
        self._neighbour = neighbour
        self.guests: list[FrontEnd] = []

    @property
    def neighbour(self) -> FrontEnd:
        """The front-end on the peer port, at work."""
        if self._neighbour is None:
            raise Skip("needs a second port: --peer")
        return self._neighbour

    @property
    def has_neighbour(self) -> bool:
        """Is there a peer port?"""
        return self._neighbour is not None

    # ---- connections ----

    def enter(self, *, guarded: bool = True, **options: Any) -> FrontEnd:
        """Connect; nothing is said. guarded: memory that shows writes to what the back-end was not given."""
        options.setdefault("num", 64)
        options.setdefault("features", int(PLAIN | USUAL))
        if guarded and "memory" not in options:
            options["memory"] = GuestMemory([Span(GPA_BASE, 4 * MIB, GUARD, GUARD)])
        fe = come_in(self.backend.door, self.limit_s, **options)
        self.guests.append(fe)
        return fe

    def negotiated(self, protocol: int = int(ALL_PROTOCOL)) -> FrontEnd:
        """Connect, and negotiate, no more. protocol: mask of protocol features."""
        fe = self.enter()
        fe.negotiate(protocol)
        return fe

    @staticmethod
    def eventfd(fe: FrontEnd) -> int:
        """An eventfd that lives as long as the front-end."""
        if not fe.pairs:
            fe.make_queues()
        return fe.queues()[0].kick_fd

    def started(self, *, protocol: int | None = None, fill: int | None = None, **options: Any) -> FrontEnd:
        """Connect, and go all the way to running rings. protocol: mask of protocol features; None: all."""
        fe = self.enter(**options)
        return fe.start(fill=fill) if protocol is None else fe.start(protocol=protocol, fill=fill)

    def resume(self, fe: FrontEnd) -> None:
        """End a connection and go on with its rings in another one, by the record that it kept."""
        fe.disconnect()
        end = time.monotonic() + self.limit_s
        while True:
            try:
                fe.resume(self.backend.door.open(self.limit_s))
            except ConnectionError:  # the one before is on its way out
                if time.monotonic() > end:
                    raise
                time.sleep(_LOOK_S)
            else:
                return

    def leave(self, fe: FrontEnd) -> None:
        """End one connection."""
        self.guests.remove(fe)
        fe.close()

    def close(self) -> None:
        """End all."""
        for fe in self.guests:
            fe.close()
        self.guests.clear()

    # ---- judgements ----

    def answer(
        self, fe: FrontEnd, request: int, payload: Payload | None = None, fds: Sequence[int] = ()
    ) -> Answer:
        """Send a message and see what comes of it. Without REPLY_ACK, the next reply tells."""
        acknowledged = bool(fe.protocol & ProtocolFeature.REPLY_ACK)
        try:
            if acknowledged:
                return Answer(fe.try_(request, payload, fds))
            fe.send(request, payload, fds)
            fe.ask(Request.GET_FEATURES)
        except ConnectionError:
            return Answer(None)
        except TimeoutError:
            asked = "an acknowledgement" if acknowledged else "a reply to the next message"
            raise Failure(f"neither {asked} nor the end of the connection in {self.limit_s:g} s") from None
        return Answer(0)

    def refused(
        self, fe: FrontEnd, request: int, payload: Payload | None = None, fds: Sequence[int] = ()
    ) -> None:
        """The message must not be accepted: a negative acknowledgement, or the end of the connection."""
        if not self.answer(fe, request, payload, fds).refused:
            raise Failure("accepted")

    def accepted(
        self, fe: FrontEnd, request: int, payload: Payload | None = None, fds: Sequence[int] = ()
    ) -> None:
        """The message must be accepted."""
        answer = self.answer(fe, request, payload, fds)
        if answer.refused:
            raise Failure("refused" if answer.value is not None else "the connection was closed")

    def ends(self, fe: FrontEnd) -> None:
        """The connection must end."""
        try:
            if fe.sock.recv(1):
                raise Failure("answered, as if it were in order")
        except ConnectionError:
            pass
        except TimeoutError:
            raise Failure(f"the connection was not closed in {self.limit_s:g} s") from None

    def settles(self, fe: FrontEnd) -> bool:
        """Wait until the back-end has acted on all before: is the connection still there?

        Replies that come before are of no interest. A Failure: neither a reply nor the end of the connection.
        """
        try:
            fe.send(Request.GET_FEATURES)
            while fe.reply().request != Request.GET_FEATURES:
                pass
        except ConnectionError:
            return False
        except TimeoutError:
            raise Failure(f"neither a reply nor the end of the connection in {self.limit_s:g} s") from None
        return True

    def wait(self, probe: Any, what: str) -> Any:
        """The first true value of probe()."""
        return eventually(probe, what, self.limit_s)

    # ---- packets ----

    def good(self, fe: FrontEnd, number: int = 0, size: int = 100) -> int:
        """Address of a header and a frame that would be forwarded."""
        at = fe.memory.alloc(2048, 64)
        fe.memory.write(at, bytes(VNET_HDR) + self.frame(number, size))
        return at

    @staticmethod
    def frame(number: int = 0, size: int = 100) -> bytes:
        """A frame of ours, to everybody."""
        return frame(BROADCAST, MAC_GUEST, number, size)

    def arrive(self, *frames: bytes) -> list[Received]:
        """Wait for these frames to come out at the neighbour, in order; others may be between them."""
        got: list[Received] = []

        def all_there() -> bool:
            for received in self.neighbour.poll():
                if len(got) < len(frames) and received.frame == frames[len(got)]:
                    got.append(received)
            return len(got) == len(frames)

        try:
            self.wait(all_there, "")
        except Failure:
            raise Failure(f"{len(got)} of {len(frames)} frames came out at the peer port") from None
        return got

    def works(self, fe: FrontEnd, number: int = 4711) -> None:
        """A frame sent is taken, and comes out at the peer if there is one.

        Sent again and again: what was sent before may have left no room there.
        """
        sent = self.frame(number)

        def arrived() -> bool:
            fe.transmit(sent)
            if not self.has_neighbour:
                return True
            end = time.monotonic() + _AGAIN_S
            while time.monotonic() < end:
                if any(received.frame == sent for received in self.neighbour.poll()):
                    return True
            return False

        self.wait(arrived, "a frame to come out at the peer port")
