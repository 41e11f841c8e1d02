# SPDX-License-Identifier: BSD-2-Clause
"""The port of a host process: region and eventfds by SCM_RIGHTS over a unix socket.

    SOCK_SEQPACKET, one message each way, little-endian:
        app -> vptd   "VPTA", u32 version
        vptd -> app   "VPTA", u32 version, u32 errno, u32 vectors, char message[112]
                      with the region's memfd, a kick eventfd per vector, an interrupt eventfd per vector

errno is 0, or says why there are no descriptors: EPROTO another version, EBUSY another process has the port;
message is for people. The connection stays open as long as the app uses the port, and nothing else is sent.
Of those who connect meanwhile eight at a time are told EBUSY; more are hung up on.

The server needs the standard library only, the client (open_app) the data plane.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

from vpt.closing import Closing
from vpt.daemon.aio import receive_data, send
from vpt.daemon.sockets import MAX_FDS, close_fds, connect_unix, unix_path
from vpt.daemon.transports.peer import Bundle, PeerServer
from vpt.errors import ConflictError, DaemonError, MissingError, NotFoundError, ProtocolError, TimeoutExpired

if TYPE_CHECKING:
    from vpt.dataplane import App

__all__ = ["VERSION", "AppLink", "AppServer", "open_app", "receive_bundle"]

VERSION = 1
_MAGIC = b"VPTA"
_HELLO = struct.Struct("<4sI")
_REPLY = struct.Struct("<4sIII112s")


class AppServer(PeerServer):
    """Hands one port to one process."""

    async def greet(self, conn: socket.socket, bundle: Bundle) -> None:
        data = await receive_data(conn, _HELLO.size, self.closer)
        magic, version = _HELLO.unpack(data) if len(data) == _HELLO.size else (b"", 0)
        if magic != _MAGIC:
            raise ProtocolError("not a vpt app: its greeting is wrong")
        if version != VERSION:
            await send(conn, _reply(errno.EPROTO, 0, f"this vptd speaks version {VERSION}, not {version}"))
            raise ProtocolError(f"it speaks version {version}, we {VERSION}")
        await send(conn, _reply(0, bundle.vectors, ""), bundle.fds())

    async def refuse(self, conn: socket.socket, message: str) -> None:
        # A connection that is closed with something unread in it loses what was sent on it.
        await receive_data(conn, _HELLO.size, self.closer)
        await send(conn, _reply(errno.EBUSY, 0, message))


def _reply(error: int, vectors: int, message: str) -> bytes:
    return _REPLY.pack(_MAGIC, VERSION, error, vectors, message.encode()[:111])


def receive_bundle(conn: socket.socket) -> Bundle:
    """Client side of the greeting on a connected socket (with a time-out of its own).

    The bundle is the caller's.
    """
    try:
        conn.send(_HELLO.pack(_MAGIC, VERSION), socket.MSG_NOSIGNAL)
        data, fds, flags, _ = socket.recv_fds(conn, _REPLY.size, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError as broken:
        raise DaemonError(f"vptd hung up: {broken.strerror}", hint="see its log") from None
    try:
        if len(data) != _REPLY.size or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolError(
                "vptd's answer is malformed", hint="is that the socket of an app port? vpt port list"
            )
        magic, version, error, vectors, message = _REPLY.unpack(data)
        if magic != _MAGIC or version != VERSION:
            raise ProtocolError(
                f"vptd's answer is not of version {VERSION}", hint="install the same vpt on both sides"
            )
        if error:
            text = message.rstrip(b"\0").decode(errors="replace")
            raise ConflictError(
                f"vptd refused: {text or os.strerror(error)}", hint="see the port: vpt port list"
            )
        if len(fds) != 2 * vectors + 1:
            raise ProtocolError(f"{len(fds)} descriptors for {vectors} vectors", hint="see the log of vptd")
        return Bundle.from_fds(fds)
    except BaseException:
        close_fds(fds)
        raise


class AppLink(Closing):
    """An app port in use: `app` moves packets, the connection claims the port until close()."""

    def __init__(self, app: App, conn: socket.socket) -> None:
        self.app = app
        self._conn = conn

    def hung_up(self) -> bool:
        """Has the port gone away, or vptd? Does not block."""
        waiting = select.poll()
        waiting.register(self._conn, select.POLLIN)
        return bool(waiting.poll(0))

    def close(self) -> None:
        """Give the port back. Harmless the second time."""
        self.app.close()
        self._conn.close()


def open_app(path: str | os.PathLike[str], *, features: int = 0, timeout: float = 5.0) -> AppLink:
    """Connect to an app port's socket and bring its rings up; blocks `timeout` seconds at most.

    Must not be called in the thread of an embedded daemon's event loop: that loop has to answer.
    """
    from vpt.dataplane import App

    deadline = time.monotonic() + timeout
    conn = _connect(unix_path(path), timeout)
    try:
        bundle = receive_bundle(conn)
        try:
            app = App(bundle.memory, bundle.kicks, bundle.interrupts, features)
        finally:
            bundle.close()
    except TimeoutError:
        conn.close()
        raise TimeoutExpired(
            f"no answer on {path} within {timeout:.0f} s", hint="see: vpt daemon status"
        ) from None
    except BaseException:
        conn.close()
        raise
    link = AppLink(app, conn)
    try:
        _handshake(app, deadline, path)
    except BaseException:
        link.close()
        raise
    return link


def _connect(path: str, timeout: float) -> socket.socket:
    conn = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        connect_unix(conn, path, timeout)
    except FileNotFoundError:
        conn.close()
        raise NotFoundError(
            f"no socket {path}", hint="add the port first: vpt port add --kind app SWITCH NAME"
        ) from None
    except PermissionError:
        conn.close()
        raise MissingError(
            f"no permission to use {path}", hint="add the port with --socket-mode 0660"
        ) from None
    except OSError as error:
        conn.close()
        raise DaemonError(
            f"can't connect to {path}: {error.strerror}", hint="see: vpt daemon status"
        ) from None
    return conn


def _handshake(app: App, deadline: float, path: str | os.PathLike[str]) -> None:
    """Step until the host has mirrored our status.

    Its interrupt wakes us; the short limit covers a lost one.
    """
    cfg = app.intr_fd(2 * app.pairs)
    # Not select(), which knows no descriptor above 1023: a process with many ports has such.
    waiting = select.poll()
    waiting.register(cfg, select.POLLIN)
    while not app.step():
        if time.monotonic() > deadline:
            raise TimeoutExpired(
                f"vptd did not take the rings of {path} into use", hint="see the log of vptd"
            )
        if waiting.poll(50):
            os.eventfd_read(cfg)
