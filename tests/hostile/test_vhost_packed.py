# SPDX-License-Identifier: BSD-2-Clause
"""Q: what a hostile guest can write into a packed ring; Q28 above all."""

from __future__ import annotations

import mmap
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.scene import MAC_X, Scene, good
from support.waiting import until
from vpt.conform.frames import BROADCAST, MAC_A, frame
from vpt.conform.front_end import PLAIN, USUAL, VNET_HDR, FrontEnd, Queue
from vpt.conform.guest_memory import GPA_BASE, MIB
from vpt.conform.packed_queue import AVAIL, USED, WRAP, PackedQueue
from vpt.conform.virtqueue import DESC, INDIRECT, NEXT, WRITE, Buffer
from vpt.dataplane import Reason
from vpt.vhost_user import U64, Request, VirtioFeature, VringState

F = VirtioFeature
TOP = 1 << 64
END = GPA_BASE + 16 * MIB
Desc = tuple[int, int, int]  # address, length, flags
R = Reason


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A villain with packed rings."""
    s = Scene.build(tmp_path)
    s.layout = int(F.RING_PACKED)
    yield s
    s.close()


def packed(queue: Queue) -> PackedQueue:
    """A queue that is known to be packed."""
    assert isinstance(queue, PackedQueue)
    return queue


def ring_bell(queue: PackedQueue) -> None:
    """Kick, whatever was written."""
    os.eventfd_write(queue.kick_fd, 1)


def chain(queue: PackedQueue, *descs: Desc, buffer_id: int = 0) -> None:
    """Write descriptors from the next place on, all available, the first one last, and ring."""
    for i, (gpa, size, flags) in reversed(list(enumerate(descs))):
        position = queue.later(queue.position, i)
        queue.put(position, gpa, size, flags | queue.flags_for(position), buffer_id)
    ring_bell(queue)


def table(fe: FrontEnd, queue: PackedQueue, *descs: Desc, size: int | None = None, flags: int = 0) -> None:
    """The same through an indirect table."""
    at = fe.memory.alloc(16 * max(1, len(descs)))
    fe.memory.write(at, b"".join(DESC.pack(gpa, length, 0, how) for gpa, length, how in descs))
    chain(queue, (at, 16 * len(descs) if size is None else size, INDIRECT | flags))


def table_with_next(fe: FrontEnd, queue: PackedQueue) -> None:
    """A table that is in order, and a descriptor behind it that is, too."""
    position = queue.later(queue.position, 1)
    queue.put(position, good(fe), 112, queue.flags_for(position))
    table(fe, queue, (good(fe), 112, 0), flags=NEXT)


def unfinished(fe: FrontEnd, queue: PackedQueue, second: int) -> None:
    """A chain of two whose second descriptor has those flags."""
    queue.put(queue.later(queue.position, 1), good(fe), 100, second)
    chain(queue, (good(fe), 12, NEXT))


def half_table(fe: FrontEnd, queue: PackedQueue) -> None:
    """A table whose second entry lies behind the memory."""
    fe.memory.write(END - 16, DESC.pack(good(fe), 60, 0, 0))
    chain(queue, (END - 16, 32, INDIRECT))


@dataclass(frozen=True)
class Fault:
    """An act on a running ring that the virtio specification forbids, and the reason to be given."""

    id: str
    reason: Reason
    act: Callable[[FrontEnd, PackedQueue], object]
    features: int = int(USUAL)
    ring: str = "tx"


NO_INDIRECT = int(USUAL) & ~int(F.INDIRECT_DESC)
FAULTS = [
    Fault("Q28 id = num", R.BAD_DESC, lambda fe, q: chain(q, (good(fe), 112, 0), buffer_id=q.num)),
    Fault("Q28 id 65535", R.BAD_DESC, lambda fe, q: chain(q, (good(fe), 112, 0), buffer_id=65535)),
    Fault(
        "Q28 id = num after a chain",
        R.BAD_DESC,
        lambda fe, q: chain(q, (good(fe), 12, NEXT), (good(fe), 100, 0), buffer_id=q.num),
    ),
    Fault("Q28 chain as long as the ring, without an end", R.LOOP, lambda fe, q: endless(fe, q, q.num)),
    Fault("Q28 chain that has an end nowhere, of nothing", R.LOOP, lambda fe, q: endless(fe, q, q.num, 0)),
    Fault("Q28 chain into what is not available", R.BAD_DESC, lambda fe, q: unfinished(fe, q, 0)),
    Fault("Q28 chain into what is used", R.BAD_DESC, lambda fe, q: unfinished(fe, q, AVAIL | USED)),
    Fault("Q28 chain into the other lap", R.BAD_DESC, lambda fe, q: unfinished(fe, q, USED)),
    Fault("Q9 address nowhere", R.BAD_ADDR, lambda _, q: chain(q, (0x1000, 112, 0))),
    Fault("Q9 address 0", R.BAD_ADDR, lambda _, q: chain(q, (0, 112, 0))),
    Fault("Q9 end past the memory", R.BAD_ADDR, lambda _, q: chain(q, (END - 50, 112, 0))),
    Fault("Q9 address wraps", R.BAD_ADDR, lambda _, q: chain(q, (TOP - 50, 112, 0))),
    Fault(
        "Q9 second address nowhere",
        R.BAD_ADDR,
        lambda fe, q: chain(q, (good(fe), 12, NEXT), (0x1000, 100, 0)),
    ),
    Fault("Q13 table of no bytes", R.BAD_DESC, lambda fe, q: table(fe, q, size=0)),
    Fault("Q13 table of 8 bytes", R.BAD_DESC, lambda fe, q: table(fe, q, (good(fe), 112, 0), size=8)),
    Fault("Q13 table of 17 bytes", R.BAD_DESC, lambda fe, q: table(fe, q, (good(fe), 112, 0), size=17)),
    Fault("Q13 table longer than the ring", R.LOOP, lambda fe, q: table(fe, q, size=16 * (q.num + 1))),
    Fault("Q13 table of 2^32 - 16 bytes", R.LOOP, lambda fe, q: table(fe, q, size=0xFFFFFFF0)),
    Fault("Q13 table nowhere", R.BAD_ADDR, lambda _, q: chain(q, (0x1000, 16, INDIRECT))),
    Fault("Q13 table end past the memory", R.BAD_ADDR, half_table),
    Fault("Q14 table in a table", R.BAD_DESC, lambda fe, q: table(fe, q, (good(fe), 16, INDIRECT))),
    Fault(
        "Q15 INDIRECT and NEXT",
        R.BAD_DESC,
        table_with_next,
    ),
    Fault(
        "Q16 table that was not negotiated",
        R.BAD_DESC,
        lambda fe, q: table(fe, q, (good(fe), 112, 0)),
        NO_INDIRECT,
    ),
    Fault("Q18 writable in transmit", R.BAD_DESC, lambda fe, q: chain(q, (good(fe), 112, WRITE))),
    Fault("Q18 writable in a table", R.BAD_DESC, lambda fe, q: table(fe, q, (good(fe), 112, WRITE))),
    Fault(
        "Q18 readable after writable",
        R.BAD_DESC,
        lambda fe, q: chain(q, (good(fe), 60, NEXT | WRITE), (good(fe), 60, 0)),
    ),
    Fault(
        "Q28 rx id = num",
        R.BAD_DESC,
        lambda fe, q: chain(q, (good(fe), 2048, WRITE), buffer_id=q.num),
        ring="rx",
    ),
    Fault("Q28 rx endless chain", R.LOOP, lambda fe, q: endless(fe, q, q.num, 0, WRITE), ring="rx"),
    Fault("Q9 rx address nowhere", R.BAD_ADDR, lambda _, q: chain(q, (0x1000, 2048, WRITE)), ring="rx"),
    Fault("Q9 rx address wraps", R.BAD_ADDR, lambda _, q: chain(q, (TOP - 50, 2048, WRITE)), ring="rx"),
    Fault(
        "Q14 rx table in a table",
        R.BAD_DESC,
        lambda fe, q: table(fe, q, (good(fe), 16, INDIRECT | WRITE)),
        ring="rx",
    ),
    Fault("Q18 read-only in receive", R.BAD_DESC, lambda fe, q: chain(q, (good(fe), 2048, 0)), ring="rx"),
]


def endless(fe: FrontEnd, queue: PackedQueue, count: int, size: int = 1, write: int = 0) -> None:
    """A chain of so many descriptors, each of which says that there is another."""
    chain(queue, *[(good(fe), size, NEXT | write)] * count)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.id)
def test_a_forbidden_ring_takes_down_its_port_with_a_reason(scene: Scene, fault: Fault) -> None:
    fe = scene.enter(features=fault.features, num=48).start(fill=0)
    pair = fe.pairs[0]
    fault.act(fe, packed(pair.tx if fault.ring == "tx" else pair.rx))
    scene.one.transmit(frame(BROADCAST, MAC_A, 0, 100))
    assert fe.closed_by_peer()
    scene.two.poll()
    assert [e.reason for e in scene.host.events] == [fault.reason]
    assert scene.villain.counters[f"broken_{fault.reason.name.lower()}"] == 1
    assert scene.villain.faults["broken"] == 1
    scene.check()


@pytest.mark.parametrize("write", [0, WRITE], ids=["", "marked writable"])
def test_a_tables_own_descriptor_may_say_anything_about_writing(scene: Scene, write: int) -> None:
    """The device ignores WRITE there (virtio 1.2, 2.8.7)."""
    fe = scene.enter().start(fill=0)
    tx = packed(fe.pairs[0].tx)
    table(fe, tx, (good(fe), 112, 0), flags=write)
    until(lambda: tx.flags_at(0) & USED, "the packet to be taken")
    assert scene.villain.counters["tx_packets"] == 1
    scene.two.poll()
    scene.check(logged=False)


@pytest.mark.parametrize("flags", [0, AVAIL | USED, USED], ids=["neither", "both", "the other lap's"])
def test_q28_what_is_not_available_is_not_taken(scene: Scene, flags: int) -> None:
    """AVAIL without a flip is nothing at all; when the descriptor becomes available it is taken."""
    fe = scene.enter().start(fill=0)
    tx = packed(fe.pairs[0].tx)
    tx.put(tx.position, good(fe), 112, flags)
    ring_bell(tx)
    scene.neighbours_forward()
    assert scene.villain.counters["tx_packets"] == 0
    fe.transmit(frame(BROADCAST, MAC_X, 77))
    assert scene.villain.counters["tx_packets"] == 1
    scene.two.poll()
    scene.check(logged=False)


def test_q28_duplicate_ids_are_the_drivers_own_affair(scene: Scene) -> None:
    """The device keeps nothing by id: each chain is given back in its place with the id that it came with."""
    fe = scene.enter(num=5).start(fill=0)
    tx = packed(fe.pairs[0].tx)
    for lap in range(3):
        for i in range(5):
            position = lap % 2 * 5 + i
            tx.put(position, good(fe), 112, tx.flags_for(position), 3)
        ring_bell(tx)
        until(
            lambda: bool(tx.flags_at(4) & USED) == bool(tx.flags_at(4) & AVAIL), "the last packet to be taken"
        )
        assert [fe.memory.load16(tx.desc + 16 * i + 12) for i in range(5)] == [3] * 5
    assert scene.villain.counters["tx_packets"] == 15
    scene.two.poll()
    scene.check(logged=False)


def test_q28_a_ring_flipped_behind_the_device_is_taken_burst_by_burst(scene: Scene) -> None:
    """A driver that makes the ring available over and over, used or not, gets no more than its turns."""
    fe = scene.enter(num=7).start(fill=0)
    tx = packed(fe.pairs[0].tx)
    at = good(fe)
    fe.memory.write(at + VNET_HDR, MAC_X)  # to itself: a flood would be the neighbours' business, rightly
    stop = threading.Event()

    def flip() -> None:
        while not stop.is_set():
            for flags in (AVAIL, USED):
                for i in range(7):
                    tx.put(i, at, 112, flags, i)
            ring_bell(tx)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        for _ in range(10):
            scene.neighbours_forward(8)
            scene.one.poll()
    finally:
        stop.set()
        thread.join()
    scene.villain_leaves()
    scene.two.poll()
    scene.check(logged=False)


@pytest.mark.parametrize(
    "descs",
    [
        pytest.param([(0xFFFFFFFF, 0)], id="Q8 length 2^32-1"),
        pytest.param([(0xFFFFFFFF, NEXT)] * 40 + [(1, 0)], id="Q8 lengths add up beyond 2^32"),
        pytest.param([(12 + 65551, 0)], id="P2 64 KiB and more"),
        pytest.param([(12 + 22 + 1501, 0)], id="P2 larger than the MTU"),
    ],
)
def test_packets_longer_than_any_are_dropped_and_given_back(
    scene: Scene, descs: list[tuple[int, int]]
) -> None:
    """With as many descriptors as they had: the next chain is found."""
    fe = scene.enter(num=64).start(fill=0)
    tx = packed(fe.pairs[0].tx)
    chain(tx, *((GPA_BASE, size, flags) for size, flags in descs))
    until(lambda: tx.flags_at(0) & USED, "the packet to be taken")
    assert scene.villain.counters["tx_drop_oversize"] == 1
    tx.position = tx.used_position = len(descs)
    fe.transmit(frame(BROADCAST, MAC_X, 77))
    assert scene.villain.state().up
    scene.two.poll()
    scene.check(logged=False)


def test_a_chain_is_followed_for_1024_descriptors_and_no_further(scene: Scene) -> None:
    fe = scene.enter(num=2047).start(fill=0)
    tx = packed(fe.pairs[0].tx)
    at = good(fe)
    chain(tx, *[(at, 0, NEXT)] * 1023, (at, 112, 0))
    until(lambda: tx.flags_at(0) & USED, "the packet to be taken")
    assert scene.villain.counters["tx_packets"] == 1
    tx.position = 1024
    chain(tx, *[(at, 0, NEXT)] * 1023, (at, 112, NEXT), (at, 0, 0))
    assert fe.closed_by_peer()
    scene.two.poll()
    assert [e.reason for e in scene.host.events] == [Reason.LOOP]
    scene.check()


def test_q23_garbage_in_the_event_areas_costs_notifications_only(scene: Scene) -> None:
    """Ours as well as the driver's: offsets beyond the ring, reserved flags."""
    fe = scene.enter(num=37).start()
    rng = random.Random(1)
    for n in range(200):
        for queue in fe.queues():
            for at in (queue.avail, queue.used):
                fe.memory.store16(at, rng.choice([0, 36, 37, WRAP, WRAP | 37, 65535, rng.randrange(65536)]))
                fe.memory.store16(at + 2, rng.choice([0, 1, 2, 3, 65535, rng.randrange(65536)]))
        fe.queue_frame(frame(BROADCAST, MAC_X, n))
        fe.pairs[0].tx.kick(force=True)
        fe.flush()
        fe.poll()
        scene.two.poll()
        scene.one.poll()
    assert scene.villain.counters["tx_packets"] == 200
    scene.check(logged=False)


