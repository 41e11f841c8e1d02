# SPDX-License-Identifier: BSD-2-Clause
"""The protocol of producer and consumer in virtual time: the same answer on every machine, every time.

Two coroutines do what the two threads of `vpt_bench_pc()` do, wish and look included, and a clock that jumps
from event to event does what a processor does. It has two uses: it is what the formulas of `vpt.bench.model`
are checked against, exactly and without a stopwatch, and it answers where they can't (both sides waiting in
turn).

At equal times a store comes before a look: who looks at the very moment at which an item appears sees it.
That is the convention of the formulas, whose conditions to go to sleep are strict.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from itertools import pairwise

from vpt.bench.costs import SPIN_LONGEST, Costs, Kind, Policy

__all__ = ["Run", "simulate"]

_STORE, _LOOK = 0, 1

#: What a coroutine yields: (nanoseconds to pass, _STORE or _LOOK), math.inf meaning "until somebody resumes
#: me".
type_step = tuple[float, int]
Steps = Generator[type_step, None, None]


@dataclass(frozen=True, slots=True)
class Run:
    """What happened, per item; over whole cycles where there were notifications. Times in nanoseconds."""

    period: float
    kicks: float
    interrupts: float
    sleeps: float
    latency: float
    latency_worst: float
    cpu_producer: float
    cpu_consumer: float
    batches: tuple[int, ...]
    waits: tuple[float, ...]  # how long either side had to wait for what it waited for

    @property
    def notifications(self) -> float:
        """Notifications per item, both ways."""
        return self.kicks + self.interrupts

    @property
    def batch(self) -> float:
        """Items per notification, or per sleep if nobody notifies."""
        rate = max(self.kicks, self.interrupts) or self.sleeps
        return 1 / rate if rate else math.inf


@dataclass(slots=True)
class _Side:
    """One side: its index, its wish, and what it did."""

    notify_cost: float
    start: float
    steps: Steps = field(init=False)
    index: int = 0
    wish: int | None = None
    signalled: bool = False
    blocked: bool = False
    watching: bool = False
    ticket: int = 0
    awaits: Callable[[], bool] | None = None
    since: float = 0.0
    waits: list[float] = field(default_factory=list)
    asleep: float = 0.0
    blocks: float = 0.0
    vain: int = 0
    skip: int = 0
    notified: list[tuple[int, float]] = field(default_factory=list)
    slept: list[tuple[int, float]] = field(default_factory=list)


class _Simulator:
    def __init__(self, costs: Costs, policy: Policy, items: int) -> None:
        self.costs, self.policy, self.items = costs, policy, items
        self.now = 0.0
        self.events: list[tuple[float, int, int, int, _Side]] = []
        self.seq = 0
        self.started: list[float] = []
        self.finished: list[float] = []
        self.producer = _Side(costs.np, costs.sp)
        self.consumer = _Side(costs.nc, costs.sc)
        self.producer.steps = self._produce()
        self.consumer.steps = self._consume()

    def run(self) -> None:
        self._schedule(self.consumer, 0, _LOOK)
        self._schedule(self.producer, 0, _LOOK)
        while self.events:
            self.now, _, _, ticket, side = heapq.heappop(self.events)
            if ticket != side.ticket:
                continue
            for delay, what in side.steps:
                if delay != math.inf:
                    self._schedule(side, delay, what)
                break

    def _schedule(self, side: _Side, delay: float, what: int) -> None:
        """Resume `side` later. Whatever it was to be resumed for before is void."""
        self.seq += 1
        side.ticket = self.seq
        heapq.heappush(self.events, (self.now + delay, what, self.seq, side.ticket, side))

    def _produce(self) -> Steps:
        me, other = self.producer, self.consumer
        for _ in range(self.items):
            yield from self._until(me, lambda: me.index - other.index < self.costs.length)
            self.started.append(self.now)
            yield self.costs.wp, _STORE
            yield from self._publish(me, other)

    def _consume(self) -> Steps:
        me, other = self.consumer, self.producer
        for _ in range(self.items):
            yield from self._until(me, lambda: other.index > me.index)
            yield self.costs.wc, _STORE
            self.finished.append(self.now)
            yield from self._publish(me, other)

    def _publish(self, me: _Side, other: _Side) -> Steps:
        """P1 to P3 of the protocol: move the index, then look whether that is what the other side waits
        for.
        """
        me.index += 1
        if other.awaits and other.awaits():
            other.waits.append(self.now - other.since)
            other.awaits = None
        if other.watching:
            self._schedule(other, 0, _LOOK)
        yield 0, _LOOK
        if other.wish != me.index - 1:
            return
        me.notified.append((me.index, self.now))
        yield me.notify_cost, _STORE
        if other.blocked:
            other.blocked = False
            self._schedule(other, other.start, _LOOK)
        else:
            other.signalled = True

    def _until(self, me: _Side, ready: Callable[[], bool]) -> Steps:
        """Wait as the policy says."""
        if not ready():
            me.awaits, me.since = ready, self.now
        while not ready():
            match self.policy.kind:
                case Kind.POLL:
                    yield from self._watch(me, ready, math.inf)
                case Kind.SLEEP:
                    me.slept.append((me.index, self.now))
                    yield from self._asleep(me, self.policy.sleep + self.costs.slack)
                case Kind.ADAPTIVE:
                    yield from self._spin(me, ready)
                    if not ready():
                        yield from self._block(me, ready)
                case Kind.NOTIFY:
                    yield from self._block(me, ready)

    def _spin(self, me: _Side, ready: Callable[[], bool]) -> Steps:
        """Spin, unless that was in vain lately (spin.h of the data plane)."""
        if me.skip:
            me.skip -= 1
            return
        yield from self._watch(me, ready, self.policy.spin)
        me.vain = 0 if ready() else min(me.vain + 1, SPIN_LONGEST + 1)
        me.skip = 0 if me.vain < 2 else 1 << (me.vain - 1)

    def _watch(self, me: _Side, ready: Callable[[], bool], limit: float) -> Steps:
        """Spin. The other side's next store, or the end of the time, goes on from here."""
        end = self.now + limit
        while not ready() and self.now < end:
            me.watching = True
            if end != math.inf:
                self._schedule(me, end - self.now, _LOOK)
            yield math.inf, _LOOK
            me.watching = False

    def _block(self, me: _Side, ready: Callable[[], bool]) -> Steps:
        """C1 to C3 of the protocol: wish, look again, and only then sleep."""
        if me is self.consumer:
            me.wish = me.index
        else:
            me.wish = self.consumer.index + self.costs.wake_after - 1
        if not ready() and not me.signalled:
            me.blocked = True
            me.slept.append((me.index, self.now))
            yield from self._asleep(me, math.inf)
        me.signalled = False
        me.wish = None

    def _asleep(self, me: _Side, span: float) -> Steps:
        since = self.now
        yield span, _LOOK
        me.asleep += self.now - since - min(self.costs.block_cpu, self.now - since)


