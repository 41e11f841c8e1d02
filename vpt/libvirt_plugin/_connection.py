# SPDX-License-Identifier: BSD-2-Clause
"""libvirt's binding as vpt uses it: opened with an event loop, its errors as vpt's."""

from __future__ import annotations

import importlib
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from vpt.daemon.owners import of_domain
from vpt.errors import ConflictError, GuestError, MissingError, NotFoundError, UsageError, VptError
from vpt.groups import joining, user_name
from vpt.hints import virsh
from vpt.libvirt_plugin._answers import close, open_within

__all__ = [
    "NO_LIBVIRT",
    "binding",
    "events",
    "find_domain",
    "open_libvirt",
    "owner_of",
    "session_runs",
    "translate",
    "uri_of",
    "which",
    "which_here",
    "which_of",
]

NO_LIBVIRT = "no-libvirt"
"""Code of the error that says that nobody is there."""

_WAKE_MS = 100


def binding() -> ModuleType:
    """The module `libvirt`, told not to print what it raises."""
    try:
        libvirt = importlib.import_module("libvirt")
    except ImportError:
        raise MissingError(
            "libvirt's Python binding is not installed",
            hint="apt-get install libvirt-dev pkg-config gcc && pip install 'vpt[libvirt]'; "
            "or name the VM by its QMP socket",
        ) from None
    libvirt.registerErrorHandler(lambda _ctx, _err: None, None)
    return libvirt


class _EventLoop:
    """libvirt's own event loop in a thread, for as long as somebody wants it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._thread: threading.Thread | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Must be entered before a connection is opened: it looks for the loop then, and only then."""
        libvirt = binding()
        with self._lock:
            self._users += 1
            if self._thread is None:
                libvirt.virEventRegisterDefaultImpl()
                # Without a timer the loop would sleep on when nobody wants it any more.
                timer = libvirt.virEventAddTimeout(_WAKE_MS, lambda *_: None, None)
                self._thread = threading.Thread(
                    target=self._run, args=(libvirt, timer), name="libvirt events"
                )
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0 and self._thread is not None:
                    self._thread.join()
                    self._thread = None

    def _run(self, libvirt: ModuleType, timer: int) -> None:
        while self._users:
            libvirt.virEventRunDefaultImpl()
        libvirt.virEventRemoveTimeout(timer)


events = _EventLoop()


@contextmanager
def open_libvirt(uri: str | None, limit_s: float | None = None, *, read_only: bool = False) -> Iterator[Any]:
    """A connection with events. MissingError: nobody there, or no permission. UsageError: not QEMU's URI.

    TimeoutExpired, from here (limit_s: else 30 s) and from each call: libvirt is there and says nothing.
    """
    libvirt = binding()
    with events():
        try:
            connection = open_within(libvirt, uri, limit_s, read_only=read_only)
        except libvirt.libvirtError as error:
            raise _not_opened(uri, error) from error
        try:
            yield connection
        finally:
            close(connection)


def _not_opened(uri: str | None, error: Any) -> VptError:
    chosen = uri or os.environ.get("LIBVIRT_DEFAULT_URI")
    where = chosen or "its default URI"
    if "ermission denied" in str(error) or error.get_error_code() == binding().VIR_ERR_AUTH_FAILED:
        return MissingError(
            f"no permission to use libvirt at {where}",
            hint=f"{_permit(str(error))}; a user's own: --connect qemu:///session",
        )
    parts = urlsplit(chosen or "qemu:///")
    if parts.scheme.partition("+")[0] != "qemu":
        return UsageError(
            f"{chosen!r} is no URI of libvirt's driver for QEMU",
            hint="the system's libvirt: --connect qemu:///system; a user's own: qemu:///session",
        )
    hint = "systemctl start libvirtd; or name another: --connect URI, or a VM's QMP socket"
    if parts.netloc:
        hint = "ports are for VMs of this host, and so is its libvirt: --connect qemu:///system"
    return MissingError(f"no libvirt at {where}: {error}", hint=hint, code=NO_LIBVIRT)


