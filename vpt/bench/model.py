# SPDX-License-Identifier: BSD-2-Clause
"""What a notification policy costs: throughput, batches, notifications, latency and CPU, from a few measured
times.

The model of a producer and a consumer over a queue of length L is that of the authors of netmap; the
published part is the notify and sleep rows below. Work per item is Wp and Wc, notifying costs the notifier Np
(producer) or Nc (consumer), the notified side starts Sp or Sc later, and d = |Wp - Wc|. In the steady state
only the faster side ever waits, because the slower one always finds work:

    notify    Wc < Wp   the consumer waits for items    b = floor(Sc / d) + 1                 T = Wp + Np / b
              Wp < Wc   the producer waits for room     b = floor((Sp + (kC-1) Wp) / d) + kC  T = Wc + Nc / b
    sleep     Y each time there is nothing to do        b = Y / d                             T = max(Wp, Wc)
    poll      never stops looking                       b = infinite                          T = max(Wp, Wc)

T is the time per item, b the items per notification (per sleep, for sleep), so 1/b the notifications per
item.

Where the notify rows come from, for it is what `adaptive` builds on. Take Wc < Wp and let time 0 be the end
of a notification, with one item in the queue. Item n (from 0) is published at n Wp; the consumer starts at Sc
and is done with n items at Sc + n Wc. It has then waited for item n if n Wp > Sc + n Wc, so it goes to sleep
after the first n with n d > Sc: floor(Sc / d) + 1. For Wp < Wc let time 0 be the end of a notification, kC
slots free: the consumer is done with i more items at i Wc, the producer has made n at Sp + n Wp and finds no
room for another if the (n - kC + 1)-th is still being consumed, (n - kC + 1) Wc > Sp + n Wp. The smallest
such n is the row above.

`adaptive` spins for a time s before it asks for a notification and sleeps. Having caught up, after n items,
the faster side is early by g = n d - S (with S the start-up), and 0 < g <= d. Two cases:

    s >= d    the other side is never later than d: the wait ends while it spins, always. No notification at
    all;
              T = max(Wp, Wc), at the price of a busy core. This is `poll`.
    s < d     if g <= s, one more item is caught by spinning; after it the next is a whole d away, and the
    side
              sleeps. The condition is n d <= S + s, so S + s takes the place of S:

                  Wc < Wp   b = floor((Sc + s) / d) + 1
                  Wp < Wc   b = floor((Sp + (kC-1) Wp + s) / d) + kC

              and each cycle burns s and g on top of the work. Where g > s nothing is caught, b stays what
              it is with notify, and the data plane stops trying but for one spin in 2^6 + 1 (spin.h): a cycle
              burns s / 65 on average.

So at a steady rate, spinning for less than d buys at most one item per sleep: spin for d or don't. At an
unsteady rate s = N + S, the price of a wake-up, is never more than twice as dear as knowing the future (the
ski-rental argument), and it makes a burst's second packet cheap. `vpt.bench.advice` weighs both.

Latency runs from the start of an item's production to the end of its consumption. Wc < Wp: Wp + Wc + max(0,
Sc - j d) for item j of a batch, Np more for the first. Wp < Wc: the queue is nearly full, item j of a batch
waits for the (L - kC + j) Wc less what passed since the batch began: L Wc at worst, half of kC Wc less on
average; Nc is added each time that the consumer stops to notify while the item is queued. sleep: Y/2 on
average and Y at worst on top of Wp + Wc, or below L Wc.

Conditions. All of this needs a queue that neither fills while a consumer starts (Sc + Wc <= (L-1) Wp) nor
empties while a producer does (Sp + Wp <= (L-kC) Wc), with Y + slack in the place of S for sleep. Otherwise
both sides wait for each other in turn, and there is no closed form: `predict` then runs the protocol in
virtual time (`vpt.bench.simulate`) and says so in `regime` and `source`.

Everything here is a pure function. Nanoseconds everywhere, but `rate` is items per second.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from vpt.bench.costs import PUBLISHED, SPIN_LONGEST, Costs, Kind, Policy
from vpt.bench.simulate import Run, simulate

__all__ = [
    "PUBLISHED",
    "Costs",
    "Kind",
    "Policy",
    "Prediction",
    "Regime",
    "batch_of",
    "limits",
    "longest_sleep",
    "play",
    "played_items",
    "predict",
    "predict_starts",
    "stalls",
    "sweep",
]


#: Where there is no formula. A spin in vain is followed by up to 64 waits without: a short queue takes more.
_LEAST_PLAYED, _LEAST_LAPS = 4096, 16


class Regime(StrEnum):
    """Who waits for whom."""

    FAST_CONSUMER = "fast consumer"
    FAST_PRODUCER = "fast producer"
    BALANCED = "balanced"
    STALLED = "stalled"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a policy does with given costs. `source` is "formula", or "simulation" where no formula holds."""

    policy: Policy
    regime: Regime
    period: float
    batch: float
    kicks: float
    interrupts: float
    sleeps: float
    latency: float
    latency_worst: float
    cpu_producer: float
    cpu_consumer: float
    source: str = "formula"

    @property
    def rate(self) -> float:
        """Items per second."""
        return 1e9 / self.period

    @property
    def notifications(self) -> float:
        """Notifications per item, both ways."""
        return self.kicks + self.interrupts

    @property
    def cpu_waiter(self) -> float:
        """Share of a core that the faster side takes: the only one that a policy can change."""
        return self.cpu_producer if self.regime is Regime.FAST_PRODUCER else self.cpu_consumer

    def to_json(self) -> dict[str, object]:
        """For machines: no infinity, for JSON has none."""
        plain = asdict(self) | {"rate": self.rate, "notifications": self.notifications}
        return plain | {"batch": self.batch if math.isfinite(self.batch) else None}


