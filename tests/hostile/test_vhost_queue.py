# SPDX-License-Identifier: BSD-2-Clause
"""Q: what a hostile guest can write into a split ring."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from support.scene import MAC_X, Scene, good
from support.waiting import until
from vpt.conform.frames import BROADCAST, MAC_A, frame
from vpt.conform.front_end import PLAIN, USUAL, FrontEnd, Queue
from vpt.conform.guest_memory import GPA_BASE, MIB
from vpt.conform.split_queue import DESC, INDIRECT, NEXT, WRITE, SplitQueue
from vpt.dataplane import Reason
from vpt.vhost_user import VirtioFeature

F = VirtioFeature
TOP = 1 << 64


def split(queue: Queue) -> SplitQueue:
    """A queue that is known to be split."""
    assert isinstance(queue, SplitQueue)
    return queue


def offer(queue: SplitQueue, head: int = 0) -> None:
    """Publish one head and ring."""
    queue.set_avail(head)
    queue.kick(force=True)


def chain(queue: SplitQueue, *descs: tuple[int, int, int, int]) -> None:
    """Write descriptors 0.. as (address, length, flags, next) and publish the first."""
    for i, desc in enumerate(descs):
        queue.set_desc(i, *desc)
    offer(queue)


def table(
    fe: FrontEnd,
    queue: SplitQueue,
    *descs: tuple[int, int, int, int],
    size: int | None = None,
    flags: int = 0,
) -> None:
    """The same through an indirect table."""
    at = fe.memory.alloc(16 * max(1, len(descs)), 16)
    fe.memory.write(at, b"".join(DESC.pack(*desc) for desc in descs))
    chain(queue, (at, 16 * len(descs) if size is None else size, INDIRECT | flags, 0))


@dataclass(frozen=True)
class Fault:
    """An act on a running ring that the virtio specification forbids, and the reason to be given."""

    id: str
    reason: Reason
    act: Callable[[FrontEnd, SplitQueue], object]
    features: int = int(USUAL)
    ring: str = "tx"


R = Reason
NO_INDIRECT = int(USUAL) & ~int(F.INDIRECT_DESC)
FAULTS = [
    Fault("Q1 head = num", R.BAD_DESC, lambda _, q: offer(q, q.num)),
    Fault("Q1 head 65535", R.BAD_DESC, lambda _, q: offer(q, 65535)),
    Fault("Q2 index jumps by num + 1", R.BAD_INDEX, lambda _, q: jump(q, q.num + 1)),
    Fault("Q2 index jumps by 32768", R.BAD_INDEX, lambda _, q: jump(q, 32768)),
    Fault("Q3 index goes back", R.BAD_INDEX, lambda _, q: jump(q, -1)),
    Fault("Q4 next = num", R.BAD_DESC, lambda fe, q: chain(q, (good(fe), 60, NEXT, q.num))),
    Fault("Q4 next 65535", R.BAD_DESC, lambda fe, q: chain(q, (good(fe), 60, NEXT, 65535))),
    Fault("Q5 next is itself", R.LOOP, lambda fe, q: chain(q, (good(fe), 60, NEXT, 0))),
    Fault(
        "Q5 two that name each other",
        R.LOOP,
        lambda fe, q: chain(q, (good(fe), 60, NEXT, 1), (good(fe), 9, NEXT, 0)),
    ),
    Fault("Q5 empty loop", R.LOOP, lambda fe, q: chain(q, (good(fe), 0, NEXT, 0))),
    Fault(
        "Q6 loop through all",
        R.LOOP,
        lambda fe, q: chain(q, *((good_once(fe), 1, NEXT, (i + 1) % q.num) for i in range(q.num))),
    ),
    Fault("Q9 address nowhere", R.BAD_ADDR, lambda _, q: chain(q, (0x1000, 112, 0, 0))),
    Fault("Q9 address 0", R.BAD_ADDR, lambda _, q: chain(q, (0, 112, 0, 0))),
    Fault(
        "Q9 second address nowhere",
        R.BAD_ADDR,
        lambda fe, q: chain(q, (good(fe), 12, NEXT, 1), (0x1000, 100, 0, 0)),
    ),
    Fault("Q9 end past the memory", R.BAD_ADDR, lambda _, q: chain(q, (GPA_BASE + 16 * MIB - 50, 112, 0, 0))),
    Fault("Q9 address wraps", R.BAD_ADDR, lambda _, q: chain(q, (TOP - 50, 112, 0, 0))),
    Fault("Q13 table of no bytes", R.BAD_DESC, lambda fe, q: table(fe, q, size=0)),
    Fault("Q13 table of 8 bytes", R.BAD_DESC, lambda fe, q: table(fe, q, (good(fe), 112, 0, 0), size=8)),
    Fault("Q13 table of 17 bytes", R.BAD_DESC, lambda fe, q: table(fe, q, (good(fe), 112, 0, 0), size=17)),
    Fault("Q13 table nowhere", R.BAD_ADDR, lambda _, q: chain(q, (0x1000, 16, INDIRECT, 0))),
    Fault("Q13 table end past the memory", R.BAD_ADDR, lambda fe, q: last_table(fe, q)),
    Fault("Q14 table in a table", R.BAD_DESC, lambda fe, q: table(fe, q, (good(fe), 16, INDIRECT, 0))),
    Fault(
        "Q15 INDIRECT and NEXT",
        R.BAD_DESC,
        lambda fe, q: table(fe, q, (good(fe), 112, 0, 0), flags=NEXT),
    ),
    Fault("Q4 next outside the table", R.BAD_DESC, lambda fe, q: table(fe, q, (good(fe), 60, NEXT, 1))),
    Fault("Q5 loop in a table", R.LOOP, lambda fe, q: table(fe, q, (good(fe), 60, NEXT, 0))),
    Fault(
        "Q16 table that was not negotiated",
        R.BAD_DESC,
        lambda fe, q: table(fe, q, (good(fe), 112, 0, 0)),
        NO_INDIRECT,
    ),
    Fault("Q18 writable in transmit", R.BAD_DESC, lambda fe, q: chain(q, (good(fe), 112, WRITE, 0))),
    Fault(
        "Q18 readable after writable",
        R.BAD_DESC,
        lambda fe, q: chain(q, (good(fe), 60, NEXT | WRITE, 1), (good(fe), 60, 0, 0)),
    ),
    Fault("Q1 rx head = num", R.BAD_DESC, lambda _, q: offer(q, q.num), ring="rx"),
    Fault("Q2 rx index jumps", R.BAD_INDEX, lambda _, q: jump(q, q.num + 1), ring="rx"),
    Fault(
        "Q4 rx next = num", R.BAD_DESC, lambda fe, q: chain(q, (good(fe), 20, WRITE | NEXT, q.num)), ring="rx"
    ),
    Fault("Q5 rx loop", R.LOOP, lambda fe, q: chain(q, (good(fe), 0, WRITE | NEXT, 0)), ring="rx"),
    Fault("Q9 rx address nowhere", R.BAD_ADDR, lambda _, q: chain(q, (0x1000, 2048, WRITE, 0)), ring="rx"),
    Fault("Q9 rx address wraps", R.BAD_ADDR, lambda _, q: chain(q, (TOP - 50, 2048, WRITE, 0)), ring="rx"),
    Fault("Q18 read-only in receive", R.BAD_DESC, lambda fe, q: chain(q, (good(fe), 2048, 0, 0)), ring="rx"),
    Fault(
        "Q14 rx table in a table",
        R.BAD_DESC,
        lambda fe, q: table(fe, q, (good(fe), 16, INDIRECT | WRITE, 0)),
        ring="rx",
    ),
]


def jump(queue: SplitQueue, by: int) -> None:
    """Publish an index that is `by` away from the true one."""
    queue.publish(queue.avail_idx + by)
    os.eventfd_write(queue.kick_fd, 1)


def good_once(fe: FrontEnd) -> int:
    """An address of the guest's, the same each time."""
    return fe.pairs[0].tx_buffers


