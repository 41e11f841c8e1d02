# SPDX-License-Identifier: BSD-2-Clause
"""The observer's end: ask vptd for a capture, take its memory over a socket, read until told to stop.

The connection is what keeps the capture alive: an observer that dies has ended it.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Literal

from vpt.capture._pcapng import interface_description, interface_statistics, section_header
from vpt.closing import Closing
from vpt.daemon.captures import GREETING
from vpt.daemon.client import Client
from vpt.daemon.sockets import connect_unix
from vpt.dataplane import BpfInsn, CaptureReader
from vpt.errors import DaemonError

__all__ = ["Observer"]

_CONNECT_S = 5.0
# Between looks at rings that were empty: 4 MiB hold 10 ms of minimum-size frames at 4 Mpps.
_LOOK_MS = 10


class Observer(Closing):
    """A capture of a port or of all ports of a switch, those to come included. Begins at once.

    target: name of a port or switch; buffer: bytes for each worker of vptd, a power of two; snaplen: bytes
    kept of a packet; filter_: a program, and expression what it was made of. lost: packets that found no
    room, packets: those read; both grow while blocks() runs. ended: vptd ended it.
    """

    def __init__(
        self,
        vptd: Client,
        target: str,
        *,
        direction: Literal["in", "out", "both"] = "both",
        filter_: Sequence[BpfInsn] = (),
        expression: str = "",
        snaplen: int = 1 << 18,
        buffer: int = 1 << 22,
    ) -> None:
        self.packets = self.lost = 0
        self.ended = False
        self._snaplen, self._expression = snaplen, expression
        self._start_ns = time.time_ns()
        view = vptd.call(
            "capture.start",
            target=target,
            direction=direction,
            filter=[list(insn) for insn in filter_],
            snaplen=snaplen,
            buffer_bytes=buffer,
        )
        with ExitStack() as undo:
            self._conn = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            connect_unix(self._conn, view["socket"], _CONNECT_S)
            self._reader = undo.enter_context(_receive(self._conn, vptd))
            self._undo = undo.pop_all()
        self._described = 0

    def close(self) -> None:
        """Hang up, which ends the capture. Harmless the second time."""
        self._undo.close()

    def blocks(self, *, stopped: Callable[[], bool], most: int | None = None) -> Iterator[bytes | memoryview]:
        """A whole pcapng file, piece by piece; b"" where nothing came for a moment.

        Ends after `most` packets, when stopped() says so, or with vptd. A piece is valid until the next one.
        """
        yield section_header() + self._new_interfaces()
        while most is None or self.packets < most:
            last = stopped()
            data, count = self._reader.read(None if most is None else most - self.packets)
            # After the packets: an interface that they name is there by now.
            if described := self._new_interfaces():
                yield described
            if count:
                self.packets += count
                yield data
            elif last or self.ended:
                break
            else:
                self._pause()
                yield b""
        yield self._statistics()

    def _new_interfaces(self) -> bytes:
        found = self._reader.interfaces()
        self.lost = sum(each.lost for each in found)
        new, self._described = found[self._described :], len(found)
        return b"".join(interface_description(each.name, self._snaplen, self._expression) for each in new)

    def _statistics(self) -> bytes:
        end = time.time_ns()
        each = enumerate(self._reader.interfaces())
        return b"".join(interface_statistics(i, port.lost, self._start_ns, end) for i, port in each)

    def _pause(self) -> None:
        """Nothing is ever sent on the connection: what makes it readable is its end."""
        waiting = select.poll()
        waiting.register(self._conn, select.POLLIN)
        self.ended = bool(waiting.poll(_LOOK_MS))


def _receive(conn: socket.socket, vptd: Client) -> CaptureReader:
    try:
        data, fds, _, _ = socket.recv_fds(conn, len(GREETING), 1, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        raise DaemonError(f"vptd did not hand the capture over: {error}", hint="see its log") from None
    try:
        if data != GREETING or len(fds) != 1:
            restart = f"{vptd.typed('daemon', 'stop')} && {vptd.typed('daemon', 'start')}"
            raise DaemonError("vptd did not hand the capture over", hint=f"restart it: {restart}")
        return CaptureReader(fds[0])
    finally:
        for fd in fds:
            os.close(fd)
