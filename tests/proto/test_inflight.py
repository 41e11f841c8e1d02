# SPDX-License-Identifier: BSD-2-Clause
"""INFLIGHT_SHMFD: what a back-end finds in a record that another one has left, and what it leaves itself."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from struct import pack, pack_into, unpack_from

import pytest

from support.host import Host, VhostPort
from vpt.conform.frames import MAC_A, MAC_B, frame, number
from vpt.conform.front_end import FIRST_LAP, PLAIN, FrontEnd
from vpt.conform.packed_queue import PackedQueue
from vpt.conform.split_queue import SplitQueue
from vpt.vhost_user import Inflight, Request, VirtioFeature

F = VirtioFeature
Connect = Callable[..., FrontEnd]
NUM = 8
TX = 1
SPLIT = 16 + NUM * 16 + 48  # bytes of a queue's region, a multiple of 64
PACKED = 32 + NUM * 32 + 32


@pytest.fixture
def ports(host: Host) -> tuple[VhostPort, VhostPort]:
    """Two vhost-user ports of one switch."""
    return host.vhost("a", mac=MAC_A), host.vhost("b", mac=MAC_B)


def prepared(connect: Connect, port: VhostPort, features: int = 0) -> FrontEnd:
    """A front-end with a record, rings not yet started, four packets available."""
    fe = connect(port, features=PLAIN | features, num=NUM)
    fe.negotiate()
    fe.share_memory()
    fe.make_queues()
    fe.ask_record()
    for n in range(4):
        fe.queue_frame(frame(MAC_B, MAC_A, n))
    fe.pairs[0].tx.publish()
    return fe


def memory_of(fe: FrontEnd) -> mmap.mmap:
    assert fe.record is not None
    return mmap.mmap(fe.record.fd, fe.record.info.mmap_size)


def go(fe: FrontEnd) -> None:
    fe.give_record()
    for ring in range(2):
        fe.enable_ring(ring)  # first: what is found in a ring that is not enabled is dropped
        fe.start_ring(ring, base=FIRST_LAP if fe.features & F.RING_PACKED else 0)


def test_a_record_has_room_for_all_queues_and_cannot_be_cut(
    ports: tuple[VhostPort, ...], connect: Connect
) -> None:
    fe = connect(ports[0])
    fe.negotiate()
    for request, padding in ((Inflight(0, 0, 2, 256), 4), (Inflight(0, 0, 2, 256, 0), 0)):
        fe.send(Request.GET_INFLIGHT_FD, request)
        reply = fe.reply()
        with reply:
            assert reply.payload == Inflight(2 * (16 + 256 * 16 + 48), 0, 2, 256, padding)
            with pytest.raises(OSError, match="not permitted"):
                mmap.mmap(reply.fds[0], reply.payload.mmap_size).resize(64)


def test_split_what_another_left_in_flight_is_sent_once_oldest_first(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    """It had taken all four, given back the second and third, and begun with the fourth before the first."""
    fe, two = prepared(connect, ports[0]), connect(ports[1]).start()
    tx = fe.pairs[0].tx
    assert isinstance(tx, SplitQueue)
    heads = [fe.memory.load16(tx.avail + 4 + 2 * n) for n in range(4)]
    for at, n in enumerate((1, 2)):
        fe.memory.write(tx.used + 4 + 8 * at, pack("<II", heads[n], 0))
    fe.memory.store16(tx.used + 2, 2)
    with memory_of(fe) as memory:
        pack_into("<QHHHH", memory, SPLIT, 0, 1, NUM, 0, 2)
        for n, counter in ((0, 9), (3, 5)):
            pack_into("<B", memory, SPLIT + 16 + 16 * heads[n], 1)
            pack_into("<Q", memory, SPLIT + 16 + 16 * heads[n] + 8, counter)
        fe.queue_frame(frame(MAC_B, MAC_A, 4))
        tx.publish()
        go(fe)
        assert [number(r.frame) for r in two.receive(3)] == [3, 0, 4]
        fe.flush()  # each descriptor comes back exactly once: the queue would not know a second one
        assert not any(memory[SPLIT + 16 + 16 * i] for i in range(NUM))
        assert unpack_from("<H", memory, SPLIT + 14)[0] == tx.used_idx == 5


def test_split_a_batch_that_was_published_and_not_recorded_is_not_sent_again(
    ports: tuple[VhostPort, VhostPort], connect: Connect
) -> None:
    fe, two = prepared(connect, ports[0]), connect(ports[1]).start()
    tx = fe.pairs[0].tx
    assert isinstance(tx, SplitQueue)
    heads = [fe.memory.load16(tx.avail + 4 + 2 * n) for n in range(4)]
    for n in range(2):
        fe.memory.write(tx.used + 4 + 8 * n, pack("<II", heads[n], 0))
    fe.memory.store16(tx.used + 2, 2)
    with memory_of(fe) as memory:
        pack_into("<QHHHH", memory, SPLIT, 0, 1, NUM, heads[1], 0)
        for n in range(4):
            pack_into("<B", memory, SPLIT + 16 + 16 * heads[n], 1)
            pack_into("<Q", memory, SPLIT + 16 + 16 * heads[n] + 8, n)
        pack_into("<H", memory, SPLIT + 16 + 16 * heads[1] + 6, heads[0])
    go(fe)
    assert [number(r.frame) for r in two.receive(2)] == [2, 3]
    fe.flush()


def packed_record(fe: FrontEnd, memory: mmap.mmap, chains: list[tuple[int, int]], **place: int) -> None:
    """A record that holds these packets, with their counters, as of a ring of single descriptors."""
    tx = fe.pairs[0].tx
    assert isinstance(tx, PackedQueue)
    free, used, wrap = len(chains), place["used"], place.get("wrap", 1)
    pack_into("<QHHHHHHBB", memory, PACKED, 0, 1, NUM, free, free, used, place.get("old", used), wrap, wrap)
    for i in range(NUM):
        pack_into("<H", memory, PACKED + 32 + 32 * i + 2, i + 1)
    for i, (n, counter) in enumerate(chains):
        gpa, size, buffer_id, flags = unpack_from("<QIHH", fe.memory.read(tx.desc + 16 * n, 16))
        pack_into(
            "<BxHHHQHHIQ", memory, PACKED + 32 + 32 * i, 1, i + 1, i, 1, counter, buffer_id, flags, size, gpa
        )


@pytest.mark.parametrize("again", [False, True], ids=["at once", "after a back-end that did nothing"])
def test_packed_what_another_left_in_flight_is_sent_once_oldest_first(
    ports: tuple[VhostPort, VhostPort], connect: Connect, again: bool
) -> None:
    """It had given back the second and third, in the ring's first two places: those tell of them no more."""
    fe, two = prepared(connect, ports[0], F.RING_PACKED), connect(ports[1]).start()
    tx = fe.pairs[0].tx
    assert isinstance(tx, PackedQueue)
    with memory_of(fe) as memory:
        packed_record(fe, memory, [(0, 9), (3, 5)], used=2)
        ids = [unpack_from("<H", fe.memory.read(tx.desc + 16 * n + 12, 2))[0] for n in range(4)]
        for at, n in enumerate((1, 2)):
            fe.memory.write(tx.desc + 16 * at + 8, pack("<IHH", 0, ids[n], 1 << 7 | 1 << 15))
        fe.queue_frame(frame(MAC_B, MAC_A, 4))
        tx.publish()
        if again:
            engine = ports[0].host.engine
            ports[0].host.call(lambda: engine.hold(True))
            fe.give_record()
            fe.start_ring(TX, base=FIRST_LAP)
            fe.disconnect()
            ports[0].until_left()
            ports[0].host.call(lambda: engine.hold(False))
            fe.resume(ports[0].path)
        else:
            go(fe)
        assert [number(r.frame) for r in two.receive(3)] == [3, 0, 4]
        fe.flush()
        assert not any(memory[PACKED + 32 + 32 * i] for i in range(NUM))


