# SPDX-License-Identifier: BSD-2-Clause
"""The host's side of a pair of rings against a reference model, under any order of sending and reading.

The model knows netmap's rules only: a ring of n slots holds n - 1, a packet takes as many slots as its bytes
need, what does not fit is dropped with the rest of its burst, and what arrives is what was sent, in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from support.apps import AppPeer, ether, mac
from support.raw_ring import MOREFRAG, RawPeer, RawRing
from support.waiting import until
from vpt.dataplane import Engine, Feature, Policy, RegionOptions, StatsReader

SLOTS = 64
BUF = 256
HDR = 12
FEATURES = int(Feature.VNET_HDR | Feature.EVENT_IDX)


class SmallPeer(AppPeer):
    """A region small enough that rings fill and wrap all the time."""

    def options(self, name: str, pairs: int) -> RegionOptions:
        return RegionOptions(name, pairs=pairs, num_slots=SLOTS, buf_size=BUF)


def slots_for(frame: bytes) -> int:
    return -(-(HDR + len(frame)) // BUF)


def write_packet(ring: RawRing, at: int, frame: bytes) -> int:
    """One packet into the slots from `at` on; the next free slot."""
    data = bytes(HDR) + frame
    pieces = [data[i : i + BUF] for i in range(0, len(data), BUF)]
    for i, piece in enumerate(pieces):
        ring.fill(at, piece, MOREFRAG if i + 1 < len(pieces) else 0)
        at = (at + 1) % SLOTS
    return at


def read_packet(ring: RawRing, at: int) -> tuple[bytes, int]:
    data = b""
    while True:
        flags = ring.slot(at)[2]
        data += ring.read(at)
        at = (at + 1) % SLOTS
        if not flags & MOREFRAG:
            return data[HDR:], at


class Rings(RuleBasedStateMachine):
    engine: Engine
    source: RawPeer
    sink: RawPeer
    stats: StatsReader

    def __init__(self) -> None:
        super().__init__()
        for peer in (self.source, self.sink):
            peer.start(FEATURES)
        self.tx, self.rx = self.source.tx[0], self.sink.rx[0]
        self.at = 0  # next slot to send from
        self.read_at = 0  # next slot to read
        self.held = 0  # slots that hold packets the sink has not released
        self.expected: deque[bytes] = deque()
        self.serial = 0
        self.dropped = self.drops_seen()

    def drops_seen(self) -> int:
        blocks = {q.port: q.counters for q in self.stats.read().queues}
        return blocks["sink"]["rx_drop_full"]

    @rule(sizes=st.lists(st.integers(18, 1400), min_size=1, max_size=8))
    def send(self, sizes: list[int]) -> None:
        """A burst, published at once and served before the next step."""
        burst, used = [], 0
        for size in sizes:
            self.serial += 1
            frame = ether(mac(2), mac(1), self.serial.to_bytes(4, "big"), size)
            if used + slots_for(frame) > SLOTS - 1:
                break
            used += slots_for(frame)
            burst.append(frame)
        for frame in burst:
            self.at = write_packet(self.tx, self.at, frame)
        self.tx.head = self.at
        self.source.kick_tx()
        until(lambda: self.tx.hwcur == self.at, "the burst to be served")
        for i, frame in enumerate(burst):
            if self.held + slots_for(frame) > SLOTS - 1:
                self.dropped += len(burst) - i
                break
            self.held += slots_for(frame)
            self.expected.append(frame)

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        """Some of what is there, released together."""
        for _ in range(data.draw(st.integers(1, len(self.expected)))):
            frame, self.read_at = read_packet(self.rx, self.read_at)
            assert frame == self.expected.popleft()
            self.held -= slots_for(frame)
        self.rx.head = self.read_at

    @invariant()
    def nothing_else_moves(self) -> None:
        assert self.tx.hwtail == (self.tx.hwcur - 1) % SLOTS, "served: all slots but one are the peer's"
        assert (self.rx.hwtail - self.read_at) % SLOTS == self.held
        assert self.drops_seen() == self.dropped


@pytest.fixture
def machine(no_leaks: None) -> Iterator[type[Rings]]:
    with Engine(workers=1) as engine:
        switch = engine.add_switch("sw")
        ports = [
            SmallPeer(switch, name, policy=Policy.notify(), mac=mac(i))
            for i, name in ((1, "source"), (2, "sink"))
        ]
        peers = [RawPeer(port) for port in ports]
        with StatsReader(engine.stats_fd) as stats:
            yield type(
                "Wired", (Rings,), {"engine": engine, "source": peers[0], "sink": peers[1], "stats": stats}
            )
        for peer in peers:
            peer.close()
        for port in ports:
            port.close()


def test_rings_follow_the_reference_model(machine: type[Rings]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
