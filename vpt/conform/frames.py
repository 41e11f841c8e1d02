# SPDX-License-Identifier: BSD-2-Clause
"""Ethernet frames to send, and to recognise."""

from __future__ import annotations

MAC_A = bytes.fromhex("525400000001")
MAC_B = bytes.fromhex("525400000002")
MAC_C = bytes.fromhex("525400000003")
BROADCAST = b"\xff" * 6
ETHERTYPE = b"\x88\xb5"  # IEEE 802, for local experiments


def frame(dst: bytes, src: bytes, number: int = 0, size: int = 60) -> bytes:
    """A frame of that size whose payload tells its number and is different for each."""
    body = number.to_bytes(4, "big") + bytes((number + i) & 0xFF for i in range(size - 18))
    return dst + src + ETHERTYPE + body[: size - 14]


def number(data: bytes) -> int:
    """The number of a frame made by frame()."""
    return int.from_bytes(data[14:18], "big")
