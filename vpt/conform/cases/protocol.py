# SPDX-License-Identifier: BSD-2-Clause
"""V: what the vhost-user specification promises to a front-end that behaves."""

from __future__ import annotations

import os
from collections.abc import Callable

from vpt.conform.case import Cases, Skip
from vpt.conform.front_end import ALL_PROTOCOL, PLAIN, USUAL, Failure, FrontEnd
from vpt.conform.guest_memory import GPA_BASE, MIB, PAGE, Span
from vpt.conform.split_queue import Buffer
from vpt.conform.stage import Stage
from vpt.vhost_user import U64, MemTable, ProtocolFeature, Request, VirtioFeature, VringState

F = VirtioFeature
P = ProtocolFeature
CASES = Cases("protocol", "vhost-user")
case = CASES.case
RX, TX = 0, 1
MOST_SLOTS = 509  # what QEMU's and rust-vmm's own back-ends have


def frames_until(stage: Stage, fe: FrontEnd, enough: Callable[[list[bytes]], bool]) -> list[bytes]:
    """The frames that come to a front-end until they are enough."""
    got: list[bytes] = []

    def look() -> bool:
        got.extend(r.frame for r in fe.poll())
        return enough(got)

    stage.wait(look, "frames to come")
    return got


def same(what: str, seen: object, wanted: object) -> None:
    """Fail unless they are equal."""
    if seen != wanted:
        raise Failure(f"{what}: {seen}, not {wanted}")


@case(
    "V1-features",
    "GET_FEATURES is answered the same way each time",
    source="vhost-user, Front-end message types",
)
def _(stage: Stage) -> None:
    fe = stage.enter()
    same("second answer", fe.ask_u64(Request.GET_FEATURES), fe.ask_u64(Request.GET_FEATURES))


@case("V2-version-1", "VIRTIO_F_VERSION_1 is offered", source="virtio 1.2, 6.1")
def _(stage: Stage) -> None:
    if not stage.enter().ask_u64(Request.GET_FEATURES) & F.VERSION_1:
        raise Failure("a modern driver has nothing to talk to")


@case(
    "V3-reply-ack",
    "with need_reply each message is acknowledged, with 0 if it was done",
    source="vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK",
    protocol=P.REPLY_ACK,
)
def _(stage: Stage) -> None:
    fe = stage.started()  # asks for an acknowledgement of each message on the way
    same("GET_FEATURES", fe.ask_u64(Request.GET_FEATURES), fe.offered)


@case(
    "V4-no-reply-unasked",
    "without need_reply nothing is acknowledged",
    source="vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK",
)
def _(stage: Stage) -> None:
    fe = stage.enter()
    fe.negotiate(int(ALL_PROTOCOL & ~P.REPLY_ACK))
    fe.share_memory()
    fe.make_queues()
    fe.start_ring(TX)
    same("GET_FEATURES", fe.ask_u64(Request.GET_FEATURES), fe.offered)


@case(
    "V5-need-reply-without-ack",
    "need_reply means nothing unless REPLY_ACK was negotiated",
    source="vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK",
)
def _(stage: Stage) -> None:
    fe = stage.enter()
    fe.negotiate(0)
    fe.send(Request.SET_OWNER, need_reply=True)
    same("GET_FEATURES", fe.ask_u64(Request.GET_FEATURES), fe.offered)


@case("V6-queue-num", "GET_QUEUE_NUM tells how many pairs there may be", protocol=P.MQ)
def _(stage: Stage) -> None:
    fe = stage.enter()
    fe.negotiate()
    if fe.ask_u64(Request.GET_QUEUE_NUM) < 1:
        raise Failure("none")


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


def _stopped(stage: Stage, layout: int) -> None:
    fe = stage.started(features=int(PLAIN | layout), num=16)
    fe.transmit(*(stage.frame(n) for n in range(37)))
    queue = fe.pairs[0].tx
    same("base", hex(fe.stop_ring(TX)), hex(queue.base))


@case(
    "V12-base-split",
    "GET_VRING_BASE tells how many chains were taken",
    source="vhost-user, VHOST_USER_GET_VRING_BASE",
)
def _(stage: Stage) -> None:
    _stopped(stage, 0)


@case(
    "V12-base-packed",
    "GET_VRING_BASE tells both places and both wrap counters of a packed ring",
    source="vhost-user, A vring state description",
    virtio=F.RING_PACKED,
)
def _(stage: Stage) -> None:
    _stopped(stage, int(F.RING_PACKED))


