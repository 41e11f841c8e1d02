# SPDX-License-Identifier: BSD-2-Clause
"""V: protocol features that a back-end may have: configuration, announcement, state, requests of its own."""

from __future__ import annotations

import mmap
import os
import time
from contextlib import ExitStack

from vpt.conform.back_channel import BackChannel
from vpt.conform.case import Cases, Skip
from vpt.conform.front_end import ALL_PROTOCOL, Failure, FrontEnd
from vpt.conform.stage import MAC_GUEST, Stage, same
from vpt.vhost_user import (
    U64,
    BackendRequest,
    DeviceConfig,
    DeviceStateFd,
    Message,
    ProtocolFeature,
    Request,
    VringArea,
    VringState,
)

P = ProtocolFeature
CASES = Cases("features", "vhost-user")
case = CASES.case
RX = 0
TX = 1
ETHERTYPE_RARP = b"\x80\x35"
NET_CONFIG = 12  # bytes of struct virtio_net_config up to the MTU
CHANNEL = P.BACKEND_REQ | P.REPLY_ACK
INBAND = CHANNEL | P.INBAND_NOTIFICATIONS
PAGES = CHANNEL | P.BACKEND_SEND_FD | P.HOST_NOTIFIER


def config(fe: FrontEnd, offset: int, size: int) -> bytes:
    """A piece of the configuration space."""
    reply = fe.ask(Request.GET_CONFIG, DeviceConfig(offset, DeviceConfig.BY_DRIVER, bytes(size)))
    assert isinstance(reply, DeviceConfig)
    same("offset of the reply", reply.offset, offset)
    return reply.data


@case("V50-config", "GET_CONFIG gives as much as was asked for", protocol=P.CONFIG)
def _(stage: Stage) -> None:
    fe = stage.negotiated()
    same("bytes", len(config(fe, 0, NET_CONFIG)), NET_CONFIG)


@case("V50-config-in-pieces", "the pieces of the configuration are those of the whole", protocol=P.CONFIG)
def _(stage: Stage) -> None:
    fe = stage.negotiated()
    whole = config(fe, 0, NET_CONFIG)
    same("address, status, pairs and MTU", config(fe, 0, 6) + config(fe, 6, 2) + config(fe, 8, 4), whole)


@case(
    "V51-rarp",
    "SEND_RARP sends a RARP frame from the guest's address",
    source="vhost-user, VHOST_USER_SEND_RARP",
    protocol=P.RARP,
    peer=True,
)
def _(stage: Stage) -> None:
    fe = stage.started()
    fe.do(Request.SEND_RARP, U64(int.from_bytes(MAC_GUEST, "little")))

    def arrived() -> bool:
        heads = (received.frame[6:14] for received in stage.neighbour.poll())
        return any(head == MAC_GUEST + ETHERTYPE_RARP for head in heads)

    stage.wait(arrived, "a RARP frame at the peer port")


def moved(fe: FrontEnd, direction: int, state: bytes = b"") -> bytes:
    """Have the state saved, or loaded, by a suspended device; what was saved."""
    with ExitStack() as stack:
        ends = os.pipe()
        for fd in ends:
            stack.callback(os.close, fd)
        given = ends[1 if direction == DeviceStateFd.SAVE else 0]
        fe.send(Request.SET_DEVICE_STATE_FD, DeviceStateFd(direction, 0), [given])
        with fe.reply() as reply:
            assert isinstance(reply.payload, U64)
            same("error bits of the answer", reply.payload.value & 0xFF, 0)
            theirs = reply.take_fd()
            kept = os.dup(ends[0 if direction == DeviceStateFd.SAVE else 1]) if theirs is None else theirs
        stack.pop_all().close()  # else the end of the stream would never come
    with open(kept, "rb" if direction == DeviceStateFd.SAVE else "wb") as file:
        saved = file.read() if direction == DeviceStateFd.SAVE else b""
        if state:
            file.write(state)
    same("CHECK_DEVICE_STATE", fe.ask_u64(Request.CHECK_DEVICE_STATE), 0)
    return saved


