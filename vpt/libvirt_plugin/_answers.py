# SPDX-License-Identifier: BSD-2-Clause
"""Calls of libvirt that end: when it answers, when it has been silent for too long, or by Ctrl-C.

The binding waits in C, where Python hears no signal, and for as long as it takes: a libvirtd that is stopped,
or stuck, would hold a command for ever. So each call is made in a thread, for which the caller waits; and
the connection asks libvirtd now and then whether it is alive, so that only silence counts, not long work.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any, TypeVar

from vpt.errors import GuestError, TimeoutExpired

__all__ = ["Answers", "SilentVmError", "asked", "bare", "close", "open_within", "within"]

# A libvirtd that somebody starts by connecting to it first looks at QEMU, which takes seconds.
_OPEN_S = 30.0
_CLOSE_S = 2.0
_HEAR_S = 0.2
# libvirt itself waits for 30 s until it can ask a VM something, and then for as long as that takes.
_VM_S = 40.0
# Seconds between two questions whether it is alive, and how many may stay without answer.
_ASK_S, _SILENT = 5, 3

T = TypeVar("T")


class SilentVmError(GuestError):
    """libvirt is there, and waits for a QEMU that does not answer it. It may do yet what it was told."""


# Whether it has returned, and what it has returned or raised.
_Done = queue.SimpleQueue[tuple[bool, Any]]
# open(), by URI and whether read-only, of a libvirtd that took too long: it goes on, and who tries again has
# it answered.
_opening: dict[tuple[str | None, bool], _Done] = {}


def _in_thread(function: Callable[..., T], *args: Any, limit_s: float | None = None, **named: Any) -> T:
    """What it returns or raises. queue.Empty: it goes on in its thread, which keeps no process alive."""
    return _result(_begin(function, *args, **named), limit_s)  # type: ignore[no-any-return]


def _begin(function: Callable[..., Any], *args: Any, **named: Any) -> _Done:
    done: _Done = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((True, function(*args, **named)))
        except BaseException as error:
            done.put((False, error))

    threading.Thread(target=run, name="libvirt call", daemon=True).start()
    return done


def _result(done: _Done, limit_s: float | None) -> Any:
    end = math.inf if limit_s is None else time.monotonic() + limit_s
    while True:
        left = end - time.monotonic()
        try:
            # Not all of it at once: of a signal that came just before the wait, Python hears after it.
            returned, value = done.get(timeout=max(0.0, min(left, _HEAR_S)))
        except queue.Empty:
            if left <= 0:
                raise
        else:
            break
    if returned:
        return value
    raise value


def open_within(
    libvirt: ModuleType, uri: str | None, limit_s: float | None = None, *, read_only: bool = False
) -> Any:
    """A connection. Raises what libvirt raises. TimeoutExpired: it does not answer."""
    limit_s = limit_s or _OPEN_S
    where = uri or os.environ.get("LIBVIRT_DEFAULT_URI") or "its default URI"
    opener = libvirt.openReadOnly if read_only else libvirt.open
    done = _opening.pop((uri, read_only), None) or _begin(opener, uri)
    try:
        raw = _result(done, limit_s)
    except queue.Empty:
        _opening[uri, read_only] = done
        raise _silent(where, limit_s, "to take a connection") from None
    # An embedded driver has nobody to ask.
    with suppress(libvirt.libvirtError):
        raw.setKeepAlive(_ASK_S, _SILENT)
    return Answers(raw, raw, where, libvirt)


def close(connection: Any) -> None:
    """Also one whose libvirtd has nothing to say to it."""
    with suppress(queue.Empty):
        _in_thread(object.__getattribute__(connection, "_raw").close, limit_s=_CLOSE_S)


def bare(domain: Any) -> Any:
    """As the binding itself knows it, where it is an argument."""
    return object.__getattribute__(domain, "_raw") if isinstance(domain, Answers) else domain


def within(domain: Any) -> Any:
    """The same domain of a connection's, or connection, whose calls raise SilentVmError of a silent QEMU."""
    if not isinstance(domain, Answers):
        return domain
    parts = (
        object.__getattribute__(domain, f"_{part}") for part in ("raw", "connection", "where", "libvirt")
    )
    return Answers(*parts, limit_s=_VM_S)


def asked(function: Callable[..., T], *args: Any) -> T:
    """What a function of the binding that asks a QEMU returns. SilentVmError: that says nothing."""
    try:
        return _in_thread(function, *args, limit_s=_VM_S)
    except queue.Empty:
        raise SilentVmError(f"QEMU did not answer libvirt within {_VM_S:.0f} s") from None


def _silent(where: str, seconds: float, what: str) -> TimeoutExpired:
    return TimeoutExpired(
        f"libvirt at {where} does not answer: waited {seconds:.0f} s for it {what}",
        hint="is it stopped (T), or stuck (D)? ps -o pid,stat,cmd -C libvirtd; systemctl restart libvirtd",
    )


class Answers:
    """A connection or a domain of the binding, whose methods wait so, and return more of that kind."""

    def __init__(
        self, raw: Any, connection: Any, where: str, libvirt: ModuleType, *, limit_s: float | None = None
    ) -> None:
        self._raw = raw
        self._connection = connection
        self._where = where
        self._libvirt = libvirt
        self._limit_s = limit_s

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._raw, name)
        if not callable(value):
            return value

        def call(*args: Any, **named: Any) -> Any:
            begun = time.monotonic()
            try:
                return self._wrapped(_in_thread(value, *args, limit_s=self._limit_s, **named))
            except queue.Empty:
                raise SilentVmError(f"QEMU did not answer libvirt within {self._limit_s:.0f} s") from None
            except self._libvirt.libvirtError:
                took = time.monotonic() - begun
                if took >= _ASK_S and not self._connection.isAlive():
                    raise _silent(self._where, took, f"to do {name}()") from None
                raise

        return call

    def _wrapped(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._wrapped(item) for item in value]
        if isinstance(value, self._libvirt.virDomain):
            return Answers(value, self._connection, self._where, self._libvirt)
        return value
