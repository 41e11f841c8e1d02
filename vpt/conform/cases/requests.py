# SPDX-License-Identifier: BSD-2-Clause
"""S: requests out of place: unknown, not negotiated, of no ring, with values that cannot be."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from struct import pack

from vpt.conform.case import Cases
from vpt.conform.front_end import PLAIN, USUAL, Failure
from vpt.conform.stage import Stage, head
from vpt.vhost_user import (
    U64,
    Opaque,
    Payload,
    ProtocolFeature,
    Request,
    VirtioFeature,
    VringAddr,
    VringFd,
    VringState,
)

F = VirtioFeature
P = ProtocolFeature
CASES = Cases("requests", "checklist")
case = CASES.case
FOREIGN_BITS = (2, 24, 37, 38, 50, 63)  # of no use to a vhost-user back-end, or reserved
MANY = 2000
GET_CONFIG = 24
Wire = tuple[str, Request, Payload | None, int]  # words for an id, a message, descriptors


for _request in (0, 77, 0xFFFFFFFF):

    @case(f"S9-request-{_request}", "an unknown request is refused, and does not go unanswered if it asks")
    def _(stage: Stage, request: int = _request) -> None:
        fe = stage.negotiated()
        stage.refused(fe, request, Opaque(b"12345678"))


NEEDING: tuple[tuple[Request, Payload | None, ProtocolFeature], ...] = (
    (Request.GET_QUEUE_NUM, None, P.MQ),
    (Request.NET_SET_MTU, U64(1500), P.NET_MTU),
    (Request.RESET_DEVICE, None, P.RESET_DEVICE),
    (Request.GET_MAX_MEM_SLOTS, None, P.CONFIGURE_MEM_SLOTS),
    (Request.REM_MEM_REG, Opaque(bytes(40)), P.CONFIGURE_MEM_SLOTS),
    (Request.SET_STATUS, U64(1), P.STATUS),
    (Request.GET_STATUS, None, P.STATUS),
)


for _request, _payload, _feature in NEEDING:

    @case(
        f"S10-{_request.name.lower().replace('_', '-')}",
        "a request whose feature was not negotiated does no harm",
        protocol=_feature,
    )
    def _(stage: Stage, request: int = _request, payload: Payload | None = _payload) -> None:
        fe = stage.negotiated(0)
        fe.send(request, payload)
        stage.settles(fe)


TOO_EARLY: tuple[Wire, ...] = (
    ("memory", Request.SET_MEM_TABLE, Opaque(pack("=II", 1, 0) + bytes(32)), 1),
    ("ring", Request.SET_VRING_NUM, VringState(0, 64), 0),
    ("kick", Request.SET_VRING_KICK, VringFd(0), 1),
    ("base", Request.GET_VRING_BASE, VringState(0, 0), 0),
)


for _name, _request, _payload, _fds in TOO_EARLY:

    @case(f"S16-{_name}", "messages before SET_OWNER and SET_FEATURES do no harm")
    def _(stage: Stage, request: int = _request, payload: Payload | None = _payload, fds: int = _fds) -> None:
        fe = stage.enter()
        fe.send(request, payload, [stage.eventfd(fe)] * fds)
        stage.settles(fe)


for _bit in FOREIGN_BITS:

    @case(
        f"S17-bit-{_bit}",
        "a feature that is not offered cannot be had",
        source="vhost-user, VHOST_USER_SET_FEATURES",
    )
    def _(stage: Stage, bit: int = _bit) -> None:
        fe = stage.negotiated()
        if fe.offered >> bit & 1:
            return  # offered: then it may be had
        stage.refused(fe, Request.SET_FEATURES, U64(fe.features | 1 << bit))


@case("S18-features-while-running", "other features while rings run are refused, or do no harm")
def _(stage: Stage) -> None:
    fe = stage.started(features=int(USUAL))
    fe.send(Request.SET_FEATURES, U64(int(PLAIN)))
    if stage.settles(fe):
        fe.queue_frame(stage.frame(1))
        fe.pairs[0].tx.kick(force=True)
        fe.ask(Request.GET_FEATURES)


for _name, _bits in (
    ("tso-without-csum", F.HOST_TSO4),
    ("guest-tso-without-csum", F.GUEST_TSO6),
    ("ecn-without-tso", F.CSUM | F.HOST_ECN),
):

    @case(
        f"S19-{_name}",
        "offloads without those that they need are refused, or do no harm",
        source="virtio 1.2, 5.1.3.1",
        virtio=_bits,
    )
    def _(stage: Stage, bits: int = int(PLAIN | _bits)) -> None:
        fe = stage.negotiated()
        fe.send(Request.SET_FEATURES, U64(bits))
        if stage.settles(fe):
            fe.ask(Request.GET_FEATURES)


for _name, _bits in (("packed", F.RING_PACKED), ("in-order", F.IN_ORDER)):

    @case(
        f"S19-{_name}-without-version-1",
        "features without those that they need are refused",
        source="virtio 1.2, 2.2.3 and 6.1",
        virtio=_bits,
    )
    def _(stage: Stage, bits: int = int(F.PROTOCOL_FEATURES | _bits)) -> None:
        fe = stage.negotiated()
        stage.refused(fe, Request.SET_FEATURES, U64(bits))


@case("S20-unoffered-protocol-features", "protocol features that are not offered are refused")
def _(stage: Stage) -> None:
    fe = stage.negotiated()
    offered = fe.ask_u64(Request.GET_PROTOCOL_FEATURES)
    stage.refused(fe, Request.SET_PROTOCOL_FEATURES, U64(offered | 1 << 63))


@case(
    "S20-in-band-alone",
    "in-band notifications without BACKEND_REQ and REPLY_ACK end the connection",
    source="vhost-user, VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS",
)
def _(stage: Stage) -> None:
    fe = stage.enter()
    fe.ask(Request.GET_FEATURES)
    fe.send(Request.SET_PROTOCOL_FEATURES, U64(1 << 14))
    with contextlib.suppress(ConnectionError):
        fe.send(Request.SET_OWNER)
        fe.send(Request.SET_FEATURES, U64(int(PLAIN)))
        fe.ask(Request.GET_FEATURES)
        raise Failure("accepted")


INDEXED: dict[str, Callable[[int], tuple[int, Payload, int]]] = {
    "num": lambda i: (Request.SET_VRING_NUM, VringState(i, 64), 0),
    "addr": lambda i: (Request.SET_VRING_ADDR, VringAddr(i, 0, 0, 0, 0, 0), 0),
    "base": lambda i: (Request.SET_VRING_BASE, VringState(i, 0), 0),
    "enable": lambda i: (Request.SET_VRING_ENABLE, VringState(i, 1), 0),
    "kick": lambda i: (Request.SET_VRING_KICK, U64(i), 1),
    "call": lambda i: (Request.SET_VRING_CALL, U64(i), 1),
    "err": lambda i: (Request.SET_VRING_ERR, U64(i), 1),
}


for _name, _make in INDEXED.items():
    for _index in (0xFFFF0000, 0x10000, 0x100):
        if _index == 0x100 and _name in ("kick", "call", "err"):
            continue  # there it says NOFD

        @case(f"S21-{_name}-{_index:#x}", "a ring index is not cut to fewer bits (CVE-2020-10723)")
        def _(
            stage: Stage, make: Callable[[int], tuple[int, Payload, int]] = _make, index: int = _index
        ) -> None:
            fe = stage.negotiated()
            request, payload, fds = make(index)
            stage.refused(fe, request, payload, [stage.eventfd(fe)] * fds)


@case("S21-get-base-0xffff0000", "a ring index is not cut to fewer bits (CVE-2020-10723)")
def _(stage: Stage) -> None:
    fe = stage.negotiated()
    fe.send(Request.GET_VRING_BASE, VringState(0xFFFF0000, 0))
    stage.settles(fe)


for _num in (0, 3, 65536, 0x80000000):

    @case(f"S22-size-{_num}", "a split ring has 1 to 32768 places, a power of two", source="virtio 1.2, 2.7")
    def _(stage: Stage, num: int = _num) -> None:
        fe = stage.negotiated()
        fe.share_memory()
        fe.make_queues()
        queue = fe.queues()[1]
        for request, payload, fds in (
            (Request.SET_VRING_NUM, VringState(1, num), []),
            (Request.SET_VRING_BASE, VringState(1, 0), []),
            (Request.SET_VRING_ADDR, queue.addresses(1), []),
            (Request.SET_VRING_KICK, VringFd(1), [queue.kick_fd]),
        ):
            if stage.answer(fe, request, payload, fds).refused:
                return
        raise Failure("accepted, and started")


@case("S22-size-while-running", "a running ring keeps its size")
def _(stage: Stage) -> None:
    stage.refused(stage.started(), Request.SET_VRING_NUM, VringState(1, 32))


@case("S22-size-again-and-again", f"a size told {MANY} times holds no more memory")
def _(stage: Stage) -> None:
    fe = stage.negotiated()
    for n in range(MANY):
        fe.send(Request.SET_VRING_NUM, VringState(n % 2, 64 << n % 3))
    fe.ask(Request.GET_FEATURES)


@case("S23-base-of-17-bits", "the base of a split ring has 16 bits")
def _(stage: Stage) -> None:
    fe = stage.negotiated()
    fe.share_memory()
    fe.make_queues()
    answer = stage.answer(fe, Request.SET_VRING_BASE, VringState(1, 0x1_0000))
    if not answer.refused:
        fe.start_ring(1, base=0x1_0000)
        fe.enable_ring(1)
        stage.settles(fe)


@case("S24-enable-twice", "enabling and disabling again and again changes nothing", protocol=P.MQ)
def _(stage: Stage) -> None:
    fe = stage.started()
    for n in range(100):
        fe.enable_ring(1, bool(n % 3))
    fe.enable_ring(1)
    fe.ask(Request.GET_FEATURES)
    stage.works(fe)


@case("S24-enable-2", "enable is 0 or 1", protocol=P.MQ)
def _(stage: Stage) -> None:
    fe = stage.negotiated()
    fe.send(Request.SET_VRING_ENABLE, VringState(0, 2))
    stage.settles(fe)


for _mtu in (0, 67, 65536):

    @case(f"S29-mtu-{_mtu}", "an MTU that cannot be is refused", protocol=P.NET_MTU)
    def _(stage: Stage, mtu: int = _mtu) -> None:
        stage.refused(stage.negotiated(), Request.NET_SET_MTU, U64(mtu))


for _name, _payload_bytes in (
    ("offset-wraps", pack("=III", 0xFFFFFFFF, 256, 0) + bytes(256)),
    ("size-0", pack("=III", 0, 0, 0)),
    ("size-above-256", pack("=III", 0, 0xFFFF, 0) + bytes(256)),
):

    @case(f"S30-get-config-{_name}", "a piece of the configuration space that is not there is not given")
    def _(stage: Stage, payload: bytes = _payload_bytes) -> None:
        fe = stage.negotiated()
        fe.sock.send(head(GET_CONFIG, size=len(payload)) + payload)
        stage.settles(fe)
