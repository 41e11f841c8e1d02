# SPDX-License-Identifier: BSD-2-Clause
"""Every shape of packet that leaves work to others, to every kind of receiver, over both ring layouts.

Every link (none, one, two, three tags) with both networks, every network (options, extension headers) over
the plain link; receivers without offloads, with checksums only, one kind of segmentation, all; merged buffers
or single ones. Each frame that arrives is judged by scapy. What must not: tests/unit/test_offload_lies.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from struct import pack, unpack

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from support.host import Host
from support.offloads import (
    ETH,
    LINKS,
    NETWORKS,
    TRANSPORTS,
    Vnet,
    assert_right,
    assert_segments,
    gso,
    needs_csum,
    offload,
    pattern,
    payload_of,
)
from vpt.conform.frames import BROADCAST, frame
from vpt.conform.front_end import OFFLOADS, USUAL, FrontEnd, Received
from vpt.dataplane import Rules
from vpt.vhost_user import VirtioFeature

F = VirtioFeature
Connect = Callable[..., FrontEnd]
FULL = USUAL | OFFLOADS | F.HOST_USO | F.GUEST_USO4 | F.GUEST_USO6
SEGMENTATION = {
    "none": F(0),
    "none that can be used": F.GUEST_TSO4 | F.GUEST_TSO6 | F.GUEST_ECN | F.GUEST_USO4 | F.GUEST_USO6,
    "checksum": F.GUEST_CSUM,
    "TSO4": F.GUEST_CSUM | F.GUEST_TSO4,
    "TSO6": F.GUEST_CSUM | F.GUEST_TSO6,
    "TSO without ECN": F.GUEST_CSUM | F.GUEST_TSO4 | F.GUEST_TSO6,
    "USO": F.GUEST_CSUM | F.GUEST_USO4 | F.GUEST_USO6,
    "all": F.GUEST_CSUM | F.GUEST_TSO4 | F.GUEST_TSO6 | F.GUEST_ECN | F.GUEST_USO4 | F.GUEST_USO6,
}
SIZE, PAYLOAD = 501, pattern(2 * 501 + 17)


@cache
def shapes() -> list[tuple[Packet, bool]]:
    """Headers, and whether a sender says ECN of them, which is TCP's."""
    pairs = {(link, "ip4") for link in LINKS} | {(link, "ip6") for link in LINKS}
    pairs |= {("eth", network) for network in NETWORKS}
    found = []
    for link, network in sorted(pairs):
        head = LINKS[link] / NETWORKS[network]
        found += [(head / TRANSPORTS[name], False) for name in ("tcp-timestamps", "udp")]
        found.append((head / TCP(sport=1, dport=2, seq=9, flags="CPA"), True))
    return found


@cache
def sent(number: int) -> tuple[tuple[Vnet, bytes], tuple[Vnet, bytes]]:
    """What leaves the sender for that shape: with a checksum to complete, and to be segmented too."""
    head, ecn = shapes()[number]
    return needs_csum(head / PAYLOAD), gso(head / PAYLOAD, SIZE, ecn)


def accepted(head: Packet, ecn: bool, features: F) -> bool:
    """Does a receiver with these features take such a packet whole?"""
    if not features & F.GUEST_CSUM:
        return False
    if UDP in head:
        return bool(features & F.GUEST_USO4)
    return bool(features & (F.GUEST_TSO6 if IPv6 in head else F.GUEST_TSO4)) and (
        not ecn or bool(features & F.GUEST_ECN)
    )


def header(vnet: Vnet) -> bytes:
    """As it is in memory."""
    return pack("<BBHHHHH", *vars(vnet).values())


def finished(got: Received) -> bytes:
    """What a receiver makes of a frame whose checksum was left to it."""
    fields = unpack("<BBHHHHH", got.header)[:-1]
    [whole] = offload(Vnet(*fields), got.frame)
    return whole


RINGS = {
    "split": USUAL,
    "packed": USUAL | F.RING_PACKED,
    "split, one buffer": USUAL & ~F.MRG_RXBUF,
    "packed, one buffer": USUAL & ~F.MRG_RXBUF | F.RING_PACKED,
}


