# SPDX-License-Identifier: BSD-2-Clause
"""L: front-ends and ports that come and go at the wrong moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.host import Host
from support.leaks import open_things, until_open
from support.lives import Lives
from support.scene import Scene
from support.waiting import until
from vpt.conform.frames import BROADCAST, MAC_A, MAC_B, frame, number
from vpt.conform.front_end import PLAIN, FrontEnd
from vpt.vhost_user import Request, VirtioFeature, VringState

F = VirtioFeature
MAC_X = b"\x52\x54\0\0\0\x99"


def test_l3_a_guest_that_reboots_without_stopping_its_rings(scene: Scene) -> None:
    """They must be stopped before new ones can be described, for the boot goes over their memory."""
    fe = scene.enter().start()
    fe.transmit(frame(BROADCAST, MAC_X, 1))
    scene.two.receive()
    assert fe.try_(Request.SET_VRING_NUM, VringState(1, 128)) != 0
    region = fe.memory.regions[0]
    region.map[: len(region.map)] = b"\xcc" * len(region.map)
    scene.one.transmit(frame(BROADCAST, MAC_A))
    until(lambda: scene.villain.faults["broken"], "the port to be taken down")
    scene.check()


def test_l3_a_reset_makes_way_for_the_next_driver(scene: Scene) -> None:
    fe = scene.enter().start()
    for n in range(20):
        fe.do(Request.RESET_DEVICE)
        fe.restart()
        fe.fill()
        fe.transmit(frame(BROADCAST, MAC_X, n))
        assert number(scene.two.receive()[0].frame) == n
        scene.one.poll()
    scene.check(logged=False)


def test_l4_a_receiver_that_is_reset_while_packets_are_on_their_way(scene: Scene) -> None:
    """The neighbour floods all the time; the villain stops, resets, leaves and returns."""
    for n in range(30):
        fe = scene.enter(num=64).start()
        for _ in range(3):
            for i in range(32):
                scene.one.queue_frame(frame(BROADCAST, MAC_A, i))
            scene.one.pairs[0].tx.kick()
            if n % 3 == 0:
                fe.stop_ring(0)
            elif n % 3 == 1:
                fe.do(Request.RESET_DEVICE)
            scene.one.flush()
            scene.two.poll()
        scene.villain_leaves()
    scene.check(logged=False)


def test_l7_a_port_that_is_removed_in_the_middle_of_a_burst(scene: Scene) -> None:
    for i in range(10):
        port = scene.host.vhost(f"gone{i}")
        with FrontEnd(port.path, num=64) as fe:
            fe.start()
            for n in range(64):
                fe.queue_frame(frame(BROADCAST, MAC_X, n))
            fe.pairs[0].tx.kick(force=True)
            scene.host.remove(port)
            assert fe.closed_by_peer()
        scene.one.poll()
        scene.two.poll()
    scene.check(logged=False)


def test_l9_a_thousand_ports_come_and_go(tmp_path: Path) -> None:
    with Host(tmp_path) as host:

        def once() -> None:
            port = host.vhost("p", pairs=2)
            with FrontEnd(port.path, pairs=2, num=16, buffer_size=256) as fe:
                fe.start()
                fe.transmit(frame(BROADCAST, MAC_X))
            host.remove(port)

        once()
        before = host.open_things()
        for _ in range(1000):
            once()
        until_open(before)
        assert host.stats.read().queues == ()


@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "all at once"])
def test_l9_an_engine_that_ends_with_everything_at_work(tmp_path: Path, at_once: bool) -> None:
    before = open_things()
    host = Host(tmp_path)
    ports = [host.vhost(name) for name in "abcd"]
    fes = [FrontEnd(port.path, num=64).start() for port in ports]
    for fe in fes:
        for n in range(64):
            fe.queue_frame(frame(BROADCAST, bytes([2, 0, 0, 0, 0, fes.index(fe) + 1]), n))
        fe.pairs[0].tx.kick(force=True)
    if not at_once:
        for port in ports:
            host.remove(port)
    host.close()
    for fe in fes:
        fe.close()
    until_open(before)


def test_s33_a_front_end_that_is_killed_in_the_middle_of_a_burst_250_times(scene: Scene) -> None:
    """As when QEMU is: its memory, eventfds and socket go from one instruction to the next."""
    with Lives("front-end", scene.villain.path) as lives:
        for n in range(250):
            lives.begin()
            scene.two.receive(1 + n % 64)
            lives.kill()
            scene.villain.until_left()
            scene.one.poll()
            scene.two.poll()
            if n % 20 == 0:
                scene.neighbours_forward()
    assert scene.villain.faults["connections"] == 250
    scene.lines.clear()  # one in five seconds is allowed, and this takes as long as it takes
    scene.check(logged=False)


@pytest.mark.parametrize(
    "layout",
    [0, int(F.RING_PACKED), int(F.RING_PACKED | F.IN_ORDER)],
    ids=["split", "packed", "packed in order"],
)
def test_s33_a_front_end_that_reconnects_in_the_middle_of_a_burst_250_times(
    scene: Scene, layout: int
) -> None:
    """With the rings it had: every packet arrives once and in order, begun by the back-end or not."""
    fe = scene.enter(features=PLAIN | layout, num=64, buffer_size=256).start(record=True)
    sent, got = 0, []
    for _ in range(250):
        while fe.pairs[0].tx.free:
            fe.queue_frame(frame(MAC_B, MAC_X, sent))
            sent += 1
        fe.pairs[0].tx.kick(force=True)
        fe.disconnect()
        scene.villain.until_left()
        got += [number(r.frame) for r in scene.two.poll()]
        list(fe.pairs[0].tx.take_used())
        fe.resume(scene.villain.path)
    fe.flush()
    until(lambda: (got.extend(number(r.frame) for r in scene.two.poll()), len(got) >= sent)[1], "all packets")
    assert got == list(range(sent))
    scene.lines.clear()  # as above
    scene.check(logged=False)


def test_neighbours_do_not_notice_a_villain_at_all(scene: Scene) -> None:
    """The stage itself: with nobody misbehaving all answers are good, and a wrong packet would be seen."""
    scene.check(logged=False)
    scene.one.transmit(frame(MAC_B, MAC_A, 999_999))
    with pytest.raises(AssertionError):
        scene.neighbours_forward()