def _continued(stage: Stage, layout: int) -> None:
    fe = stage.started(features=int(PLAIN | layout), num=16)
    for n in range(5):
        fe.transmit(*(stage.frame(n * 10 + i) for i in range(7)))
        fe.start_ring(TX, base=fe.stop_ring(TX))
        fe.enable_ring(TX)
        fe.ask(Request.GET_FEATURES)
    stage.works(fe)


@case(
    "V13-continue-split",
    "a ring goes on at the base that it is told",
    source="vhost-user, VHOST_USER_SET_VRING_BASE",
    protocol=P.MQ,
)
def _(stage: Stage) -> None:
    _continued(stage, 0)


@case(
    "V13-continue-packed",
    "a packed ring goes on at the base that it is told",
    source="vhost-user, VHOST_USER_SET_VRING_BASE",
    virtio=F.RING_PACKED,
    protocol=P.MQ,
)
def _(stage: Stage) -> None:
    _continued(stage, int(F.RING_PACKED))


@case(
    "V13-base-near-the-wrap",
    "the index of a split ring wraps at 2^16",
    source="virtio 1.2, 2.7.6",
    protocol=P.MQ,
)
def _(stage: Stage) -> None:
    fe = stage.started(features=int(PLAIN), num=16)
    fe.stop_ring(TX)
    fe.pairs[0].tx.restart(65530)
    fe.start_ring(TX, base=65530)
    fe.enable_ring(TX)
    fe.ask(Request.GET_FEATURES)
    frames = [stage.frame(n) for n in range(12)]
    fe.transmit(*frames)
    if stage.has_neighbour:
        stage.arrive(*frames)
    same("base", fe.stop_ring(TX), (65530 + 12) & 0xFFFF)


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
    "V16-call-nofd", "a ring may go without a call descriptor", source="vhost-user, VHOST_USER_SET_VRING_CALL"
)
def _(stage: Stage) -> None:
    fe = stage.started()
    for index in (RX, TX):
        fe.set_call(index, None)
    fe.ask(Request.GET_FEATURES)
    stage.works(fe)


@case(
    "V17-table-while-running",
    "the same memory may be told again while rings run",
    source="vhost-user, VHOST_USER_SET_MEM_TABLE",
)
def _(stage: Stage) -> None:
    fe = stage.started()
    for n in range(10):
        fe.share_memory()
        stage.works(fe, n)


@case(
    "V18-memory-slots",
    "regions can be added and taken away one by one, as many as there are slots",
    source="vhost-user, VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS",
    protocol=P.CONFIGURE_MEM_SLOTS | P.REPLY_ACK,
)
def _(stage: Stage) -> None:
    fe = stage.enter()
    fe.negotiate()
    slots = fe.ask_u64(Request.GET_MAX_MEM_SLOTS)
    count = min(slots, MOST_SLOTS)
    same("adding the first", fe.add_region(fe.memory.regions[0]), 0)
    extra = [fe.memory.add(Span(GPA_BASE + (n + 16) * MIB, PAGE)) for n in range(count - 1)]
    for region in extra:
        same(f"adding one of {slots}", fe.add_region(region), 0)
    for region in extra:
        same("taking one away", fe.remove_region(region), 0)
    fe.make_queues()
    for index in (RX, TX):
        fe.start_ring(index)
        fe.enable_ring(index)
    fe.driver_ok()
    stage.works(fe)


@case(
    "V19-remove-with-descriptor",
    "REM_MEM_REG may come with a descriptor, which is closed",
    source="vhost-user, VHOST_USER_REM_MEM_REG",
    protocol=P.CONFIGURE_MEM_SLOTS | P.REPLY_ACK,
)
def _(stage: Stage) -> None:
    fe = stage.started()
    region = fe.memory.add(Span(GPA_BASE + 64 * MIB, MIB))
    same("adding", fe.add_region(region), 0)
    same("taking away", fe.remove_region(region, with_fd=True), 0)
    stage.works(fe)


@case(
    "V20-mtu",
    "an MTU that Ethernet has is accepted",
    source="vhost-user, VHOST_USER_NET_SET_MTU",
    protocol=P.NET_MTU,
)
def _(stage: Stage) -> None:
    fe = stage.enter()
    fe.negotiate()
    stage.accepted(fe, Request.NET_SET_MTU, U64(1500))


