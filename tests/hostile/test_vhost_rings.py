# SPDX-License-Identifier: BSD-2-Clause
"""Q: odd things that a guest may do with rings of any layout without breaking a rule of theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.scene import MAC_X, Scene, good
from support.waiting import until
from vpt.conform.frames import BROADCAST, MAC_A, frame
from vpt.conform.front_end import PLAIN, USUAL
from vpt.conform.guest_memory import GPA_BASE, MIB, GuestMemory, Span
from vpt.conform.mischief import kick_storm
from vpt.conform.split_queue import MAX_INDIRECT, Buffer, pieces
from vpt.vhost_user import Request, VirtioFeature

F = VirtioFeature


@pytest.fixture(
    params=[0, int(F.RING_PACKED), int(F.RING_PACKED | F.IN_ORDER)],
    ids=["split", "packed", "packed in order"],
)
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A villain whose rings have that layout."""
    s = Scene.build(tmp_path)
    s.layout = request.param
    yield s
    s.close()


@pytest.mark.parametrize(
    ("sizes", "sent"),
    [
        pytest.param([0], False, id="Q7 one of zero length"),
        pytest.param([0, 0, 0], False, id="Q7 all of zero length"),
        pytest.param([0, 112], True, id="Q7 zero length first"),
        pytest.param([12, 0, 100, 0], True, id="Q7 zero length between and last"),
        pytest.param([1], False, id="Q10 one byte"),
        pytest.param([11], False, id="Q10 a byte short of the header"),
        pytest.param([5, 6], False, id="Q10 short in two"),
        pytest.param([12], False, id="Q11 a header and nothing else"),
        pytest.param([6, 6], False, id="Q11 a header in two and nothing else"),
        pytest.param([*[1] * 12, 100], True, id="Q12 header byte by byte"),
        pytest.param([1] * 112, True, id="Q12 all byte by byte"),
        pytest.param([12, 13], False, id="P1 frame of 13 bytes"),
        pytest.param([12, 14], True, id="P1 frame of 14 bytes"),
    ],
)
def test_odd_chains_are_taken_and_given_back(scene: Scene, sizes: list[int], sent: bool) -> None:
    """Too short to be a packet: dropped and counted. Odd but complete: forwarded. Neither stops the ring."""
    fe = scene.enter().start(fill=0)
    tx = fe.pairs[0].tx
    tx.add(pieces(good(fe), sizes))
    tx.kick(force=True)
    fe.flush()
    assert scene.villain.state().up
    counters = scene.villain.counters
    assert (counters["tx_packets"], counters["tx_drop_runt"]) == (1, 0 if sent else 1)
    fe.transmit(frame(BROADCAST, MAC_X, 77))
    until(lambda: any(r.frame[6:12] == MAC_X for r in scene.two.poll()), "the packet")
    scene.check(logged=False)


@pytest.mark.parametrize("features", [PLAIN, USUAL], ids=["one buffer", "mergeable"])
@pytest.mark.parametrize("size", [0, 1, 11, 12, 13])
def test_q19_runt_receive_buffers(scene: Scene, features: int, size: int) -> None:
    """Room for less than a header: nothing is written beyond it, and nobody waits."""
    fe = scene.enter(features=int(features)).start(fill=0)
    rx = fe.pairs[0].rx
    at = fe.memory.alloc(64 * 64)
    fe.memory.write(at, b"\xee" * 64 * 64)
    for i in range(64):
        rx.add([Buffer(at + 64 * i, size, True)])
    rx.kick(force=True)
    for n in range(8):
        scene.one.transmit(frame(BROADCAST, MAC_A, n, 100))
    for i in range(64):
        assert fe.memory.read(at + 64 * i + size, 64 - size) == b"\xee" * (64 - size)
    scene.two.poll()
    scene.check(logged=bool(scene.villain.counters["broken_bad_desc"]))


