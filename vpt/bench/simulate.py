# SPDX-License-Identifier: BSD-2-Clause
"""The protocol of producer and consumer in virtual time: the same answer on every machine, every time.

Two coroutines do what the two threads of `vpt_bench_pc()` do, wish and look included, and a clock that jumps
from event to event does what a processor does. It has two uses: it is what the formulas of `vpt.bench.model`
are checked against, exactly and without a stopwatch, and it answers where they can't (both sides waiting in
turn).

At equal times a store comes before a look: who looks at the very moment at which an item appears sees it.
That is the convention of the formulas, whose conditions to go to sleep are strict.

While each side finds what it looks for, and neither waits to be told of it, nothing happens but work: the
clock leaps over all of these items at once, so that a run takes as many steps as there is waiting in it, not
as there are items.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from itertools import pairwise

from vpt.bench.costs import SPIN_LONGEST, Costs, Kind, Policy

__all__ = ["Run", "simulate"]

_STORE, _LOOK = 0, 1
#: A leap over fewer items than this costs more than they do.
_LEAST_LEAP = 8

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
    steps: int  # what it took to play this: how often a side went on

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
class _Times:
    """When items were begun, or done: (the first of some, its time, the time from one to the next)."""

    runs: list[tuple[int, float, float]] = field(default_factory=list)
    count: int = 0

    def add(self, at: float, items: int = 1, apart: float = 0.0) -> None:
        self.runs.append((self.count, at, apart))
        self.count += items

    def __getitem__(self, item: int) -> float:
        first, at, apart = self.runs[bisect_right(self.runs, item, key=lambda run: run[0]) - 1]
        return at + (item - first) * apart


@dataclass(slots=True)
class _Side:
    """One side: its index, its wish, and what it did."""

    work: float
    notify_cost: float
    start: float
    times: _Times = field(default_factory=_Times)
    due: float = math.inf  # when it goes on by itself
    at_work: bool = False  # on an item, which is done when it is due
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
    def __init__(self, costs: Costs, policy: Policy, items: int, leaps: bool) -> None:
        self.costs, self.policy, self.items, self.leaps = costs, policy, items, leaps
        self.now = 0.0
        self.events: list[tuple[float, int, int, int, _Side]] = []
        self.seq = 0
        self.steps = 0
        self.producer = _Side(costs.wp, costs.np, costs.sp)
        self.consumer = _Side(costs.wc, costs.nc, costs.sc)
        self.producer.steps = self._produce()
        self.consumer.steps = self._consume()

    def run(self) -> None:
        self._schedule(self.consumer, self.now, _LOOK)
        self._schedule(self.producer, self.now, _LOOK)
        while self.events:
            if self.leaps:
                self._leap()
            self.now, _, _, ticket, side = heapq.heappop(self.events)
            if ticket != side.ticket:
                continue
            self.steps += 1
            side.due = math.inf
            for delay, what in side.steps:
                if delay != math.inf:
                    self._schedule(side, self.now + delay, what)
                break

    def _schedule(self, side: _Side, due: float, what: int) -> None:
        """Resume `side` then. Whatever it was to be resumed for before is void."""
        self.seq += 1
        side.ticket, side.due = self.seq, due
        heapq.heappush(self.events, (due, what, self.seq, side.ticket, side))

    def _leap(self) -> None:
        """Over what both sides do before either has to look at what the other did meanwhile."""
        p, c = self.producer, self.consumer
        queued = p.index - c.index
        # Of an item that is done, the next one is begun: one is left of room, and of what is queued.
        blind = self._blind(p, c, self.costs.length - queued - 1), self._blind(c, p, queued - 1)
        ends = p.due + blind[0] * p.work, c.due + blind[1] * c.work
        leaps = _before(p, ends[1], blind[0]), _before(c, ends[0], blind[1])
        if sum(leaps) >= _LEAST_LEAP:
            for side, items in zip((p, c), leaps, strict=True):
                if items:
                    # Begun, by the producer, as the one before is done.
                    side.times.add(side.due, items, side.work)
                    side.index += items
                    self._schedule(side, side.due + items * side.work, _STORE)

    def _blind(self, me: _Side, other: _Side, there: int) -> int:
        """Items, of those that there are, that a side gets done without the other one noticing."""
        if not me.at_work or other.awaits or other.watching:
            return 0
        left = self.items - 1 - me.index
        untold = there if other.wish is None or other.wish < me.index else other.wish - me.index
        return max(0, min(there, left, untold))

    def _produce(self) -> Steps:
        me, other = self.producer, self.consumer
        while me.index < self.items:
            yield from self._until(me, lambda: me.index - other.index < self.costs.length)
            me.times.add(self.now)
            yield from self._work(me)
            yield from self._publish(me, other)

    def _consume(self) -> Steps:
        me, other = self.consumer, self.producer
        while me.index < self.items:
            yield from self._until(me, lambda: other.index > me.index)
            yield from self._work(me)
            me.times.add(self.now)
            yield from self._publish(me, other)

    def _work(self, me: _Side) -> Steps:
        me.at_work = True
        yield me.work, _STORE
        me.at_work = False

    def _publish(self, me: _Side, other: _Side) -> Steps:
        """P1 to P3 of the protocol: move the index, then look whether that is what the other side waits
        for.
        """
        me.index += 1
        if other.awaits and other.awaits():
            other.waits.append(self.now - other.since)
            other.awaits = None
        if other.watching:
            self._schedule(other, self.now, _LOOK)
        yield 0, _LOOK
        if other.wish != me.index - 1:
            return
        me.notified.append((me.index, self.now))
        yield me.notify_cost, _STORE
        if other.blocked:
            other.blocked = False
            self._schedule(other, self.now + other.start, _LOOK)
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
                self._schedule(me, end, _LOOK)
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


def simulate(costs: Costs, policy: Policy, items: int, warmup: int = 0, *, leaps: bool = True) -> Run:
    """Move `items` items under a policy; look at those after the first `warmup`.

    Without `leaps` one at a time, which is what the leaps are checked against.
    """
    sim = _Simulator(costs, policy, items, leaps)
    sim.run()
    started, finished = sim.producer.times, sim.consumer.times
    span = finished[items - 1]
    first, last = warmup, items - 1
    begin, end = finished[first], finished[last]
    notified = _after(warmup, sim.producer.notified, sim.consumer.notified)
    log = notified or _after(warmup, sim.producer.slept, sim.consumer.slept)
    if log:
        (first, begin), (last, end) = log[0], log[-1]
    moved = last - first
    late, worst = _lateness(started, finished, first, last)

    def share(entries: list[tuple[int, float]]) -> float:
        return sum(begin < t <= end for _, t in entries) / moved

    return Run(
        period=(end - begin) / moved,
        kicks=share(sim.producer.notified),
        interrupts=share(sim.consumer.notified),
        sleeps=share(sim.producer.slept) + share(sim.consumer.slept),
        latency=late / moved,
        latency_worst=worst,
        cpu_producer=1 - sim.producer.asleep / span,
        cpu_consumer=1 - sim.consumer.asleep / span,
        batches=tuple(b[0] - a[0] for a, b in pairwise(notified)),
        waits=(*sim.producer.waits, *sim.consumer.waits),
        steps=sim.steps,
    )


def _before(side: _Side, end: float, blind: int) -> int:
    """How many of its next `blind` items a side gets done before that time."""
    if not blind or side.due >= end:
        return 0
    if side.work == 0 or end == math.inf:
        return blind
    return min(blind, math.ceil((end - side.due) / side.work))


def _lateness(started: _Times, finished: _Times, first: int, last: int) -> tuple[float, float]:
    """Sum and largest of the times from beginning to end, of the items from first to before last."""
    edges = {run[0] for times in (started, finished) for run in times.runs if first < run[0] < last}
    total = worst = 0.0
    for a, b in pairwise(sorted({first, last, *edges})):
        # In between both are evenly apart.
        ends = [finished[i] - started[i] for i in (a, b - 1)]
        total += (b - a) * sum(ends) / 2
        worst = max(worst, *ends)
    return total, worst


def _after(warmup: int, *logs: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The longer of two logs, without the warm-up: it marks the cycles. Empty if it holds no whole one."""
    log = [entry for entry in max(logs, key=len) if entry[0] > warmup]
    return log if len(log) >= 3 and log[-1][0] > log[0][0] else []
