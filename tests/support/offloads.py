# SPDX-License-Identifier: BSD-2-Clause
"""Packets as a stack that uses offloads writes them, and what a receiver without must get, by scapy.

A segment is right if scapy, told to forget every length and checksum in it and to fill them in again, writes
the same bytes, and if headers and payload are those that the sender's packet says.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting, PadN
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet

from vpt._vpt import ffi, lib

MAX_SEGS = 2048
ALL = (
    lib.VPT_F_GUEST_CSUM
    | lib.VPT_F_GUEST_TSO4
    | lib.VPT_F_GUEST_TSO6
    | lib.VPT_F_GUEST_ECN
    | lib.VPT_F_GUEST_USO4
    | lib.VPT_F_GUEST_USO6
)


class LieError(Exception):
    """vpt_offload_frames() returned -EINVAL."""


@dataclass(frozen=True)
class Vnet:
    """A vnet header as a sender writes it: the fields of virtio in their order, not by what vpt has of it."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0


def offload(vnet: Vnet, frame: bytes, accepts: int = 0, cap: int = 1 << 20) -> list[bytes]:
    """The frames that a receiver gets."""
    hdr = ffi.new("struct vpt_vnet_hdr *", vars(vnet))
    out = ffi.new("uint8_t[]", cap)
    n = lib.vpt_offload_frames(hdr, ffi.from_buffer(frame), len(frame), accepts, out, cap)
    if n == -errno.EINVAL:
        raise LieError
    if n < 0:
        raise OSError(-n, os.strerror(-n))
    got = bytes(ffi.buffer(out, n))
    frames = []
    while got:
        (length,) = struct.unpack_from("=I", got)
        frames.append(got[4 : 4 + length])
        got = got[4 + length :]
    return frames


# ---- a sender: packets as a stack that uses offloads writes them ----


def ones_sum(data: bytes) -> int:
    """RFC 1071, word by word: deliberately not the way the C code does it."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def unfinished(packet: Packet) -> tuple[bytes, int, int]:
    """A frame whose checksum field holds only the pseudo header's sum; csum_start and csum_offset."""
    l4_layer = packet[TCP] if TCP in packet else packet[UDP]
    frame = bytearray(bytes(packet))
    start = len(frame) - len(l4_layer)
    offset = 16 if TCP in packet else 6
    field = slice(start + offset, start + offset + 2)
    (whole,) = struct.unpack("!H", frame[field])
    frame[field] = b"\0\0"
    # The complement of the whole checksum is pseudo header plus transport bytes; take the latter away again.
    pseudo = ones_sum(struct.pack("!HH", whole ^ 0xFFFF, ones_sum(frame[start:]) ^ 0xFFFF))
    frame[field] = struct.pack("!H", pseudo)
    return bytes(frame), start, offset


def needs_csum(packet: Packet) -> tuple[Vnet, bytes]:
    frame, start, offset = unfinished(packet)
    return Vnet(flags=lib.VPT_VNET_NEEDS_CSUM, csum_start=start, csum_offset=offset), frame


def gso(packet: Packet, size: int, ecn: bool = False) -> tuple[Vnet, bytes]:
    vnet, frame = needs_csum(packet)
    if UDP in packet:
        kind = lib.VPT_GSO_UDP_L4
    else:
        kind = lib.VPT_GSO_TCPV6 if IPv6 in packet else lib.VPT_GSO_TCPV4
    return replace(vnet, gso_type=kind | (lib.VPT_GSO_ECN if ecn else 0), gso_size=size), frame


ETH = Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02")
V4 = IP(src="192.0.2.1", dst="198.51.100.7", id=0xFFFE, flags="DF", tos=2)
V6 = IPv6(src="2001:db8::1", dst="2001:db8:1::7", tc=2, fl=0x12345)
TCP_PLAIN = TCP(sport=4000, dport=80, seq=0xFFFFFF00, ack=77, flags="PA", window=512)
TCP_OPTS = TCP(
    sport=4000,
    dport=80,
    seq=5,
    flags="A",
    options=[("NOP", None), ("NOP", None), ("Timestamp", (123456, 654321))],
)
TCP_FULL = TCP(sport=1, dport=2, flags="A", options=[("NOP", None)] * 40)
UDP_PLAIN = UDP(sport=4000, dport=443)