def regime_of(c: Costs) -> Regime:
    """Who is faster."""
    if c.wp == c.wc:
        return Regime.BALANCED
    return Regime.FAST_CONSUMER if c.wc < c.wp else Regime.FAST_PRODUCER


def limits(c: Costs) -> tuple[float, float]:
    """Longest (consumer's start-up or sleep, producer's start-up after a notification) that the queue covers.

    The longest sleep of a producer is not the second but (L-1) Wc - Wp: it is not woken at kC but wakes by
    itself.
    """
    return (c.length - 1) * c.wp - c.wc, (c.length - c.wake_after) * c.wc - c.wp


def longest_sleep(c: Costs) -> float:
    """Beyond it the queue runs full, or empty, before the sleeper is back."""
    return (c.length - 1) * max(c.wp, c.wc) - min(c.wp, c.wc)


def predict(c: Costs, policy: Policy) -> Prediction:
    """Steady state of a saturated queue under a policy."""
    regime = regime_of(c)
    if stalls(c, policy):
        return play(c, policy)[0]
    if policy.kind is Kind.POLL or regime is Regime.BALANCED:
        return _busy(c, policy, regime)
    if policy.kind is Kind.SLEEP:
        return _sleep(c, policy, regime)
    if policy.kind is Kind.ADAPTIVE and policy.spin >= abs(c.wp - c.wc):
        return _busy(c, policy, regime)
    return _fast_consumer(c, policy) if regime is Regime.FAST_CONSUMER else _fast_producer(c, policy)


def predict_starts(c: Costs, policy: Policy, starts: Sequence[float]) -> Prediction:
    """Steady state where the start-up varies: each cycle has one of `starts`, all equally often.

    Batches are whole items, so the mean of what the starts lead to is not what their mean leads to. Rates and
    latencies are weighted by a cycle's items, shares of a core by its time.
    """
    waits = regime_of(c) is Regime.FAST_CONSUMER
    counts = Counter(starts)
    cycles = [
        (predict(replace(c, sc=s) if waits else replace(c, sp=s), policy), n) for s, n in counts.items()
    ]
    if not cycles or any(not math.isfinite(p.batch) or p.source != "formula" for p, _ in cycles):
        return predict(c, policy)
    items = sum(p.batch * n for p, n in cycles)
    span = sum(p.batch * n * p.period for p, n in cycles)

    def per_item(of: Callable[[Prediction], float]) -> float:
        return sum(of(p) * p.batch * n for p, n in cycles) / items

    def share(of: Callable[[Prediction], float]) -> float:
        return sum(of(p) * p.batch * n * p.period for p, n in cycles) / span

    return replace(
        cycles[0][0],
        period=span / items,
        batch=items / counts.total(),
        kicks=per_item(lambda p: p.kicks),
        interrupts=per_item(lambda p: p.interrupts),
        sleeps=per_item(lambda p: p.sleeps),
        latency=per_item(lambda p: p.latency),
        latency_worst=max(p.latency_worst for p, _ in cycles),
        cpu_producer=share(lambda p: p.cpu_producer),
        cpu_consumer=share(lambda p: p.cpu_consumer),
    )


def sweep(c: Costs, policy: Policy, wps: Iterable[float]) -> list[tuple[Costs, Prediction]]:
    """The model along producers of different speed, all else equal."""
    points = [replace(c, wp=wp) for wp in wps]
    return [(point, predict(point, policy)) for point in points]


def stalls(c: Costs, policy: Policy) -> bool:
    """Does the queue run full (or empty) while the faster side is still on its way?"""
    gap, regime = abs(c.wp - c.wc), regime_of(c)
    if policy.kind is Kind.POLL or regime is Regime.BALANCED:
        return False
    if policy.kind is Kind.ADAPTIVE and policy.spin >= gap:
        return False
    if policy.kind is Kind.SLEEP:
        return policy.sleep + c.slack > longest_sleep(c)
    start_c, start_p = limits(c)
    return c.sc > start_c if regime is Regime.FAST_CONSUMER else c.sp > start_p


def _busy(c: Costs, policy: Policy, regime: Regime) -> Prediction:
    """Nobody ever sleeps."""
    late = c.length * c.wc if regime is Regime.FAST_PRODUCER else c.wp + c.wc
    return Prediction(
        policy, regime, period=max(c.wp, c.wc), batch=math.inf, kicks=0, interrupts=0, sleeps=0,
        latency=late, latency_worst=late, cpu_producer=1, cpu_consumer=1,
    )  # fmt: skip


