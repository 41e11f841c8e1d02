# SPDX-License-Identifier: BSD-2-Clause
"""P: packets and headers that lie, through a ring that is in order: no reason for a port to go down."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from struct import pack, unpack

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from support.scene import Scene
from support.waiting import until
from vpt.conform.frames import BROADCAST, ETHERTYPE, MAC_A, MAC_B, frame, vnet
from vpt.conform.front_end import OFFLOADS, USUAL, VNET_HDR, FrontEnd
from vpt.conform.split_queue import SplitQueue
from vpt.vhost_user import VirtioFeature

F = VirtioFeature
MAC_X = b"\x52\x54\0\0\0\x99"
FULL = int(USUAL | OFFLOADS)
NO_OFFLOADS = int(USUAL)
ETH = Ether(dst="ff:ff:ff:ff:ff:ff", src="52:54:00:00:00:99")
TCP4 = bytes(ETH / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(flags="A") / Raw(bytes(1200)))


@dataclass(frozen=True)
class Lie:
    """A header that cannot be meant, and the frame that it is on."""

    id: str
    header: bytes
    frame: bytes = TCP4
    features: int = FULL


LIES = [
    Lie("P3 start behind the frame", vnet(1, start=65535, offset=16)),
    Lie("P3 start at the end", vnet(1, start=len(TCP4), offset=0)),
    Lie("P3 offset behind the frame", vnet(1, start=34, offset=65535)),
    Lie("P3 one byte too far", vnet(1, start=34, offset=len(TCP4) - 34 - 1)),
    Lie("P3 sum wraps at 2^16", vnet(1, start=65500, offset=60)),
    Lie("P3 in the Ethernet header", vnet(1, start=0, offset=0), b"\xff" * 6 + MAC_X + ETHERTYPE),
    Lie("P4 segments of 0", vnet(1, 1, 54, 0, 34, 16)),
    Lie("P5 segmentation without checksum", vnet(0, 1, 54, 1000, 34, 16)),
    Lie("P5 type 2", vnet(1, 2, 54, 1000, 34, 16)),
    Lie("P5 type 127", vnet(1, 127, 54, 1000, 34, 16)),
    Lie("P5 ECN alone", vnet(1, 0x80, 54, 1000, 34, 16)),
    Lie("P5 UFO", vnet(1, 3, 42, 1000, 34, 6)),
    Lie("P5 USO not negotiated", vnet(1, 5, 42, 1000, 34, 6)),
    Lie("P5 TSO not negotiated", vnet(1, 1, 54, 1000, 34, 16), features=NO_OFFLOADS),
    Lie("P5 ECN not negotiated", vnet(1, 0x81, 54, 1000, 34, 16), features=FULL & ~int(F.HOST_ECN)),
    Lie("P3 checksum not negotiated", vnet(1, 0, 0, 0, 34, 16), features=NO_OFFLOADS),
]


@pytest.mark.parametrize("lie", LIES, ids=lambda x: x.id)
def test_a_header_that_lies_costs_the_packet(scene: Scene, lie: Lie) -> None:
    fe = scene.enter(features=lie.features).start()
    fe.transmit(lie.frame, header=lie.header)
    assert scene.villain.counters["tx_drop_bad_header"] == 1
    assert scene.villain.state().up
    fe.transmit(frame(BROADCAST, MAC_X))
    assert [r.frame[12:14] for r in scene.two.receive()] == [ETHERTYPE]
    scene.check(logged=False)


MUDDLES = {
    "P4 segments of 1": (vnet(1, 1, 54, 1, 34, 16), TCP4),
    "P4 segments longer than the payload": (vnet(1, 1, 54, 60000, 34, 16), TCP4),
    "P6 header length 0": (vnet(1, 1, 0, 500, 34, 16), TCP4),
    "P6 header length 65535": (vnet(1, 1, 65535, 500, 34, 16), TCP4),
    "P6 num_buffers 65535": (vnet(buffers=65535), TCP4),
    "P6 data valid": (vnet(2, start=77, offset=99, size=5), TCP4),
    "P7 nothing after Ethernet": (vnet(1, 1, 54, 500, 34, 16), TCP4[:12] + b"\x08\0" + bytes(80)),
    "P7 IP header cut": (vnet(1, 1, 54, 500, 16, 2), TCP4[:20]),
    "P7 TCP header cut": (vnet(1, 1, 54, 500, 34, 16), TCP4[:53]),
    "P7 IP header length 0": (vnet(1, 1, 54, 500, 34, 16), TCP4[:14] + b"\x40" + TCP4[15:]),
    "P7 IP header length 60": (vnet(1, 1, 54, 500, 34, 16), TCP4[:14] + b"\x4f" + TCP4[15:]),
    "P7 TCP header length 60": (vnet(1, 1, 54, 500, 34, 16), TCP4[:46] + b"\xf0" + TCP4[47:]),
    "P7 TCP header length 0": (vnet(1, 1, 54, 500, 34, 16), TCP4[:46] + b"\x00" + TCP4[47:]),
    "P7 IPv4 called IPv6": (vnet(1, 4, 74, 500, 34, 16), TCP4),
    "P7 three VLAN tags": (
        vnet(1, 1, 66, 500, 46, 16),
        bytes(ETH / Dot1Q() / Dot1Q() / Dot1Q() / IP() / TCP() / Raw(bytes(1200))),
    ),
    "P7 VLAN tags to the end": (vnet(1, 1, 54, 500, 34, 16), TCP4[:12] + b"\x81\0\0\1" * 60),
    "P7 IPv6 extension headers": (
        vnet(1, 4, 200, 500, 14 + 40 + 64, 16),
        bytes(ETH / IPv6() / Raw(b""))[:20] + b"\x3c" + bytes(33) + (b"\x3c\0" + bytes(6)) * 200,
    ),
    "P7 extension header that says it is long": (
        vnet(1, 4, 94, 500, 62, 16),
        bytes(ETH / IPv6(nh=60) / IPv6ExtHdrDestOpt(nh=6, len=255) / Raw(bytes(600))),
    ),
}


@pytest.mark.parametrize("name", MUDDLES)
def test_headers_that_make_no_sense_harm_nobody(scene: Scene, name: str) -> None:
    """Dropped or forwarded, to ports without offloads, so that vpt has to look into the packet."""
    header, data = MUDDLES[name]
    fe = scene.enter(features=FULL).start()
    for _ in range(3):
        fe.transmit(data, header=header)
        scene.two.poll()
    assert scene.villain.state().up
    fe.transmit(frame(BROADCAST, MAC_X))
    until(lambda: any(r.frame[12:14] == ETHERTYPE for r in scene.two.poll()), "the packet")
    scene.one.poll()
    scene.check(logged=False)


LEFTOVERS = {
    "data valid": vnet(2, start=77, offset=99, size=5),
    "all but the flags": vnet(0, header=54, size=1000, start=34, offset=16, buffers=9),
    "unknown flags": vnet(0xFE, header=54, size=1000, start=34, offset=16),
}


@pytest.mark.parametrize("name", LEFTOVERS)
def test_p12_what_a_sender_left_in_its_header_reaches_no_receiver(scene: Scene, name: str) -> None:
    """Fields that no flag announces mean nothing, and tell a receiver of the sender's other packets."""
    fe = scene.enter(features=FULL).start()
    fe.transmit(frame(BROADCAST, MAC_X), header=LEFTOVERS[name])
    (got,) = scene.two.receive()
    assert (got.header, got.frame) == (vnet(buffers=1), frame(BROADCAST, MAC_X))
    scene.one.poll()
    scene.check(logged=False)


