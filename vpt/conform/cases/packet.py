# SPDX-License-Identifier: BSD-2-Clause
"""P: packets and headers that lie, through rings that are in order: the packet may be lost, the port not."""

from __future__ import annotations

from struct import pack

from vpt.conform.case import Cases
from vpt.conform.frames import BROADCAST, vnet
from vpt.conform.front_end import OFFLOADS, PLAIN, USUAL, Failure
from vpt.conform.split_queue import Buffer
from vpt.conform.stage import MAC_GUEST, Stage
from vpt.vhost_user import VirtioFeature

F = VirtioFeature
CASES = Cases("packet", "checklist")
case = CASES.case
FULL = int(USUAL | OFFLOADS)
IP4 = bytes.fromhex("450004d8000100004006000" + "00a0000010a000002")  # 1240 bytes of TCP
TCP = bytes.fromhex("00140050000000000000000050102000" + "00000000")
IP6 = (
    b"\x60\0\0\0\x02\x28\x3c\x40" + bytes(15) + b"\1" + bytes(15) + b"\2"
)  # next header: destination options
ETH = BROADCAST + MAC_GUEST
TCP4 = ETH + b"\x08\0" + IP4 + TCP + bytes(1200)


LIES: dict[str, tuple[bytes, bytes]] = {
    "P3-start-behind-the-frame": (vnet(1, start=65535, offset=16), TCP4),
    "P3-start-at-the-end": (vnet(1, start=len(TCP4)), TCP4),
    "P3-offset-behind-the-frame": (vnet(1, start=34, offset=65535), TCP4),
    "P3-one-byte-too-far": (vnet(1, start=34, offset=len(TCP4) - 34 - 1), TCP4),
    "P3-sum-wraps": (vnet(1, start=65500, offset=60), TCP4),
    "P4-segments-of-0": (vnet(1, 1, 54, 0, 34, 16), TCP4),
    "P4-segments-of-1": (vnet(1, 1, 54, 1, 34, 16), TCP4),
    "P4-segments-longer-than-payload": (vnet(1, 1, 54, 60000, 34, 16), TCP4),
    "P5-segmentation-without-checksum": (vnet(0, 1, 54, 1000, 34, 16), TCP4),
    "P5-type-2": (vnet(1, 2, 54, 1000, 34, 16), TCP4),
    "P5-type-127": (vnet(1, 127, 54, 1000, 34, 16), TCP4),
    "P5-ecn-alone": (vnet(1, 0x80, 54, 1000, 34, 16), TCP4),
    "P5-ufo": (vnet(1, 3, 42, 1000, 34, 6), TCP4),
    "P6-header-length-0": (vnet(1, 1, 0, 500, 34, 16), TCP4),
    "P6-header-length-65535": (vnet(1, 1, 65535, 500, 34, 16), TCP4),
    "P6-num-buffers-65535": (vnet(buffers=65535), TCP4),
    "P7-nothing-after-ethernet": (vnet(1, 1, 54, 500, 34, 16), ETH + b"\x08\0" + bytes(80)),
    "P7-ip-header-cut": (vnet(1, 1, 54, 500, 16, 2), TCP4[:20]),
    "P7-tcp-header-cut": (vnet(1, 1, 54, 500, 34, 16), TCP4[:53]),
    "P7-ip-header-length-0": (vnet(1, 1, 54, 500, 34, 16), TCP4[:14] + b"\x40" + TCP4[15:]),
    "P7-ip-header-length-60": (vnet(1, 1, 54, 500, 34, 16), TCP4[:14] + b"\x4f" + TCP4[15:]),
    "P7-tcp-header-length-60": (vnet(1, 1, 54, 500, 34, 16), TCP4[:46] + b"\xf0" + TCP4[47:]),
    "P7-ipv4-called-ipv6": (vnet(1, 4, 74, 500, 34, 16), TCP4),
    "P7-vlan-tags-to-the-end": (vnet(1, 1, 54, 500, 34, 16), ETH + b"\x81\0\0\1" * 60),
    "P7-ipv6-extension-headers": (
        vnet(1, 4, 200, 500, 118, 16),
        ETH + b"\x86\xdd" + IP6 + (b"\x3c\0" + bytes(6)) * 150,
    ),
    "P7-ipv6-extension-header-too-long": (
        vnet(1, 4, 94, 500, 62, 16),
        ETH + b"\x86\xdd" + IP6 + b"\x06\xff" + bytes(600),
    ),
}