def test_q28_a_packet_takes_no_more_descriptors_than_there_are_however_they_flip(scene: Scene) -> None:
    """A receive ring of one, made available again while a packet looks for a second buffer.

    The record has room for a ring's worth of descriptors, and behind it lies the next queue's.
    """
    fe = scene.enter(num=1, features=PLAIN | F.RING_PACKED | F.MRG_RXBUF, buffer_size=256)
    fe.start(record=True, fill=0)
    assert fe.record is not None
    rx = packed(fe.pairs[0].rx)
    rx.put(0, fe.pairs[0].rx_buffers, 256, WRITE | USED, 0)
    over = False

    def flip() -> None:
        at = rx.desc + 14
        while not over:
            fe.memory.store16(at, WRITE | AVAIL)
            fe.memory.store16(at, WRITE | USED)

    with mmap.mmap(fe.record.fd, fe.record.info.mmap_size) as record:
        others = record[64:]
        thread = threading.Thread(target=flip)
        thread.start()
        try:
            for n in range(3000):
                scene.one.transmit(frame(BROADCAST, MAC_A, n, 400))
                scene.two.poll()
                if not scene.villain.describe["connected"]:
                    break
        finally:
            over = True
            thread.join()
        assert record[64:] == others
    scene.check(logged=False)  # a host with one core for all may not have seen it