def _sleep(c: Costs, policy: Policy, regime: Regime) -> Prediction:
    """The faster side sleeps: gap / y times per item on average, whatever the phase."""
    period, gap, y = max(c.wp, c.wc), abs(c.wp - c.wc), policy.sleep + c.slack
    sleeps = gap / y
    cpu = min(1.0, (min(c.wp, c.wc) + sleeps * c.block_cpu) / period)
    if regime is Regime.FAST_CONSUMER:
        base = c.wp + c.wc
        late, worst, cpus = base + y / 2, base + y, (1.0, cpu)
    else:
        worst = c.length * c.wc
        late, cpus = worst - y / 2, (cpu, 1.0)
    return Prediction(
        policy, regime, period=period, batch=1 / sleeps, kicks=0, interrupts=0, sleeps=sleeps,
        latency=late, latency_worst=worst, cpu_producer=cpus[0], cpu_consumer=cpus[1],
    )  # fmt: skip


def batch_of(start: float, spin: float, gap: float) -> tuple[int, int, float]:
    """Items after which the faster side sleeps: (without spinning, with, time spun per cycle)."""
    caught_up = math.floor(start / gap) + 1
    asleep = math.floor((start + spin) / gap) + 1
    if asleep > caught_up:
        return caught_up, asleep, spin + caught_up * gap - start
    return caught_up, asleep, spin / (2**SPIN_LONGEST + 1)


def _spin(policy: Policy) -> float:
    return policy.spin if policy.kind is Kind.ADAPTIVE else 0.0


def _fast_consumer(c: Costs, policy: Policy) -> Prediction:
    """notify and adaptive, Wc < Wp: the consumer sleeps, the producer kicks."""
    gap = c.wp - c.wc
    caught_up, b, spun = batch_of(c.sc, _spin(policy), gap)
    period = c.wp + c.np / b
    # Item j of the batch waits Sc - j d; one that was caught by spinning does not wait.
    waits = c.sc * caught_up - gap * caught_up * (caught_up - 1) / 2
    base = c.wp + c.wc
    return Prediction(
        policy, Regime.FAST_CONSUMER, period=period, batch=b, kicks=1 / b, interrupts=0, sleeps=1 / b,
        latency=base + (waits + c.np) / b, latency_worst=base + c.np + c.sc,
        cpu_producer=1, cpu_consumer=min(1.0, (b * c.wc + spun + c.block_cpu) / (b * period)),
    )  # fmt: skip


def _fast_producer(c: Costs, policy: Policy) -> Prediction:
    """notify and adaptive, Wp < Wc: the producer sleeps, the consumer interrupts after kC items."""
    gap, kc = c.wc - c.wp, c.wake_after
    # The smallest n with (n - kC + 1) Wc > Sp + n Wp, i.e. n d > Sp + (kC - 1) Wc. Counting from kC - 1 on
    # turns the right side into Sp + (kC - 1) Wp, the published form, exact for whole nanoseconds.
    caught_up, b, spun = batch_of(c.sp + (kc - 1) * c.wp, _spin(policy), gap)
    caught_up, b = caught_up + kc - 1, b + kc - 1
    period = c.wc + c.nc / b
    # Item j (from 1) starts at Sp + (j-1) Wp and is consumed after the L - kC before the batch, at (L - kC +
    # j) Wc.
    first = (c.length - kc + 1) * c.wc - c.sp
    waits = caught_up * first + gap * caught_up * (caught_up - 1) / 2
    waits += (b - caught_up) * c.length * c.wc
    # L - kC items are queued whenever the consumer stops to notify.
    waits += c.nc * (c.length - kc)
    return Prediction(
        policy, Regime.FAST_PRODUCER, period=period, batch=b, kicks=0, interrupts=1 / b, sleeps=1 / b,
        latency=waits / b, latency_worst=c.length * c.wc + c.nc * math.ceil(c.length / b),
        cpu_producer=min(1.0, (b * c.wp + spun + c.block_cpu) / (b * period)), cpu_consumer=1,
    )  # fmt: skip


def played_items(c: Costs) -> int:
    """Items for which the protocol is played: laps of the queue, enough of them for cycles to repeat."""
    return max(_LEAST_PLAYED, _LEAST_LAPS * c.length)


def play(c: Costs, policy: Policy) -> tuple[Prediction, Run]:
    """Virtual time, where both sides wait in turn; and the run that the prediction is of."""
    items = played_items(c)
    run = simulate(c, policy, items=items, warmup=items // 8)
    prediction = Prediction(
        policy, Regime.STALLED, period=run.period, batch=run.batch,
        kicks=run.kicks, interrupts=run.interrupts, sleeps=run.sleeps,
        latency=run.latency, latency_worst=run.latency_worst,
        cpu_producer=run.cpu_producer, cpu_consumer=run.cpu_consumer, source="simulation",
    )  # fmt: skip
    return prediction, run
