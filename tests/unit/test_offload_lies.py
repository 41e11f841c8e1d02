# SPDX-License-Identifier: BSD-2-Clause
"""Vnet headers and packets that lie to software offload."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet6 import IPv6ExtHdrHopByHop

from support.offloads import (
    ALL,
    ETH,
    MAX_SEGS,
    TCP_OPTS,
    UDP_PLAIN,
    V4,
    V6,
    LieError,
    Vnet,
    gso,
    offload,
    pattern,
)
from vpt._vpt import lib

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
