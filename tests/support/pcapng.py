# SPDX-License-Identifier: BSD-2-Clause
"""Reads back what a capture writes: pcapng of this machine's byte order, and no more of it than we write."""

from __future__ import annotations

import struct
from dataclasses import dataclass

IN, OUT = 1, 2


@dataclass(frozen=True)
class Packet:
    interface: int
    ns: int
    data: bytes
    length: int
    direction: int
    comment: str
    lost_before: int


def blocks(data: bytes) -> list[tuple[int, bytes]]:
    """(type, body) of each block; both lengths are held equal."""
    found = []
    while data:
        kind, size = struct.unpack_from("=II", data)
        assert size % 4 == 0
        assert struct.unpack_from("=I", data, size - 4) == (size,), "the lengths around a block differ"
        found.append((kind, data[8 : size - 4]))
        data = data[size:]
    return found


def options(data: bytes) -> dict[int, bytes]:
    found = {}
    while True:
        code, size = struct.unpack_from("=HH", data)
        if code == 0:
            assert size == 0
            assert len(data) == 4, "something follows the end of the options"
            return found
        found[code] = data[4 : 4 + size]
        data = data[4 + size + -size % 4 :]


def packets(data: bytes) -> list[Packet]:
    """The packets among the blocks."""
    found = []
    for kind, body in blocks(data):
        if kind != 6:
            continue
        interface, high, low, have, length = struct.unpack_from("=IIIII", body)
        said = options(body[20 + have + -have % 4 :])
        (flags,) = struct.unpack("=I", said[2])
        found.append(
            Packet(
                interface,
                high << 32 | low,
                body[20 : 20 + have],
                length,
                flags & 3,
                said.get(1, b"").decode(),
                struct.unpack("=Q", said.get(4, bytes(8)))[0],
            )
        )
    return found
