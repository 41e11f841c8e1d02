# SPDX-License-Identifier: BSD-2-Clause
"""V: what the vhost-user specification promises to a front-end that behaves."""

from __future__ import annotations

from vpt.conform.case import Cases, Skip
from vpt.conform.front_end import ALL_PROTOCOL, PLAIN, Failure, FrontEnd
from vpt.conform.guest_memory import GPA_BASE, MIB, PAGE, Span
from vpt.conform.split_queue import Buffer
from vpt.conform.stage import Stage, same
from vpt.vhost_user import U64, MemTable, ProtocolFeature, Request, VirtioFeature, VringState

F = VirtioFeature
P = ProtocolFeature
CASES = Cases("protocol", "vhost-user")
case = CASES.case
RX = 0
TX = 1
MOST_SLOTS = 509  # what QEMU's and rust-vmm's own back-ends have


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
    fe = stage.negotiated()
    if fe.ask_u64(Request.GET_QUEUE_NUM) < 1:
        raise Failure("none")


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
    fe = stage.negotiated()
    slots = fe.ask_u64(Request.GET_MAX_MEM_SLOTS)
    count = min(slots, MOST_SLOTS)
    same("adding the first", fe.add_region(fe.memory.regions[0]), 0)
    extra = [fe.memory.add(Span(GPA_BASE + (n + 16) * MIB, PAGE)) for n in range(count - 1)]
    for region in extra:
        same(f"adding one of {slots}", fe.add_region(region), 0)
    for region in extra:
        same("taking one away", fe.remove_region(region), 0)
    fe.make_queues()
    fe.start_rings()
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
    fe = stage.negotiated()
    stage.accepted(fe, Request.NET_SET_MTU, U64(1500))


@case(
    "V21-status",
    "GET_STATUS tells what SET_STATUS said",
    source="vhost-user, VHOST_USER_SET_STATUS",
    protocol=P.STATUS,
)
def _(stage: Stage) -> None:
    fe = stage.negotiated()
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
    fe.restart()
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
    fe = stage.negotiated()
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


@case("V34-ring-size-told-twice", "the last size that was told before the start counts", protocol=P.REPLY_ACK)
def _(stage: Stage) -> None:
    fe = stage.enter(num=32)
    fe.negotiate()
    for num in (256, 64, 128):
        fe.do(Request.SET_VRING_NUM, VringState(TX, num))
    fe.share_memory()
    fe.make_queues()
    fe.start_rings()
    fe.transmit(*(stage.frame(n) for n in range(100)))
