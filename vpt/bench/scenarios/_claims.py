# SPDX-License-Identifier: BSD-2-Clause
"""What this project says of itself, held against a run of the scenario `exits`. Pure.

A claim that a run can't decide is said to be undecided; one that it misses, missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vpt.bench.numbers import beside, engineering
from vpt.bench.result import Point
from vpt.bench.scenarios._verdict import no_more, pair, said
from vpt.bench.stats import Summary

__all__ = ["verdicts"]

_MOST_EXITS = 0.001
#: On an emulated processor worker and guest wait for each other's turns: a kick per burst of 64 says nothing.
_TURNS = 1 / 64
_LEAST_MPPS = 20.0
_BATCH_WITHIN = 0.05
#: Below this, per packet, a difference is a handful of packets in a run.
_FEW = 0.001
_RING, _EVENT_INDEX, _KICKS_EACH = "passthrough", "virtio-net, event index", "virtio-net, kicks each"


def verdicts(points: Sequence[Point], *, native: bool, timed: bool = True) -> list[str]:
    """One sentence for each claim, with the numbers.

    native: False where exits do not exist (TCG). timed: False where they do, on a processor that is emulated.
    """
    found = _Points(points)
    counted = "exits" if native else "kicks"
    lines = [*_control(found, counted), *_batches(found, counted)]
    if not native:
        return [*lines, "Undecided: exits, rates and latencies of the other claims, which tcg can't measure."]
    lines += _few_exits(found, _MOST_EXITS if timed else _TURNS)
    if not timed:
        return [
            *lines,
            "Undecided: rates and latencies of the other claims: this processor is emulated.",
        ]
    return [*lines, *_rates(found), *_against_event_index(found), *_latency(found)]


class _Points:
    """Medians by device, load and policy."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = points

    def get(self, policy: str, metric: str, **params: str | float) -> Summary | None:
        for point in self._points:
            if point.params == params:
                variant = point.variant(policy)
                return variant.summary(metric) if variant else None
        return None

    def values(self, device: str, name: str) -> list[float]:
        """The settings of a parameter that a device was measured at."""
        return [
            float(p.params[name])
            for p in self._points
            if p.params.get("device") == device and name in p.params
        ]


def _off(share: float) -> str:
    """How far off, and visibly more than is allowed where it is."""
    for digits in range(1, 9):
        text = f"{share:+.{digits}%}"
        if (abs(float(text[:-1])) <= 100 * _BATCH_WITHIN) == (abs(share) <= _BATCH_WITHIN):
            break
    return text


def _control(found: _Points, counted: str) -> Iterator[str]:
    claim = f"kicking every packet, 1.00 {counted} per packet"
    for load in [{"rate": r} for r in found.values(_KICKS_EACH, "rate")] + [{"load": "saturation"}]:
        seen = found.get("notify", counted, device=_KICKS_EACH, **load)
        if seen is not None:
            off = seen.median - 1
            numbers = f"{seen.median:#.3g} ({_off(off)}) at {_load(load)}"
            yield said(abs(off) <= _BATCH_WITHIN, claim, numbers)


def _batches(found: _Points, counted: str) -> Iterator[str]:
    for n in found.values(_RING, "batch"):
        seen = found.get("notify", counted, device=_RING, batch=n)
        if seen is not None:
            off = seen.median * n - 1
            claim = f"a kick every {n:g} packets, 1/{n:g} {counted} per packet within {_BATCH_WITHIN:.0%}"
            yield said(abs(off) <= _BATCH_WITHIN, claim, f"{engineering(seen.median)} ({_off(off)})")


def _few_exits(found: _Points, missed_above: float) -> Iterator[str]:
    for policy in ("adaptive", "poll"):
        exits = found.get(policy, "exits", device=_RING, load="saturation")
        if exits is not None:
            claim = f"passthrough at saturation, {policy}, <= {_MOST_EXITS} exits per packet"
            reached = exits.median <= _MOST_EXITS or (None if exits.median <= missed_above else False)
            yield said(reached, claim, beside(exits.median, _MOST_EXITS))


def _rates(found: _Points) -> Iterator[str]:
    for policy in ("adaptive", "poll"):
        mpps = found.get(policy, "mpps", device=_RING, load="saturation")
        if mpps is not None:
            claim = f"passthrough at saturation, {policy}, >= {_LEAST_MPPS:g} Mpps"
            yield said(mpps.median >= _LEAST_MPPS, claim, beside(mpps.median, _LEAST_MPPS))


def _against_event_index(found: _Points) -> Iterator[str]:
    """A virtio-net that has the event index and nothing else: its host notifies and does not spin."""
    for rate in found.values(_RING, "rate"):
        ours = found.get("adaptive", "exits", device=_RING, rate=rate)
        theirs = found.get("notify", "exits", device=_EVENT_INDEX, rate=rate)
        if ours is None or theirs is None:
            continue
        spun = found.get("adaptive", "exits", device=_EVENT_INDEX, rate=rate)
        with_spin = f", {engineering(spun.median)} with adaptive" if spun else ""
        cpu = found.get("adaptive", "cpu", device=_RING, rate=rate)
        cost = f"; adaptive takes {engineering(cpu.median)}% of a core" if cpu else ""
        yield said(
            no_more(ours, theirs, _FEW),
            f"at {rate:g} packets/s, adaptive passthrough no more exits than virtio-net with event index",
            f"{pair(ours, theirs)}{with_spin}{cost}",
        )


def _latency(found: _Points) -> Iterator[str]:
    for rate in found.values(_RING, "rate"):
        ours = found.get("adaptive", "p99", device=_RING, rate=rate)
        theirs = found.get("notify", "p99", device=_RING, rate=rate)
        claim = f"at {rate:g} round trips/s, adaptive's p99 no worse than notify's"
        if ours is None or theirs is None:
            yield said(None, claim, "too few round trips for a 99th percentile")
            continue
        taken = [found.get(p, "trip_cpu", device=_RING, rate=rate) for p in ("adaptive", "notify")]
        shares = " against ".join(f"{engineering(cpu.median)}%" for cpu in taken if cpu)
        cost = f"; that takes {shares} of a core" if shares else ""
        yield said(no_more(ours, theirs), claim, f"{pair(ours, theirs, ' us')}{cost}")


def _load(load: dict[str, float] | dict[str, str]) -> str:
    return f"{load['rate']:g} packets/s" if "rate" in load else "saturation"
