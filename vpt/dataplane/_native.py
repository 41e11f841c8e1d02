# SPDX-License-Identifier: BSD-2-Clause
"""The seam to C: the extension itself, errno to exception, Python values to C structures."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import Any

from vpt._vpt import ffi, lib
from vpt.errors import DataplaneError, UsageError

__all__ = ["check", "fd_array", "ffi", "lib", "mac_bytes", "mac_text", "name_bytes", "new", "text"]

# What a person can do about an errno, whatever the call. A call that knows better passes hints of its own.
_HINTS = {
    errno.EMFILE: "this process has too many files open; raise the limit: ulimit -n 65536",
    errno.ENFILE: "the machine has too many files open; raise fs.file-max: sysctl fs.file-max",
    errno.ENOMEM: "memory is short, or a limit was hit: ulimit -a, sysctl vm.max_map_count",
}


def check(rc: int, what: str, hints: Mapping[int, str] | None = None) -> int:
    """Pass a count on; turn a negative errno into DataplaneError. `what`: what was tried, with its object."""
    if rc >= 0:
        return rc
    err = -rc
    raise DataplaneError(err, what, hint=(hints or {}).get(err) or _HINTS.get(err))


def new(ctype: str, init: Any) -> Any:
    """ffi.new() for values from outside: one that does not fit its field is a UsageError."""
    try:
        return ffi.new(ctype, init)
    except OverflowError as e:
        raise UsageError(f"value out of range: {e}") from e


def name_bytes(name: str, what: str) -> bytes:
    """A name for a char[32] field; C keeps the terminator, so 31 bytes at most."""
    raw = name.encode()
    if not 1 <= len(raw) <= 31 or b"\0" in raw:
        raise UsageError(f"{what} name {name!r} is not 1 to 31 bytes long", hint="choose a shorter name")
    return raw


def mac_bytes(mac: str | bytes | None) -> bytes:
    """Six bytes of "52:54:00:00:00:01" or of six bytes; None is all zero: "unknown"."""
    if mac is None:
        return bytes(6)
    if isinstance(mac, str):
        try:
            raw = bytes.fromhex(mac.replace(":", ""))
        except ValueError:
            raw = b""
        if mac.count(":") != 5:
            raw = b""
    else:
        raw = bytes(mac)
    if len(raw) != 6:
        raise UsageError(f"not a MAC address: {mac!r}", hint="write it like 52:54:00:12:34:56")
    return raw


def mac_text(raw: bytes) -> str:
    """The usual notation of six bytes."""
    return raw.hex(":")


def text(chars: Any) -> str:
    """A C string, NUL-terminated or filling its array."""
    raw: bytes = ffi.string(chars)
    return raw.decode(errors="replace")


def fd_array(fds: Sequence[int], count: int, what: str) -> Any:
    """An int32_t array that C may read `count` entries of: the length is checked here because C can't."""
    if len(fds) != count:
        raise UsageError(f"{what}: {len(fds)} file descriptors given, {count} needed")
    return new("int32_t[]", list(fds))
