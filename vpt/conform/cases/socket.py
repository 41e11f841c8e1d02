# SPDX-License-Identifier: BSD-2-Clause
"""S: what a hostile front-end can do with its socket alone."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from struct import pack

from vpt.conform.case import Cases
from vpt.conform.front_end import ALL_PROTOCOL, PLAIN, USUAL, Failure, FrontEnd
from vpt.conform.stage import Stage
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
    encode,
    send_message,
)

F = VirtioFeature
P = ProtocolFeature
CASES = Cases("socket", "checklist")
case = CASES.case
FOREIGN_BITS = (
    2,
    24,
    37,
    38,
    50,
    63,
)  # virtio bits that a vhost-user back-end has no use for, or that are reserved
MANY = 2000
GET_CONFIG, SET_CONFIG = 24, 25

Wire = tuple[str, Request, Payload | None, int]  # words for an id, a message, how many descriptors


def head(request: int, flags: int = 1, size: int = 0) -> bytes:
    """A header of one's own."""
    return pack("=III", request, flags, size)


def one_eventfd(fe: FrontEnd) -> int:
    """A descriptor that lives as long as the front-end."""
    if not fe.pairs:
        fe.make_queues()
    return fe.queues()[0].kick_fd


def negotiated(stage: Stage, mask: int = int(ALL_PROTOCOL)) -> FrontEnd:
    """A connection that has an owner and features, and no more."""
    fe = stage.enter()
    fe.negotiate(mask)
    return fe


# ---- the stream itself: what follows has no meaning any more ----


def _cut(n: int) -> Callable[[Stage], None]:
    def act(stage: Stage) -> None:
        fe = stage.enter()
        fe.sock.send(head(Request.GET_FEATURES)[:n])
        stage.leave(fe)

    return act


for _n in (1, 4, 8, 11):
    CASES.add(f"S1-header-cut-at-{_n}", "a connection that ends inside of a header does no harm", _cut(_n))


@case("S2-byte-by-byte", "a header may come byte by byte")
def _(stage: Stage) -> None:
    fe = stage.enter()
    for byte in head(Request.GET_FEATURES):
        fe.sock.send(bytes([byte]))
        time.sleep(0.002)
    fe.reply()


@case("S2-slow-sender", "while one front-end is in the middle of a message, others' frames pass", peer=True)
def _(stage: Stage) -> None:
    fe = stage.enter()
    fe.sock.send(head(Request.SET_FEATURES, size=8)[:7])
    neighbour = stage.neighbour
    for n in range(10):
        neighbour.transmit(stage.frame(n))


def _ended(data: bytes) -> Callable[[Stage], None]:
    """These bytes make the stream meaningless: the connection must end."""

    def act(stage: Stage) -> None:
        fe = negotiated(stage, int(ALL_PROTOCOL & ~P.REPLY_ACK))
        fe.sock.send(data)
        stage.ends(fe)

    return act


for _name, _data in {
    "S3-size-of-4-GiB": head(Request.SET_FEATURES, size=0xFFFFFFFF),
    "S3-size-of-64-KiB": head(Request.SET_FEATURES, size=65536),
    "S3-unknown-request-of-4-GiB": head(77, size=0xFFFFFFFF),
}.items():
    CASES.add(_name, "a payload larger than any ends the connection", _ended(_data))
for _name, _data in {
    "S4-size-below-payload": head(Request.SET_FEATURES, size=4) + bytes(4),
    "S4-no-payload": head(Request.SET_FEATURES),
    "S4-memory-table-cut": head(Request.SET_MEM_TABLE, size=12) + pack("=III", 1, 0, 0),
}.items():
    CASES.add(_name, "a payload smaller than the request's is not made up", _ended(_data))
for _version in (0, 2, 3):
    CASES.add(
        f"S6-version-{_version}",
        "a message of another version is not acted on",
        _ended(head(Request.GET_FEATURES, _version)),
        source="vhost-user, Header",
    )
CASES.add("S7-reserved-flags", "reserved flags are not accepted", _ended(head(Request.GET_FEATURES, 0x11)))
CASES.add("S8-reply-flag", "a reply is no request", _ended(head(Request.GET_FEATURES, 5)))


