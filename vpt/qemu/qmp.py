# SPDX-License-Identifier: BSD-2-Clause
"""A QMP connection for code that is not asynchronous, with a time limit on each step."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import signal
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, QMPClient, QMPError, Runstate

from vpt.closing import Closing
from vpt.errors import ConflictError, GuestError, MissingError, NotFoundError, UsageError
from vpt.processor import patience

__all__ = [
    "QmpClosedError",
    "QmpCommandError",
    "QmpMuteError",
    "QmpSession",
    "QmpSilentError",
    "listener_pid",
]

_STEP_S = patience(5.0)
_QUEUE_S = 0.05
_MAX_PATH = 107
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# What goes wrong is raised. qemu.qmp logs it as well, which without this ends on the user's terminal.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())


class QmpCommandError(GuestError):
    """QEMU refused a command. `error_class` is its own name for why, e.g. CommandNotFound."""

    def __init__(self, command: str, error_class: str, text: str) -> None:
        super().__init__(f"QEMU refused {command}: {text}")
        self.error_class = error_class


class QmpClosedError(GuestError):
    """QEMU has ended: its connection is closed."""

    def __init__(self) -> None:
        super().__init__(
            "the VM went away: its QMP connection closed",
            hint="start the VM again, and keep it running meanwhile",
        )


class QmpSilentError(GuestError):
    """QEMU did not answer in time."""


class QmpMuteError(ConflictError):
    """Nobody greets at a socket. pid: the QEMU that made it, if it did and that is known.

    Asking again would not do: one that is stopped takes few connections, and these all wait.
    """

    pid: int | None = None


class QmpSession(Closing):
    """One client of a QMP socket, which serves one at a time. Close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Connect and negotiate.

        NotFoundError: no such socket, or nobody listens. MissingError: no permission. ConflictError:
        somebody else holds the connection.
        """
        self.path = path
        _require_socket(path)
        self._runner = asyncio.Runner()
        try:
            self._client = self._runner.run(asyncio.wait_for(_connect(path), _STEP_S))
        except TimeoutError:
            self._runner.close()
            raise _no_greeting(path) from None
        except (QMPError, OSError) as exc:
            self._runner.close()
            raise _connect_error(path, exc) from exc
        try:
            parts = self.execute("query-version")["qemu"]
        except BaseException:
            self.close()
            raise
        self.version = (int(parts["major"]), int(parts["minor"]), int(parts["micro"]))

    def execute(self, command: str, *, files: Sequence[int] = (), **arguments: Any) -> Any:
        """Run one command, with descriptors that go along with it, and return what it returns.

        QmpCommandError: QEMU refused it. QmpClosedError: the VM went away. QmpSilentError: QEMU does
        not answer, and may run the command yet.
        """
        try:
            with _signals_later():
                return self._runner.run(asyncio.wait_for(self._run(command, files, arguments), _STEP_S))
        except ExecuteError as exc:
            raise QmpCommandError(command, exc.error.error.class_, str(exc)) from exc
        except TimeoutError:
            raise QmpSilentError(
                f"QEMU did not answer {command} within {_STEP_S:.0f} s",
                hint="look at the VM: stuck in a device or on slow storage? stopped: kill -CONT PID",
            ) from None
        except (ExecInterruptedError, QMPError, OSError) as exc:
            raise QmpClosedError from exc

    async def _run(self, command: str, files: Sequence[int], arguments: dict[str, Any]) -> Any:
        for fd in files:
            self._client.send_fd_scm(fd)
        return await self._client.execute(command, arguments)

    def hmp(self, line: str) -> str:
        """Run one line of the human monitor, for what QMP itself has no command."""
        arguments: dict[str, Any] = {"command-line": line}
        return str(self.execute("human-monitor-command", **arguments))

    @contextmanager
    def listening(self, *names: str) -> Iterator[Callable[[float], dict[str, Any] | None]]:
        """take(seconds): the next event of these names since now; None if there is none within that time.

        QmpClosedError: the VM went away meanwhile.
        """
        with self._client.listener(names) as listener:

            def take(timeout_s: float) -> dict[str, Any] | None:
                return self._runner.run(self._next(listener, timeout_s))

            yield take

    async def _next(self, listener: EventListener, timeout_s: float) -> dict[str, Any] | None:
        event = asyncio.ensure_future(listener.get())
        closed = asyncio.ensure_future(self._client.runstate_changed())
        try:
            if self._client.runstate is Runstate.RUNNING or not listener.empty():
                await asyncio.wait({event, closed}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if event.done():
                return dict(event.result())
            if self._client.runstate is not Runstate.RUNNING:
                raise QmpClosedError
            return None
        finally:
            event.cancel()
            closed.cancel()

    def close(self) -> None:
        """Disconnect. Never raises: what is left of the connection is of no use to anybody."""
        try:
            self._runner.run(asyncio.wait_for(self._client.disconnect(), _STEP_S))
        except (QMPError, OSError, TimeoutError, EOFError):
            pass
        finally:
            self._runner.close()


@contextmanager
def _signals_later() -> Iterator[None]:
    """Signals are heard after the command: in the middle of it they would cost the connection.

    Whoever is interrupted has something to undo in QEMU, and needs the connection for that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, _frame: object) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for late in came:
            signal.raise_signal(late)


