# SPDX-License-Identifier: BSD-2-Clause
"""M18, S14: a record of what is in flight that lies, in its message or in its memory."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from struct import pack_into

import pytest

from support.scene import Scene
from vpt.conform.frames import BROADCAST, frame
from vpt.conform.front_end import PLAIN, FrontEnd, Record
from vpt.dataplane import Reason
from vpt.vhost_user import Inflight, Request, Rule, VirtioFeature, encode, send_message

F = VirtioFeature
MAC_X = b"\x52\x54\0\0\0\x99"
NUM = 16
RX, TX = 0, 1
STRIDE = {0: 16 + NUM * 16 + 48, 1: 32 + NUM * 32 + 32}  # of a queue's region, a multiple of 64
STATE = {0: 16, 1: 32}
HEAD = STATE  # a region's head is as long as a state
# Fields by their offset in a region's head.
FEATURES, VERSION, DESC_NUM = 0, 8, 10
LAST_BATCH_HEAD, USED_IDX = 12, 14  # split
FREE_HEAD, PACKED_USED, PACKED_OLD_USED, USED_WRAP, OLD_WRAP = 12, 16, 18, 20, 21
# Fields of a state.
INFLIGHT, NEXT_SPLIT, NEXT, LAST, CHAIN = 0, 6, 2, 4, 6


def visitor(scene: Scene, features: int = 0) -> FrontEnd:
    """A front-end that has shared its memory and is about to hand in a record."""
    fe = scene.enter(features=PLAIN | features, num=NUM, buffer_size=256)
    fe.negotiate()
    fe.share_memory()
    fe.make_queues()
    fe.ask_record()
    return fe


def own_record(fe: FrontEnd, size: int = 65536) -> Record:
    """A memfd of the front-end's own making, which nobody has sealed, in the place of the back-end's."""
    fd = os.memfd_create("record", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    assert fe.record is not None
    os.close(fe.record.fd)
    fe.record = Record(fe.record.info, fd)
    return fe.record


MESSAGES = [
    pytest.param({"queues": 0}, id="M18 no queue"),
    pytest.param({"queues": 65535}, id="M18 65535 queues (CVE-2021-3839)"),
    pytest.param({"queues": 3}, id="M18 more queues than there are"),
    pytest.param({"queue_size": 0}, id="M18 queues of 0"),
    pytest.param({"queue_size": 65535}, id="M18 queues of 65535"),
    pytest.param({"queue_size": 32768}, id="M18 queues too large for its memory"),
    pytest.param({"mmap_size": 0}, id="M18 no memory"),
    pytest.param({"mmap_size": 64}, id="M18 memory for no queue"),
    pytest.param({"mmap_size": 1 << 40}, id="M18 more memory than the file has"),
    pytest.param({"mmap_size": (1 << 64) - 64}, id="M18 size of nearly everything"),
    pytest.param({"mmap_offset": (1 << 64) - 64}, id="M18 offset and size wrap around"),
    pytest.param({"mmap_offset": 1 << 62}, id="M18 offset beyond the file"),
    pytest.param({"mmap_offset": 8}, id="M18 crooked offset"),
]


@pytest.mark.parametrize("lie", MESSAGES)
def test_m18_a_message_that_lies_about_the_record(scene: Scene, lie: dict[str, int]) -> None:
    fe = visitor(scene)
    record = own_record(fe)
    assert fe.try_(Request.SET_INFLIGHT_FD, replace(record.info, **lie), [record.fd]) != 0
    assert scene.villain.faults[Rule.BAD_INFLIGHT] == 1
    scene.check(logged=False)


@pytest.mark.parametrize("asked", [(0, 16), (65535, 16), (2, 0), (2, 65535)])
def test_m18_a_record_asked_for_of_an_impossible_shape(scene: Scene, asked: tuple[int, int]) -> None:
    """It has a reply of its own, so there is no way to say no but to close."""
    fe = visitor(scene)
    fe.send(Request.GET_INFLIGHT_FD, Inflight(0, 0, *asked))
    assert fe.closed_by_peer()
    assert scene.villain.faults[Rule.BAD_INFLIGHT] == 1
    scene.check()


@pytest.mark.parametrize("kind", ["pipe", "eventfd", "folder", "empty file"])
def test_m18_what_is_no_file_with_a_record(scene: Scene, kind: str) -> None:
    fe = visitor(scene)
    fds = list(os.pipe()) if kind == "pipe" else []
    if kind == "eventfd":
        fds = [os.eventfd(0)]
    elif kind == "folder":
        fds = [os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY)]
    elif kind == "empty file":
        fds = [os.memfd_create("empty")]
    assert fe.record is not None
    assert fe.try_(Request.SET_INFLIGHT_FD, fe.record.info, fds[:1]) != 0
    for fd in fds:
        os.close(fd)
    scene.check(logged=False)


@pytest.mark.parametrize(
    ("request_", "count"),
    [
        (Request.SET_INFLIGHT_FD, 0),
        (Request.SET_INFLIGHT_FD, 2),
        (Request.SET_INFLIGHT_FD, 8),
        (Request.GET_INFLIGHT_FD, 1),
    ],
    ids=["S14 SET without", "S14 SET with two (CVE-2022-0669)", "S14 SET with eight", "S14 GET with one"],
)
def test_s14_descriptors_too_few_or_too_many(scene: Scene, request_: Request, count: int) -> None:
    fe = visitor(scene)
    assert fe.record is not None
    send_message(fe.sock, encode(request_, fe.record.info), [fe.record.fd] * count)
    assert fe.closed_by_peer()
    assert scene.villain.faults[Rule.BAD_FD_COUNT] == 1
    scene.check()


def test_m18_ten_thousand_records_leave_nothing_behind(scene: Scene) -> None:
    """CVE-2020-10726: asked for and handed in again and again."""
    fe = visitor(scene)
    for _ in range(2500):
        assert fe.record is not None
        os.close(fe.record.fd)
        fe.ask_record()
        fe.give_record()
    scene.check(logged=False)


def test_m18_a_record_is_not_exchanged_under_running_rings(scene: Scene) -> None:
    fe = scene.enter(features=PLAIN, num=NUM).start(record=True)
    assert fe.record is not None
    assert fe.try_(Request.SET_INFLIGHT_FD, fe.record.info, [fe.record.fd]) != 0
    fe.transmit(frame(BROADCAST, MAC_X))
    scene.check(logged=False)


Pokes = list[tuple[int, str, int]]


def head(offset: int, code: str, value: int) -> tuple[int, str, int]:
    return offset, code, value


def state(packed: int, i: int, offset: int, code: str, value: int) -> tuple[int, str, int]:
    return HEAD[packed] + STATE[packed] * i + offset, code, value


def first_in_flight(free: int, length: int, following: int = 1) -> Pokes:
    """Packed: entry 0 as a chain of so many, and a free list that begins elsewhere."""
    return [
        head(FREE_HEAD + 2, "H", free),
        state(1, 0, INFLIGHT, "B", 1),
        state(1, 0, CHAIN, "H", length),
        state(1, 0, NEXT, "H", following),
    ]


def everything_in_flight(packed: int) -> Pokes:
    return [state(packed, i, INFLIGHT, "B", 1) for i in range(NUM)]


LIES = [
    pytest.param(0, [head(VERSION, "H", 2)], id="M18 split, version unknown"),
    pytest.param(0, [head(FEATURES, "Q", 1)], id="M18 split, features unknown"),
    pytest.param(0, [head(DESC_NUM, "H", 65535)], id="M18 split, desc_num lies"),
    pytest.param(0, [head(DESC_NUM, "H", 0)], id="M18 split, desc_num 0"),
    pytest.param(0, [head(USED_IDX, "H", 100)], id="M18 split, a batch longer than the ring"),
    pytest.param(
        0, [head(USED_IDX, "H", 65535), head(LAST_BATCH_HEAD, "H", NUM)], id="M18 split, a batch from nowhere"
    ),
    pytest.param(
        0, [head(USED_IDX, "H", 65534), state(0, 0, NEXT_SPLIT, "H", 65535)], id="M18 split, next leads out"
    ),
    pytest.param(0, everything_in_flight(0), id="M18 split, in flight what was never available"),
    pytest.param(1, [head(VERSION, "H", 2)], id="M18 packed, version unknown"),
    pytest.param(1, [head(DESC_NUM, "H", NUM - 1)], id="M18 packed, desc_num lies"),
    pytest.param(1, [head(PACKED_USED, "H", NUM)], id="M18 packed, used_idx beyond the ring"),
    pytest.param(1, [head(PACKED_OLD_USED, "H", 65535)], id="M18 packed, old_used_idx beyond the ring"),
    pytest.param(1, [head(USED_WRAP, "B", 2)], id="M18 packed, a third wrap counter"),
    pytest.param(1, [head(OLD_WRAP, "B", 255)], id="M18 packed, another third wrap counter"),
    pytest.param(
        1,
        [state(1, 9, INFLIGHT, "B", 1), state(1, 3, NEXT, "H", 0)],
        id="M18 packed, free list that goes in circles",
    ),
    pytest.param(1, first_in_flight(1, 0), id="M18 packed, a chain of nothing"),
    pytest.param(1, first_in_flight(1, 65535), id="M18 packed, a chain longer than the ring"),
    pytest.param(
        1, first_in_flight(1, NUM + 1, 0), id="M18 packed, a chain that goes in circles beyond the ring"
    ),
    pytest.param(1, first_in_flight(NUM, 3, 60000), id="M18 packed, a chain that leads out"),
    pytest.param(
        1,
        [
            head(FREE_HEAD + 2, "H", NUM),
            *everything_in_flight(1),
            *(state(1, i, CHAIN, "H", 2) for i in range(NUM)),
            *(state(1, i, NEXT, "H", 0) for i in range(NUM)),
        ],
        id="M18 packed, more in flight than the ring has",
    ),
]


@pytest.mark.parametrize("ring", [RX, TX], ids=["receive", "transmit"])
@pytest.mark.parametrize(("packed", "pokes"), LIES)
def test_m18_a_record_that_lies_keeps_its_ring_from_starting(
    scene: Scene, packed: int, pokes: Pokes, ring: int
) -> None:
    fe = visitor(scene, F.RING_PACKED if packed else 0)
    region = fresh_record(fe, ring, packed)
    with region as memory:
        for offset, code, value in pokes:
            pack_into(f"<{code}", memory, ring * STRIDE[packed] + offset, value)
    fe.give_record()
    with pytest.raises(AssertionError, match="SET_VRING_KICK"):
        fe.start_ring(ring)
    assert scene.villain.faults[Rule.BAD_INFLIGHT] == 1
    scene.check(logged=False)


def fresh_record(fe: FrontEnd, ring: int, packed: int) -> mmap.mmap:
    """A record as a back-end leaves it that has taken up this ring and done nothing with it."""
    assert fe.record is not None
    memory = mmap.mmap(fe.record.fd, fe.record.info.mmap_size)
    at = ring * STRIDE[packed]
    pack_into("<QHH", memory, at, 0, 1, NUM)
    if packed:
        pack_into("<BB", memory, at + USED_WRAP, 1, 1)
        for i in range(NUM):
            pack_into("<H", memory, at + HEAD[1] + i * STATE[1] + NEXT, i + 1)
    return memory


@pytest.mark.parametrize("packed", [0, 1], ids=["split", "packed"])
def test_m18_a_ring_larger_than_the_record_does_not_start(scene: Scene, packed: int) -> None:
    """CVE-2026-86565."""
    fe = visitor(scene, F.RING_PACKED if packed else 0)
    assert fe.record is not None
    fe.record = Record(replace(fe.record.info, queue_size=NUM // 2), fe.record.fd)
    fe.give_record()
    with pytest.raises(AssertionError, match="SET_VRING_KICK"):
        fe.start_ring(TX)
    scene.check(logged=False)


def test_m18_a_batch_list_that_goes_in_circles_is_followed_once_around_at_most(scene: Scene) -> None:
    """In a split record only as many entries are looked at as the batch has: the ring starts and works."""
    fe = visitor(scene)
    with fresh_record(fe, TX, 0) as memory:
        pack_into("<H", memory, STRIDE[0] + USED_IDX, 65530)
        pack_into("<H", memory, STRIDE[0] + HEAD[0] + NEXT_SPLIT, 0)
    fe.give_record()
    for ring in (RX, TX):
        fe.start_ring(ring)
        fe.enable_ring(ring)
    fe.transmit(frame(BROADCAST, MAC_X))
    scene.check(logged=False)


@pytest.mark.parametrize("packed", [0, 1], ids=["split", "packed"])
@pytest.mark.parametrize("when", ["before the rings start", "while they run"])
def test_m18_a_record_whose_file_is_cut(scene: Scene, packed: int, when: str) -> None:
    fe = visitor(scene, F.RING_PACKED if packed else 0)
    record = own_record(fe)
    fe.give_record()
    if when == "while they run":
        for ring in (RX, TX):
            fe.start_ring(ring)
            fe.enable_ring(ring)
    os.ftruncate(record.fd, 0)
    if when == "while they run":
        fe.queue_frame(frame(BROADCAST, MAC_X))
        fe.pairs[0].tx.kick(force=True)
    else:
        with contextlib.suppress(AssertionError, ConnectionError):
            fe.start_ring(TX)
    scene.villain.until_left()
    scene.check()


@pytest.fixture
def scribbler() -> Iterator[Callable[[Record], None]]:
    """Writes noise over a record until the test ends."""
    ended = threading.Event()
    threads: list[threading.Thread] = []

    def scribble(record: Record) -> None:
        with mmap.mmap(record.fd, record.info.mmap_size) as memory:
            while not ended.is_set():
                memory[:] = os.urandom(record.info.mmap_size)

    def start(record: Record) -> None:
        threads.append(threading.Thread(target=scribble, args=(record,)))
        threads[-1].start()

    yield start
    ended.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("packed", [0, 1], ids=["split", "packed"])
def test_m18_noise_over_a_record_in_use_harms_nobody(
    scene: Scene, scribbler: Callable[[Record], None], packed: int
) -> None:
    """What a ring has taken up is the data plane's own; the record is only written."""
    features = PLAIN | F.MRG_RXBUF | (F.RING_PACKED if packed else 0)
    fe = scene.enter(features=features, num=NUM, buffer_size=64).start(record=True)
    assert fe.record is not None
    scribbler(fe.record)
    for n in range(200):
        fe.transmit(frame(BROADCAST, MAC_X, n, 300))
        scene.one.poll()
        scene.two.poll()
        scene.one.transmit(frame(BROADCAST, b"\x52\x54\0\0\0\x01", n, 300))
        fe.poll()
    assert scene.villain.state().reason == Reason.NONE
    assert scene.villain.counters["tx_packets"] >= 200
    scene.neighbours_forward()


@pytest.mark.parametrize("packed", [0, 1], ids=["split", "packed"])
def test_m18_noise_over_a_record_that_is_taken_up(
    scene: Scene, scribbler: Callable[[Record], None], packed: int
) -> None:
    fe = visitor(scene, F.RING_PACKED if packed else 0)
    assert fe.record is not None
    scribbler(fe.record)
    for _ in range(300):
        fe.give_record()
        for ring in (RX, TX):
            try:
                fe.start_ring(ring)
            except AssertionError:
                continue
        for ring in (RX, TX):
            fe.stop_ring(ring)
    scene.neighbours_forward()
