# SPDX-License-Identifier: BSD-2-Clause
"""Q: odd things that a guest may do with a ring, legal or not; each for split and packed ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from vpt.conform.case import Cases
from vpt.conform.front_end import PLAIN, Failure, FrontEnd
from vpt.conform.guest_memory import GPA_BASE, MIB, GuestMemory, Span
from vpt.conform.mischief import kick_storm
from vpt.conform.split_queue import Buffer, pieces
from vpt.conform.stage import Stage
from vpt.vhost_user import ProtocolFeature, Request, VirtioFeature

F = VirtioFeature
P = ProtocolFeature
CASES = Cases("rings", "checklist")
LAYOUTS = {"split": 0, "packed": int(F.RING_PACKED)}
Act = Callable[..., object]  # of a stage and the layout's feature bits


def each(
    case_id: str, rule: str, *, virtio: int = 0, protocol: int = 0, peer: bool = False, source: str = ""
) -> Callable[[Act], Act]:
    """Register an act once for each layout; it gets the layout's feature bits."""

    def register(act: Act) -> Act:
        for name, bits in LAYOUTS.items():
            CASES.add(
                f"{case_id}-{name}",
                rule,
                partial(act, layout=bits),
                virtio=virtio | bits,
                protocol=protocol,
                peer=peer,
                source=source,
            )
        return act

    return register


def taken(stage: Stage, fe: FrontEnd, chain: Sequence[Buffer]) -> None:
    """A chain is taken and given back, and the ring goes on."""
    tx = fe.pairs[0].tx
    tx.add(chain)
    tx.kick(force=True)
    fe.flush()
    stage.works(fe)


for _name, _sizes, _rule in (
    ("Q7-zero-length", [0], "a chain of no bytes is given back"),
    ("Q7-zero-length-three", [0, 0, 0], "a chain of no bytes is given back"),
    ("Q7-zero-length-first", [0, 112], "a descriptor of no bytes is skipped"),
    ("Q7-zero-length-between", [12, 0, 100, 0], "a descriptor of no bytes is skipped"),
    ("Q10-one-byte", [1], "a chain shorter than the header is given back (CVE-2022-2132)"),
    ("Q10-11-bytes", [11], "a chain shorter than the header is given back (CVE-2022-2132)"),
    ("Q10-short-in-two", [5, 6], "a chain shorter than the header is given back (CVE-2022-2132)"),
    ("Q11-header-only", [12], "a header without a frame is given back"),
    ("Q12-header-in-12", [*[1] * 12, 100], "a header may lie in twelve descriptors"),
    ("P1-frame-of-13-bytes", [12, 13], "a frame shorter than its header is given back"),
    ("P1-frame-of-14-bytes", [12, 14], "a frame of just a header harms nobody"),
):

    @each(_name, _rule)
    def _(stage: Stage, layout: int, sizes: Sequence[int] = _sizes) -> None:
        fe = stage.started(features=int(PLAIN) | layout)
        taken(stage, fe, pieces(stage.good(fe), sizes))


@each("Q12-all-byte-by-byte", "a frame may lie in as many descriptors as it has bytes")
def _(stage: Stage, layout: int) -> None:
    fe = stage.started(features=int(PLAIN) | layout, num=128)
    frame = stage.frame(77, 60)
    fe.transmit(frame, sizes=[1] * 71)
    if stage.has_neighbour:
        stage.arrive(frame)


@each(
    "Q9-across-regions",
    "a buffer may span regions that touch for the guest",
    source="virtio 1.2, 2.7.5; checklist",
)
def _(stage: Stage, layout: int) -> None:
    edge = GPA_BASE + 4 * MIB
    memory = GuestMemory([Span(GPA_BASE, 4 * MIB), Span(edge, MIB)])
    fe = stage.started(features=int(PLAIN) | layout, memory=memory)
    data = bytes(12) + stage.frame(5, 200)
    memory.write(edge - 100, data)
    fe.pairs[0].tx.add([Buffer(edge - 100, len(data))])
    fe.pairs[0].tx.kick(force=True)
    fe.flush()
    if stage.has_neighbour:
        stage.arrive(stage.frame(5, 200))


@each("P2-frame-above-64-KiB", "a frame longer than any is given back")
def _(stage: Stage, layout: int) -> None:
    fe = stage.started(features=int(PLAIN) | layout)
    taken(stage, fe, [Buffer(GPA_BASE, 70_000)])


for _size in (0, 1, 11, 12, 13):
    for _name, _features in (("", PLAIN), ("-mergeable", PLAIN | F.MRG_RXBUF)):

        @each(
            f"Q19-receive-{_size}-bytes{_name}",
            "receive buffers too small for anything are not written beyond (CVE-2026-86566)",
            peer=True,
            virtio=_features & F.MRG_RXBUF,
        )
        def _(stage: Stage, layout: int, size: int = _size, features: int = int(_features)) -> None:
            fe = stage.started(features=features | layout, fill=0)
            rx = fe.pairs[0].rx
            at = fe.memory.alloc(64 * 64)
            fe.memory.write(at, b"\xee" * 64 * 64)
            for i in range(rx.num):
                rx.add([Buffer(at + 64 * i, size, True)])
            rx.kick(force=True)
            stage.neighbour.transmit(*(stage.frame(n) for n in range(8)))
            stage.settles(fe)
            for i in range(64):
                if fe.memory.read(at + 64 * i + size, 64 - size) != b"\xee" * (64 - size):
                    raise Failure(f"written beyond a buffer of {size} bytes")


