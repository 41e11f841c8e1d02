# SPDX-License-Identifier: BSD-2-Clause
"""The front-end's end of the back-end's requests."""

from __future__ import annotations

import select
import socket

from vpt.closing import Closing
from vpt.conform.front_end import TIMEOUT_S, FrontEnd
from vpt.vhost_user import BACKEND_SPECS, U64, Decoder, Message, Request, encode, receive


class BackChannel(Closing):
    """Made with SET_BACKEND_REQ_FD. Requests are answered when asked for, or never, as a test likes it."""

    def __init__(self, fe: FrontEnd) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(TIMEOUT_S)
        self._decoder = Decoder(BACKEND_SPECS)
        with theirs:
            fe.do(Request.SET_BACKEND_REQ_FD, None, [theirs.fileno()])

    def close(self) -> None:
        """Hang up."""
        self.sock.close()
        self._decoder.close()

    def waiting(self, timeout_s: float = 0.0) -> bool:
        """Has the back-end asked for something, or hung up?"""
        return bool(select.select([self.sock], [], [], timeout_s)[0])

    def closed_by_peer(self) -> bool:
        """Wait for the back-end to hang up."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True

    def take(self, *, answer: int | None = 0) -> Message:
        """The next request; answered with that number if it asks for an answer, or not at all with None."""
        messages: list[Message] = []
        while not messages:
            got = receive(self.sock, self._decoder)
            if got is None:
                raise ConnectionError("closed by the back-end")
            messages += got
        if messages[0].need_reply and answer is not None:
            self.answer(messages[0], answer)
        return messages[0]

    def answer(self, message: Message, value: int = 0) -> None:
        """Answer a request."""
        self.sock.sendall(encode(message.request, U64(value), reply=True))