@pytest.mark.parametrize("shown", [False, True], ids=["not shown", "shown"])
def test_packed_a_step_in_progress_is_finished_if_the_driver_has_seen_it_else_taken_back(
    ports: tuple[VhostPort, VhostPort], connect: Connect, shown: bool
) -> None:
    fe, two = prepared(connect, ports[0], F.RING_PACKED), connect(ports[1]).start()
    tx = fe.pairs[0].tx
    assert isinstance(tx, PackedQueue)
    with memory_of(fe) as memory:
        packed_record(fe, memory, [], used=1, old=0)
        if shown:
            fe.memory.store16(tx.desc + 14, 1 << 7 | 1 << 15)
    go(fe)
    expected = [1, 2, 3] if shown else [0, 1, 2, 3]
    assert [number(r.frame) for r in two.receive(len(expected))] == expected
    fe.flush()


@pytest.mark.parametrize("layout", [0, int(F.RING_PACKED)], ids=["split", "packed"])
def test_a_ring_that_was_stopped_begins_where_the_front_end_says(
    ports: tuple[VhostPort, VhostPort], connect: Connect, layout: int
) -> None:
    """It has been told the base, or has reset the driver since: the record speaks of what is past."""
    fe, two = (
        connect(ports[0], features=PLAIN | layout, num=NUM).start(record=True),
        connect(ports[1]).start(),
    )
    for n in range(3):
        fe.transmit(frame(MAC_B, MAC_A, n))
    two.receive(3)
    assert fe.stop_ring(TX) != (FIRST_LAP if layout else 0)
    fe.pairs[0].tx.restart()
    fe.start_ring(TX)
    for n in range(3, 6):
        fe.transmit(frame(MAC_B, MAC_A, n))
    assert [number(r.frame) for r in two.receive(3)] == [3, 4, 5]


@pytest.mark.parametrize("layout", [0, int(F.RING_PACKED)], ids=["split", "packed"])
def test_a_driver_that_sleeps_is_woken_by_the_next_back_end(
    ports: tuple[VhostPort, VhostPort], connect: Connect, layout: int
) -> None:
    """The one that died may have shown something and not come to interrupt for it."""
    fe = connect(ports[0], features=PLAIN | F.EVENT_IDX | layout, num=NUM).start(record=True)
    fe.transmit(frame(MAC_B, MAC_A))
    fe.disconnect()
    ports[0].until_left()
    fe.queues()[TX].take_calls()
    fe.resume(ports[0].path)
    assert fe.queues()[TX].take_calls(10.0) >= 1