def folded(data: bytes) -> int:
    """The ones' complement sum of 16-bit words."""
    total = sum(unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("over", ["IPv4", "IPv6", "VLAN"])
def test_p11_a_checksum_is_completed_for_a_port_that_accepts_none_open(scene: Scene, over: str) -> None:
    """The neighbours did not accept GUEST_CSUM; scapy, made to compute it, must find the same."""
    layers = {"IPv4": ETH / IP(), "IPv6": ETH / IPv6(), "VLAN": ETH / Dot1Q(vlan=5) / IP()}
    whole = bytes(layers[over] / TCP(sport=1, dport=2) / Raw(bytes(range(200))))
    start = len(whole) - 220
    addresses = whole[start - (32 if over == "IPv6" else 8) : start]
    pseudo = folded(addresses + pack("!HH", 6, len(whole) - start))
    fe = scene.enter(features=FULL).start()
    fe.transmit(
        whole[: start + 16] + pack("!H", pseudo) + whole[start + 18 :], header=vnet(1, start=start, offset=16)
    )
    got = scene.two.receive()[0]
    assert (got.header[0], got.frame) == (0, whole)
    scene.one.poll()
    scene.check(logged=False)


@pytest.mark.parametrize(
    "source",
    [bytes(6), BROADCAST, bytes.fromhex("01005e000001"), MAC_A, MAC_B],
    ids=["zero", "broadcast", "multicast", "a neighbour's", "the receiver's"],
)
def test_p8_a_source_that_cannot_be_its_own(scene: Scene, source: bytes) -> None:
    """Nobody sends from a group address, or from one that another port is configured with."""
    fe = scene.enter().start()
    fe.transmit(*(frame(BROADCAST, source, n) for n in range(5)))
    assert scene.villain.counters["tx_drop_spoofed"] == 5
    assert scene.two.poll() == []
    scene.check(logged=False)


def flood(
    fe: FrontEnd, frames: int, meanwhile: Callable[[], object], source: Callable[[int], int] = lambda n: n
) -> int:
    """Send so many frames, a ring full at a time, and a little more; how many.

    source: address of a frame, by its number. The descriptors stay what they are, and all the addresses of a
    round are written at once: in a second.
    """
    tx, slot = fe.pairs[0].tx, 128
    assert isinstance(tx, SplitQueue)
    at = fe.memory.alloc(tx.num * slot, 64)
    for i in range(tx.num):
        tx.set_desc(i, at + i * slot, VNET_HDR + 60)
        tx.set_avail(i)
    head, tail = bytes(VNET_HDR) + MAC_X + b"\x02", ETHERTYPE.ljust(slot - VNET_HDR - 12, b"\0")
    for first in range(0, frames, tx.num):
        macs = (source(n).to_bytes(5, "big") for n in range(first, first + tx.num))
        fe.memory.write(at, b"".join(head + mac + tail for mac in macs))
        end = (tx.used_idx + tx.num) & 0xFFFF
        tx.publish(end)
        os.eventfd_write(tx.kick_fd, 1)
        until(lambda: (meanwhile(), tx.used_idx == end)[1], "the ring to be taken")  # noqa: B023
    return first + tx.num


def test_p9_a_flood_of_sources_takes_its_share_of_the_table_only(scene: Scene) -> None:
    """A million addresses from one port: it may have max_macs of them, and the neighbours' stay."""
    limit = 1024
    fe = scene.enter(num=16384, buffer_size=64).start(fill=64)

    def listen() -> None:
        scene.two.poll()
        scene.one.poll()

    sent = flood(fe, 1_000_000, listen)
    listen()
    mine = [e for e in scene.host.call(scene.host.switch.macs) if e.port_id == scene.villain.port.id]
    assert 0 < len(mine) <= limit
    counters = scene.villain.counters
    assert (counters["tx_packets"], counters["tx_mac_limit"]) == (sent, sent - len(mine))
    again = flood(fe, 1, listen, source=lambda _: sent)  # all from one that is not learned: counted for each
    assert scene.villain.counters["tx_mac_limit"] - counters["tx_mac_limit"] == again
    scene.neighbours_forward()
    assert scene.villain.counters["rx_drop_full"] == 0  # known to the switch: nothing of it was flooded
    scene.check(logged=False)


def test_p10_a_broadcast_storm_leaves_room_for_others(scene: Scene) -> None:
    fe = scene.enter(num=256).start()
    for n in range(50):
        fe.transmit(*(frame(BROADCAST, MAC_X, n, 60) for _ in range(128)))
        scene.two.poll()
        scene.one.poll()
        scene.neighbours_forward(8)
    scene.check(logged=False)
