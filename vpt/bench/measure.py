# SPDX-License-Identifier: BSD-2-Clause
"""The model's two threads for real: run them, and measure what notifying and waking cost on this machine.

Two threads on two CPUs run the data plane's protocol (`vpt_bench_pc`). Real-time priority is used where it is
permitted, for milliseconds at a time and with as long a pause after, so that neither other programs of this
machine nor this one's are in the way; `Threads.realtime` says whether it was.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vpt.bench.costs import Costs, Kind, Policy
from vpt.bench.machine import two_cpus
from vpt.bench.model import Prediction, Regime, regime_of
from vpt.bench.stats import percentile
from vpt.dataplane import PcNotify, PcResult, PcSpec, PolicyKind, bench_pc
from vpt.errors import DataplaneError

__all__ = ["Observation", "Threads", "measure_costs"]

#: A run is kept below this, times the scale: real-time threads must not hold two CPUs for long.
_RUN_NS = 60e6
#: Start-up times and batches kept of each side.
_CYCLES = 4096
_KINDS = {
    Kind.POLL: PolicyKind.POLL,
    Kind.SLEEP: PolicyKind.SLEEP,
    Kind.NOTIFY: PolicyKind.NOTIFY,
    Kind.ADAPTIVE: PolicyKind.ADAPTIVE,
}


@dataclass(frozen=True, slots=True)
class Observation:
    """What two threads did, in the terms of the model.

    `costs` are those that this very run met with; `starts` all start-up times of the side that was notified;
    `batches` the items from each notification to the next. `stalled`: the share of the time for which either
    CPU was taken away from the thread on it, by whomever.
    """

    period: float
    kicks: float
    interrupts: float
    sleeps: float
    latency: float
    late: int
    preempted: int
    stalled: float
    costs: Costs
    starts: tuple[int, ...]
    batches: tuple[int, ...]

    @property
    def notifications(self) -> float:
        """Notifications per item, both ways."""
        return self.kicks + self.interrupts

    @property
    def per_batch(self) -> float:
        """1/b of the median cycle: one in which a CPU was taken away for some microseconds does not count."""
        return 1 / _median(self.batches) if self.batches else self.notifications


def _amount(c: Costs, expected: Prediction, scale: float) -> tuple[int, int]:
    """(warm-up, counted) items: past the filling of the queue, then whole cycles, as many as the time
    allows.
    """
    gap = abs(c.wp - c.wc)
    batch = expected.batch if math.isfinite(expected.batch) else 0
    fill = c.length * max(c.wp, c.wc) / gap if regime_of(c) is Regime.FAST_PRODUCER else 0
    room = _RUN_NS * scale / expected.period
    items = min(max(1000, 12 * batch), room)
    # Three cycles at least, however long they are.
    return int(2 * batch + 1.2 * fill) + 32, int(max(items, 3.5 * batch, 64))


def _per_item(notifications: int, first: int, last: int, items: int) -> float:
    """Notifications per item over whole cycles, if there were some."""
    return (notifications - 1) / (last - first) if notifications >= 3 else notifications / items


def _costs_met(c: Costs, policy: Policy, r: PcResult) -> Costs:
    """The costs as this run saw them; those that it did not meet with stay as they were."""
    met = c
    sleeps = r.producer.sleeps + r.consumer.sleeps
    if sleeps:
        slept = (r.producer.idle_ns + r.consumer.idle_ns) / sleeps
        met = replace(met, slack=max(0.0, slept - policy.sleep))
    if policy.kind is Kind.NOTIFY and r.consumer.blocks:
        # What the consumer's thread was charged for and did not work.
        met = replace(met, block_cpu=max(0.0, r.consumer.cpu_ns - r.items * c.wc) / r.consumer.blocks)
    for notifier, waiter, n, s in (
        (r.producer, r.consumer, "np", "sc"),
        (r.consumer, r.producer, "nc", "sp"),
    ):
        if notifier.notifications:
            met = replace(met, **{n: notifier.notify_ns / notifier.notifications})  # type: ignore[arg-type]
        if waiter.starts:
            met = replace(met, **{s: waiter.start_ns / waiter.starts})  # type: ignore[arg-type]
    return met


class Threads:
    """Runs the two threads on a pair of CPUs.

    by: how they notify. EMULATED spends the costs given instead of meeting with those of the kernel.
    """

    def __init__(self, by: PcNotify = PcNotify.EVENTFD, cpus: Sequence[int] = ()) -> None:
        usable = two_cpus(cpus, "a producer and a consumer need a CPU each")
        self.by = by
        self.cpus = usable[0], usable[1]
        self.realtime = True

    def run(self, c: Costs, policy: Policy, expected: Prediction, scale: float = 1.0) -> Observation:
        """One run, long enough for `expected`'s cycles."""
        warmup, items = _amount(c, expected, scale)
        result = self._run(
            PcSpec(
                policy=_KINDS[policy.kind],
                items=items,
                warmup=warmup,
                notify_by=self.by,
                work_p_ns=round(c.wp),
                work_c_ns=round(c.wc),
                notify_p_ns=round(c.np),
                notify_c_ns=round(c.nc),
                start_p_ns=round(c.sp),
                start_c_ns=round(c.sc),
                spin_ns=round(policy.spin),
                sleep_ns=round(policy.sleep),
                length=c.length,
                notify_after=c.wake_after,
                cpu_producer=self.cpus[0],
                cpu_consumer=self.cpus[1],
                start_samples=_CYCLES,
                batch_samples=_CYCLES,
            )
        )
        p, q = result.producer, result.consumer
        return Observation(
            period=result.ns / items,
            kicks=_per_item(p.notifications, p.first_notified, p.last_notified, items),
            interrupts=_per_item(q.notifications, q.first_notified, q.last_notified, items),
            sleeps=(p.sleeps + q.sleeps + p.blocks + q.blocks) / items,
            latency=result.latency_sum_ns / items,
            late=p.late + q.late,
            preempted=p.preempted + q.preempted,
            stalled=(p.stalled_ns + q.stalled_ns) / result.ns,
            costs=_costs_met(c, policy, result),
            starts=result.starts_consumer or result.starts_producer,
            batches=max(result.batches_producer, result.batches_consumer, key=len),
        )

    def _run(self, spec: PcSpec) -> PcResult:
        began = time.monotonic()
        try:
            result = bench_pc(replace(spec, realtime=self.realtime))
        except DataplaneError as err:
            if err.errno != errno.EPERM or not self.realtime:
                raise
            self.realtime = False
            result = bench_pc(spec)
        # Others were kept off both CPUs for this long; give it back.
        time.sleep(time.monotonic() - began)
        return result