def test_q24_suppression_toggled_all_the_time(scene: Scene) -> None:
    fe = scene.enter(features=int(PLAIN), num=33).start()
    for n in range(200):
        for queue in fe.queues():
            queue.want_calls(wanted=bool(n % 2))
            fe.memory.store16(queue.used + 2, n % 4)
        fe.queue_frame(frame(BROADCAST, MAC_X, n))
        fe.pairs[0].tx.kick(force=True)
        fe.flush()
        scene.two.poll()
        scene.one.poll()
    scene.check(logged=False)


# ---- Q31: what was read is changed while it is being used ----

RACES: dict[str, tuple[int, list[int]]] = {
    "addr": (0, [0, TOP - 8, END - 4]),
    "len": (1, [0, 1, 0xFFFFFFFF, 65536]),
    "id": (2, [0, 1, 65535]),
    "flags": (3, [0, AVAIL | NEXT, USED, AVAIL | INDIRECT, AVAIL | WRITE, USED | NEXT, 0xFFFF]),
}


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize("ring", [0, 1], ids=["rx", "tx"])
def test_q31_a_descriptor_changed_while_it_is_read(scene: Scene, race: str, ring: int) -> None:
    """Another thread of the guest rewrites it all the time: its port may break, nothing else may."""
    field, values = RACES[race]
    stop = threading.Event()
    for _ in range(3):
        fe = scene.enter(num=61).start()
        queue = packed(fe.queues()[ring])

        def run(fe: FrontEnd = fe, queue: PackedQueue = queue) -> None:
            n = 0
            while not stop.is_set():
                at = queue.desc + 16 * (n % queue.num)
                raw = list(DESC.unpack(fe.memory.read(at, 16)))
                true, raw[field] = raw[field], values[n % len(values)]
                fe.memory.write(at, DESC.pack(*raw))
                raw[field] = true
                fe.memory.write(at, DESC.pack(*raw))
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
                scene.one.transmit(frame(BROADCAST, MAC_A, n, 200))
                try:
                    list(fe.pairs[0].tx.take_used())
                except (KeyError, ValueError):
                    break  # the ring is nonsense by now, also to its driver
                scene.two.poll()
                scene.one.poll()
        finally:
            stop.set()
            thread.join()
        scene.villain_leaves()
        scene.neighbours_forward()
    scene.check(logged=False)