def last_table(fe: FrontEnd, queue: SplitQueue) -> None:
    """A table whose second entry lies behind the memory."""
    at = GPA_BASE + 16 * MIB - 16
    fe.memory.write(at, DESC.pack(good(fe), 60, NEXT, 1))
    chain(queue, (at, 32, INDIRECT, 0))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.id)
def test_a_forbidden_ring_takes_down_its_port_with_a_reason(scene: Scene, fault: Fault) -> None:
    fe = scene.enter(features=fault.features).start(fill=0)
    queue = fe.pairs[0].tx if fault.ring == "tx" else fe.pairs[0].rx
    fault.act(fe, queue)
    scene.one.transmit(frame(BROADCAST, MAC_A, 0, 100))
    assert fe.closed_by_peer()
    scene.two.poll()
    assert [e.reason for e in scene.host.events] == [fault.reason]
    assert scene.villain.counters[f"broken_{fault.reason.name.lower()}"] == 1
    assert scene.villain.faults["broken"] == 1
    scene.check()


# ---- odd, but no reason to take a port down ----


OVERSIZE: dict[str, Callable[[FrontEnd, SplitQueue], object]] = {
    "Q8 length 2^32-1": lambda fe, q: chain(q, (good(fe), 0xFFFFFFFF, 0, 0)),
    "Q8 lengths add up beyond 2^32": lambda _, q: chain(
        q, (GPA_BASE, 16 * MIB, NEXT, 1), *((GPA_BASE, 0xFFFFFFFF, NEXT, 2 + i % 100) for i in range(200))
    ),
    "P2 64 KiB and more": lambda _, q: chain(q, (GPA_BASE, 12 + 65551, 0, 0)),
    "P2 larger than the MTU": lambda fe, q: chain(q, (good(fe), 12 + 22 + 1501, 0, 0)),
}


