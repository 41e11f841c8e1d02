# SPDX-License-Identifier: BSD-2-Clause
"""Into a guest by ssh: commands, files, a terminal. Its host key was made here, and no other is taken."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import io
import logging
import os
import selectors
import shlex
import signal
import struct
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import IO, Any

from vpt.errors import GuestError, MissingError, TimeoutExpired, UsageError
from vpt.hints import vpt
from vpt.provision.record import Record

__all__ = ["connect", "download", "run", "shell", "upload"]

_HOST = "127.0.0.1"
_CONNECT_S = 30.0
_CHUNK = 1 << 16
_FAILED = 255
"""Exit status of a command that a signal ended, as ssh has it."""


def _paramiko() -> ModuleType:
    try:
        import paramiko
    except ImportError:
        raise MissingError("paramiko is not installed", hint="pip install 'vpt[guest]'") from None
    # What goes wrong is raised. paramiko logs it as well, which without this ends on the user's terminal.
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    return paramiko


@contextlib.contextmanager
def connect(record: Record) -> Iterator[Any]:
    """A paramiko client, logged in as root."""
    paramiko = _paramiko()
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    kind, _, text = record.host_key.partition(" ")
    key = paramiko.Ed25519Key(data=base64.b64decode(text))
    client.get_host_keys().add(f"[{_HOST}]:{record.ssh_port}", kind, key)
    try:
        with client, _explained(record):
            client.connect(
                _HOST,
                record.ssh_port,
                "root",
                key_filename=record.ssh_key,
                allow_agent=False,
                look_for_keys=False,
                timeout=_CONNECT_S,
                banner_timeout=_CONNECT_S,
                auth_timeout=_CONNECT_S,
            )
            yield client
    finally:
        client.close()


@contextlib.contextmanager
def _explained(record: Record) -> Iterator[None]:
    paramiko = _paramiko()
    name = record.name
    try:
        yield
    except paramiko.BadHostKeyException:
        raise GuestError(
            f"what answers as guest {name} has another host key than the one made for it",
            hint=f"if you have not changed it in the guest yourself, do not trust it: {record.typed('rm')}",
            code="host-key",
        ) from None
    except paramiko.AuthenticationException:
        raise GuestError(
            f"guest {name} does not take the key {record.ssh_key}",
            hint=f"look whether it says why: {record.typed('console')}",
        ) from None
    except paramiko.SSHException as error:
        if "not found in known_hosts" in str(error):
            raise GuestError(
                f"what answers as guest {name} has no ed25519 host key, and one was made for it",
                hint=f"do not trust it: {record.typed('rm')}",
                code="host-key",
            ) from None
        raise GuestError(f"ssh to guest {name} failed: {error}", hint=record.typed("console")) from None
    except (TimeoutError, OSError, EOFError) as error:
        raise TimeoutExpired(
            f"guest {name} does not answer on {_HOST} port {record.ssh_port}: {error or 'it hung up'}",
            hint=f"{vpt('guest', 'ls', runtime=record.runtime_dir)}; {record.typed('console')}",
        ) from None


# ---- commands ----


def run(
    record: Record,
    command: str,
    *,
    stdin: IO[bytes] | None = None,
    stdout: IO[bytes],
    stderr: IO[bytes],
) -> int:
    """Run a shell command in the guest to its end; its exit status. Output goes on as it comes."""
    with connect(record) as client, _explained(record):
        channel = client.get_transport().open_session()
        channel.exec_command(command)
        feeder = threading.Thread(target=_feed, args=(channel, stdin), daemon=True)
        feeder.start()
        _pump(channel, stdout, stderr)
        status = int(channel.recv_exit_status())
        return status if status >= 0 else _FAILED


def _feed(channel: Any, source: IO[bytes] | None) -> None:
    with contextlib.suppress(OSError):
        # What is there now, and not only full buffers: the other end may be a conversation.
        while source is not None and (data := os.read(source.fileno(), _CHUNK)):
            channel.sendall(data)
        channel.shutdown_write()


def _pump(channel: Any, stdout: IO[bytes], stderr: IO[bytes]) -> None:
    other = threading.Thread(target=_drain, args=(channel.recv_stderr, stderr))
    other.start()
    try:
        _drain(channel.recv, stdout)
    finally:
        other.join()


def _drain(receive: Any, out: IO[bytes]) -> None:
    while data := receive(_CHUNK):
        out.write(data)
        out.flush()


# ---- files; there is no SFTP in dropbear ----


def upload(record: Record, source: Path, target: str) -> str:
    """Copy a file into the guest, with its permissions; returns its path there.

    It appears under its name when it is complete. A target that is a folder gets a file of the source's name.
    """
    if source.is_dir():
        raise UsageError(
            f"{source} is a folder",
            hint=f"tar -c {shlex.quote(str(source))} | {record.typed('run', '--stdin')} -- tar -x -C /",
        )
    try:
        size, mode = source.stat().st_size, source.stat().st_mode & 0o777
        file = source.open("rb")
    except OSError as error:
        raise UsageError(f"can't read {source}: {error.strerror}", hint="copy SRC NAME:DST") from None
    script = (
        f'd={shlex.quote(target)}; case $d in */) mkdir -p "$d" || exit;; esac; '
        f'[ ! -d "$d" ] || d=${{d%/}}/{shlex.quote(source.name)}; '
        f'cat >"$d.vpt-part" && chmod {mode:o} "$d.vpt-part" && [ $(wc -c <"$d.vpt-part") = {size} ] '
        f'&& mv -f "$d.vpt-part" "$d" && printf %s "$d" || {{ rm -f "$d.vpt-part"; exit 1; }}'
    )
    with file:
        return _transfer(record, script, file, None, f"{source} to {record.name}:{target}", look="df -h")


def download(record: Record, source: str, target: Path) -> Path:
    """Copy a file out of the guest; returns its path here. It appears when it is complete."""
    if target.is_dir():
        target = target / PurePosixPath(source).name
    part = target.with_name(f".{target.name}.vpt-part")
    what = f"{record.name}:{source} to {target}"
    script = f'f={shlex.quote(source)}; [ ! -d "$f" ] || {{ echo "$f is a folder" >&2; exit 1; }}; cat "$f"'
    try:
        with part.open("wb") as file:
            _transfer(record, script, None, file, what, look=f"ls -l {PurePosixPath(source).parent}")
        part.replace(target)
    except OSError as error:
        raise UsageError(f"can't write {target}: {error.strerror}", hint="copy NAME:SRC DST") from None
    finally:
        part.unlink(missing_ok=True)
    return target


def _transfer(
    record: Record, script: str, source: IO[bytes] | None, target: IO[bytes] | None, what: str, *, look: str
) -> str:
    """look: by what to see in the guest why it may have failed."""
    answer, errors = io.BytesIO(), io.BytesIO()
    status = run(record, script, stdin=source, stdout=target or answer, stderr=errors)
    if status:
        said = errors.getvalue().decode(errors="replace").strip()
        raise GuestError(
            f"copying {what} failed: {said[-300:] or f'status {status}'}",
            hint=f"see why: {record.typed('run')} -- {look}",
        )
    return answer.getvalue().decode(errors="replace")


# ---- a terminal ----


def shell(record: Record) -> int:
    """A login shell on this terminal until it ends; its exit status."""
    if not sys.stdin.isatty():
        raise UsageError("this is no terminal", hint=f"{record.typed('run')} -- COMMAND")
    with connect(record) as client, _explained(record):
        rows, columns = _window()
        channel = client.invoke_shell(os.environ.get("TERM", "vt100"), columns, rows)
        before = signal.signal(signal.SIGWINCH, lambda *_: channel.resize_pty(*reversed(_window())))
        settings = termios.tcgetattr(sys.stdin)
        try:
            tty.setraw(sys.stdin)
            _converse(channel)
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)
            signal.signal(signal.SIGWINCH, before)
        status = int(channel.recv_exit_status())
        return status if status >= 0 else _FAILED


def _window() -> tuple[int, int]:
    """Rows and columns of this terminal."""
    raw = fcntl.ioctl(sys.stdin.fileno(), termios.TIOCGWINSZ, bytes(8))
    rows, columns, _, _ = struct.unpack("HHHH", raw)
    return rows or 24, columns or 80


def _converse(channel: Any) -> None:
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(keyboard, selectors.EVENT_READ)
        selector.register(channel, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd != keyboard:
                    data = channel.recv(_CHUNK)
                    if not data:
                        return
                    _write_all(screen, data)
                elif data := os.read(keyboard, _CHUNK):
                    channel.sendall(data)
                else:
                    selector.unregister(keyboard)
                    channel.shutdown_write()


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