def _median(values: Sequence[float]) -> float:
    return percentile(values, 50)


def measure_costs(threads: Threads, c: Costs, repetitions: int = 5) -> Costs:
    """Np, Nc, Sp, Sc, slack and block_cpu of this machine, as medians; work, length and kC stay as given.

    The waiting side must really be asleep when it is notified, and the queue must not fill or empty
    meanwhile: a producer of one item in 40 us and a quick consumer for Np and Sc, the reverse for Nc and Sp.
    """
    lone = replace(c, wp=40_000, wc=1000, length=512, kc=None)
    full = replace(c, wp=500, wc=4000, length=512, kc=None)
    kicks, interrupts, naps = [], [], []
    nap = Policy(Kind.SLEEP, sleep=50_000)
    for _ in range(repetitions):
        kicks.append(threads.run(lone, Policy(Kind.NOTIFY), _plan(lone, 1, 40_000)).costs)
        interrupts.append(threads.run(full, Policy(Kind.NOTIFY), _plan(full, 450, 4000)).costs)
        naps.append(threads.run(lone, nap, _plan(lone, 1, 40_000)).costs)
    return replace(
        c,
        np=_median([k.np for k in kicks]),
        sc=_median([k.sc for k in kicks]),
        nc=_median([i.nc for i in interrupts]),
        sp=_median([i.sp for i in interrupts]),
        slack=_median([n.slack for n in naps]),
        block_cpu=_median([k.block_cpu for k in kicks]),
    )


def _plan(c: Costs, batch: float, period: float) -> Prediction:
    """A guess to size a run with, before anything is known."""
    return Prediction(
        Policy(Kind.NOTIFY), regime_of(c), period=period, batch=batch, kicks=0, interrupts=0, sleeps=0,
        latency=0, latency_worst=0, cpu_producer=0, cpu_consumer=0, source="guess",
    )  # fmt: skip