@case("S5-payload-never-sent", "a payload that is never sent delays nobody else", peer=True)
def _(stage: Stage) -> None:
    fe = stage.enter()
    fe.sock.send(head(Request.SET_FEATURES, size=8) + b"123")
    for n in range(10):
        stage.neighbour.transmit(stage.frame(n))


# ---- requests out of place ----


for _request in (0, 6, 77, 0xFFFFFFFF):

    @case(f"S9-request-{_request}", "an unknown request is refused, and does not go unanswered if it asks")
    def _(stage: Stage, request: int = _request) -> None:
        fe = negotiated(stage)
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
        fe = negotiated(stage, 0)
        fe.send(request, payload)
        stage.settles(fe)


WITHOUT_FDS: tuple[Wire, ...] = (
    ("set-owner", Request.SET_OWNER, None, 1),
    ("get-features", Request.GET_FEATURES, None, 8),
    ("vring-num", Request.SET_VRING_NUM, VringState(0, 64), 1),
    ("vring-enable", Request.SET_VRING_ENABLE, VringState(0, 0), 3),
)

for _name, _request, _payload, _fds in WITHOUT_FDS:

    @case(f"S11-{_name}", "descriptors with a message that takes none are not kept (CVE-2019-14818)")
    def _(stage: Stage, request: int = _request, payload: Payload | None = _payload, fds: int = _fds) -> None:
        fe = negotiated(stage)
        fd = one_eventfd(fe)
        for _ in range(50):
            with contextlib.suppress(ConnectionError):
                fe.send(request, payload, [fd] * fds)
        stage.settles(fe)


@case("S12-kick", "a kick without descriptor and without NOFD is refused")
def _(stage: Stage) -> None:
    stage.refused(negotiated(stage), Request.SET_VRING_KICK, VringFd(0))


@case("S12-memory", "regions without descriptors are refused")
def _(stage: Stage) -> None:
    region = pack("=QQQQ", 0x4000_0000, 0x100000, 0x7000_4000_0000, 0)
    stage.refused(negotiated(stage), Request.SET_MEM_TABLE, Opaque(pack("=II", 1, 0) + region))


for _count in (2, 9, 200):

    @case(f"S13-{_count}-descriptors", "more descriptors than a message has are not kept")
    def _(stage: Stage, count: int = _count) -> None:
        fe = negotiated(stage)
        fd = one_eventfd(fe)
        stage.refused(fe, Request.SET_VRING_CALL, VringFd(0), [fd] * count)


for _name, _request in (
    ("kick", Request.SET_VRING_KICK),
    ("call", Request.SET_VRING_CALL),
    ("err", Request.SET_VRING_ERR),
):

    @case(f"S15-{_name}", f"the same message {MANY} times holds one descriptor")
    def _(stage: Stage, request: int = _request) -> None:
        fe = stage.started()
        fd = one_eventfd(fe)
        before = stage.backend.holdings()
        for _ in range(MANY):
            fe.send(request, VringFd(0), [fd])
        fe.ask(Request.GET_FEATURES)
        now = stage.backend.holdings()
        if before and now and now.fds > before.fds + 2:
            raise Failure(f"{now.fds - before.fds} descriptors more")
        stage.works(fe)


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
        fe.send(request, payload, [one_eventfd(fe)] * fds)
        stage.settles(fe)


for _bit in FOREIGN_BITS:

    @case(
        f"S17-bit-{_bit}",
        "a feature that is not offered cannot be had",
        source="vhost-user, VHOST_USER_SET_FEATURES",
    )
    def _(stage: Stage, bit: int = _bit) -> None:
        fe = negotiated(stage)
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
        "features without those that they need are refused",
        source="virtio 1.2, 5.1.3.1",
        virtio=_bits,
    )
    def _(stage: Stage, bits: int = int(_bits)) -> None:
        fe = negotiated(stage)
        stage.refused(fe, Request.SET_FEATURES, U64(int(PLAIN) | bits))


@case("S20-unoffered-protocol-features", "protocol features that are not offered are refused")
def _(stage: Stage) -> None:
    fe = negotiated(stage)
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