@pytest.mark.parametrize("size", [0, 1, 11])
def test_q19_receive_buffers_of_crumbs_break_their_port(scene: Scene, size: int) -> None:
    """Left in place, they would be walked for each packet of every sender: 45 us, for nothing."""
    fe = scene.enter(num=2048).start(fill=0)
    rx = fe.pairs[0].rx
    at = fe.memory.alloc(64)
    for _ in range(2000):
        rx.add([Buffer(at, size, True)])
    rx.kick(force=True)
    scene.one.transmit(frame(BROADCAST, MAC_A, 0, 1100))
    assert fe.closed_by_peer()
    assert scene.villain.counters["broken_bad_desc"] == 1
    scene.two.poll()
    scene.check()


@pytest.mark.parametrize("pieces_of", [12, 20])
def test_q19_small_receive_buffers_that_hold_a_header_are_used(scene: Scene, pieces_of: int) -> None:
    fe = scene.enter(num=256).start(fill=0)
    rx = fe.pairs[0].rx
    at = fe.memory.alloc(64)
    for _ in range(200):
        rx.add([Buffer(at, pieces_of, True)])
    rx.kick(force=True)
    scene.one.transmit(frame(BROADCAST, MAC_A, 0, 1100))
    assert scene.villain.counters["rx_packets"] == 1
    scene.two.poll()
    scene.check(logged=False)


def test_q20_a_receive_chain_too_small_without_mergeable(scene: Scene) -> None:
    fe = scene.enter(features=int(PLAIN)).start(fill=0)
    rx = fe.pairs[0].rx
    at = fe.memory.alloc(4096)
    for _ in range(4):
        rx.add(pieces(at, [12, 20, 20], device_writes=True))
    rx.kick(force=True)
    scene.one.transmit(frame(BROADCAST, MAC_A, 1, 100))
    assert scene.villain.counters["rx_drop_too_big"] == 1
    scene.one.transmit(frame(BROADCAST, MAC_A, 2, 40))
    until(lambda: list(rx.take_used()), "a packet")
    scene.two.poll()
    scene.check(logged=False)


def test_q21_mergeable_with_too_few_buffers_delivers_all_or_nothing(scene: Scene) -> None:
    """A packet for which half of the buffers are there leaves no trace; when more come, the next one fits."""
    fe = scene.enter(buffer_size=128).start(fill=5)
    scene.one.transmit(frame(BROADCAST, MAC_A, 1, 1000))
    assert fe.pairs[0].rx.used_idx == 0
    assert scene.villain.counters["rx_drop_full"] == 1
    fe.fill(count=5)
    scene.one.transmit(frame(BROADCAST, MAC_A, 2, 1000))
    (got,) = fe.receive()
    assert (len(got.frame), got.buffers) == (1000, 8)
    scene.two.poll()
    scene.check(logged=False)


def test_q22_a_peer_that_never_gives_buffers_stalls_nobody(scene: Scene) -> None:
    scene.enter().start(fill=0)
    for _ in range(10):
        scene.one.transmit(*(frame(BROADCAST, MAC_A, n) for n in range(32)))
        scene.two.receive(32)
        scene.neighbours_forward()
    assert scene.villain.counters["rx_drop_full"] == 320
    scene.check(logged=False)


def test_q25_a_kick_storm_on_an_empty_ring(scene: Scene) -> None:
    """The neighbours' packets all pass meanwhile."""
    fe = scene.enter().start()
    with kick_storm(fe):
        for _ in range(10):
            scene.neighbours_forward()
    scene.check(logged=False)


def test_q26_a_guest_that_never_kicks_is_only_late(scene: Scene) -> None:
    """Its own packets wait; nobody else's do."""
    fe = scene.enter().start()
    fe.queue_frame(frame(BROADCAST, MAC_X, 1))
    fe.pairs[0].tx.publish()
    for _ in range(5):
        scene.neighbours_forward()
    scene.two.poll()
    scene.check(logged=False)


