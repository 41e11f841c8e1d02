# SPDX-License-Identifier: BSD-2-Clause
"""S: what a hostile front-end can do to the stream of messages, and with descriptors."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from struct import pack

from vpt.conform.case import Cases
from vpt.conform.front_end import ALL_PROTOCOL, Failure
from vpt.conform.mischief import STRANGE_FDS, strange_fd
from vpt.conform.stage import Stage, head
from vpt.vhost_user import (
    Opaque,
    Payload,
    ProtocolFeature,
    Request,
    VringFd,
    VringState,
    encode,
    send_message,
)

P = ProtocolFeature
CASES = Cases("socket", "checklist")
case = CASES.case
MANY = 2000
Wire = tuple[str, Request, Payload | None, int]  # words for an id, a message, descriptors


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
        fe = stage.negotiated(int(ALL_PROTOCOL & ~P.REPLY_ACK))
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


WITHOUT_FDS: tuple[Wire, ...] = (
    ("set-owner", Request.SET_OWNER, None, 1),
    ("get-features", Request.GET_FEATURES, None, 8),
    ("vring-num", Request.SET_VRING_NUM, VringState(0, 64), 1),
    ("vring-enable", Request.SET_VRING_ENABLE, VringState(0, 0), 3),
)


for _name, _request, _payload, _fds in WITHOUT_FDS:

    @case(f"S11-{_name}", "descriptors with a message that takes none are not kept (CVE-2019-14818)")
    def _(stage: Stage, request: int = _request, payload: Payload | None = _payload, fds: int = _fds) -> None:
        fe = stage.negotiated()
        fd = stage.eventfd(fe)
        for _ in range(50):
            with contextlib.suppress(ConnectionError):
                fe.send(request, payload, [fd] * fds)
        stage.settles(fe)


@case("S12-kick", "a kick without descriptor and without NOFD is refused")
def _(stage: Stage) -> None:
    stage.refused(stage.negotiated(), Request.SET_VRING_KICK, VringFd(0))


@case("S12-memory", "regions without descriptors are refused")
def _(stage: Stage) -> None:
    region = pack("=QQQQ", 0x4000_0000, 0x100000, 0x7000_4000_0000, 0)
    stage.refused(stage.negotiated(), Request.SET_MEM_TABLE, Opaque(pack("=II", 1, 0) + region))


for _count in (2, 9, 200):

    @case(f"S13-{_count}-descriptors", "more descriptors than a message has are not kept")
    def _(stage: Stage, count: int = _count) -> None:
        fe = stage.negotiated()
        fd = stage.eventfd(fe)
        stage.refused(fe, Request.SET_VRING_CALL, VringFd(0), [fd] * count)


for _name, _request in (
    ("kick", Request.SET_VRING_KICK),
    ("call", Request.SET_VRING_CALL),
    ("err", Request.SET_VRING_ERR),
):

    @case(f"S15-{_name}", f"the same message {MANY} times holds one descriptor")
    def _(stage: Stage, request: int = _request) -> None:
        fe = stage.started()
        fd = stage.eventfd(fe)
        before = stage.backend.holdings()
        for _ in range(MANY):
            fe.send(request, VringFd(0), [fd])
        fe.ask(Request.GET_FEATURES)
        if before:

            def let_go() -> bool:
                """A back-end may close what it has no more use for when it has the time."""
                now = stage.backend.holdings()
                return now is None or now.fds <= before.fds + 2

            stage.wait(let_go, f"all but one of {MANY} descriptors to be closed")
        stage.works(fe)


for _kind in STRANGE_FDS:
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
        fe = stage.negotiated(int(ALL_PROTOCOL & ~P.REPLY_ACK))
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