# ---- rings that are not there, values that cannot be ----


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
            fe = negotiated(stage)
            request, payload, fds = make(index)
            stage.refused(fe, request, payload, [one_eventfd(fe)] * fds)


@case("S21-get-base-0xffff0000", "a ring index is not cut to fewer bits (CVE-2020-10723)")
def _(stage: Stage) -> None:
    fe = negotiated(stage)
    fe.send(Request.GET_VRING_BASE, VringState(0xFFFF0000, 0))
    stage.settles(fe)


for _num in (0, 3, 65536, 0x80000000):

    @case(f"S22-size-{_num}", "a split ring has 1 to 32768 places, a power of two", source="virtio 1.2, 2.7")
    def _(stage: Stage, num: int = _num) -> None:
        fe = stage.enter()
        fe.negotiate()
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
    fe = negotiated(stage)
    for n in range(MANY):
        fe.send(Request.SET_VRING_NUM, VringState(n % 2, 64 << n % 3))
    fe.ask(Request.GET_FEATURES)


@case("S23-base-of-17-bits", "the base of a split ring has 16 bits")
def _(stage: Stage) -> None:
    fe = stage.enter()
    fe.negotiate()
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
    fe = negotiated(stage)
    fe.send(Request.SET_VRING_ENABLE, VringState(0, 2))
    stage.settles(fe)


# ---- descriptors that are not what they should be ----


def strange_fd(kind: str) -> int:
    """Something that is no eventfd."""
    if kind == "file":
        return os.memfd_create("file")
    if kind == "pipe":
        r, w = os.pipe()
        os.close(w)
        return r
    if kind == "socket":
        return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()
    return os.open("/", os.O_RDONLY | os.O_DIRECTORY)


for _kind in ("file", "pipe", "socket", "directory"):
    for _name, _request in (("kick", Request.SET_VRING_KICK), ("call", Request.SET_VRING_CALL)):

        @case(f"S25-{_name}-{_kind}", "a descriptor that is no eventfd stops nobody else", peer=True)
        def _(stage: Stage, request: int = _request, kind: str = _kind) -> None:
            fe = stage.started()
            fd = strange_fd(kind)
            try:
                stage.answer(fe, request, VringFd(1), [fd])
            finally:
                os.close(fd)
            with contextlib.suppress(ConnectionError, TimeoutError, Failure):
                fe.queue_frame(stage.frame(1))
                fe.pairs[0].tx.want_calls()
                fe.pairs[0].tx.kick(force=True)
            for n in range(10):
                stage.neighbour.transmit(stage.frame(n))


@case("S25-always-readable", "a kick that is always readable stops nobody else", peer=True)
def _(stage: Stage) -> None:
    fe = stage.started()
    storm = os.eventfd(1 << 30, os.EFD_SEMAPHORE)
    for index in (0, 1):
        fe.set_kick(index, storm)
    os.close(storm)
    for n in range(10):
        stage.neighbour.transmit(stage.frame(n))


@case("S26-full-call", "a call descriptor that is full and blocking stops nobody", peer=True)
def _(stage: Stage) -> None:
    fe = stage.started()
    full = os.eventfd(0)
    try:
        for index in (0, 1):
            fe.set_call(index, full)
        fe.ask(Request.GET_FEATURES)
        for queue in fe.queues():
            queue.want_calls()
        os.set_blocking(full, False)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(full)
        os.eventfd_write(full, (1 << 64) - 2)
        os.set_blocking(full, True)
        try:
            for n in range(10):
                fe.queue_frame(stage.frame(n))
                fe.pairs[0].tx.kick(force=True)
                stage.neighbour.transmit(stage.frame(n))
        finally:
            os.set_blocking(full, False)
            os.eventfd_read(full)  # whoever sleeps wakes up
    finally:
        os.close(full)


@case("S27-nofd", "rings without any descriptors do no harm")
def _(stage: Stage) -> None:
    fe = stage.started()
    for index in (0, 1):
        fe.set_call(index, None)
        fe.set_kick(index, None)
    stage.settles(fe)


