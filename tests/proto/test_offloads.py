# SPDX-License-Identifier: BSD-2-Clause
"""Checksum and segmentation offload between ports: kept where both sides have it, done in software where not.

What the software does is checked by scapy: a frame is right if scapy, made to compute its checksums again,
gives the same bytes. Every shape of packet is in test_offload_matrix.py; here it is about negotiation and
the way through the switch.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from struct import pack, unpack

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from support.host import Host, VhostPort
from support.waiting import until
from vpt.conform.frames import BROADCAST, MAC_A, MAC_B, frame, number
from vpt.conform.front_end import OFFLOADS, USUAL, VNET_HDR, FrontEnd, Received
from vpt.dataplane import Rules
from vpt.vhost_user import VirtioFeature

F = VirtioFeature
USO = F.HOST_USO | F.GUEST_USO4 | F.GUEST_USO6
FULL = int(USUAL | OFFLOADS | USO)
NONE = int(USUAL)
CSUM_ONLY = int(USUAL | F.CSUM | F.GUEST_CSUM)
Connect = Callable[..., FrontEnd]
ETH = Ether(dst=MAC_B.hex(":"), src=MAC_A.hex(":"))
PAYLOAD = bytes(i * 7 & 0xFF for i in range(30_000))


@dataclass(frozen=True)
class Offer:
    """A packet that leaves work to others. gso: virtio's gso_type, 0 for a checksum only."""

    id: str
    packet: Packet
    gso: int
    size: int = 1000

    @property
    def start(self) -> int:
        """Where the checksummed part begins."""
        layer = TCP if TCP in self.packet else UDP
        return len(self.packet) - len(self.packet[layer])

    def sent(self) -> tuple[bytes, bytes]:
        """Header and frame, the checksum field holding the pseudo header's sum, as Linux leaves it."""
        data = bytearray(bytes(self.packet))
        tcp = TCP in self.packet
        at = self.start + (16 if tcp else 6)
        length = len(data) - self.start
        data[at : at + 2] = pack("!H", ~pseudo(self.packet, 6 if tcp else 17, length) & 0xFFFF)
        header_len = self.start + (20 if tcp else 8)
        size = self.size if self.gso else 0
        header = pack("<BBHHHHH", 1, self.gso, header_len, size, self.start, 16 if tcp else 6, 0)
        return header, bytes(data)


def pseudo(packet: Packet, proto: int, length: int) -> int:
    """Checksum of the pseudo header alone."""
    if IP in packet:
        ip = packet[IP]
        raw = b"".join(bytes(map(int, a.split("."))) for a in (ip.src, ip.dst))
        return int(checksum(raw + pack("!HH", proto, length)))
    raw = b"".join(socket.inet_pton(socket.AF_INET6, a) for a in (packet[IPv6].src, packet[IPv6].dst))
    return int(checksum(raw + pack("!IHBB", length, 0, 0, proto)))


V4 = ETH / IP(src="10.0.0.1", dst="10.0.0.2")
V6 = ETH / IPv6(src="fd00::1", dst="fd00::2")
TCP_HEADER = TCP(sport=1, dport=2, seq=1000, flags="PA")
OFFERS = [
    Offer("checksum TCP 4", V4 / TCP_HEADER / Raw(PAYLOAD[:700]), 0),
    Offer("checksum UDP 4", V4 / UDP(sport=1, dport=2) / Raw(PAYLOAD[:701]), 0),
    Offer("checksum TCP 6", V6 / TCP_HEADER / Raw(PAYLOAD[:702]), 0),
    Offer("checksum UDP 6", V6 / UDP(sport=1, dport=2) / Raw(PAYLOAD[:703]), 0),
    Offer("TSO 4", V4 / TCP_HEADER / Raw(PAYLOAD), 1, 1448),
    Offer("TSO 6", V6 / TCP_HEADER / Raw(PAYLOAD), 4, 1428),
    Offer("TSO 4 with ECN", V4 / TCP(sport=1, dport=2, flags="PAC") / Raw(PAYLOAD[:9000]), 0x81, 1448),
    Offer("USO 4", V4 / UDP(sport=1, dport=2) / Raw(PAYLOAD[:9001]), 5, 1400),
    Offer("USO 6", V6 / UDP(sport=1, dport=2) / Raw(PAYLOAD[:9002]), 5, 1400),
]