@case(
    "V52-device-state",
    "the state that was saved can be loaded, and the device goes on",
    source="vhost-user, Migrating back-end state",
    protocol=P.DEVICE_STATE,
)
def _(stage: Stage) -> None:
    fe = stage.started()
    stage.works(fe)
    bases = [fe.stop_ring(index) for index in (RX, TX)]
    moved(fe, DeviceStateFd.LOAD, moved(fe, DeviceStateFd.SAVE))
    for index in (RX, TX):
        fe.start_ring(index, base=bases[index])
        fe.enable_ring(index)
    stage.works(fe)


def channel(stage: Stage, stack: ExitStack, fe: FrontEnd) -> BackChannel:
    """The other end of the back-end's requests."""
    back = stack.enter_context(BackChannel(fe))
    back.sock.settimeout(stage.limit_s)
    return back


@case(
    "V53-channel-replaced-and-gone",
    "the channel for the back-end's requests may be replaced, and closed",
    source="vhost-user, VHOST_USER_SET_BACKEND_REQ_FD",
    protocol=CHANNEL,
)
def _(stage: Stage) -> None:
    with ExitStack() as stack:
        fe = stage.started()
        for _ in range(3):
            channel(stage, stack, fe)
        stage.works(fe)
    stage.works(fe)


@case(
    "V53-channel-of-nonsense",
    "what is no answer on the channel harms neither rings nor connection",
    source="vhost-user, Back-end communication",
    protocol=CHANNEL,
)
def _(stage: Stage) -> None:
    with ExitStack() as stack:
        fe = stage.started()
        channel(stage, stack, fe).sock.sendall(b"x" * 64)
        stage.works(fe)


@case(
    "V54-in-band",
    "a VRING_KICK starts the ring, and has been acted on when it is acknowledged",
    source="vhost-user, VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS",
    protocol=INBAND,
)
def _(stage: Stage) -> None:
    with ExitStack() as stack:
        fe = stage.negotiated(int(ALL_PROTOCOL | P.INBAND_NOTIFICATIONS))
        back = channel(stage, stack, fe)
        fe.share_memory()
        fe.make_queues()
        tx = fe.pairs[0].tx
        fe.do(Request.SET_VRING_NUM, VringState(TX, tx.num))
        fe.do(Request.SET_VRING_ADDR, tx.addresses(TX))
        fe.enable_ring(TX)
        tx.want_calls()
        fe.queue_frame(stage.frame(1))
        tx.publish()
        fe.do(Request.VRING_KICK, VringState(TX, 0))
        same("frames taken", len(list(tx.take_used())), 1)
        same("the back-end's request", back.take().request, BackendRequest.VRING_CALL)


def page_given(stage: Stage, back: BackChannel, answer: int) -> Message:
    """The next request that gives a page."""
    end = time.monotonic() + stage.limit_s
    while back.waiting(max(0.0, end - time.monotonic())):
        message = back.take(answer=answer)
        if isinstance(message.payload, VringArea) and not message.payload.nofd:
            return message
        message.close()
    raise Skip(f"it gave no page in {stage.limit_s:g} s")


@case(
    "V55-page",
    "a page for kicks is a page, and lies within its file",
    source="vhost-user, VHOST_USER_BACKEND_VRING_HOST_NOTIFIER_MSG",
    protocol=PAGES,
)
def _(stage: Stage) -> None:
    with ExitStack() as stack:
        fe = stage.negotiated(int(ALL_PROTOCOL | PAGES))
        back = channel(stage, stack, fe)
        fe.share_memory()
        fe.make_queues()
        fe.start_rings()
        with page_given(stage, back, 0) as message:
            area = message.payload
            assert isinstance(area, VringArea)
            if area.index not in (RX, TX):
                raise Failure(f"for ring {area.index}, which does not run")
            same("bytes", area.size, mmap.PAGESIZE)
            with mmap.mmap(message.fds[0], area.size, offset=area.offset) as page:
                page[:2] = area.index.to_bytes(2, "little")
        fe.queue_frame(stage.frame(1))
        fe.pairs[0].tx.publish()  # no kick: as if it went to the page
        fe.flush()


@case(
    "V55-page-refused",
    "a front-end that has no place for a page is served by its kicks",
    source="vhost-user, VHOST_USER_BACKEND_VRING_HOST_NOTIFIER_MSG",
    protocol=PAGES,
)
def _(stage: Stage) -> None:
    with ExitStack() as stack:
        fe = stage.started(protocol=int(ALL_PROTOCOL | PAGES))
        page_given(stage, channel(stage, stack, fe), 1).close()
        stage.works(fe)