@case("S28-kick-is-call", "one eventfd for kick and call stops nobody else", peer=True)
def _(stage: Stage) -> None:
    fe = stage.started()
    both = os.eventfd(1, os.EFD_NONBLOCK)
    for index in (0, 1):
        fe.set_call(index, both)
        fe.set_kick(index, both)
    os.close(both)
    for n in range(10):
        stage.neighbour.transmit(stage.frame(n))


for _mtu in (0, 67, 65536):

    @case(f"S29-mtu-{_mtu}", "an MTU that cannot be is refused", protocol=P.NET_MTU)
    def _(stage: Stage, mtu: int = _mtu) -> None:
        stage.refused(negotiated(stage), Request.NET_SET_MTU, U64(mtu))


for _name, _payload_bytes in (
    ("offset-wraps", pack("=III", 0xFFFFFFFF, 256, 0) + bytes(256)),
    ("size-0", pack("=III", 0, 0, 0)),
    ("size-above-256", pack("=III", 0, 0xFFFF, 0) + bytes(256)),
):

    @case(f"S30-get-config-{_name}", "a piece of the configuration space that is not there is not given")
    def _(stage: Stage, payload: bytes = _payload_bytes) -> None:
        fe = negotiated(stage)
        fe.sock.send(head(GET_CONFIG, size=len(payload)) + payload)
        stage.settles(fe)


@case("S31-replies-not-read", "replies that nobody reads stop nobody else", peer=True)
def _(stage: Stage) -> None:
    fe = stage.enter()
    fe.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    fe.sock.setblocking(False)
    with contextlib.suppress(BlockingIOError, ConnectionError):
        for _ in range(2000):
            fe.sock.send(head(Request.GET_FEATURES) * 100)
    for n in range(10):
        stage.neighbour.transmit(stage.frame(n))


@case("S32-second-client", "a second front-end does not harm the first")
def _(stage: Stage) -> None:
    fe = stage.started()
    for _ in range(20):
        with contextlib.suppress(OSError), stage.backend.door.open(0.05) as second:
            second.settimeout(0.05)
            second.recv(1)
    if not stage.backend.door.listens:
        stage.works(fe)


@case("S33-disconnects", "200 front-ends that leave in the middle of a message, or of a burst, leave nothing")
def _(stage: Stage) -> None:
    for n in range(200):
        with contextlib.suppress(OSError):
            if n % 20 == 0:
                fe = stage.started(num=16, buffer_size=256)
                for _ in range(16):
                    fe.queue_frame(stage.frame(n))
                fe.pairs[0].tx.kick(force=True)
                stage.leave(fe)
            else:
                with stage.backend.door.open(stage.limit_s) as sock:
                    sock.send(head(Request.GET_FEATURES)[: n % 13])


@case("S33-messages-at-once", "a burst of messages in one write is taken message by message")
def _(stage: Stage) -> None:
    fe = stage.enter()
    fe.sock.send(head(Request.GET_FEATURES) * 20)
    for _ in range(20):
        fe.reply()


@case("S33-closed-while-starting", "a front-end that leaves while its rings start leaves nothing")
def _(stage: Stage) -> None:
    for _ in range(20):
        fe = negotiated(stage, int(ALL_PROTOCOL & ~P.REPLY_ACK))
        fe.share_memory()
        fe.make_queues()
        data = b"".join(
            encode(request, payload)
            for request, payload in (
                (Request.SET_VRING_NUM, VringState(1, fe.num)),
                (Request.SET_VRING_ADDR, fe.queues()[1].addresses(1)),
            )
        )
        send_message(fe.sock, data)
        fe.set_kick(1, fe.queues()[1].kick_fd)
        stage.leave(fe)


@case("V35-messages-under-traffic", "messages while a burst is on its way are acted on")
def _(stage: Stage) -> None:
    fe = stage.started()
    stop = threading.Event()

    def kick() -> None:
        while not stop.is_set():
            os.eventfd_write(fe.queues()[1].kick_fd, 1)
            time.sleep(0.0001)

    thread = threading.Thread(target=kick)
    thread.start()
    try:
        for n in range(50):
            fe.share_memory()
            fe.transmit(stage.frame(n))
    finally:
        stop.set()
        thread.join()
