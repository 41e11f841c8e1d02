# SPDX-License-Identifier: BSD-2-Clause
"""L1: a back-end that is killed; the next one goes on by the record of what is in flight.

What must hold, of each direction and each life: its packets begin with the first whose sender had not been
told that it was taken, each follows its predecessor, none comes twice; and all that senders have been told is
taken has arrived. So nothing acknowledged is lost or doubled, and what was in flight is sent once more, once.

The processes that die here have the real data plane and the real vhost-user sessions, but not the rest of
vptd (support.lives says why); whole vptds die in test_vhost_killed_daemon.py.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.lives import Lives, Stepper
from support.waiting import until
from vpt.conform.frames import MAC_A, MAC_B, frame, number
from vpt.conform.front_end import PLAIN, FrontEnd
from vpt.vhost_user import ProtocolFeature, VirtioFeature

pytestmark = pytest.mark.native  # with sanitizers it takes too many instructions to step through

F = VirtioFeature
PROTOCOL = int(ProtocolFeature.INFLIGHT_SHMFD)
NUM = 128
LIVES = int(os.environ.get("VPT_TEST_LIVES", "155"))  # of each kind of ring: with those below a thousand
STEPS = int(os.environ.get("VPT_TEST_STEPS", "12"))

KINDS = [
    pytest.param((int(PLAIN), 2048), id="split"),
    pytest.param((int(PLAIN | F.MRG_RXBUF | F.EVENT_IDX), 256), id="split mergeable"),
    pytest.param((int(PLAIN | F.MRG_RXBUF | F.IN_ORDER), 256), id="split in order"),
    pytest.param((int(PLAIN | F.RING_PACKED), 2048), id="packed"),
    pytest.param((int(PLAIN | F.RING_PACKED | F.MRG_RXBUF | F.EVENT_IDX), 256), id="packed mergeable"),
    pytest.param((int(PLAIN | F.RING_PACKED | F.MRG_RXBUF | F.IN_ORDER), 256), id="packed in order"),
]


def nth(n: int, dst: bytes, src: bytes) -> bytes:
    """The n-th packet: of all sizes, so that some take one buffer and some several."""
    return frame(dst, src, n, 60 + n * 37 % 900)


@dataclass
class Direction:
    """Packets from one front-end to the other: sent, told to be taken, received."""

    sender: FrontEnd
    receiver: FrontEnd
    src: bytes
    dst: bytes
    sent: int = 0
    taken: int = 0
    arrived: int = 0  # all below have
    again: int = 0  # packets that arrived in two lives: delivered, and their sender not told yet
    cut: int = 0  # lives that ended with some of the packets taken and some not
    life: list[int] = field(default_factory=list)

    def send(self, count: int) -> None:
        """Make so many available, or as many as fit."""
        for _ in range(count):
            packet = nth(self.sent, self.dst, self.src)
            if self.sender.pairs[0].tx.free < -(-(len(packet) + 12) // self.sender.buffer_size):
                break
            self.sender.queue_frame(packet)
            self.sent += 1

    def check(self) -> None:
        """At the end of a life."""
        first = self.taken
        self.taken += len(list(self.sender.pairs[0].tx.take_used()))
        got = [r.frame for r in self.receiver.poll(refill=False)]
        numbers = [number(f) for f in got]
        assert numbers == list(range(first, first + len(got)))
        assert got == [nth(n, self.dst, self.src) for n in numbers]
        self.cut += first < self.taken < self.sent
        self.again += max(0, min(self.arrived, first + len(got)) - first)
        self.arrived = max(self.arrived, first + len(got))
        assert self.taken <= self.arrived <= self.sent


class Pair:
    """Two front-ends that talk to each other through whoever is alive."""

    def __init__(self, lives: Lives, features: int, buffer_size: int) -> None:
        self.lives = lives
        self.features = features
        self.buffer_size = buffer_size
        self.fes: list[FrontEnd] = []
        self.directions: list[Direction] = []

    def connect(self, share: float = 1.0) -> None:
        """To a new life. share: of the free receive buffers that are posted; senders wait for the rest."""
        self.lives.begin()
        if self.fes:
            for fe, port in zip(self.fes, "ab", strict=True):
                fe.fill(count=int(fe.pairs[0].rx.free * share))
                fe.resume(self.lives.path(port), protocol=PROTOCOL)
            return
        for port in "ab":
            fe = FrontEnd(
                self.lives.path(port), features=self.features, num=NUM, buffer_size=self.buffer_size
            )
            self.fes.append(fe.start(protocol=PROTOCOL, record=True))
        one, two = self.fes
        self.directions = [Direction(one, two, MAC_A, MAC_B), Direction(two, one, MAC_B, MAC_A)]

    def kick(self) -> None:
        for fe in self.fes:
            fe.pairs[0].tx.kick(force=True)

    def check(self) -> None:
        for direction in self.directions:
            direction.check()

    def finish(self) -> None:
        """A last life, in which all arrives."""
        self.connect()
        for direction in self.directions:
            direction.send(10)
        self.kick()
        until(lambda: not any(fe.pairs[0].tx.unfinished for fe in self.fes), "all to be taken")
        self.lives.kill()
        self.check()
        assert all(d.taken == d.arrived == d.sent for d in self.directions)

    def close(self) -> None:
        for fe in self.fes:
            fe.close()


@pytest.fixture
def pair(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    features, buffer_size = request.param
    with Lives("back-end", tmp_path) as lives:
        p = Pair(lives, features, buffer_size)
        yield p
        p.close()


@pytest.mark.parametrize("pair", KINDS, indirect=True)
def test_l1_a_back_end_killed_at_any_moment_loses_and_doubles_nothing(pair: Pair) -> None:
    """SIGKILL with rings full of packets: before anything was taken, in the middle, after all was.

    In half of the lives receivers have too few buffers, so that some packets wait in their senders' rings.
    """
    rng = random.Random(4711)
    for n in range(LIVES):
        pair.connect(rng.choice([1.0, rng.random()]))
        for direction in pair.directions:
            direction.send(rng.choice([8, 24, NUM]))
        tx = pair.fes[n % 2].pairs[0].tx
        before = tx.unfinished
        pair.kick()
        if n % 3:  # once something moves
            spin(0.01, lambda: tx.unfinished != before)  # noqa: B023
        spin(rng.random() * (0.00005 if n % 3 else 0.0005))
        pair.lives.kill()
        pair.check()
    pair.finish()
    cut = sum(d.cut for d in pair.directions)
    assert cut > LIVES // 20, f"only {cut} of {LIVES} hit in the middle of a burst"


def spin(seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    """Wait without going to sleep: a burst is over in less time than that takes."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and not until():
        pass


@pytest.mark.parametrize("pair", KINDS, indirect=True)
def test_l1_a_back_end_killed_at_a_chosen_instruction(pair: Pair) -> None:
    """The worker is led through a burst step by step, and killed after each of so many instructions."""
    pair.connect()
    steps = steps_of_a_burst(pair)
    rng = random.Random(steps)
    for _ in range(STEPS):
        pair.connect()
        stepper = Stepper(pair.lives)
        send_a_few(pair)
        stepper.step(rng.randrange(steps))
        stepper.kill()
        pair.check()
    pair.finish()


def send_a_few(pair: Pair) -> None:
    pair.directions[0].send(3)
    pair.kick()


def steps_of_a_burst(pair: Pair) -> int:
    """How many instructions it takes until the sender is told."""
    stepper = Stepper(pair.lives)
    send_a_few(pair)
    tx = pair.directions[0].sender.pairs[0].tx
    steps = 0
    while tx.unfinished:
        stepper.step(50)
        steps += 50
    stepper.kill()
    pair.check()
    return steps
