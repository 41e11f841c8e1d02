# SPDX-License-Identifier: BSD-2-Clause
"""Q: what a hostile guest can write into a split ring.

The port may go down, or the ring stop, or the chain be dropped: the back-end must neither die, nor hang, nor
write where it was not asked to, nor use what it was not given.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable
from functools import partial

from vpt.conform.case import Cases
from vpt.conform.front_end import PLAIN, USUAL, Failure, FrontEnd, Queue
from vpt.conform.guest_memory import GPA_BASE, MIB
from vpt.conform.split_queue import DESC, INDIRECT, NEXT, WRITE, SplitQueue
from vpt.conform.stage import Stage
from vpt.vhost_user import VirtioFeature

F = VirtioFeature
CASES = Cases("split", "checklist")
case = CASES.case
Desc = tuple[int, int, int, int]  # address, length, flags, next
Act = Callable[[Stage, FrontEnd, SplitQueue], object]
TOP = 1 << 64
END = GPA_BASE + 4 * MIB


def split(queue: Queue) -> SplitQueue:
    """A queue that is known to be split."""
    if not isinstance(queue, SplitQueue):
        raise TypeError("not a split queue")
    return queue


def offer(queue: SplitQueue, head: int = 0) -> None:
    """Publish one head and ring."""
    queue.set_avail(head)
    queue.kick(force=True)


def chain(queue: SplitQueue, *descs: Desc) -> None:
    """Write descriptors from the first on, and publish the first."""
    for i, desc in enumerate(descs):
        queue.set_desc(i, *desc)
    offer(queue)


def table(fe: FrontEnd, queue: SplitQueue, *descs: Desc, size: int | None = None) -> None:
    """The same through an indirect table."""
    at = fe.memory.alloc(16 * max(1, len(descs)), 16)
    fe.memory.write(at, b"".join(DESC.pack(*desc) for desc in descs))
    chain(queue, (at, 16 * len(descs) if size is None else size, INDIRECT, 0))


def jump(queue: SplitQueue, by: int) -> None:
    """Publish an index that is `by` away from the true one."""
    queue.publish(queue.avail_idx + by)
    os.eventfd_write(queue.kick_fd, 1)


def loop(stage: Stage, fe: FrontEnd, queue: SplitQueue) -> None:
    """All descriptors of the ring in one circle."""
    at = stage.good(fe)
    chain(queue, *((at, 1, NEXT, (i + 1) % queue.num) for i in range(queue.num)))


def last_table(_stage: Stage, fe: FrontEnd, queue: SplitQueue) -> None:
    """A table whose second entry lies behind the memory."""
    fe.memory.alloc(END - 16 - fe.memory.alloc(16, 16) - 16, 16)
    at = fe.memory.alloc(16, 16)
    fe.memory.write(at, DESC.pack(at, 60, NEXT, 1))
    chain(queue, (at, 32, INDIRECT, 0))


def fault(
    case_id: str, rule: str, act: Act, *, features: int = int(USUAL), ring: str = "tx", many: bool = False
) -> None:
    """Register an act on a running ring. many: it is of no interest how many chains are used after it."""

    def run(stage: Stage) -> None:
        fe = stage.started(features=features, fill=0)
        queue = split(fe.pairs[0].tx if ring == "tx" else fe.pairs[0].rx)
        act(stage, fe, queue)
        if stage.has_neighbour:
            stage.neighbour.transmit(*(stage.frame(n) for n in range(4)))
        stage.settles(fe)
        if not many and (queue.used_idx - queue.last_used) & 0xFFFF > 1:
            raise Failure(f"{queue.used_idx} chains used of 1")

    CASES.add(case_id, rule, run, virtio=features & ~int(PLAIN), peer=ring == "rx")


NO_INDIRECT = int(USUAL) & ~int(F.INDIRECT_DESC)
BEYOND = "a descriptor that is not there is not read"
INDEX = "an index that cannot be is not believed"
LOOP = "a chain without end ends"
ADDRESS = "an address that is not the guest's is not accessed"
TABLE = "an indirect table that cannot be is not followed"
DIRECTION = "a buffer of the wrong direction is not taken for one of the right"

fault("Q1-head-is-num", BEYOND, lambda _s, _f, q: offer(q, q.num))
fault("Q1-head-65535", BEYOND, lambda _s, _f, q: offer(q, 65535))
fault("Q2-index-jumps-by-num-and-1", INDEX, lambda _s, _f, q: jump(q, q.num + 1), many=True)
fault("Q2-index-jumps-by-32768", INDEX, lambda _s, _f, q: jump(q, 32768), many=True)
fault("Q3-index-goes-back", INDEX, lambda _s, _f, q: jump(q, -1), many=True)
fault("Q4-next-is-num", BEYOND, lambda s, f, q: chain(q, (s.good(f), 60, NEXT, q.num)))
fault("Q4-next-65535", BEYOND, lambda s, f, q: chain(q, (s.good(f), 60, NEXT, 65535)))
fault("Q4-next-outside-the-table", BEYOND, lambda s, f, q: table(f, q, (s.good(f), 60, NEXT, 1)))
fault("Q5-next-is-itself", LOOP, lambda s, f, q: chain(q, (s.good(f), 60, NEXT, 0)))
fault(
    "Q5-two-that-name-each-other",
    LOOP,
    lambda s, f, q: chain(q, (s.good(f), 60, NEXT, 1), (s.good(f), 9, NEXT, 0)),
)
fault("Q5-empty-loop", LOOP, lambda s, f, q: chain(q, (s.good(f), 0, NEXT, 0)))
fault("Q5-loop-in-a-table", LOOP, lambda s, f, q: table(f, q, (s.good(f), 60, NEXT, 0)))
fault("Q6-loop-through-all", LOOP, loop)
fault(
    "Q8-length-4-GiB",
    "a length larger than memory is not believed",
    lambda s, f, q: chain(q, (s.good(f), 0xFFFFFFFF, 0, 0)),
)
fault(
    "Q8-lengths-add-up-beyond-4-GiB",
    "lengths whose sum wraps are not believed",
    lambda s, f, q: chain(
        q, *((s.good(f), 0xFFFFFFFF, NEXT, i + 1) for i in range(4)), (s.good(f), 100, 0, 0)
    ),
)
fault("Q9-address-nowhere", ADDRESS, lambda _s, _f, q: chain(q, (0x1000, 112, 0, 0)))
fault("Q9-address-0", ADDRESS, lambda _s, _f, q: chain(q, (0, 112, 0, 0)))
fault(
    "Q9-second-address-nowhere",
    ADDRESS,
    lambda s, f, q: chain(q, (s.good(f), 12, NEXT, 1), (0x1000, 100, 0, 0)),
)
fault("Q9-end-past-memory", ADDRESS, lambda _s, _f, q: chain(q, (END - 50, 112, 0, 0)))
fault("Q9-address-wraps", ADDRESS, lambda _s, _f, q: chain(q, (TOP - 50, 112, 0, 0)))
fault("Q13-table-of-no-bytes", TABLE, lambda _s, f, q: table(f, q, size=0))
fault("Q13-table-of-8-bytes", TABLE, lambda s, f, q: table(f, q, (s.good(f), 112, 0, 0), size=8))
fault("Q13-table-of-17-bytes", TABLE, lambda s, f, q: table(f, q, (s.good(f), 112, 0, 0), size=17))
fault("Q13-table-of-4-GiB", TABLE, lambda s, f, q: table(f, q, (s.good(f), 112, NEXT, 1), size=0xFFFFFFF0))
fault("Q13-table-nowhere", ADDRESS, lambda _s, _f, q: chain(q, (0x1000, 16, INDIRECT, 0)))
fault("Q17-table-end-past-memory", ADDRESS, last_table)
fault("Q14-table-in-a-table", TABLE, lambda s, f, q: table(f, q, (s.good(f), 16, INDIRECT, 0)))
fault(
    "Q15-indirect-and-next",
    TABLE,
    lambda s, f, q: chain(q, (s.good(f), 16, INDIRECT | NEXT, 1), (s.good(f), 112, 0, 0)),
)
fault(
    "Q16-table-not-negotiated",
    TABLE,
    lambda s, f, q: table(f, q, (s.good(f), 112, 0, 0)),
    features=NO_INDIRECT,
)
fault("Q18-writable-in-transmit", DIRECTION, lambda s, f, q: chain(q, (s.good(f), 112, WRITE, 0)))
fault(
    "Q18-readable-after-writable",
    DIRECTION,
    lambda s, f, q: chain(q, (s.good(f), 60, NEXT | WRITE, 1), (s.good(f), 60, 0, 0)),
)
fault("Q1-receive-head-is-num", BEYOND, lambda _s, _f, q: offer(q, q.num), ring="rx")
fault("Q2-receive-index-jumps", INDEX, lambda _s, _f, q: jump(q, q.num + 1), ring="rx", many=True)
fault(
    "Q4-receive-next-is-num",
    BEYOND,
    lambda s, f, q: chain(q, (s.good(f), 20, WRITE | NEXT, q.num)),
    ring="rx",
)
fault("Q5-receive-loop", LOOP, lambda s, f, q: chain(q, (s.good(f), 0, WRITE | NEXT, 0)), ring="rx")
fault("Q9-receive-address-nowhere", ADDRESS, lambda _s, _f, q: chain(q, (0x1000, 2048, WRITE, 0)), ring="rx")
fault("Q9-receive-address-wraps", ADDRESS, lambda _s, _f, q: chain(q, (TOP - 50, 2048, WRITE, 0)), ring="rx")


@case(
    "Q18-receive-read-only",
    "what the device may only read is not written",
    source="virtio 1.2, 2.7.5; checklist",
    peer=True,
)
def _(stage: Stage) -> None:
    fe = stage.started(fill=0)
    at = fe.memory.alloc(2048, 64)
    fe.memory.write(at, b"\x5a" * 2048)
    chain(split(fe.pairs[0].rx), (at, 2048, 0, 0))
    stage.neighbour.transmit(*(stage.frame(n) for n in range(4)))
    stage.settles(fe)
    if fe.memory.read(at, 2048) != b"\x5a" * 2048:
        raise Failure("written")


# ---- Q31: what was read is changed while it is being used ----


def flip_desc(field: int, *values: int) -> Callable[[FrontEnd, int], None]:
    """Alternate a field (0 addr, 1 len, 2 flags, 3 next) of transmit descriptors with other values."""

    def flip(fe: FrontEnd, n: int) -> None:
        tx = fe.pairs[0].tx
        at = tx.desc + 16 * (n % tx.num)
        raw = list(DESC.unpack(fe.memory.read(at, 16)))
        true, raw[field] = raw[field], values[n % len(values)]
        fe.memory.write(at, DESC.pack(*raw))
        raw[field] = true
        fe.memory.write(at, DESC.pack(*raw))

    return flip


def flip_bytes(*values: bytes) -> Callable[[FrontEnd, int], None]:
    """The same for the headers of the packets themselves."""

    def flip(fe: FrontEnd, n: int) -> None:
        p = fe.pairs[0]
        fe.memory.write(p.tx_buffers + (n % p.tx.num) * fe.buffer_size, values[n % len(values)])

    return flip


def flip_index(fe: FrontEnd, n: int) -> None:
    """The available index, to and fro."""
    tx = split(fe.pairs[0].tx)
    tx.publish(tx.avail_idx + (n % 7) * 1000)
    tx.publish()


RACES: dict[str, Callable[[FrontEnd, int], None]] = {
    "address": flip_desc(0, 0, TOP - 8, END - 4),
    "length": flip_desc(1, 0, 1, 0xFFFFFFFF, 65536),
    "flags": flip_desc(2, NEXT, INDIRECT, WRITE, 0xFFFF),
    "next": flip_desc(3, 0, 65535, 1),
    "index": flip_index,
    "csum": flip_bytes(b"\1\0\0\0\0\0\xff\xff\xff\xff", b"\1\0\0\0\0\0\x22\0\x10\0", bytes(10)),
    "gso": flip_bytes(b"\1\1\x36\0\0\0\x22\0\x10\0", b"\1\1\0\0\1\0\x22\0\x10\0", bytes(10)),
}


def _race(stage: Stage, flip: Callable[[FrontEnd, int], None]) -> None:
    offloads = F.CSUM | F.HOST_TSO4
    fe = stage.started(features=int(USUAL | offloads), guarded=False)
    stop = threading.Event()

    def run() -> None:
        n = 0
        while not stop.is_set():
            flip(fe, n)
            n += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with contextlib.suppress(KeyError, Failure, ConnectionError):  # nonsense by now, also to its driver
            for n in range(150):
                for _ in range(min(8, fe.pairs[0].tx.free)):
                    fe.queue_frame(stage.frame(n, 200))
                fe.pairs[0].tx.kick(force=True)
                list(fe.pairs[0].tx.take_used())
                if stage.has_neighbour:
                    stage.neighbour.poll()
    finally:
        stop.set()
        thread.join()
    stage.settles(fe)


for _name, _flip in RACES.items():
    CASES.add(
        f"Q31-{_name}",
        "what a guest changes while it is read is read once",
        partial(_race, flip=_flip),
    )


@case("Q31-noise", "rings of noise harm nobody else")
def _(stage: Stage) -> None:
    rng = random.Random(7)
    for _ in range(20):
        fe = stage.started(num=16, fill=0, guarded=False)
        for queue in map(split, fe.queues()):
            for i in range(16):
                where, length = (
                    GPA_BASE + rng.randrange(5 * MIB),
                    rng.choice([0, 1, 12, 60, 4096, 0xFFFFFFFF]),
                )
                queue.set_desc(i, where, length, rng.randrange(8), rng.randrange(18))
            for _ in range(rng.randrange(1, 16)):
                queue.set_avail(rng.randrange(17))
            queue.publish()
            os.eventfd_write(queue.kick_fd, 1)
        if stage.has_neighbour:
            stage.neighbour.transmit(*(stage.frame(n) for n in range(4)))
        stage.settles(fe)
        stage.leave(fe)