@pytest.fixture
def ports(host: Host) -> tuple[VhostPort, VhostPort]:
    """Two vhost-user ports of one switch."""
    return host.vhost("a"), host.vhost("b")


def right(data: bytes) -> Packet:
    """The packet, if all its checksums and lengths are what scapy makes of it."""
    packet = Ether(data)
    again = Ether(data)
    for layer in (IP, TCP, UDP):
        if layer in again:
            for name in ("chksum", "len"):
                if hasattr(again[layer], name) and name in again[layer].fields:
                    delattr(again[layer], name)
    if IPv6 in again:
        del again[IPv6].plen
    assert bytes(Ether(bytes(again))) == data
    return packet


def payload(packets: list[Packet]) -> bytes:
    """Payloads in order of arrival."""
    return b"".join(bytes(p[TCP if TCP in p else UDP].payload) for p in packets)


def expected_frames(offer: Offer) -> int:
    """How many frames a receiver without segmentation gets."""
    data = len(bytes(offer.packet[TCP if TCP in offer.packet else UDP].payload))
    return -(-data // offer.size) if offer.gso else 1


@pytest.mark.parametrize("offer", OFFERS, ids=lambda o: o.id)
def test_between_ports_that_have_it_a_packet_passes_unchanged(
    ports: tuple[VhostPort, VhostPort], connect: Connect, offer: Offer
) -> None:
    """One packet in, one packet out, one copy, the same header but for num_buffers."""
    a, b = ports
    one, two = connect(a, features=FULL).start(), connect(b, features=FULL).start()
    header, data = offer.sent()
    one.transmit(data, header=header)
    (got,) = two.receive()
    assert got.frame == data
    assert got.header[:2] + got.header[4:10] == header[:2] + header[4:10]
    assert (b.counters["copies"], b.counters["rx_sw_csum"], b.counters["rx_sw_gso"]) == (1, 0, 0)


@pytest.mark.parametrize("offer", OFFERS, ids=lambda o: o.id)
@pytest.mark.parametrize("mergeable", [True, False], ids=["mergeable", "one buffer"])
def test_toward_a_port_without_it_the_work_is_done(
    ports: tuple[VhostPort, VhostPort], connect: Connect, offer: Offer, mergeable: bool
) -> None:
    a, b = ports
    plain = NONE if mergeable else NONE & ~int(F.MRG_RXBUF)
    one, two = connect(a, features=FULL).start(), connect(b, features=plain).start()
    header, data = offer.sent()
    one.transmit(data, header=header)
    got = two.receive(expected_frames(offer))
    assert all(r.header[:10] == bytes(10) for r in got)
    assert len(got) == expected_frames(offer)
    packets = [right(r.frame) for r in got]
    assert payload(packets) == payload([offer.packet])
    assert b.counters["rx_sw_gso" if offer.gso else "rx_sw_csum"] == 1


@pytest.mark.parametrize("offer", [o for o in OFFERS if o.gso], ids=lambda o: o.id)
def test_a_port_with_checksum_only_gets_segments_to_check(
    ports: tuple[VhostPort, VhostPort], connect: Connect, offer: Offer
) -> None:
    """Segmented in software, the checksum of each segment left to the receiver as it accepted."""
    a, b = ports
    one, two = connect(a, features=FULL).start(), connect(b, features=CSUM_ONLY).start()
    header, data = offer.sent()
    one.transmit(data, header=header)
    got = two.receive(expected_frames(offer))
    assert len(got) == expected_frames(offer)
    packets = [right(finished(r)) for r in got]
    assert payload(packets) == payload([offer.packet])


def finished(got: Received) -> bytes:
    """What a receiver makes of a frame whose checksum was left to it."""
    flags, gso, _, _, start, offset, _ = unpack("<BBHHHHH", got.header)
    if not flags & 1:
        return got.frame
    assert gso == 0
    data = bytearray(got.frame)
    value = checksum(bytes(data[start:]))
    if value == 0 and offset == 6:
        value = 0xFFFF
    data[start + offset : start + offset + 2] = pack("!H", value)
    return bytes(data)


def test_a_flood_gives_each_port_what_it_accepts(host: Host, connect: Connect) -> None:
    a, b, c = (host.vhost(name) for name in "abc")
    one = connect(a, features=FULL).start()
    full, plain = connect(b, features=FULL).start(), connect(c, features=NONE).start()
    offer = OFFERS[4]
    header, data = offer.sent()
    one.transmit(data, header=header)
    assert [r.frame for r in full.receive()] == [data]
    assert payload([right(r.frame) for r in plain.receive(expected_frames(offer))]) == PAYLOAD


def tagged(data: bytes) -> bytes:
    """The frame with the tag of VLAN 10."""
    return data[:12] + b"\x81\x00\x00\x0a" + data[12:]


@pytest.mark.parametrize("features", [FULL, CSUM_ONLY, NONE], ids=["full", "checksum", "none"])
@pytest.mark.parametrize("offer", OFFERS, ids=lambda o: o.id)
def test_offsets_move_with_a_tag_that_is_put_in(
    ports: tuple[VhostPort, VhostPort], connect: Connect, offer: Offer, features: int
) -> None:
    """From an access port to a trunk: what the receiver has to finish is where its header says."""
    a, b = ports
    one, two = connect(a, features=FULL).start(), connect(b, features=features).start()
    a.set_rules(Rules(access=10))
    b.set_rules(Rules(trunk=frozenset({10})))
    header, data = offer.sent()
    one.transmit(data, header=header)
    if features == FULL:
        (got,) = two.receive()
        assert got.frame == tagged(data)
        start, moved = unpack("<H", header[6:8])[0], unpack("<H", got.header[6:8])[0]
        assert moved == start + 4
        assert got.header[:2] == header[:2]
        return
    count = expected_frames(offer)
    frames = [finished(r) for r in two.receive(count)]
    assert len(frames) == count
    assert all(frame[12:16] == b"\x81\x00\x00\x0a" for frame in frames)
    assert payload([right(frame[:12] + frame[16:]) for frame in frames]) == payload([offer.packet])


@pytest.mark.parametrize("features", [FULL, NONE], ids=["full", "none"])
@pytest.mark.parametrize("offer", OFFERS, ids=lambda o: o.id)
def test_offsets_move_with_a_tag_that_is_taken_off(
    ports: tuple[VhostPort, VhostPort], connect: Connect, offer: Offer, features: int
) -> None:
    a, b = ports
    one, two = connect(a, features=FULL).start(), connect(b, features=features).start()
    a.set_rules(Rules(trunk=frozenset({10})))
    b.set_rules(Rules(access=10))
    header, data = offer.sent()
    start = unpack("<H", header[6:8])[0]
    one.transmit(tagged(data), header=header[:6] + pack("<H", start + 4) + header[8:])
    if features == FULL:
        (got,) = two.receive()
        assert got.frame == data
        assert got.header[:2] + got.header[4:10] == header[:2] + header[4:10]
        return
    packets = [right(r.frame) for r in two.receive(expected_frames(offer))]
    assert payload(packets) == payload([offer.packet])


def test_a_checksum_that_starts_in_the_tag_is_a_lie(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    a, b = ports
    one = connect(a, features=FULL).start()
    connect(b, features=FULL).start()
    a.set_rules(Rules(trunk=frozenset({10})))
    header, data = OFFERS[0].sent()
    for start in (14, 17):
        one.transmit(tagged(data), header=header[:6] + pack("<H", start) + header[8:])
    until(lambda: a.counters["tx_drop_bad_header"] == 2, "both to be dropped")


def test_the_receive_header_carries_nothing_of_ours(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    """P12: header and frame are all that is written, and a sender's stray header bytes do not travel."""
    a, b = ports
    one, two = connect(a, features=FULL).start(), connect(b, features=FULL).start(fill=0)
    p = two.pairs[0]
    two.memory.write(p.rx_buffers, b"\xee" * two.buffer_size * two.num)
    two.fill(count=2)
    sent = frame(BROADCAST, MAC_A, 1, 100)
    one.transmit(sent, header=b"\x02\x00" + b"\xaa" * 10)
    ((head, size),) = until(lambda: list(p.rx.take_used()), "a packet")
    at = p.rx_buffers + head * two.buffer_size
    assert size == VNET_HDR + 100
    assert two.memory.read(at, VNET_HDR) == bytes(10) + b"\x01\x00"
    assert two.memory.read(at + size, two.buffer_size - size) == b"\xee" * (two.buffer_size - size)


@pytest.mark.parametrize("layout", [0, int(F.RING_PACKED)], ids=["split", "packed"])
@pytest.mark.parametrize("offer", [OFFERS[0], OFFERS[4], OFFERS[8]], ids=lambda o: o.id)
def test_a_lossless_sender_waits_with_what_is_made_in_software(
    host: Host, connect: Connect, offer: Offer, layout: int
) -> None:
    """Half a packet's segments found room: the rest follows, none twice, and then what stands behind it."""
    a, b = host.vhost("a", lossless=True), host.vhost("b")
    one = connect(a, features=FULL).start()
    two = connect(b, features=NONE | layout, num=16).start(fill=4)
    two.transmit(frame(MAC_A, MAC_B))
    header, data = offer.sent()
    packets = 6
    for _ in range(packets):
        one.queue_frame(data, header)
    one.queue_frame(frame(MAC_B, MAC_A, 4711))
    one.pairs[0].tx.kick()
    until(lambda: a.counters["tx_blocked"] > 0, "the sender to be blocked")
    count = packets * expected_frames(offer)
    got = two.receive(count + 1)
    assert number(got.pop().frame) == 4711
    assert [right(r.frame) for r in got] == packets * [right(r.frame) for r in got[: count // packets]]
    assert payload([right(r.frame) for r in got]) == packets * payload([offer.packet])
    assert b.counters["rx_drop_full"] == 0
    assert b.counters["rx_sw_gso" if offer.gso else "rx_sw_csum"] == packets


def test_segments_longer_than_the_receivers_mtu_are_dropped_as_frames_are(
    host: Host, connect: Connect
) -> None:
    """What a frame may not do, a gso_size may not either; with room for two tags, as frames have."""
    a, b = host.vhost("a", mtu=9000), host.vhost("b", mtu=1500)
    one, two = connect(a, features=FULL).start(), connect(b, features=NONE).start()
    for size in (8960, 1469, 60_000):
        header, data = Offer("", V4 / TCP_HEADER / Raw(PAYLOAD), 1, size).sent()
        one.transmit(data, header=header)
    fits = Offer("", V4 / TCP_HEADER / Raw(PAYLOAD), 1, 1468)
    header, data = fits.sent()
    one.transmit(data, header=header)
    got = two.receive(expected_frames(fits))
    assert payload([right(r.frame) for r in got]) == PAYLOAD
    assert b.counters["rx_drop_too_big"] == 3


@pytest.mark.parametrize("start", [65_520, 65_531, 65_532, 65_535])
def test_no_offset_wraps_when_a_tag_is_put_in(
    ports: tuple[VhostPort, VhostPort], connect: Connect, start: int
) -> None:
    """An offset has 16 bits, and a tag moves it by four: one that would not fit is no checksum's."""
    a, b = ports
    one = connect(a, features=FULL).start()
    two = connect(b, features=FULL).start()
    a.set_rules(Rules(access=10))
    b.set_rules(Rules(trunk=frozenset({10})))
    frame_ = MAC_B + MAC_A + b"\x08\0" + bytes(65_532)
    one.transmit(frame_, header=pack("<BBHHHHH", 1, 5, 0xFFFF, 60_000, start, 6, 0))
    one.transmit(frame(MAC_B, MAC_A, 1))
    for got in two.receive():
        flags, _, hdr_len, _, moved, _, _ = unpack("<BBHHHHH", got.header)
        assert not flags or (moved == start + 4 and hdr_len >= 18)