def listener_pid(path: Path) -> int | None:
    """Process that listens on a unix socket, if it is a QEMU; libvirt opens the socket in QEMU's stead."""
    return _if_qemu(_maker_pid(path))


def _if_qemu(pid: int | None) -> int | None:
    return pid if re.match(r"qemu|kvm", _program(pid)) else None


def _program(pid: int | None) -> str:
    """What a process runs, "" if that can't be known. Its name may be any: QEMU's -name process=NAME."""
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return ""


def _maker_pid(path: Path) -> int | None:
    """Process that began to listen on a unix socket, whoever does so now. None: nobody, or unknown."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_STEP_S)
        try:
            probe.connect(str(path))
        except OSError:
            return None
        cred = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", cred)[0]
    return pid or None


def _require_socket(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise NotFoundError(
            f"{path.absolute()}: no such QMP socket",
            hint=f"start QEMU with: -qmp unix:{path.absolute()},server=on,wait=off",
        ) from None
    except PermissionError:
        raise MissingError(
            f"{path}: no permission to look at it", hint="run as QEMU's user or as root"
        ) from None
    if not stat.S_ISSOCK(mode):
        raise NotFoundError(
            f"{path} is not a socket", hint="QEMU makes one of the option -qmp unix:PATH,server=on,wait=off"
        )
    if len(os.fsencode(path)) > _MAX_PATH:
        raise UsageError(
            f"{path}: longer than the {_MAX_PATH} bytes that the system allows for a socket's path",
            hint=f"from its folder, name it so: ./{path.name}",
        )


async def _connect(path: Path) -> QMPClient:
    while True:
        client = QMPClient("vpt")
        try:
            await client.connect(str(path))
        except QMPError as exc:
            # As many wait for QEMU to take them as may. asyncio goes on without a connection.
            if errno.EINVAL not in _numbers(exc):
                raise
        else:
            return client
        await asyncio.sleep(_QUEUE_S)


def _no_greeting(path: Path) -> QmpMuteError:
    pid = _maker_pid(path)
    said = f"{path}: no greeting within {_STEP_S:.0f} s: "
    # libvirt makes the socket for its QEMU.
    with suppress(OSError):
        if re.match(r"(?!qemu|kvm|libvirt|virtqemu).", _program(pid)):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            return QmpMuteError(
                f"{said}process {pid} ({name}) made this socket, and is no QEMU",
                hint="see which socket the VM has: pgrep -a qemu; QEMU makes one of the option"
                " -qmp unix:PATH,server=on,wait=off",
            )
    error = QmpMuteError(
        f"{said}another client holds this QMP socket, QEMU hangs, or it is a socket of another kind",
        hint="give QEMU a second -qmp socket, or disconnect the other client (ss -xp shows it); "
        "a QEMU that was stopped goes on with: kill -CONT PID",
    )
    error.pid = _if_qemu(pid)
    return error


def _numbers(exc: BaseException | None) -> Iterator[int | None]:
    """What the system said, of an exception and all that caused it."""
    while exc is not None:
        if isinstance(exc, OSError):
            yield exc.errno
        exc = exc.__cause__


def _connect_error(path: Path, exc: BaseException) -> NotFoundError | MissingError:
    if not {errno.EACCES, errno.EPERM}.isdisjoint(_numbers(exc)):
        return MissingError(f"{path}: no permission to connect", hint="run as QEMU's user or as root")
    first_line = str(exc).partition("\n")[0]
    return NotFoundError(
        f"{path}: nobody speaks QMP there ({first_line})",
        hint="the VM has ended, or this is another kind of socket; look with: ss -xlp",
    )