@pytest.mark.parametrize(
    ("accepts", "rings"),
    [(a, r) for a in SEGMENTATION for r in RINGS if a == "none" or r in ("packed", "split, one buffer")],
)
def test_each_packet_arrives_right(host: Host, connect: Connect, accepts: str, rings: str) -> None:
    features = SEGMENTATION[accepts] | RINGS[rings]
    a, b = host.vhost("a"), host.vhost("b")
    one = connect(a, features=int(FULL | features)).start()
    two = connect(b, features=int(features)).start()
    whole = 0
    for number, (head, ecn) in enumerate(shapes()):
        (vnet, data), (gso_vnet, gso_data) = sent(number)
        one.transmit(data, header=header(vnet))
        (got,) = two.receive()
        assert (got.frame == data) == bool(features & F.GUEST_CSUM)
        assert payload_of(assert_right(finished(got))) == PAYLOAD

        one.transmit(gso_data, header=header(gso_vnet))
        if accepted(head, ecn, features):
            whole += 1
            (got,) = two.receive()
            assert (got.header[:10], got.frame) == (header(gso_vnet)[:10], gso_data)
        else:
            assert_segments(head, PAYLOAD, SIZE, [finished(r) for r in two.receive(3)])
    assert b.counters["rx_sw_gso"] == len(shapes()) - whole
    assert b.counters["rx_drop_too_big"] == 0


@pytest.mark.parametrize("accepts", ["none", "checksum", "all"])
@pytest.mark.parametrize("way", ["on", "off"])
def test_each_packet_arrives_right_through_a_tag(
    host: Host, connect: Connect, way: str, accepts: str
) -> None:
    """The switch's own tag goes on or comes off outside of the sender's, for each shape."""
    access, trunk = Rules(access=10), Rules(trunk=frozenset({10}))
    a, b = host.vhost("a"), host.vhost("b")
    features = SEGMENTATION[accepts] | USUAL
    one, two = connect(a, features=int(FULL)).start(), connect(b, features=int(features)).start()
    a.set_rules(access if way == "on" else trunk)
    b.set_rules(trunk if way == "on" else access)
    for bare, ecn in shapes():
        if Ether(bytes(bare)).type == 0x8100:
            continue  # a C-tag of the sender's own does not pass an access port
        tagged = ETH / Dot1Q(vlan=10) / bare.payload
        leaves, arrives = (bare, tagged) if way == "on" else (tagged, bare)
        vnet, data = gso(leaves / PAYLOAD, SIZE, ecn)
        one.transmit(data, header=header(vnet))
        if accepted(bare, ecn, features):
            (got,) = two.receive()
            want, want_data = gso(arrives / PAYLOAD, SIZE, ecn)
            assert (got.header[:10], got.frame) == (header(want)[:10], want_data)
        else:
            assert_segments(arrives, PAYLOAD, SIZE, [finished(r) for r in two.receive(3)])


@pytest.mark.parametrize("layout", [F(0), F.RING_PACKED], ids=["split", "packed"])
def test_a_fragment_is_not_cut_again(host: Host, connect: Connect, layout: F) -> None:
    """Nobody can segment a fragment: the port that would have to be done for gets nothing, and both go on."""
    a, b = host.vhost("a"), host.vhost("b")
    one, two = (
        connect(a, features=int(FULL | layout)).start(),
        connect(b, features=int(USUAL | layout)).start(),
    )
    for network, at, value in (("ip4", 20, b"\x20\0"), ("ip6-hopbyhop", 20, b"\x2c")):
        vnet, data = gso(LINKS["eth"] / NETWORKS[network] / TRANSPORTS["tcp"] / PAYLOAD, SIZE)
        one.transmit(data[:at] + value + data[at + len(value) :], header=header(vnet))
    one.transmit(frame(BROADCAST, b"\2\0\0\0\0\2", 5))
    assert len(two.receive()) == 1
    assert b.counters["rx_drop_too_big"] == 2