@case(
    "V21-status",
    "GET_STATUS tells what SET_STATUS said",
    source="vhost-user, VHOST_USER_SET_STATUS",
    protocol=P.STATUS,
)
def _(stage: Stage) -> None:
    fe = stage.enter()
    fe.negotiate()
    fe.do(Request.SET_STATUS, U64(3))
    same("status", fe.ask_u64(Request.GET_STATUS), 3)


@case(
    "V22-reset-device",
    "RESET_DEVICE stops all rings, and the connection can start them again",
    source="vhost-user, VHOST_USER_RESET_DEVICE",
    protocol=P.RESET_DEVICE,
)
def _(stage: Stage) -> None:
    fe = stage.started()
    fe.do(Request.RESET_DEVICE)
    fe.ask(Request.GET_FEATURES)
    tx = fe.pairs[0].tx
    before = tx.used_idx
    fe.queue_frame(stage.frame(1))
    tx.kick(force=True)
    fe.ask(Request.GET_FEATURES)
    same("frames taken by a stopped ring", tx.used_idx, before)
    fe.do(Request.SET_FEATURES, U64(fe.features))
    for index, queue in enumerate(fe.queues()):
        queue.restart()
        fe.start_ring(index)
        fe.enable_ring(index)
    fe.driver_ok()
    fe.ask(Request.GET_FEATURES)
    stage.works(fe)


@case("V23-reconnect", "a front-end that comes back finds the same features")
def _(stage: Stage) -> None:
    offers = []
    for _ in range(5):
        fe = stage.started()
        offers.append(fe.offered)
        stage.leave(fe)
    same("features", len(set(offers)), 1)


@case("V24-pairs", "each of the pairs that there may be transmits", protocol=P.MQ, virtio=F.MQ)
def _(stage: Stage) -> None:
    fe = stage.enter()
    fe.negotiate()
    pairs = min(fe.ask_u64(Request.GET_QUEUE_NUM), 4)
    stage.leave(fe)
    if pairs < 2:
        raise Skip("the back-end has one pair")
    fe = stage.started(features=int(PLAIN | F.MQ), pairs=pairs, num=16)
    for pair in range(pairs):
        fe.transmit(stage.frame(pair), pair=pair)
        if stage.has_neighbour:
            stage.arrive(stage.frame(pair))


@case("V25-owner-again", "SET_OWNER by the owner changes nothing", source="vhost-user, VHOST_USER_SET_OWNER")
def _(stage: Stage) -> None:
    fe = stage.started()
    fe.do(Request.SET_OWNER)
    stage.works(fe)


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


def _two_regions(fe: FrontEnd) -> MemTable:
    return MemTable(tuple(r.info for r in fe.memory.regions))


@case(
    "V32-memory-grows",
    "a larger table may replace the first while rings run",
    source="vhost-user, VHOST_USER_SET_MEM_TABLE",
)
def _(stage: Stage) -> None:
    fe = stage.started()
    region = fe.memory.add(Span(GPA_BASE + 64 * MIB, MIB))
    fe.do(Request.SET_MEM_TABLE, _two_regions(fe), [r.fd for r in fe.memory.regions])
    fe.ask(Request.GET_FEATURES)
    data = bytes(12) + stage.frame(5)
    fe.memory.write(region.info.gpa, data)
    fe.pairs[0].tx.add([Buffer(region.info.gpa, len(data))])
    fe.pairs[0].tx.kick(force=True)
    fe.flush()
    if stage.has_neighbour:
        stage.arrive(stage.frame(5))


@case("V33-usual", "all that QEMU usually negotiates, together", virtio=USUAL)
def _(stage: Stage) -> None:
    fe = stage.started(features=int(USUAL), num=256)
    for n in range(20):
        burst = [stage.frame(n * 30 + i) for i in range(30)]
        fe.transmit(*burst)
        if stage.has_neighbour:
            stage.arrive(*burst)


@case("V34-ring-size-told-twice", "the last size that was told before the start counts", protocol=P.REPLY_ACK)
def _(stage: Stage) -> None:
    fe = stage.enter(num=32)
    fe.negotiate()
    for num in (256, 64, 128):
        fe.do(Request.SET_VRING_NUM, VringState(TX, num))
    fe.share_memory()
    fe.make_queues()
    for index in (RX, TX):
        fe.start_ring(index)
        fe.enable_ring(index)
    fe.driver_ok()
    fe.transmit(*(stage.frame(n) for n in range(100)))
