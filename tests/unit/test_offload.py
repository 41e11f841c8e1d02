# SPDX-License-Identifier: BSD-2-Clause
"""Software offload against scapy: what a receiver without checksum and segmentation offload gets is right.

A segment is right if scapy, told to forget every length and checksum in it and to fill them in again, writes
the same bytes, and if headers and payload are those that the sender's packet says.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
    """A vnet header as a sender writes it."""

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


# ---- checksum completion ----


@pytest.mark.parametrize("head", list(stacks()))
@pytest.mark.parametrize("length", [0, 1401])
def test_checksum_is_completed_for_a_receiver_that_wants_none_partial(head: Packet, length: int) -> None:
    packet = head / pattern(length)
    [frame] = offload(*needs_csum(packet))
    assert payload_of(assert_right(frame)) == pattern(length)


def test_checksum_anywhere_in_the_frame_is_completed() -> None:
    """csum_start may point into an encapsulated packet that we know nothing of, far behind any header."""
    body = pattern(3000)
    start, offset = 2001, 700
    frame = bytes(ETH)[:12] + b"\x88\xb5" + body
    [got] = offload(Vnet(flags=lib.VPT_VNET_NEEDS_CSUM, csum_start=start, csum_offset=offset), frame)
    field = slice(start + offset, start + offset + 2)
    assert got[field] == struct.pack("!H", ones_sum(frame[start:]) ^ 0xFFFF)
    assert got[: field.start] + got[field.stop :] == frame[: field.start] + frame[field.stop :]


def test_checksum_that_comes_out_as_zero_is_sent_as_ffff() -> None:
    """In UDP zero means that there is none (RFC 768)."""
    head = ETH / V4 / UDP_PLAIN
    vnet, frame = needs_csum(head / b"\0\0")
    total = ones_sum(frame[vnet.csum_start :])
    frame = frame[:-2] + struct.pack("!H", total ^ 0xFFFF)
    assert ones_sum(frame[vnet.csum_start :]) == 0xFFFF
    [got] = offload(vnet, frame)
    assert Ether(got)[UDP].chksum == 0xFFFF


def test_checksum_stays_partial_for_a_receiver_that_completes_it() -> None:
    vnet, frame = needs_csum(ETH / V4 / TCP_PLAIN / pattern(100))
    assert offload(vnet, frame, accepts=lib.VPT_F_GUEST_CSUM) == [frame]


def test_packet_without_claims_is_left_alone_even_if_its_checksum_is_wrong() -> None:
    frame = bytes(ETH / V4 / TCP(chksum=0x1234) / pattern(100))
    assert offload(Vnet(), frame) == [frame]


# ---- segmentation ----


@pytest.mark.parametrize("head", list(stacks()))
def test_segments_are_packets_of_their_own(head: Packet) -> None:
    payload = pattern(3 * 536 + 17)
    assert_segments(head, payload, 536, offload(*gso(head / payload, 536)))


@pytest.mark.parametrize("size", [1, 2, 3, 77, 999, 1000, 1001, 65535])
@pytest.mark.parametrize("head", [ETH / V4 / TCP_OPTS, ETH / V6 / UDP_PLAIN], ids=["tcp4", "udp6"])
def test_any_segment_size_works(head: Packet, size: int) -> None:
    """An odd size puts every second payload at an odd address; a size above the payload gives one segment."""
    payload = pattern(1000 if size > 50 else 20)
    assert_segments(head, payload, size, offload(*gso(head / payload, size)))


@pytest.mark.parametrize(
    "head", [ETH / V4 / TCP_PLAIN, ETH / V6 / TCP_OPTS, ETH / V4 / UDP_PLAIN, ETH / V6 / UDP_PLAIN]
)
def test_a_packet_of_64_kib_is_segmented(head: Packet) -> None:
    payload = pattern(65535 + 14 - len(head))
    assert_segments(head, payload, 9000, offload(*gso(head / payload, 9000)))


def test_a_packet_without_payload_gives_one_segment() -> None:
    assert_segments(ETH / V4 / TCP_PLAIN, b"", 536, offload(*gso(ETH / V4 / TCP_PLAIN, 536)))


@pytest.mark.parametrize("flags", ["A", "PA", "FA", "FPA", "FPCEA", "CA", "UPA"])
def test_flags_appear_where_they_belong(flags: str) -> None:
    """FIN and PSH end a burst, so only the last segment has them; CWR is said once, by the first."""
    payload = pattern(3000)
    head = ETH / V4 / TCP(seq=1, flags=flags)
    assert_segments(head, payload, 1000, offload(*gso(head / payload, 1000, ecn="C" in flags)))


def test_segments_stay_partial_for_a_receiver_that_completes_checksums() -> None:
    """With GUEST_CSUM alone the field holds the sum of a pseudo header that has the segment's own length."""
    payload = pattern(3001)
    for head in (ETH / V4 / TCP_OPTS, ETH / V6 / UDP_PLAIN):
        vnet, frame = gso(head / payload, 1000)
        whole = offload(vnet, frame)
        partial = offload(vnet, frame, accepts=lib.VPT_F_GUEST_CSUM)
        assert len(partial) == len(whole) == 4
        for got, want in zip(partial, whole, strict=True):
            assert got != want
            [finished] = offload(replace(vnet, gso_type=0, gso_size=0), got)
            assert finished == want


