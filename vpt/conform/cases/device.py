# SPDX-License-Identifier: BSD-2-Clause
"""V: what the virtio specification promises to a driver that behaves, and the rings' states."""

from __future__ import annotations

import os
from collections.abc import Callable

from vpt.conform.case import Cases
from vpt.conform.front_end import PLAIN, USUAL, Failure, FrontEnd
from vpt.conform.split_queue import Buffer
from vpt.conform.stage import Stage, same
from vpt.vhost_user import ProtocolFeature, Request, VirtioFeature

F = VirtioFeature
P = ProtocolFeature
CASES = Cases("device", "vhost-user")
case = CASES.case
RX = 0
TX = 1


def frames_until(stage: Stage, fe: FrontEnd, enough: Callable[[list[bytes]], bool]) -> list[bytes]:
    """The frames that come to a front-end until they are enough."""
    got: list[bytes] = []

    def look() -> bool:
        got.extend(r.frame for r in fe.poll())
        return enough(got)

    stage.wait(look, "frames to come")
    return got


@case("V7-transmit", "what a started and enabled ring holds is taken, all of it, in order")
def _(stage: Stage) -> None:
    fe = stage.started(num=16)
    frames = [stage.frame(n) for n in range(100)]
    for start in range(0, 100, 10):
        fe.transmit(*frames[start : start + 10])
        if stage.has_neighbour:
            stage.arrive(*frames[start : start + 10])


@case("V8-receive", "frames are put into receive buffers, all of them, in order", peer=True)
def _(stage: Stage) -> None:
    fe = stage.started(num=64)
    frames = [stage.frame(n, 60 + n) for n in range(48)]
    stage.neighbour.transmit(*frames)
    got = frames_until(stage, fe, lambda frames: len(frames) >= 48)
    same("frames", got == frames, True)


@case(
    "V9-disabled-transmit",
    "a started ring that is disabled discards what is to be sent",
    source="vhost-user, Ring states",
    protocol=P.MQ,
)
def _(stage: Stage) -> None:
    fe = stage.started()
    stage.works(fe)
    fe.enable_ring(TX, False)
    fe.ask(Request.GET_FEATURES)
    fe.transmit(stage.frame(1))
    fe.enable_ring(TX)
    fe.ask(Request.GET_FEATURES)
    fe.transmit(stage.frame(2))
    if stage.has_neighbour:
        got = frames_until(stage, stage.neighbour, lambda frames: stage.frame(2) in frames)
        same("frame of the disabled ring forwarded", stage.frame(1) in got, False)


@case(
    "V10-disabled-receive",
    "a started ring that is disabled is not filled",
    source="vhost-user, Ring states",
    protocol=P.MQ,
    peer=True,
)
def _(stage: Stage) -> None:
    fe = stage.started()
    fe.enable_ring(RX, False)
    fe.ask(Request.GET_FEATURES)
    before = fe.pairs[0].rx.used_idx
    stage.neighbour.transmit(*(stage.frame(n) for n in range(8)))
    stage.works(fe)  # behind the frames, in both directions
    same("buffers used", fe.pairs[0].rx.used_idx, before)


@case(
    "V9-disabled-until-kicked",
    "a ring starts at its first kick: until then one that is disabled discards nothing",
    source="vhost-user, Starting and stopping rings",
    protocol=P.MQ,
)
def _(stage: Stage) -> None:
    fe = stage.negotiated()
    fe.share_memory()
    fe.make_queues()
    for index in (RX, TX):
        fe.start_ring(index)
    fe.queue_frame(stage.frame(1))
    fe.pairs[0].tx.publish()
    fe.ask(Request.GET_FEATURES)
    for index in (RX, TX):
        fe.enable_ring(index)
    fe.driver_ok()
    fe.fill()
    fe.pairs[0].tx.kick(force=True)
    fe.flush()
    if stage.has_neighbour:
        stage.arrive(stage.frame(1))


@case(
    "V11-enabled-from-the-start",
    "rings are enabled from the start if PROTOCOL_FEATURES was not acknowledged",
    source="vhost-user, Ring states",
)
def _(stage: Stage) -> None:
    fe = stage.enter()
    fe.negotiate(None)
    fe.share_memory()
    fe.make_queues()
    for index in (RX, TX):
        fe.start_ring(index)
    fe.ask(Request.GET_FEATURES)
    fe.fill()
    stage.works(fe)


@case(
    "V14-suspended",
    "while all rings are stopped, memory is not written and nobody is called",
    source="vhost-user, Suspended device state",
    peer=True,
)
def _(stage: Stage) -> None:
    fe = stage.started()
    stage.works(fe)
    fe.poll()
    for index in (RX, TX):
        fe.stop_ring(index)
    for queue in fe.queues():
        queue.want_calls()
        queue.take_calls()
    region = fe.memory.regions[0]
    before = bytes(region.map)
    stage.neighbour.transmit(*(stage.frame(n) for n in range(32)))
    for queue in fe.queues():
        os.eventfd_write(queue.kick_fd, 1)
    fe.ask(Request.GET_FEATURES)
    same("memory changed", bytes(region.map) != before, False)
    same("calls", sum(queue.take_calls() for queue in fe.queues()), 0)


