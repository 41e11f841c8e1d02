# SPDX-License-Identifier: BSD-2-Clause
"""L1, L2, L7, L8: whole vptds that end while packets flow, and come back."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.vptd import Vptd
from support.waiting import until
from vpt.conform.frames import MAC_A, MAC_B, frame, number
from vpt.conform.front_end import PLAIN, FrontEnd
from vpt.dataplane import StatsReader
from vpt.vhost_user import ProtocolFeature, VirtioFeature

F = VirtioFeature
PROTOCOL = int(ProtocolFeature.INFLIGHT_SHMFD)
NUM = 256
ENDS = int(os.environ.get("VPT_TEST_ENDS", "5"))  # of vptd, each way, for each layout
LAYOUTS = {"split": 0, "packed": int(F.RING_PACKED), "packed in order": int(F.RING_PACKED | F.IN_ORDER)}


@pytest.fixture(scope="module")
def vptd() -> Iterator[Vptd]:
    """One with a switch and two vhost-user ports whose senders wait for room."""
    daemon = Vptd("--no-keeper")
    daemon.start()
    daemon.call("switch.add", name="sw0")
    for name, mac in (("a", MAC_A), ("b", MAC_B)):
        daemon.call("port.add", name=name, switch="sw0", kind="vhost-user", mac=mac.hex(":"), lossless=True)
    yield daemon
    daemon.close()


def connect(vptd: Vptd, layout: int) -> tuple[FrontEnd, FrontEnd]:
    """Sender and receiver; the receiver first."""
    two, one = (
        FrontEnd(vptd.socket(port), features=PLAIN | layout, num=NUM).start(protocol=PROTOCOL, record=True)
        for port in "ba"
    )
    return one, two


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_l1_l7_a_vptd_that_ends_under_traffic_and_comes_back(vptd: Vptd, how: str, layout: int) -> None:
    """What its sender has been told is taken has arrived; what was in flight is sent again; all in order.

    And the next vptd offers what the one before did (L2).
    """
    rng = random.Random(layout)
    one, two = connect(vptd, layout)
    offered = one.offered
    sent = taken = 0
    try:
        for end in range(ENDS):
            while one.pairs[0].tx.free:
                one.queue_frame(frame(MAC_B, MAC_A, sent))
                sent += 1
            two.fill(count=int(two.pairs[0].rx.free * rng.random()))
            one.pairs[0].tx.kick(force=True)
            time.sleep(rng.random() * 0.001)
            if how == "SIGKILL":
                vptd.kill()
            else:
                assert vptd.stop() == 0
            first = taken
            taken += len(list(one.pairs[0].tx.take_used()))
            got = [number(r.frame) for r in two.poll(refill=False)]
            assert got == list(range(first, first + len(got)))
            assert len(got) >= taken - first
            if how == "SIGTERM":
                assert len(got) == taken - first, "it finishes what it has begun"
            vptd.start()
            for fe, port in ((two, "b"), (one, "a")):
                fe.resume(vptd.socket(port), protocol=PROTOCOL, enable_first=bool(end % 2))
            assert one.offered == offered
        got = []
        while taken + len(got) < sent:
            two.fill()
            got += [number(r.frame) for r in two.poll(refill=False)]
        assert got == list(range(taken, sent))
        until(lambda: not one.pairs[0].tx.unfinished, "the last to be taken")
    finally:
        one.close()
        two.close()
    until(
        lambda: not any(p["state"] == "up" for p in vptd.call("port.list")["ports"]), "all ports to be down"
    )


def test_a_vptd_that_was_stopped_and_goes_on_has_missed_no_wake_up(vptd: Vptd) -> None:
    """Its worker slept no longer than it was made to: that is not what `late_wakes` counts."""
    one, two = connect(vptd, 0)
    stats = StatsReader(vptd.paths.stats)
    try:
        sleeps = stats.read().workers[0].counters["sleeps"]
        until(lambda: stats.read().workers[0].counters["sleeps"] > sleeps + 1, "the worker to sleep")
        assert vptd.process is not None
        vptd.process.send_signal(signal.SIGSTOP)
        state = Path(f"/proc/{vptd.process.pid}/stat")
        until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "vptd to be stopped")
        one.queue_frame(frame(MAC_B, MAC_A, 0))
        one.pairs[0].tx.kick(force=True)
        vptd.process.send_signal(signal.SIGCONT)
        two.receive(1)
        assert stats.read().workers[0].counters["late_wakes"] == 0
    finally:
        stats.close()
        one.close()
        two.close()
    until(
        lambda: not any(p["state"] == "up" for p in vptd.call("port.list")["ports"]), "all ports to be down"
    )


def test_l2_what_was_negotiated_is_remembered_until_the_port_is_deleted(vptd: Vptd) -> None:
    vptd.call("port.add", name="c", switch="sw0", kind="vhost-user")
    file = vptd.paths.negotiated("c")
    with FrontEnd(vptd.socket("c")) as fe:
        fe.start()
        written = file.read_text()
        assert str(fe.features) in written
        vptd.kill()
        vptd.start()
        assert file.read_text() == written
    vptd.call("port.del", name="c")
    assert not file.exists()


def test_l8_a_port_whose_socket_file_was_replaced_says_so_and_can_be_deleted(vptd: Vptd) -> None:
    vptd.call("port.add", name="d", switch="sw0", kind="vhost-user")
    path = Path(vptd.socket("d"))
    path.unlink()
    path.write_text("mine")
    until(lambda: vptd.call("port.show", name="d")["transport"]["problem"], "vptd to notice")
    assert "d.sock" in vptd.call("port.show", name="d")["transport"]["problem"]
    assert vptd.call("port.list", switch="sw0")["ports"]
    vptd.call("port.del", name="d")
    assert path.read_text() == "mine"
    path.unlink()
    assert "nobody can connect" in vptd.said()
