# SPDX-License-Identifier: BSD-2-Clause
"""Q: what a hostile guest can write into a packed ring; judged like a split one."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable

from vpt.conform.case import Cases
from vpt.conform.front_end import PLAIN, USUAL, Failure, FrontEnd, Queue
from vpt.conform.guest_memory import GPA_BASE, MIB
from vpt.conform.packed_queue import AVAIL, USED, PackedQueue
from vpt.conform.stage import Stage
from vpt.conform.virtqueue import DESC, INDIRECT, NEXT, WRITE
from vpt.vhost_user import VirtioFeature

F = VirtioFeature
CASES = Cases("packed", "checklist")
case = CASES.case
Desc = tuple[int, int, int]  # address, length, flags
Act = Callable[[Stage, FrontEnd, PackedQueue], object]
PACKED = int(USUAL | F.RING_PACKED)
TOP = 1 << 64
END = GPA_BASE + 4 * MIB
NUM = 48


def packed(queue: Queue) -> PackedQueue:
    """A queue that is known to be packed."""
    if not isinstance(queue, PackedQueue):
        raise TypeError("not a packed queue")
    return queue


def chain(queue: PackedQueue, *descs: Desc, buffer_id: int = 0) -> None:
    """Write descriptors from the next place on, all available, the first one last, and ring."""
    for i, (gpa, size, flags) in reversed(list(enumerate(descs))):
        position = queue.later(queue.position, i)
        queue.put(position, gpa, size, flags | queue.flags_for(position), buffer_id)
    os.eventfd_write(queue.kick_fd, 1)


def table(fe: FrontEnd, queue: PackedQueue, *descs: Desc, size: int | None = None, flags: int = 0) -> None:
    """The same through an indirect table."""
    at = fe.memory.alloc(16 * max(1, len(descs)))
    fe.memory.write(at, b"".join(DESC.pack(gpa, length, 0, how) for gpa, length, how in descs))
    chain(queue, (at, 16 * len(descs) if size is None else size, INDIRECT | flags))


def unfinished(stage: Stage, fe: FrontEnd, queue: PackedQueue, second: int) -> None:
    """A chain of two whose second descriptor has those flags."""
    queue.put(queue.later(queue.position, 1), stage.good(fe), 100, second)
    chain(queue, (stage.good(fe), 12, NEXT))


def endless(stage: Stage, fe: FrontEnd, queue: PackedQueue, size: int = 1, write: int = 0) -> None:
    """A chain of the whole ring, each descriptor of which says that there is another."""
    chain(queue, *[(stage.good(fe), size, NEXT | write)] * queue.num)


def fault(case_id: str, rule: str, act: Act, *, features: int = PACKED, ring: str = "tx") -> None:
    """Register an act on a running ring."""

    def run(stage: Stage) -> None:
        fe = stage.started(features=features, fill=0, num=NUM)
        queue = packed(fe.pairs[0].tx if ring == "tx" else fe.pairs[0].rx)
        act(stage, fe, queue)
        if stage.has_neighbour:
            stage.neighbour.transmit(*(stage.frame(n) for n in range(4)))
        stage.settles(fe)

    CASES.add(f"{case_id}-packed", rule, run, virtio=features & ~int(PLAIN), peer=ring == "rx")


IDS = "a buffer id that cannot be is not believed (SPDX #3860)".replace("SPDX", "SPDK")
CHAIN = "a chain ends with what is available"
ADDRESS = "an address that is not the guest's is not accessed"
TABLE = "an indirect table that cannot be is not followed"
DIRECTION = "a buffer of the wrong direction is not taken for one of the right"

fault("Q28-id-is-num", IDS, lambda s, f, q: chain(q, (s.good(f), 112, 0), buffer_id=q.num))
fault("Q28-id-65535", IDS, lambda s, f, q: chain(q, (s.good(f), 112, 0), buffer_id=65535))
fault("Q28-endless", CHAIN, endless)
fault("Q28-endless-of-nothing", CHAIN, lambda s, f, q: endless(s, f, q, 0))
fault("Q28-into-what-is-not-available", CHAIN, lambda s, f, q: unfinished(s, f, q, 0))
fault("Q28-into-what-is-used", CHAIN, lambda s, f, q: unfinished(s, f, q, AVAIL | USED))
fault("Q28-into-the-other-lap", CHAIN, lambda s, f, q: unfinished(s, f, q, USED))
fault(
    "Q8-length-4-GiB",
    "a length larger than memory is not believed",
    lambda s, f, q: chain(q, (s.good(f), 0xFFFFFFFF, 0)),
)
fault("Q9-address-nowhere", ADDRESS, lambda _s, _f, q: chain(q, (0x1000, 112, 0)))
fault("Q9-address-0", ADDRESS, lambda _s, _f, q: chain(q, (0, 112, 0)))
fault("Q9-end-past-memory", ADDRESS, lambda _s, _f, q: chain(q, (END - 50, 112, 0)))
fault("Q9-address-wraps", ADDRESS, lambda _s, _f, q: chain(q, (TOP - 50, 112, 0)))
fault("Q9-second-address-nowhere", ADDRESS, lambda s, f, q: chain(q, (s.good(f), 12, NEXT), (0x1000, 100, 0)))
fault("Q13-table-of-no-bytes", TABLE, lambda _s, f, q: table(f, q, size=0))
fault("Q13-table-of-8-bytes", TABLE, lambda s, f, q: table(f, q, (s.good(f), 112, 0), size=8))
fault("Q13-table-of-17-bytes", TABLE, lambda s, f, q: table(f, q, (s.good(f), 112, 0), size=17))
fault("Q13-table-of-4-GiB", TABLE, lambda s, f, q: table(f, q, (s.good(f), 112, 0), size=0xFFFFFFF0))
fault("Q13-table-nowhere", ADDRESS, lambda _s, _f, q: chain(q, (0x1000, 16, INDIRECT)))
fault("Q14-table-in-a-table", TABLE, lambda s, f, q: table(f, q, (s.good(f), 16, INDIRECT)))
fault(
    "Q15-indirect-and-next",
    TABLE,
    lambda s, f, q: chain(q, (s.good(f), 16, INDIRECT | NEXT), (s.good(f), 112, 0)),
)
fault(
    "Q16-table-not-negotiated",
    TABLE,
    lambda s, f, q: table(f, q, (s.good(f), 112, 0)),
    features=PACKED & ~int(F.INDIRECT_DESC),
)
fault("Q18-writable-in-transmit", DIRECTION, lambda s, f, q: chain(q, (s.good(f), 112, WRITE)))
fault(
    "Q28-receive-id-is-num",
    IDS,
    lambda s, f, q: chain(q, (s.good(f), 2048, WRITE), buffer_id=q.num),
    ring="rx",
)
fault("Q28-receive-endless", CHAIN, lambda s, f, q: endless(s, f, q, 0, WRITE), ring="rx")
fault("Q9-receive-address-nowhere", ADDRESS, lambda _s, _f, q: chain(q, (0x1000, 2048, WRITE)), ring="rx")
fault("Q9-receive-address-wraps", ADDRESS, lambda _s, _f, q: chain(q, (TOP - 50, 2048, WRITE)), ring="rx")


for _name, _flags in (("neither", 0), ("both", AVAIL | USED), ("other-lap", USED)):

    @case(
        f"Q28-not-available-{_name}",
        "AVAIL without a flip makes nothing available",
        source="virtio 1.2, 2.8.1; checklist",
        virtio=F.RING_PACKED,
    )
    def _(stage: Stage, flags: int = _flags) -> None:
        fe = stage.started(features=PACKED, fill=0)
        tx = packed(fe.pairs[0].tx)
        tx.put(tx.position, stage.good(fe, 13), 112, flags)
        os.eventfd_write(tx.kick_fd, 1)
        stage.settles(fe)
        if tx.flags_at(tx.position) != flags:
            raise Failure("taken")
        stage.works(fe)


@case(
    "Q18-receive-read-only-packed",
    "what the device may only read is not written",
    source="virtio 1.2, 2.8.5; checklist",
    virtio=F.RING_PACKED,
    peer=True,
)
def _(stage: Stage) -> None:
    fe = stage.started(features=PACKED, fill=0)
    at = fe.memory.alloc(2048, 64)
    fe.memory.write(at, b"\x5a" * 2048)
    chain(packed(fe.pairs[0].rx), (at, 2048, 0))
    stage.neighbour.transmit(*(stage.frame(n) for n in range(4)))
    stage.settles(fe)
    if fe.memory.read(at, 2048) != b"\x5a" * 2048:
        raise Failure("written")


@case(
    "Q28-wraps-at-odd-size",
    "the wrap counters of a ring of seven are kept apart",
    source="virtio 1.2, 2.8.1",
    virtio=F.RING_PACKED,
)
def _(stage: Stage) -> None:
    fe = stage.started(features=PACKED, num=7)
    for n in range(40):
        fe.transmit(stage.frame(n, 200), sizes=[12, 50] if n % 2 else ())
        if stage.has_neighbour:
            stage.arrive(stage.frame(n, 200))


@case(
    "Q28-flipped-behind-the-device",
    "a ring that is made available over and over stops nobody else",
    virtio=F.RING_PACKED,
    peer=True,
)
def _(stage: Stage) -> None:
    fe = stage.started(features=PACKED, num=7, fill=0)
    tx = packed(fe.pairs[0].tx)
    at = fe.memory.alloc(
        128
    )  # to a multicast address that nobody listens to would be the neighbour's business, rightly
    fe.memory.write(at, bytes(12) + b"\x52\x54\0\xc0\xf0\x01" * 2 + bytes(100))
    stop = threading.Event()

    def flip() -> None:
        while not stop.is_set():
            for flags in (AVAIL, USED):
                for i in range(7):
                    tx.put(i, at, 112, flags, i)
            os.eventfd_write(tx.kick_fd, 1)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        for n in range(10):
            stage.neighbour.transmit(stage.frame(n))
            stage.neighbour.poll()
    finally:
        stop.set()
        thread.join()


@case("Q31-noise-packed", "rings of noise harm nobody else", virtio=F.RING_PACKED)
def _(stage: Stage) -> None:
    rng = random.Random(7)
    for _ in range(20):
        fe = stage.started(features=PACKED, num=16, fill=0, guarded=False)
        for queue in map(packed, fe.queues()):
            for position in range(16):
                where, length = (
                    GPA_BASE + rng.randrange(5 * MIB),
                    rng.choice([0, 1, 12, 60, 4096, 0xFFFFFFFF]),
                )
                flags = (
                    rng.randrange(8) | queue.flags_for(position)
                    if rng.random() < 0.8
                    else rng.randrange(65536)
                )
                queue.put(position, where, length, flags, rng.randrange(18))
            os.eventfd_write(queue.kick_fd, 1)
        if stage.has_neighbour:
            stage.neighbour.transmit(*(stage.frame(n) for n in range(4)))
        with contextlib.suppress(ConnectionError):
            stage.settles(fe)
        stage.leave(fe)