def _permit(error: str) -> str:
    """By the socket that was refused. Where libvirt itself refuses, Debian's rule lets its own group in."""
    refused = re.search("'(/[^']+)'", error)
    if refused is None:
        return f"sudo adduser {user_name()} libvirt; log in again, or run as root"
    with suppress(OSError):
        if join := joining(os.stat(refused[1]), stat.S_IWGRP):
            return f"{join}, or run as root"
    return "run as root"


def find_domain(connection: Any, name: str) -> Any:
    """By name. NotFoundError: there is none."""
    libvirt = binding()
    try:
        return connection.lookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise NotFoundError(
                f"libvirt has no domain {name!r}",
                hint=f"{virsh(connection.getURI(), 'list', '--all')}; a QMP socket is named with its folder",
            ) from None
        raise translate(error, name, "look it up", connection.getURI()) from error


def which(connection: Any) -> str:
    """Which libvirt of this host it is: "system", "session-UID", "embed-ROOT". The hook says it as well."""
    return which_of(connection.getURI())


def which_of(uri: str) -> str:
    """The same, of the URI that it was or would be opened with."""
    parts = urlsplit(uri)
    driver = str(parts.path).strip("/")
    if driver == "session":
        return f"session-{os.geteuid()}"
    if driver == "embed":
        return f"embed-{''.join(parse_qs(parts.query).get('root', []))}"
    return driver


def which_here() -> str | None:
    """The same, of this user's own one. None: it is not there; a session's would be started by asking."""
    default = os.environ.get("LIBVIRT_DEFAULT_URI")
    if default:
        parts = urlsplit(default)
        of_this_host = parts.scheme.partition("+")[0] == "qemu" and not parts.netloc
        return which_of(default) if of_this_host else None
    if os.geteuid() == 0:
        return which_of("qemu:///system") if _has_socket(Path("/run")) else None
    return which_of("qemu:///session") if session_runs() else None


def session_runs() -> bool:
    """Opening a session's URI would start its daemon, so look for its socket."""
    return _has_socket(Path(os.environ.get("XDG_RUNTIME_DIR") or Path.home() / ".cache"))


def _has_socket(base: Path) -> bool:
    return any((base / "libvirt" / f"{name}-sock").is_socket() for name in ("libvirt", "virtqemud"))


def uri_of(libvirt: str) -> str | None:
    """What opens the libvirt that `which` calls so; None: nothing that this user has."""
    default = os.environ.get("LIBVIRT_DEFAULT_URI")
    if default is not None and which_of(default) == libvirt:
        return default
    driver, _, more = libvirt.partition("-")
    if driver == "embed":
        return f"qemu:///embed?root={quote(more)}"
    if driver == "session":
        return "qemu:///session" if more == str(os.geteuid()) else None
    return f"qemu:///{driver}"


def owner_of(connection: Any, domain: Any) -> str:
    """What ports that were made for the domain are marked with in vptd."""
    return of_domain(which(connection), domain.UUIDString())


def translate(error: Exception, name: str, what: str, uri: str | None) -> VptError:
    """The exception for what the libvirt of that URI refused. `what` is in words what was tried."""
    libvirt = binding()
    code = error.get_error_code() if isinstance(error, libvirt.libvirtError) else None
    text = str(error)
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return ConflictError(f"{name} went away before vpt could {what}", hint=virsh(uri, "list", "--all"))
    if code in (libvirt.VIR_ERR_OPERATION_DENIED, libvirt.VIR_ERR_ACCESS_DENIED):
        return MissingError(f"libvirt does not let you {what}: {text}", hint="run as root")
    if "Permission denied" in text:
        return MissingError(
            f"QEMU has no permission to use the port's socket: {text}",
            hint="give its group access: start vptd with --group GROUP, attach with --socket-mode 0660",
        )
    if "virtlogd" in text:
        return MissingError(
            f"libvirt could not {what} ({name}): {text}",
            hint="it wants its log daemon: systemctl start virtlogd",
        )
    if "No more available PCI slots" in text:
        return ConflictError(
            f"{name} has no PCI slot left", hint="attach with --config, and restart the domain"
        )
    return GuestError(
        f"libvirt could not {what} ({name}): {text}", hint=virsh(uri, "domstate", "--reason", name)
    )
