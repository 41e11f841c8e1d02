# SPDX-License-Identifier: BSD-2-Clause
"""Unix sockets: listening without treading on others' files, and who is at the other end.

Standard library only, and little of that: keeper and command line use it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vpt.errors import ConflictError, ExistsError, MissingError, NotFoundError, UsageError

__all__ = [
    "MAX_FDS",
    "Listener",
    "PeerCredentials",
    "check_free",
    "close_fds",
    "connect_unix",
    "is_stale",
    "listen_unix",
    "peer_credentials",
    "unix_path",
]

# sizeof(sockaddr_un.sun_path), less the NUL.
_MAX_PATH = 107
# SCM_MAX_FD of the kernel.
MAX_FDS = 253
_SO_PEERGROUPS = 59


@dataclass(frozen=True, slots=True)
class PeerCredentials:
    """Who opened the other end of a connection, as the kernel recorded it then."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def may_control(self, owner: int, group: int | None) -> bool:
        """Root, the owner, and members of the group that the socket belongs to."""
        return self.uid in (0, owner) or (group is not None and group in (self.gid, *self.groups))


class Listener:
    """A listening socket that removes its own file, and only its own, when closed.

    lent: somebody else made it, and will listen on when we are gone.
    """

    def __init__(self, sock: socket.socket, path: str, *, lent: bool = False) -> None:
        found = os.stat(path)
        self.sock = sock
        self.path = path
        self._lent = lent
        self.group = found.st_gid
        self._identity = (found.st_dev, found.st_ino)

    @property
    def in_place(self) -> bool:
        """Is the file at the path still ours?"""
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def close(self, hang_up: Callable[[socket.socket], None] | None = None) -> None:
        """hang_up: ends those who were never accepted; else the kernel closes what they sent, and waits."""
        with contextlib.suppress(OSError):
            if not self._lent and self.in_place:
                os.unlink(self.path)
        if hang_up is not None:
            self._turn_away(hang_up)
        self.sock.close()

    def _turn_away(self, hang_up: Callable[[socket.socket], None]) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
            while True:
                hang_up(self.sock.accept()[0])


def unix_path(path: str | os.PathLike[str]) -> str:
    """`path` as a string that fits a socket address."""
    text = os.fspath(path)
    size = len(os.fsencode(text))
    if size > _MAX_PATH:
        raise UsageError(
            f"socket path of {size} bytes, the system allows {_MAX_PATH}: {text}",
            hint="choose a shorter --runtime-dir or --socket",
        )
    if "\0" in text:
        raise UsageError("socket path contains a NUL byte", hint="give a path in the file system")
    return text


def is_stale(path: str | os.PathLike[str]) -> bool:
    """Is it a socket file of ours behind which nobody listens any more?"""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            # EPROTOTYPE, EAGAIN, EACCES: somebody listens.
            return False
    return False


def check_free(path: str, *, owned: bool) -> None:
    """Raise what listen_unix() would raise if `path` is taken, or nowhere; `owned` as its replace_stale."""
    unix_path(path)
    if not os.path.isdir(os.path.dirname(path)):
        raise _bind_error(path, FileNotFoundError())
    if os.path.lexists(path) and not (owned and is_stale(path)):
        raise _bind_error(path, FileExistsError())


def listen_unix(
    path: str | os.PathLike[str],
    *,
    mode: int = 0o600,
    group: int | None = None,
    kind: int = socket.SOCK_STREAM,
    replace_stale: bool = False,
    backlog: int = 128,
) -> Listener:
    """Listen on `path`.

    replace_stale says that a socket left over at this path can only be our own (it is in our runtime dir, or
    our journal names it). It is then removed if nobody listens there. Anything else at the path is an error
    and stays.
    """
    text = unix_path(path)
    if replace_stale and is_stale(text):
        os.unlink(text)
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        _bind(sock, text, mode)
        listener = Listener(sock, text)
    except BaseException:
        sock.close()
        raise
    try:
        if group is not None and group != listener.group:
            os.chown(text, -1, group)
            listener.group = group
        sock.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def _bind(sock: socket.socket, path: str, mode: int) -> None:
    # Through the umask the file never exists with wider permissions than it should have.
    previous = os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
    except OSError as error:
        raise _bind_error(path, error) from None
    finally:
        os.umask(previous)


def _bind_error(path: str, error: OSError) -> Exception:
    folder = os.path.dirname(path) or "."
    if isinstance(error, PermissionError):
        return MissingError(f"no permission to create a socket in {folder}", hint=f"ls -ld {folder}")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFoundError(f"no such folder: {folder}", hint=f"mkdir -p {folder}")
    if os.path.lexists(path):
        found = os.stat(path, follow_symlinks=False)
        if not stat.S_ISSOCK(found.st_mode):
            return ExistsError(
                f"{path} exists and is not a socket",
                hint="choose another path for the socket, or another name for the port",
            )
        if found.st_uid != os.geteuid():
            return ExistsError(
                f"{path} is a socket of user {found.st_uid}", hint=f"if nothing needs it: rm {path}"
            )
        if is_stale(path):
            return ExistsError(
                f"{path} is a socket that nobody listens on, but it is not known to be vpt's",
                hint=f"if nothing needs it: rm {path}",
            )
        return ExistsError(f"another program listens on {path}", hint=f"see which: ss -xlp | grep {path}")
    return ConflictError(
        f"can't listen on {path}: {error.strerror}",
        hint="choose another path for the socket, or another name for the port",
    )


def connect_unix(sock: socket.socket, path: str, timeout: float) -> None:
    """Connect within `timeout` seconds (TimeoutError otherwise), which is then the socket's own.

    settimeout() first would not do: on a socket that does not block, a full backlog is an error at once.
    """
    seconds, fraction = divmod(timeout, 1.0)
    limit = struct.pack("ll", int(seconds), int(fraction * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    try:
        sock.connect(path)
    except BlockingIOError:
        raise TimeoutError(f"nobody accepted the connection in {timeout:.0f} s") from None
    sock.settimeout(timeout)


def peer_credentials(sock: socket.socket) -> PeerCredentials:
    """Of a connected unix socket."""
    layout = struct.Struct("iII")
    pid, uid, gid = layout.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size))
    try:
        # 256 groups: Python takes no larger buffer. Who is in more is known by user and primary group.
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError:
        raw = b""
    return PeerCredentials(pid, uid, gid, struct.unpack(f"{len(raw) // 4}I", raw))


def close_fds(fds: Iterable[int]) -> None:
    """Close each of them."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
