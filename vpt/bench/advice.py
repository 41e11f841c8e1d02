# SPDX-License-Identifier: BSD-2-Clause
"""Which policy to take, with its parameters, for given costs and budgets.

A policy's time is searched at the few places where the model changes. Sleeps: rate is the same for all that
the queue bears, latency and CPU are monotonic, so that one which just meets a bound is the best of all. Spins
shorter than the gap d = |Wp - Wc|: a batch holds one item more from a certain length on, and what is spun
beyond it is burnt. Where both sides wait in turn there is no formula, and a spin changes a run only where it
is as long as one of its waits: those are played, as many as a second or so allows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vpt.bench.costs import LONGEST_NS, Costs, Kind, Policy
from vpt.bench.model import Prediction, Regime, batch_of, longest_sleep, play, played_items, predict, stalls
from vpt.errors import UsageError

__all__ = ["Advice", "advise"]

#: Nanoseconds. A timer is late by about as much.
_SHORTEST_SLEEP = 10_000
#: What is never offered unasked.
_ASIDE = ", short of sleeps under 10 us or of longer ones than the queue bears"
#: Items played in all where both sides wait in turn, and runs for which they are used at most.
_PLAYED, _RUNS = 65_536, 16
_NOTIFY = Policy(Kind.NOTIFY)


@dataclass(frozen=True, slots=True)
class Advice:
    """The policy to use. `met`: both budgets hold; `why` is a sentence; `considered` is all that was
    weighed.
    """

    choice: Prediction
    met: bool
    why: str
    considered: Sequence[Prediction]


def _roomy(c: Costs, latency_budget: float) -> list[Policy]:
    """Policies with room for a machine that is not quite like these costs.

    Sleep: half of what the queue bears, so that a late timer costs no throughput; less where a fast consumer
    would keep the average latency so, more where a fast producer would. Adaptive: just over d, which never
    sleeps at this rate, and the price of a wake-up, which is never far from the best at any.
    """
    gap = abs(c.wp - c.wc)
    kick = c.np + c.sc if c.wc < c.wp else c.nc + c.sp
    found = [_NOTIFY, Policy(Kind.ADAPTIVE, spin=kick)]
    if gap > kick:
        found.append(Policy(Kind.ADAPTIVE, spin=math.ceil(gap / 1000) * 1000))
    longest = longest_sleep(c)
    if c.wc < c.wp:
        y = min(longest / 2, 2 * (latency_budget - c.wp - c.wc))
    else:
        needed = math.ceil(max(0, c.length * c.wc - latency_budget) / 500) * 1000
        y = min(max(longest / 2, needed), longest)
    y = min(y - c.slack, LONGEST_NS)
    if y >= _SHORTEST_SLEEP:
        found.append(Policy(Kind.SLEEP, sleep=math.floor(y / 1000) * 1000))
    return [*found, Policy(Kind.POLL)]


def _exact(c: Costs, latency_budget: float) -> list[Policy]:
    """What is best by the model, and holds only where the costs are exactly these.

    The longest sleep that keeps both the queue going and the latency, and the shortest spin that catches an
    item: more spins buy nothing, fewer catch nothing.
    """
    gap, y = abs(c.wp - c.wc), longest_sleep(c)
    start = c.sc
    if c.wc < c.wp:
        y = min(y, 2 * (latency_budget - c.wp - c.wc))
    else:
        start = c.sp + (c.wake_after - 1) * c.wp
    found = []
    if gap and not stalls(c, _NOTIFY):
        found.append(Policy(Kind.ADAPTIVE, spin=_just_over(batch_of(start, 0, gap)[0] * gap - start, gap)))
    y = min(y - c.slack, LONGEST_NS)
    if y >= _SHORTEST_SLEEP:
        found.append(Policy(Kind.SLEEP, sleep=math.floor(y)))
    return found


def _just_over(time: float, gap: float) -> float:
    """In whole nanoseconds, if that is not as long as the gap already; else by more than rounding takes."""
    whole = math.ceil(time)
    return whole if whole < gap else time * (1 + 1e-9)


def _stalled(c: Costs) -> Iterator[Prediction]:
    """Spins shorter than the gap, each as long as a wait of a run with a shorter one."""
    gap = abs(c.wp - c.wc)
    left = max(2, min(_RUNS, _PLAYED // played_items(c)))
    tried: set[float] = set()
    ahead: list[float] = [0]
    while ahead and len(tried) < left:
        spin = ahead.pop(0)
        tried.add(spin)
        prediction, run = play(c, Policy(Kind.ADAPTIVE, spin=spin))
        yield prediction
        waits = Counter(_just_over(round(wait, 3), gap) for wait in run.waits)
        ahead += [w for w, _ in waits.most_common(_RUNS) if spin < w < gap and w not in {*tried, *ahead}]


def advise(c: Costs, latency_budget: float, cpu_budget: float, given: Iterable[Policy] = ()) -> Advice:
    """The policy, with its parameters, that meets an average latency and a CPU budget.

    latency_budget is in nanoseconds, inf for any; cpu_budget a share of a core for the side that waits (the
    other always works), 1 for any; `given` are weighed, too. Of those that meet both, the one with the
    highest rate (to 1 %), of these one that has room for a machine not quite like this, if any does, then the
    least CPU, then the fewest notifications. If none does, the one that misses least, and `why` says by what.
    """
    if not latency_budget > 0:
        raise UsageError(f"no average latency is {latency_budget:g} ns", hint="give one above 0")
    if not 0 < cpu_budget <= 1:
        raise UsageError(
            f"{cpu_budget:g} is no share of a core to allow", hint="give one above 0 and up to 1"
        )

    def holds(p: Prediction) -> bool:
        return p.latency <= latency_budget and p.cpu_waiter <= cpu_budget

    roomy = _roomy(c, latency_budget)
    policies = dict.fromkeys([*roomy, *given, *_exact(c, latency_budget)])
    weighed = [predict(c, policy) for policy in policies]
    if stalls(c, _NOTIFY):
        weighed += _stalled(c)
    good = [p for p in weighed if holds(p)]
    if good:
        fastest = max(p.rate for p in good)
        fast = [p for p in good if p.rate >= 0.99 * fastest]
        choice = min(
            [p for p in fast if p.policy in roomy] or fast,
            key=lambda p: (round(p.cpu_waiter, 3), p.notifications),
        )
        return Advice(choice, True, _reason(choice), weighed)

    def excess(p: Prediction) -> float:
        return max(p.latency / latency_budget, 1) * max(p.cpu_waiter / cpu_budget, 1)

    choice = min(weighed, key=excess)
    missed = []
    if choice.latency > latency_budget:
        missed.append(
            f"{choice.latency / 1000:.1f} us on average where {latency_budget / 1000:g} us were asked for"
        )
    if choice.cpu_waiter > cpu_budget:
        missed.append(f"{100 * choice.cpu_waiter:.3g}% of a core where {100 * cpu_budget:g}% were allowed")
    played = sum(p.source == "simulation" for p in weighed)
    aside = f"{_ASIDE}, and of those that were not among the {played} played" if played else _ASIDE
    asked = "both budgets" if latency_budget < math.inf and cpu_budget < 1 else "the budget"
    refused = f"no policy meets {asked}{aside}; this one misses least: {', '.join(missed)}"
    return Advice(choice, False, refused, weighed)


def _reason(p: Prediction) -> str:
    """One sentence on why this policy does it."""
    if p.sleeps == 0:
        return "neither side ever sleeps at this rate, so there is nothing to notify"
    if p.policy.kind is Kind.SLEEP:
        return f"{p.batch:.0f} items gather per sleep, and nobody has to notify"
    how_often = f"once per {p.batch:.0f} items" if p.batch >= 1.5 else "for each item"
    if p.regime is Regime.STALLED:
        return f"both sides wait in turn, and one is woken {how_often}"
    who = "the consumer" if p.regime is Regime.FAST_CONSUMER else "the producer"
    return f"{who} sleeps and is woken {how_often}"