def simulate(costs: Costs, policy: Policy, items: int, warmup: int = 0) -> Run:
    """Move `items` items under a policy; look at those after the first `warmup`."""
    sim = _Simulator(costs, policy, items)
    sim.run()
    span = sim.finished[-1]
    first, last = warmup, items - 1
    begin, end = sim.finished[first], sim.finished[last]
    notified = _after(warmup, sim.producer.notified, sim.consumer.notified)
    log = notified or _after(warmup, sim.producer.slept, sim.consumer.slept)
    if log:
        (first, begin), (last, end) = log[0], log[-1]
    moved = last - first
    late = [
        done - start for start, done in zip(sim.started[first:last], sim.finished[first:last], strict=True)
    ]

    def share(entries: list[tuple[int, float]]) -> float:
        return sum(begin < t <= end for _, t in entries) / moved

    return Run(
        period=(end - begin) / moved,
        kicks=share(sim.producer.notified),
        interrupts=share(sim.consumer.notified),
        sleeps=share(sim.producer.slept) + share(sim.consumer.slept),
        latency=sum(late) / moved,
        latency_worst=max(late),
        cpu_producer=1 - sim.producer.asleep / span,
        cpu_consumer=1 - sim.consumer.asleep / span,
        batches=tuple(b[0] - a[0] for a, b in pairwise(notified)),
        waits=(*sim.producer.waits, *sim.consumer.waits),
    )


def _after(warmup: int, *logs: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The longer of two logs, without the warm-up: it marks the cycles. Empty if it holds no whole one."""
    log = [entry for entry in max(logs, key=len) if entry[0] > warmup]
    return log if len(log) >= 3 and log[-1][0] > log[0][0] else []