for _name, (_header, _frame) in LIES.items():

    @case(_name, "a header that lies costs its packet, and no more", virtio=F.CSUM)
    def _(stage: Stage, header: bytes = _header, frame: bytes = _frame) -> None:
        fe = stage.started(features=FULL)
        for _ in range(3):
            fe.transmit(frame, header=header)
        stage.works(fe)


for _name, _header in (
    ("P5-tso-not-negotiated", vnet(1, 1, 54, 1000, 34, 16)),
    ("P3-checksum-not-negotiated", vnet(1, 0, 0, 0, 34, 16)),
):

    @case(_name, "an offload that was not negotiated costs its packet, and no more")
    def _(stage: Stage, header: bytes = _header) -> None:
        fe = stage.started(features=int(PLAIN))
        fe.transmit(TCP4, header=header)
        stage.works(fe)


for _name, _source in (
    ("zero", bytes(6)),
    ("broadcast", BROADCAST),
    ("multicast", bytes.fromhex("01005e000001")),
):

    @case(f"P8-source-{_name}", "a source that nobody can have harms nobody")
    def _(stage: Stage, source: bytes = _source) -> None:
        fe = stage.started()
        fe.transmit(BROADCAST + source + b"\x88\xb5" + bytes(60))
        stage.works(fe)


@case("P9-flood-of-sources", "10,000 source addresses harm nobody else", peer=True)
def _(stage: Stage) -> None:
    fe = stage.started(num=256, buffer_size=128)
    for n in range(0, 10_000, 128):
        fe.transmit(
            *(MAC_GUEST + b"\x02" + (n + i).to_bytes(5, "big") + b"\x88\xb5" + bytes(46) for i in range(128))
        )
        stage.neighbour.poll()
    stage.works(fe)


@case("P10-broadcast-storm", "a storm of broadcasts leaves room for others", peer=True)
def _(stage: Stage) -> None:
    fe = stage.started(num=256)
    for n in range(30):
        fe.transmit(*(stage.frame(n * 128 + i, 60) for i in range(128)))
        stage.neighbour.poll()
    stage.neighbour.transmit(*(stage.frame(n) for n in range(32)))
    stage.works(fe)


@case(
    "P11-checksum-completed",
    "a receiver that accepts no partial checksum gets a complete one",
    virtio=F.CSUM,
    peer=True,
)
def _(stage: Stage) -> None:
    fe = stage.started(features=FULL)
    if stage.neighbour.features & F.GUEST_CSUM:
        raise Failure("the neighbour accepts them")
    udp = b"\x45\0\0\x30\0\1\0\0\x40\x11\0\0\x0a\0\0\1\x0a\0\0\2" + pack("!HHHH", 7, 7, 28, 0)
    head = ETH + b"\x08\0" + udp[:20]
    pseudo = sum(int.from_bytes(udp[i : i + 2], "big") for i in range(12, 20, 2)) + 17 + 28
    pseudo = (pseudo & 0xFFFF) + (pseudo >> 16)
    body = bytes(range(20))
    sent = head + udp[20:26] + pack("!H", pseudo) + body
    fe.transmit(sent, header=vnet(1, start=34, offset=6))

    def found() -> bytes | None:
        return next((r.frame for r in stage.neighbour.poll() if r.frame[:14] == sent[:14]), None)

    got = stage.wait(found, "the packet at the peer port")
    total = sum(int.from_bytes(got[i : i + 2], "big") for i in range(26, len(got), 2)) + 17 + 28
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    if total != 0xFFFF:
        raise Failure("the checksum is wrong")


@case(
    "P12-header-leaks-nothing",
    "the header of a received packet has no stale bytes",
    source="virtio 1.2, 5.1.6.4; checklist",
    peer=True,
)
def _(stage: Stage) -> None:
    fe = stage.started(features=int(PLAIN), fill=0)
    rx = fe.pairs[0].rx
    at = fe.memory.alloc(2048, 64)
    fe.memory.write(at, b"\xcc" * 2048)
    rx.add([Buffer(at, 2048, True)])
    rx.kick(force=True)
    stage.neighbour.transmit(stage.frame(3))
    ((_, length),) = stage.wait(lambda: list(rx.take_used()), "the buffer to be used")
    header = fe.memory.read(at, 12)
    if header[:10] != bytes(10):
        raise Failure(f"header {header.hex()} of a plain packet")
    if length != 112:
        raise Failure(f"{length} bytes used of a packet of 112")
