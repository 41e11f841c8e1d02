# SPDX-License-Identifier: BSD-2-Clause
"""Software offload against scapy: what a receiver without checksum and segmentation offload gets is right."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from support.offloads import (
    ALL,
    ETH,
    LINKS,
    NETWORKS,
    TCP_OPTS,
    TCP_PLAIN,
    TRANSPORTS,
    UDP_PLAIN,
    V4,
    V6,
    Vnet,
    assert_right,
    assert_segments,
    gso,
    needs_csum,
    offload,
    ones_sum,
    pattern,
    payload_of,
    stacks,
)
from vpt._vpt import lib


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