def test_q17_an_indirect_table_may_span_regions(scene: Scene) -> None:
    """Regions that touch for the guest and lie apart for us: legal, and both halves of the table are read."""
    edge = GPA_BASE + 16 * MIB
    memory = GuestMemory([Span(GPA_BASE, 16 * MIB), Span(edge, MIB)])
    fe = scene.enter(memory=memory).start(fill=0)
    tx = fe.pairs[0].tx
    (slot,) = tx.peek_free(1)
    tx.tables = edge - 16 - 16 * MAX_INDIRECT * slot  # its first entry ends where the second region begins
    tx.add(pieces(good(fe), [50, 62]), indirect=True)
    tx.kick(force=True)
    fe.flush()
    assert scene.two.receive()[0].frame == frame(BROADCAST, MAC_X, 0, 100)
    scene.one.poll()
    scene.check(logged=False)


def test_q27_a_worker_that_falls_asleep_hears_every_kick(scene: Scene) -> None:
    """One frame at a time, so that it may sleep before each; a lost kick costs the second of its limit.

    The two fences themselves: tests/unit/test_litmus.py, ten million rounds.
    """
    fe = scene.enter().start(fill=0)
    for n in range(300):
        fe.transmit(frame(MAC_A, MAC_X, n))
        scene.one.poll()
    assert scene.villain.counters["tx_packets"] == 300
    assert all(w.counters["late_wakes"] == 0 for w in scene.host.stats.read().workers)
    scene.two.poll()
    scene.check(logged=False)


@pytest.mark.parametrize("features", [PLAIN, PLAIN | F.MRG_RXBUF], ids=["one buffer", "mergeable"])
def test_p12_a_receiver_gets_its_packet_and_nothing_else_of_the_host(scene: Scene, features: int) -> None:
    """No stale byte in the header, none behind the frame: what was not written is as the guest left it."""
    fe = scene.enter(features=int(features)).start(fill=0)
    rx = fe.pairs[0].rx
    at = fe.memory.alloc(4 * 2048, 64)
    fe.memory.write(at, b"\xcc" * 4 * 2048)
    for n in range(4):
        rx.add([Buffer(at + n * 2048, 2048, True)])
    rx.kick(force=True)
    sent = [frame(BROADCAST, MAC_A, n, 60 + 13 * n) for n in range(4)]
    scene.one.transmit(*sent)
    used = until(lambda: len(got) == 4 and got if (got := list(rx.take_used())) else None, "four buffers")
    for n, (_, length) in enumerate(used):
        header, padding = (
            fe.memory.read(at + n * 2048, 12),
            fe.memory.read(at + n * 2048 + length, 2048 - length),
        )
        assert (length, header) == (12 + len(sent[n]), bytes(10) + b"\1\0")
        assert padding == b"\xcc" * (2048 - length)
    scene.two.poll()
    scene.check(logged=False)


@pytest.mark.parametrize("how", ["stop", "disable", "reset", "disconnect"])
def test_q29_a_ring_stopped_in_the_middle_of_a_burst(scene: Scene, how: str) -> None:
    for _ in range(10):
        fe = scene.enter(num=64).start()
        for n in range(64):
            fe.queue_frame(frame(BROADCAST, MAC_X, n))
        fe.pairs[0].tx.kick(force=True)
        if how == "stop":
            for index in (1, 0):
                fe.stop_ring(index)
        elif how == "disable":
            fe.enable_ring(1, False)
        elif how == "reset":
            fe.do(Request.RESET_DEVICE)
        scene.villain_leaves()
        scene.one.poll()
        scene.two.poll()
    scene.check(logged=False)


@pytest.mark.parametrize("num", [1, 32768])
def test_q30_smallest_and_largest_ring(scene: Scene, num: int) -> None:
    fe = scene.enter(num=num, buffer_size=128, memory=GuestMemory([Span(GPA_BASE, 16 * MIB)])).start()
    for n in range(10):
        fe.transmit(frame(BROADCAST, MAC_X, n))
        scene.one.transmit(frame(BROADCAST, MAC_A, n))
        fe.receive()
        scene.one.poll()
        scene.two.poll()
    scene.check(logged=False)