@pytest.mark.parametrize("name", OVERSIZE)
def test_packets_longer_than_any_are_dropped_and_given_back(scene: Scene, name: str) -> None:
    fe = scene.enter().start(fill=0)
    tx = fe.pairs[0].tx
    OVERSIZE[name](fe, tx)
    until(lambda: tx.used_idx == 1, "the packet to be taken")
    assert scene.villain.state().up
    assert scene.villain.counters["tx_drop_oversize"] == 1
    scene.check(logged=False)


def test_q13_a_table_may_be_larger_than_its_chain(scene: Scene) -> None:
    """What is not read cannot be wrong, even where there is no memory for it."""
    fe = scene.enter().start(fill=0)
    tx = fe.pairs[0].tx
    table(fe, tx, (good(fe), 112, 0, 0), size=0xFFFFFFF0)
    until(lambda: tx.used_idx == 1, "the packet to be taken")
    assert scene.villain.counters["tx_packets"] == 1
    scene.two.poll()
    scene.check(logged=False)


def test_a_chain_is_followed_for_1024_descriptors_and_no_further(scene: Scene) -> None:
    """However large the ring: a chain of nothing must not cost the worker 32768 steps for each packet."""
    fe = scene.enter(num=2048).start(fill=0)
    tx = fe.pairs[0].tx
    at = good(fe)
    longest = [(at, 0, NEXT, i + 1) for i in range(1023)] + [(at, 112, 0, 0)]
    chain(tx, *longest)
    until(lambda: tx.used_idx == 1, "the packet to be taken")
    assert scene.villain.counters["tx_packets"] == 1
    chain(tx, (at, 0, NEXT, 1024), *longest[1:1023], (at, 112, 0, 0), (at, 0, NEXT, 1))
    assert fe.closed_by_peer()
    scene.two.poll()
    assert [e.reason for e in scene.host.events] == [Reason.LOOP]
    scene.check()


def test_q23_garbage_in_the_event_fields_costs_notifications_only(scene: Scene) -> None:
    fe = scene.enter(num=64).start()
    rng = random.Random(1)
    for n in range(100):
        for queue in fe.queues():
            fe.memory.store16(
                queue.avail + 4 + 2 * queue.num, rng.choice([0, 65535, 32768, rng.randrange(65536)])
            )
            fe.memory.store16(queue.used + 4 + 8 * queue.num, rng.randrange(65536))
        fe.queue_frame(frame(BROADCAST, MAC_X, n))
        fe.pairs[0].tx.kick(force=True)
        fe.flush()
        fe.poll()
        scene.two.poll()
        scene.one.poll()
    assert scene.villain.counters["tx_packets"] == 100
    scene.check(logged=False)


def test_q24_flags_toggled_all_the_time(scene: Scene) -> None:
    fe = scene.enter(features=int(PLAIN), num=64).start()
    for n in range(200):
        for queue in fe.queues():
            queue.want_calls(wanted=bool(n % 2))
            fe.memory.store16(queue.used, n & 1)
        fe.queue_frame(frame(BROADCAST, MAC_X, n))
        fe.pairs[0].tx.kick(force=True)
        fe.flush()
        scene.two.poll()
        scene.one.poll()
    scene.check(logged=False)


# ---- Q31: what was read is changed while it is being used ----


def flip_desc(fe: FrontEnd, field: int, *values: int) -> Callable[[int], None]:
    """Alternate a field (0 addr, 1 len, 2 flags, 3 next) of transmit descriptors with other values."""
    tx = fe.pairs[0].tx

    def flip(n: int) -> None:
        i = n % tx.num
        raw = list(DESC.unpack(fe.memory.read(tx.desc + 16 * i, 16)))
        true = raw[field]
        raw[field] = values[n % len(values)]
        fe.memory.write(tx.desc + 16 * i, DESC.pack(*raw))
        raw[field] = true
        fe.memory.write(tx.desc + 16 * i, DESC.pack(*raw))

    return flip


def flip_bytes(fe: FrontEnd, offset: int, *values: bytes) -> Callable[[int], None]:
    """The same for bytes of the packets themselves: header or frame."""
    p = fe.pairs[0]

    def flip(n: int) -> None:
        fe.memory.write(p.tx_buffers + (n % p.tx.num) * fe.buffer_size + offset, values[n % len(values)])

    return flip


def flip_index(fe: FrontEnd) -> Callable[[int], None]:
    tx = fe.pairs[0].tx
    return lambda n: (tx.publish(tx.avail_idx + (n % 7) * 1000), tx.publish())[0]


