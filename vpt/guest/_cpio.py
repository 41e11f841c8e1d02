# SPDX-License-Identifier: BSD-2-Clause
"""Initramfs archives ("newc" cpio), written without root and without the cpio command."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Entry", "archive", "device", "directory", "file"]


@dataclass(frozen=True)
class Entry:
    """One file of an archive; `name` without leading slash."""

    name: str
    mode: int
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)


def directory(name: str, mode: int = 0o755) -> Entry:
    """A directory."""
    return Entry(name, stat.S_IFDIR | mode)


def file(name: str, data: bytes, mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(name, stat.S_IFREG | mode, data)


def device(name: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    """A character device."""
    return Entry(name, stat.S_IFCHR | mode, b"", (major, minor))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _record(ino: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (ino, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.rdev, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of `entries`, in their order (a directory before what is in it). Same input, same bytes."""
    records = [_record(ino, entry) for ino, entry in enumerate(entries, start=1)]
    return b"".join([*records, _record(0, Entry("TRAILER!!!", 0))])