@pytest.mark.parametrize(
    ("head", "ecn", "missing"),
    [
        (ETH / V4 / TCP_PLAIN, False, lib.VPT_F_GUEST_TSO4),
        (ETH / V6 / TCP_PLAIN, False, lib.VPT_F_GUEST_TSO6),
        (ETH / V4 / TCP_PLAIN, True, lib.VPT_F_GUEST_ECN),
        (ETH / V4 / UDP_PLAIN, False, lib.VPT_F_GUEST_USO4),
        (ETH / V6 / UDP_PLAIN, False, lib.VPT_F_GUEST_USO6),
    ],
)
def test_only_what_the_receiver_refused_is_done_here(head: Packet, ecn: bool, missing: int) -> None:
    vnet, frame = gso(head / pattern(3000), 1000, ecn)
    assert offload(vnet, frame, accepts=ALL) == [frame]
    assert len(offload(vnet, frame, accepts=ALL & ~missing)) == 3


@settings(max_examples=40, deadline=None)
@given(
    link=st.sampled_from(sorted(LINKS)),
    network=st.sampled_from(sorted(NETWORKS)),
    transport=st.sampled_from(sorted(TRANSPORTS)),
    segments=st.integers(0, 12),
    size=st.integers(1, 9000),
    rest=st.integers(0, 8999),
    data=st.binary(min_size=1, max_size=64),
)
def test_any_sane_packet_is_segmented_right(
    link: str, network: str, transport: str, segments: int, size: int, rest: int, data: bytes
) -> None:
    head = LINKS[link] / NETWORKS[network] / TRANSPORTS[transport]
    length = min(segments * size + rest % size, 65535 + 14 - len(head) - 24)
    payload = (data * (length // len(data) + 1))[:length]
    assert_segments(head, payload, size, offload(*gso(head / payload, size)))


# ---- liars ----

TSO_VNET, TSO_FRAME = gso(ETH / V4 / TCP_OPTS / pattern(3000), 1000)
TSO6_VNET, TSO6_FRAME = gso(ETH / V6 / IPv6ExtHdrHopByHop() / TCP_OPTS / pattern(3000), 1000)
USO_VNET, USO_FRAME = gso(ETH / V4 / UDP_PLAIN / pattern(3000), 1000)


def patch(frame: bytes, at: int, data: bytes) -> bytes:
    return frame[:at] + data + frame[at + len(data) :]


VNET_LIES = {
    "csum-start-past-end": (replace(TSO_VNET, gso_type=0, csum_start=len(TSO_FRAME)), TSO_FRAME),
    "csum-field-one-past-end": (replace(TSO_VNET, gso_type=0, csum_start=len(TSO_FRAME) - 17), TSO_FRAME),
    "csum-start-plus-offset-wraps-16-bits": (
        replace(TSO_VNET, gso_type=0, csum_start=65535, csum_offset=65535),
        TSO_FRAME,
    ),
    "csum-start-in-ethernet-header": (replace(TSO_VNET, gso_type=0, csum_start=0, csum_offset=20), TSO_FRAME),
    "gso-size-0": (replace(TSO_VNET, gso_size=0), TSO_FRAME),
    "gso-too-many-segments": (replace(TSO_VNET, gso_size=1), TSO_FRAME),
    "gso-type-2": (replace(TSO_VNET, gso_type=2), TSO_FRAME),
    "gso-type-6": (replace(TSO_VNET, gso_type=6), TSO_FRAME),
    "gso-type-127": (replace(TSO_VNET, gso_type=127), TSO_FRAME),
    "gso-ufo": (replace(USO_VNET, gso_type=lib.VPT_GSO_UDP), USO_FRAME),
    "gso-ecn-alone": (replace(TSO_VNET, gso_type=lib.VPT_GSO_ECN), TSO_FRAME),
    "gso-ecn-udp": (replace(USO_VNET, gso_type=lib.VPT_GSO_UDP_L4 | lib.VPT_GSO_ECN), USO_FRAME),
    "gso-without-needs-csum": (replace(TSO_VNET, flags=0), TSO_FRAME),
    "gso-csum-offset-of-udp": (replace(TSO_VNET, csum_offset=6), TSO_FRAME),
    "gso-csum-start-at-end": (replace(TSO_VNET, csum_start=len(TSO_FRAME) - 18), TSO_FRAME),
    "tcp-header-cut": (TSO_VNET, TSO_FRAME[:50]),
    "udp-header-cut": (USO_VNET, USO_FRAME[:40]),
    "frame-over-64-kib": (Vnet(), bytes(65551)),
    **{f"frame-of-{n}": (Vnet(), bytes(n)) for n in (0, 1, 13)},
}

HEADER_LIES = {
    "gso-csum-start-one-off": (replace(TSO_VNET, csum_start=TSO_VNET.csum_start + 1), TSO_FRAME),
    "tso4-of-ip6": (replace(TSO6_VNET, gso_type=lib.VPT_GSO_TCPV4), TSO6_FRAME),
    "tso6-of-ip4": (replace(TSO_VNET, gso_type=lib.VPT_GSO_TCPV6), TSO_FRAME),
    "uso-of-tcp": (replace(TSO_VNET, gso_type=lib.VPT_GSO_UDP_L4, csum_offset=6), TSO_FRAME),
    "tso-of-udp": (replace(USO_VNET, gso_type=lib.VPT_GSO_TCPV4, csum_offset=16), USO_FRAME),
    "no-ip": (TSO_VNET, patch(TSO_FRAME, 12, b"\x08\x06")),
    "length-field-for-ethertype": (TSO_VNET, patch(TSO_FRAME, 12, b"\x05\xdc")),
    "vlan-without-end": (TSO_VNET, patch(TSO_FRAME, 12, b"\x81\x00\x00\x01" * 200)),
    "ip4-version-6": (TSO_VNET, patch(TSO_FRAME, 14, b"\x65")),
    "ip4-header-too-short": (TSO_VNET, patch(TSO_FRAME, 14, b"\x44")),
    "ip4-header-longer-than-it-is": (TSO_VNET, patch(TSO_FRAME, 14, b"\x46")),
    "ip4-other-protocol": (TSO_VNET, patch(TSO_FRAME, 14 + 9, b"\x11")),
    "ip4-first-fragment": (TSO_VNET, patch(TSO_FRAME, 14 + 6, b"\x20\x00")),
    "ip4-later-fragment": (TSO_VNET, patch(TSO_FRAME, 14 + 6, b"\x00\x01")),
    "ip4-starts-behind-transport": (replace(TSO_VNET, csum_start=15), TSO_FRAME),
    "ip6-version-4": (TSO6_VNET, patch(TSO6_FRAME, 14, b"\x45")),
    "ip6-chain-jumps-over-transport": (TSO6_VNET, patch(TSO6_FRAME, 14 + 40 + 1, b"\xff")),
    "ip6-chain-ends-elsewhere": (TSO6_VNET, patch(TSO6_FRAME, 14 + 40, b"\x3b")),
    "ip6-fragment-header": (TSO6_VNET, patch(TSO6_FRAME, 14 + 6, b"\x2c")),
    "ip6-transport-too-early": (TSO6_VNET, patch(TSO6_FRAME, 14 + 6, b"\x06")),
    "tcp-header-shorter-than-20": (TSO_VNET, patch(TSO_FRAME, TSO_VNET.csum_start + 12, b"\x40")),
    "tcp-header-past-end": (TSO_VNET, patch(TSO_FRAME, TSO_VNET.csum_start + 12, b"\xf0")[:70]),
    "segment-longer-than-ip-can-say": (replace(TSO_VNET, gso_size=65535), TSO_FRAME.ljust(65550, b"x")),
}


@pytest.mark.parametrize("accepts", [0, ALL], ids=["to-plain", "to-any"])
@pytest.mark.parametrize("lie", VNET_LIES)
def test_vnet_header_that_lies_is_refused_whoever_receives(lie: str, accepts: int) -> None:
    vnet, frame = VNET_LIES[lie]
    with pytest.raises(LieError):
        offload(vnet, frame, accepts)


@pytest.mark.parametrize("lie", HEADER_LIES)
def test_packet_that_is_not_what_its_vnet_header_says_is_refused(lie: str) -> None:
    vnet, frame = HEADER_LIES[lie]
    with pytest.raises(LieError):
        offload(vnet, frame)


def test_checksum_field_may_be_the_last_two_bytes() -> None:
    frame = bytes(ETH)[:12] + b"\x88\xb5" + pattern(40)
    [got] = offload(Vnet(flags=1, csum_start=len(frame) - 10, csum_offset=8), frame)
    assert got[:-2] == frame[:-2]
    with pytest.raises(LieError):
        offload(Vnet(flags=1, csum_start=len(frame) - 10, csum_offset=9), frame)


@pytest.mark.parametrize("hdr_len", [0, 1, 54, 1000, 65535])
def test_hdr_len_is_only_a_hint(hdr_len: int) -> None:
    assert offload(replace(TSO_VNET, hdr_len=hdr_len), TSO_FRAME) == offload(TSO_VNET, TSO_FRAME)


def test_no_more_is_written_than_there_is_room() -> None:
    need = sum(4 + len(frame) for frame in offload(TSO_VNET, TSO_FRAME))
    assert len(offload(TSO_VNET, TSO_FRAME, cap=need)) == 3
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        offload(TSO_VNET, TSO_FRAME, cap=need - 1)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_bytes_are_refused_or_give_no_more_than_was_sent(data: st.DataObject) -> None:
    """Whatever a header says: payload is neither invented nor repeated, and Ethernet addresses stay."""
    sane = [(TSO_VNET, TSO_FRAME), (TSO6_VNET, TSO6_FRAME), (USO_VNET, USO_FRAME)]
    vnet, frame = data.draw(st.sampled_from(sane))
    frame = frame[: data.draw(st.integers(14, len(frame)))]
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(12, min(len(frame) - 1, 90)))
        frame = patch(frame, at, data.draw(st.binary(min_size=1, max_size=1)))
    vnet = replace(
        vnet,
        gso_type=data.draw(st.sampled_from([vnet.gso_type, 0, 1, 3, 4, 5, 0x81, 0x84])),
        gso_size=data.draw(st.sampled_from([vnet.gso_size, 1, 2, 40000, 65535]) | st.integers(0, 65535)),
        csum_start=vnet.csum_start + data.draw(st.sampled_from([0, 0, 0, 4, -4, 8, 20])),
    )
    accepts = data.draw(st.sampled_from([0, lib.VPT_F_GUEST_CSUM, ALL]))
    try:
        frames = offload(vnet, frame, accepts)
    except LieError:
        return
    assert 1 <= len(frames) <= MAX_SEGS
    headers = 256 * len(frames)
    assert sum(map(len, frames)) <= len(frame) + headers
    assert all(got[:12] == frame[:12] for got in frames)


# ---- the kernel as a second opinion ----

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP, IFF_NOARP = 0x8913, 0x8914, 0x1, 0x80
SOL_PACKET, PACKET_VNET_HDR = 263, 15


class KernelTap:
    """A tap without offloads, in a network namespace of its own: the kernel must cut what is sent to it."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
        self.tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.tap, TUNSETIFF, struct.pack("16sH22x", b"vpt0", IFF_TAP | IFF_NO_PI))
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        fcntl.ioctl(self.sock, SIOCSIFFLAGS, struct.pack("16sH22x", b"vpt0", IFF_UP | IFF_NOARP))
        self.sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.sock.bind(("vpt0", 0))

    def close(self) -> None:
        self.sock.close()
        os.close(self.tap)

    def offload(self, vnet: Vnet, frame: bytes, count: int) -> list[bytes]:
        """The frames that leave the tap, count of them; router solicitations and the like are skipped."""
        fields = (vnet.flags, vnet.gso_type, vnet.hdr_len, vnet.gso_size, vnet.csum_start, vnet.csum_offset)
        self.sock.send(struct.pack("=BBHHHH", *fields) + frame)
        frames: list[bytes] = []
        while len(frames) < count and select.select([self.tap], [], [], 5)[0]:
            got = os.read(self.tap, 1 << 17)
            if got[:12] == frame[:12]:
                frames.append(got)
        return frames


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelTap]:
    # unshare() moves only the thread that calls it, so the namespace is left behind with the thread.
    with ThreadPoolExecutor(1) as pool:
        try:
            tap = pool.submit(KernelTap).result()
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES, errno.ENOENT):
                pytest.skip(f"needs CAP_NET_ADMIN, CAP_NET_RAW and /dev/net/tun: {error}")
            raise
        yield tap
        tap.close()


def mask_zero_checksum(frame: bytes) -> bytes:
    """Write a TCP checksum of zero in its other form: the kernel does it for UDP only, vpt always."""
    parsed = Ether(frame)
    if TCP in parsed and parsed[TCP].chksum == 0:
        at = len(frame) - len(parsed[TCP]) + 16
        frame = patch(frame, at, b"\xff\xff")
    return frame


@pytest.mark.parametrize("head", list(stacks()))
def test_segments_are_those_that_the_kernel_makes(kernel: KernelTap, head: Packet) -> None:
    vnet, frame = gso(head / pattern(3 * 1001 + 17), 1001)
    ours = offload(vnet, frame)
    assert list(map(mask_zero_checksum, kernel.offload(vnet, frame, len(ours)))) == ours


@pytest.mark.parametrize("flags", ["A", "FPA", "FPCEA", "CA", "UPA"])
def test_flags_are_those_that_the_kernel_leaves(kernel: KernelTap, flags: str) -> None:
    vnet, frame = gso(ETH / V4 / TCP(flags=flags) / pattern(2500), 1000, ecn="C" in flags)
    ours = offload(vnet, frame)
    assert list(map(mask_zero_checksum, kernel.offload(vnet, frame, len(ours)))) == ours


@pytest.mark.parametrize("head", list(stacks()))
def test_checksum_is_the_one_that_the_kernel_completes(kernel: KernelTap, head: Packet) -> None:
    vnet, frame = needs_csum(head / pattern(1001))
    assert kernel.offload(vnet, frame, 1) == offload(vnet, frame)