@case(
    "V15-calls",
    "a driver that asks to be called is, and one that does not ask is not",
    source="virtio 1.2, 2.7.7",
)
def _(stage: Stage) -> None:
    _called(stage, int(PLAIN))


@case(
    "V15-calls-event-idx",
    "a driver is called when the index passes its event",
    source="virtio 1.2, 2.7.7",
    virtio=F.EVENT_IDX,
)
def _(stage: Stage) -> None:
    _called(stage, int(PLAIN | F.EVENT_IDX))


@case(
    "V15-calls-packed",
    "the same of a packed ring",
    source="virtio 1.2, 2.8.10",
    virtio=F.RING_PACKED | F.EVENT_IDX,
)
def _(stage: Stage) -> None:
    _called(stage, int(PLAIN | F.EVENT_IDX | F.RING_PACKED))


def _called(stage: Stage, features: int) -> None:
    fe = stage.started(features=features)
    tx = fe.pairs[0].tx
    tx.want_calls()
    tx.take_calls()
    fe.transmit(stage.frame(1))
    if not tx.take_calls(stage.limit_s):
        raise Failure(f"not called in {stage.limit_s:g} s")
    tx.want_calls(wanted=False)
    tx.take_calls()
    fe.transmit(*(stage.frame(n) for n in range(8)))
    fe.ask(Request.GET_FEATURES)
    same("calls that nobody asked for", tx.take_calls(), 0)


@case(
    "V26-mergeable",
    "a frame longer than a buffer is spread over several, and their number told",
    source="virtio 1.2, 5.1.6.4",
    virtio=F.MRG_RXBUF,
    peer=True,
)
def _(stage: Stage) -> None:
    fe = stage.started(features=int(PLAIN | F.MRG_RXBUF), buffer_size=256)
    sent = stage.frame(7, 1000)
    stage.neighbour.transmit(sent)
    got = stage.wait(lambda: [r for r in fe.poll() if r.frame == sent], "the frame")
    same("buffers", got[0].buffers, 4)


@case(
    "V27-num-buffers-one",
    "num_buffers is 1 without mergeable buffers",
    source="virtio 1.2, 5.1.6.4.1",
    peer=True,
)
def _(stage: Stage) -> None:
    fe = stage.started(features=int(PLAIN))
    sent = stage.frame(8)
    stage.neighbour.transmit(sent)
    got = stage.wait(lambda: [r for r in fe.poll() if r.frame == sent], "the frame")
    same("num_buffers", int.from_bytes(got[0].header[10:12], "little"), 1)


@case(
    "V28-indirect",
    "a chain in an indirect table is one packet",
    source="virtio 1.2, 2.7.5.3",
    virtio=F.INDIRECT_DESC,
)
def _(stage: Stage) -> None:
    fe = stage.started(features=int(PLAIN | F.INDIRECT_DESC))
    fe.transmit(stage.frame(9, 500), sizes=[12, 100, 100], indirect=True)
    if stage.has_neighbour:
        stage.arrive(stage.frame(9, 500))


@case(
    "V29-in-order",
    "buffers are used in the order in which they were made available",
    source="virtio 1.2, 2.7.9",
    virtio=F.IN_ORDER,
)
def _(stage: Stage) -> None:
    fe = stage.started(features=int(PLAIN | F.IN_ORDER), num=16)
    tx = fe.pairs[0].tx
    heads = []
    for n in range(16):
        heads.append(tx.peek_free(1)[0])
        fe.queue_frame(stage.frame(n))
    tx.kick()
    stage.wait(lambda: tx.used_idx == 16, "all to be used")
    same("order", [head for head, _ in tx.take_used()] == heads, True)


@case(
    "V30-read-only",
    "buffers that the device may only read are not written",
    source="virtio 1.2, 2.7.5",
)
def _(stage: Stage) -> None:
    fe = stage.started()
    p = fe.pairs[0]
    size = p.tx.num * fe.buffer_size
    for n in range(32):
        fe.queue_frame(stage.frame(n))
    before = fe.memory.read(p.tx_buffers, size)
    p.tx.kick()
    fe.flush()
    same("transmit buffers changed", fe.memory.read(p.tx_buffers, size) != before, False)


@case(
    "V31-write-only-what-was-used",
    "bytes of a receive buffer beyond the used length are as they were",
    source="virtio 1.2, 2.7.8.2",
    peer=True,
)
def _(stage: Stage) -> None:
    fe = stage.started(fill=0, features=int(PLAIN))
    rx = fe.pairs[0].rx
    at = fe.memory.alloc(2048, 64)
    fe.memory.write(at, b"\x5a" * 2048)
    rx.add([Buffer(at, 2048, True)])
    rx.kick(force=True)
    stage.neighbour.transmit(stage.frame(3, 64))
    ((_, length),) = stage.wait(lambda: list(rx.take_used()), "the buffer to be used")
    same(
        "bytes changed behind the frame",
        fe.memory.read(at + length, 2048 - length) != b"\x5a" * (2048 - length),
        False,
    )


@case("V33-usual", "all that QEMU usually negotiates, together", virtio=USUAL)
def _(stage: Stage) -> None:
    fe = stage.started(features=int(USUAL), num=256)
    for n in range(20):
        burst = [stage.frame(n * 30 + i) for i in range(30)]
        fe.transmit(*burst)
        if stage.has_neighbour:
            stage.arrive(*burst)