@pytest.mark.parametrize("num", [1, 13, 16])
def test_q_every_descriptor_random(scene: Scene, num: int) -> None:
    """Rings of noise, a new connection whenever one is dropped."""
    rng = random.Random(num)
    for _ in range(20):
        fe = scene.enter(num=num).start(fill=0)
        for queue in map(packed, fe.queues()):
            fe.memory.write(queue.desc, rng.randbytes(16 * num))
            for i in range(num):
                if rng.random() < 0.7:
                    flags = rng.choice([0, NEXT, WRITE, NEXT | WRITE, INDIRECT])
                    size = rng.choice([0, 1, 12, 60, 4096, 0xFFFFFFFF])
                    queue.put(
                        i, GPA_BASE + rng.randrange(17 * MIB), size, flags | AVAIL, rng.randrange(num + 1)
                    )
            ring_bell(queue)
        scene.one.transmit(*(frame(BROADCAST, MAC_A, n) for n in range(4)))
        scene.two.poll()
        scene.one.poll()
        scene.villain_leaves()
    scene.neighbours_forward()
    scene.check(logged=False)


# ---- sizes, bases, layouts ----


@pytest.mark.parametrize("base", [7, 7 | WRAP, 0x7FFF, 0xFFFF], ids=hex)
def test_s23_a_base_beyond_the_ring_is_refused(scene: Scene, base: int) -> None:
    fe = scene.enter(num=7)
    fe.negotiate()
    fe.share_memory()
    fe.make_queues()
    queue = fe.queues()[1]
    fe.do(Request.SET_VRING_NUM, VringState(1, 7))
    fe.do(Request.SET_VRING_ADDR, queue.addresses(1))
    fe.do(Request.SET_VRING_BASE, VringState(1, base))
    with pytest.raises(AssertionError):
        fe.set_kick(1, queue.kick_fd)
    assert scene.villain.faults["bad_ring"] == 1
    fe.start_ring(1)
    fe.enable_ring(1)
    fe.transmit(frame(BROADCAST, MAC_X, 1))
    scene.two.poll()
    scene.check(logged=False)