LINKS = {
    "eth": ETH,
    "vlan": ETH / Dot1Q(vlan=5, prio=3),
    "qinq": ETH / Dot1AD(vlan=9) / Dot1Q(vlan=5),
    "vlan3": ETH / Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3),
}
NETWORKS = {
    "ip4": V4,
    "ip4-options": IP(
        src="192.0.2.1", dst="198.51.100.7", id=7, options=[IPOption_RR(length=39, routers=["0.0.0.0"] * 9)]
    ),
    "ip6": V6,
    "ip6-hopbyhop": V6 / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 12)]),
    "ip6-routing": V6 / IPv6ExtHdrRouting(type=2, addresses=["2001:db8:2::9"], segleft=1),
    "ip6-chain": V6
    / IPv6ExtHdrHopByHop()
    / IPv6ExtHdrDestOpt()
    / IPv6ExtHdrRouting(type=2, addresses=["2001:db8:2::9"], segleft=0)
    / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 20)]),
}
TRANSPORTS = {"tcp": TCP_PLAIN, "tcp-timestamps": TCP_OPTS, "tcp-60": TCP_FULL, "udp": UDP_PLAIN}


def stacks() -> Iterator[object]:
    """Every network over a plain link, every link over plain networks."""
    for link in LINKS:
        for network in NETWORKS:
            for transport in TRANSPORTS:
                if link == "eth" or network in ("ip4", "ip6"):
                    head = LINKS[link] / NETWORKS[network] / TRANSPORTS[transport]
                    yield pytest.param(head, id=f"{link}-{network}-{transport}")


def pattern(length: int) -> bytes:
    """Bytes that show a piece that is missing, doubled or elsewhere: 251 divides no segment size used."""
    return bytes(i % 251 for i in range(length))


# ---- a receiver ----

COMPUTED = {"len", "plen", "chksum"}


def same_checksum(a: int, b: int) -> bool:
    return a == b or {a, b} == {0, 0xFFFF}


def assert_right(frame: bytes) -> Packet:
    """Lengths and checksums are what scapy computes; returns the parsed frame."""
    parsed = Ether(frame)
    again = Ether(frame)
    for layer in (IP, IPv6, UDP, TCP):
        if layer in again:
            for name in COMPUTED & set(again[layer].fields):
                again[layer].delfieldval(name)
    again = Ether(bytes(again))
    l4 = TCP if TCP in parsed else UDP
    assert same_checksum(parsed[l4].chksum, again[l4].chksum)
    again[l4].chksum = parsed[l4].chksum
    assert bytes(again) == frame
    return parsed


def payload_of(parsed: Packet) -> bytes:
    return bytes(parsed[TCP if TCP in parsed else UDP].payload)


def assert_segments(head: Packet, payload: bytes, size: int, frames: list[bytes]) -> None:
    """The frames carry the payload in pieces of size, under headers that only differ where segments must."""
    sent = Ether(bytes(head / payload))
    pieces = []
    for i, frame in enumerate(frames):
        last = i == len(frames) - 1
        parsed = assert_right(frame)
        piece = payload_of(parsed)
        assert len(piece) == size or (last and len(piece) <= size)
        pieces.append(piece)
        if IP in parsed:
            assert parsed[IP].id == (sent[IP].id + i) & 0xFFFF
            parsed[IP].id = sent[IP].id
        if TCP in parsed:
            assert parsed[TCP].seq == (sent[TCP].seq + i * size) & 0xFFFFFFFF
            gone = ("" if last else "FP") + ("C" if i else "")
            assert set(str(parsed[TCP].flags)) == set(str(sent[TCP].flags)) - set(gone)
            parsed[TCP].seq, parsed[TCP].flags = sent[TCP].seq, sent[TCP].flags
        for layer in (IP, IPv6, UDP, TCP):
            if layer in parsed:
                for name in COMPUTED & set(parsed[layer].fields):
                    parsed[layer].setfieldval(name, sent[layer].getfieldval(name))
        assert bytes(parsed)[: len(head)] == bytes(sent)[: len(head)]
    assert b"".join(pieces) == payload
    assert len(frames) == max(1, -(-len(payload) // size))
