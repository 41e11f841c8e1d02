# SPDX-License-Identifier: BSD-2-Clause
"""Blocks of pcapng (draft-ietf-opsawg-pcapng) but for packets, which the data plane makes.

In this machine's byte order.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterable

from vpt import __version__

__all__ = ["interface_description", "interface_statistics", "section_header"]

_SECTION, _INTERFACE, _STATISTICS = 0x0A0D0D0A, 1, 5
_BYTE_ORDER = 0x1A2B3C4D
_LENGTH_UNKNOWN = 0xFFFFFFFFFFFFFFFF
_ETHERNET = 1
_NANOSECONDS = b"\x09"

Options = Iterable[tuple[int, bytes]]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _block(kind: int, body: bytes, options: Options) -> bytes:
    body += b"".join(struct.pack("=HH", code, len(value)) + _padded(value) for code, value in options)
    body += bytes(4)  # end of options
    size = struct.pack("=I", len(body) + 12)
    return struct.pack("=I", kind) + size + body + size


def section_header() -> bytes:
    """What a file begins with."""
    body = struct.pack("=IHHQ", _BYTE_ORDER, 1, 0, _LENGTH_UNKNOWN)
    return _block(_SECTION, body, [(3, platform.platform().encode()), (4, f"vpt {__version__}".encode())])


def interface_description(name: str, snaplen: int, filter_: str) -> bytes:
    """An interface, numbered by the order of these blocks. filter_: the expression, if there is one."""
    options = [(2, name.encode()), (9, _NANOSECONDS)]
    if filter_:
        options.append((11, b"\0" + filter_.encode()))
    return _block(_INTERFACE, struct.pack("=HHI", _ETHERNET, 0, snaplen), options)


def interface_statistics(number: int, lost: int, start_ns: int, end_ns: int) -> bytes:
    """How many packets of an interface found no room, between two times since the epoch."""
    when = [struct.pack("=II", ns >> 32, ns & 0xFFFFFFFF) for ns in (start_ns, end_ns)]
    return _block(
        _STATISTICS,
        struct.pack("=I", number) + when[1],
        [(2, when[0]), (3, when[1]), (5, struct.pack("=Q", lost))],
    )