RACES: dict[str, Callable[[FrontEnd], Callable[[int], None]]] = {
    "desc.addr": lambda fe: flip_desc(fe, 0, 0, TOP - 8, GPA_BASE + 16 * MIB - 4),
    "desc.len": lambda fe: flip_desc(fe, 1, 0, 1, 0xFFFFFFFF, 65536),
    "desc.flags": lambda fe: flip_desc(fe, 2, NEXT, INDIRECT, WRITE, 0xFFFF),
    "desc.next": lambda fe: flip_desc(fe, 3, 0, 65535, 1),
    "avail.idx": flip_index,
    "hdr.csum": lambda fe: flip_bytes(
        fe, 0, b"\1\0\0\0\0\0\xff\xff\xff\xff", b"\1\0\0\0\0\0\x22\0\x10\0", bytes(10)
    ),
    "hdr.gso": lambda fe: flip_bytes(
        fe, 0, b"\1\1\x36\0\0\0\x22\0\x10\0", b"\1\1\0\0\1\0\x22\0\x10\0", bytes(10)
    ),
    "frame addresses": lambda fe: flip_bytes(fe, 12, BROADCAST + MAC_X, MAC_A + MAC_A, bytes(12)),
}


@pytest.mark.parametrize("race", RACES)
def test_q31_a_ring_changed_while_it_is_read(scene: Scene, race: str) -> None:
    """Another thread of the guest rewrites it all the time: its port may break, nothing else may."""
    stop = threading.Event()
    for _ in range(3):
        fe = scene.enter(num=64, features=int(USUAL | F.CSUM | F.HOST_TSO4)).start()
        flip = RACES[race](fe)

        def run(flip: Callable[[int], None] = flip) -> None:
            n = 0
            while not stop.is_set():
                flip(n)
                n += 1

        stop.clear()
        thread = threading.Thread(target=run)
        thread.start()
        try:
            for n in range(60):
                if not scene.villain.describe["connected"]:
                    break
                for _ in range(min(8, fe.pairs[0].tx.free)):
                    fe.queue_frame(frame(BROADCAST, MAC_X, n, 200))
                fe.pairs[0].tx.kick(force=True)
                try:
                    list(fe.pairs[0].tx.take_used())
                except KeyError:
                    break  # the ring is nonsense by now, also to its driver
                scene.two.poll()
                scene.one.poll()
        finally:
            stop.set()
            thread.join()
        scene.villain_leaves()
        scene.neighbours_forward()
    scene.check(logged=False)


def test_q31_an_indirect_table_changed_while_it_is_read(scene: Scene) -> None:
    fe = scene.enter(num=64).start()
    tx = fe.pairs[0].tx
    at = good(fe)
    tables = fe.memory.alloc(16 * 16)
    stop = threading.Event()

    def run() -> None:
        n = 0
        while not stop.is_set():
            fe.memory.write(tables, DESC.pack(at, 12, NEXT, 1) + DESC.pack(at + 12, 100, 0, 0))
            tx.set_desc(0, tables, [32, 0, 0xFFFFFFF0, 17][n % 4], INDIRECT)
            tx.set_desc(0, tables, 32, INDIRECT)
            fe.memory.write(tables, DESC.pack(TOP - 1 - n % 99, 12, NEXT, n % 65536))
            n += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(200):
            if not scene.villain.describe["connected"]:
                break
            offer(tx, 0)
            scene.two.poll()
            scene.one.poll()
    finally:
        stop.set()
        thread.join()
    scene.check(logged=False)


def test_q_every_descriptor_and_index_random(scene: Scene) -> None:
    """Rings of noise, a new connection whenever one is dropped."""
    rng = random.Random(7)
    for _ in range(30):
        fe = scene.enter(num=16).start(fill=0)
        for queue in fe.queues():
            fe.memory.write(queue.desc, rng.randbytes(16 * 16))
            if rng.random() < 0.7:
                for i in range(16):
                    queue.set_desc(
                        i,
                        GPA_BASE + rng.randrange(17 * MIB),
                        rng.choice([0, 1, 12, 60, 4096, 0xFFFFFFFF]),
                        rng.choice([0, NEXT, WRITE, NEXT | WRITE, INDIRECT]),
                        rng.randrange(20),
                    )
            for i in range(16):
                fe.memory.store16(queue.avail + 4 + 2 * i, rng.randrange(18))
            queue.publish(rng.choice([1, 5, 16, 17, 40000]))
            os.eventfd_write(queue.kick_fd, 1)
        scene.one.transmit(*(frame(BROADCAST, MAC_A, n) for n in range(4)))
        scene.two.poll()
        scene.one.poll()
        scene.villain_leaves()
    scene.neighbours_forward()
    scene.check(logged=False)