@pytest.mark.parametrize("num", [0, 32769, 65536, 0xFFFFFFFF])
def test_s22_sizes_that_no_packed_ring_has(scene: Scene, num: int) -> None:
    fe = scene.enter()
    fe.negotiate()
    assert fe.try_(Request.SET_VRING_NUM, VringState(1, num)) != 0
    assert scene.villain.faults["bad_value"] == 1
    scene.check(logged=False)


def test_a_size_that_only_a_packed_ring_may_have_is_no_size_for_a_split_one(scene: Scene) -> None:
    """Negotiated again after the size was accepted."""
    fe = scene.enter(num=7)
    fe.negotiate()
    fe.share_memory()
    fe.make_queues()
    queue = fe.queues()[1]
    fe.do(Request.SET_VRING_NUM, VringState(1, 7))
    fe.do(Request.SET_FEATURES, U64(fe.features & ~int(F.RING_PACKED)))
    fe.do(Request.SET_VRING_ADDR, queue.addresses(1))
    with pytest.raises(AssertionError):
        fe.set_kick(1, queue.kick_fd)
    assert scene.villain.faults["bad_ring"] == 1
    scene.check(logged=False)


def test_a_layout_does_not_outlive_its_connection(scene: Scene) -> None:
    """A front-end that negotiates no features has split rings, whatever the one before had."""
    fe = scene.enter().start()
    fe.transmit(frame(BROADCAST, MAC_X, 1))
    scene.villain_leaves()
    scene.layout = 0
    fe = scene.enter(features=0)
    fe.do(Request.SET_OWNER)
    fe.share_memory()
    fe.make_queues()
    for index in (0, 1):
        fe.start_ring(index)
        fe.enable_ring(index)
    fe.ask(Request.GET_FEATURES)
    tx = fe.pairs[0].tx
    at = good(fe)
    tx.add([Buffer(at + 2, 110)])  # a legacy driver's header has ten bytes
    tx.kick(force=True)
    fe.flush()
    assert scene.villain.counters["tx_packets"] == 2
    scene.two.poll()
    scene.check(logged=False)


def test_memory_changes_under_a_packed_ring_that_is_being_filled(scene: Scene) -> None:
    fe = scene.enter(num=19).start()
    for n in range(40):
        fe.transmit(frame(BROADCAST, MAC_X, n))
        scene.one.transmit(frame(BROADCAST, MAC_A, n))
        fe.share_memory()
        fe.receive()
        scene.one.poll()
        scene.two.poll()
    scene.check(logged=False)
