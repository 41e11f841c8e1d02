# SPDX-License-Identifier: BSD-2-Clause
"""Ethernet frames to send, and to recognise; headers to put before them."""

from __future__ import annotations

from struct import pack

MAC_A = bytes.fromhex("525400000001")
MAC_B = bytes.fromhex("525400000002")
MAC_C = bytes.fromhex("525400000003")
BROADCAST = b"\xff" * 6
ETHERTYPE = b"\x88\xb5"  # IEEE 802, for local experiments


def frame(dst: bytes, src: bytes, number: int = 0, size: int = 60) -> bytes:
    """A frame of that size whose payload tells its number and is different for each."""
    body = number.to_bytes(4, "big") + bytes((number + i) & 0xFF for i in range(size - 18))
    return dst + src + ETHERTYPE + body[: size - 14]


def vnet(
    flags: int = 0,
    gso: int = 0,
    header: int = 0,
    size: int = 0,
    start: int = 0,
    offset: int = 0,
    buffers: int = 0,
) -> bytes:
    """A virtio-net header of one's own (virtio 1.2, 5.1.6), field by field."""
    return pack("<BBHHHHH", flags, gso, header, size, start, offset, buffers)


def number(data: bytes) -> int:
    """The number of a frame made by frame()."""
    return int.from_bytes(data[14:18], "big")