@each(
    "Q20-receive-chain-too-small",
    "without mergeable buffers a frame that does not fit is not cut in two",
    peer=True,
)
def _(stage: Stage, layout: int) -> None:
    fe = stage.started(features=int(PLAIN) | layout, fill=0)
    rx = fe.pairs[0].rx
    at = fe.memory.alloc(4096)
    for _ in range(4):
        rx.add(pieces(at, [12, 20, 20], device_writes=True))
    rx.kick(force=True)
    sent = stage.frame(1, 200)
    stage.neighbour.transmit(sent)
    stage.settles(fe)
    for _, length in rx.take_used():
        if length > 52:
            raise Failure(f"{length} bytes in 52")


@each(
    "Q21-too-few-mergeable",
    "with too few buffers a frame leaves no trace, or all of it comes",
    peer=True,
    virtio=F.MRG_RXBUF,
)
def _(stage: Stage, layout: int) -> None:
    fe = stage.started(features=int(PLAIN | F.MRG_RXBUF) | layout, buffer_size=128, fill=5)
    stage.neighbour.transmit(stage.frame(1, 1000))
    stage.settles(fe)
    fe.fill(count=20)
    second = stage.frame(2, 900)

    def both() -> bool:
        if not any(r.frame == second for r in fe.poll(refill=False)):
            stage.neighbour.transmit(second)
            return False
        return True

    stage.wait(both, "a frame that fits")


@each("Q22-no-receive-buffers", "a guest that gives no buffers stalls nobody", peer=True)
def _(stage: Stage, layout: int) -> None:
    stage.started(features=int(PLAIN) | layout, fill=0)
    for n in range(10):
        stage.neighbour.transmit(*(stage.frame(n * 32 + i) for i in range(32)))


@each("Q23-garbage-events", "garbage in the event fields costs notifications only", virtio=F.EVENT_IDX)
def _(stage: Stage, layout: int) -> None:
    fe = stage.started(features=int(PLAIN | F.EVENT_IDX) | layout)
    tx = fe.pairs[0].tx
    for n, value in enumerate((0, 65535, 32768, 1, 0xFFFE, 0x8001) * 5):
        at = tx.avail if layout else tx.avail + 4 + 2 * tx.num
        fe.memory.store16(at, value)
        fe.queue_frame(stage.frame(n))
        tx.kick(force=True)
        fe.flush()
    stage.works(fe)


@each("Q24-flags-toggled", "a driver may ask for calls and not, all the time")
def _(stage: Stage, layout: int) -> None:
    fe = stage.started(features=int(PLAIN) | layout)
    tx = fe.pairs[0].tx
    for n in range(200):
        tx.want_calls(wanted=bool(n % 2))
        fe.queue_frame(stage.frame(n))
        tx.kick(force=True)
        fe.flush()


@each("Q25-kick-storm", "a storm of kicks stops nobody else", peer=True)
def _(stage: Stage, layout: int) -> None:
    fe = stage.started(features=int(PLAIN) | layout)
    with kick_storm(fe):
        for n in range(10):
            stage.neighbour.transmit(stage.frame(n))


@each("Q26-never-kicks", "a guest that does not kick stops nobody else", peer=True)
def _(stage: Stage, layout: int) -> None:
    fe = stage.started(features=int(PLAIN) | layout)
    fe.queue_frame(stage.frame(1))
    fe.pairs[0].tx.publish()
    for n in range(10):
        stage.neighbour.transmit(stage.frame(n))


@each("Q27-one-by-one", "no wake-up is lost between sleep and kick")
def _(stage: Stage, layout: int) -> None:
    fe = stage.started(features=int(PLAIN) | layout)
    for n in range(300):
        fe.transmit(stage.frame(n))
        if n % 50 == 0:
            time.sleep(0.002)  # long enough for anybody to fall asleep


for _how in ("stop", "disable", "disconnect"):

    @each(f"Q29-{_how}-in-a-burst", "a ring may stop in the middle of a burst", protocol=P.MQ)
    def _(stage: Stage, layout: int, how: str = _how) -> None:
        for _ in range(10):
            fe = stage.started(features=int(PLAIN) | layout)
            for n in range(fe.num):
                fe.queue_frame(stage.frame(n))
            fe.pairs[0].tx.kick(force=True)
            if how == "stop":
                for index in (1, 0):
                    fe.stop_ring(index)
                before = [queue.used_idx for queue in fe.queues()]
                fe.ask(Request.GET_FEATURES)
                if [queue.used_idx for queue in fe.queues()] != before:
                    raise Failure("a stopped ring went on")
            elif how == "disable":
                fe.enable_ring(1, False)
                fe.flush()
            stage.leave(fe)


def _ring_of(stage: Stage, layout: int, num: int) -> None:
    memory = GuestMemory([Span(GPA_BASE, 16 * MIB)])
    fe = stage.started(features=int(PLAIN) | layout, num=num, buffer_size=128, memory=memory)
    for n in range(10):
        fe.transmit(stage.frame(n))
        if stage.has_neighbour:
            stage.arrive(stage.frame(n))


for _num in (1, 2, 32768):

    @each(
        f"Q30-ring-of-{_num}",
        "a ring may have 1 to 32768 places",
        source="virtio 1.2, 2.7 and 2.8.10.1; checklist",
    )
    def _(stage: Stage, layout: int, num: int = _num) -> None:
        _ring_of(stage, layout, num)


for _num in (3, 7, 1000):
    CASES.add(
        f"Q30-ring-of-{_num}-packed",
        "a packed ring may have any size up to 32768",
        partial(_ring_of, layout=int(F.RING_PACKED), num=_num),
        source="virtio 1.2, 2.8.10.1",
        virtio=F.RING_PACKED,
    )
