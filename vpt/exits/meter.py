# SPDX-License-Identifier: BSD-2-Clause
"""From samples to numbers that may be believed. Pure functions.

The rules for reading KVM's counters are here, as code:

- An interrupt that takes the CPU from a running guest (the host's timer, a signal to QEMU, a neighbour) is
  counted in `exits` too. They are taken off before anything is divided by packets.
- `signal_exits` is not taken off a second time. A signal reaches a running vCPU as an inter-processor
  interrupt, which `irq_exits` holds already, and one that finds the vCPU outside the guest costs no exit:
  100 signals to a spinning guest moved `exits` by 116, `irq_exits` by 116 and `signal_exits` by 100.
- QEMU before 8.1 signals every vCPU for each query; that many are taken off `signal_exits`.
- Where KVM emulates guest code instead of running it, `exits` ticks about once per 1000 instructions
  whatever the guest does. From 10 emulated instructions per exit on, those ticks can be 1% of `exits`: no
  verdict.
- A counter that this KVM does not keep is None ("n/a"), never 0; under PVM that holds for `io_exits` too,
  which exists and never moves.
- Kicks that do not move are a zero where packets show that the guest worked. Exits are not, for the host's
  timer makes some; and neither are exits to user space and dispatches, for a kick that an ioeventfd takes
  is none of them.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vpt.errors import GuestError, UsageError
from vpt.exits.model import Identity, Quantity, Sample, Tier

__all__ = [
    "COUNTERS",
    "MAX_EMULATED_PER_EXIT",
    "STOPPED",
    "Comparison",
    "Delta",
    "Measure",
    "Rate",
    "compare",
    "delta",
    "intervals",
    "measure",
    "rate",
    "span",
]

COUNTERS = (
    "exits",
    "irq_exits",
    "signal_exits",
    "insn_emulation",
    "io_exits",
    "mmio_exits",
    "halt_exits",
    "irq_injections",
)
"""KVM counters that the meter knows how to read; sources ask for these and no more."""

STOPPED = "the VM was paused or stopped (SIGSTOP) for part of the time, so that what is per second is too low"

MAX_EMULATED_PER_EXIT = 10
_MIN_EMULATED = 1000  # below this, a start or a handful of ring-0 instructions: they add one exit at most
_CLEAR_CHANGE = 0.05  # smaller differences than 5% are not called a difference
_LEAST_INTERVALS = 4  # fewer have no quartiles, and differ by chance
_CPU_RAN_MS = 20  # two ticks of the clock in which the kernel accounts CPU time
_WITHOUT_IOEVENTFD = (Quantity.DISPATCHES, Quantity.USERSPACE_EXITS)


@dataclass(frozen=True, slots=True)
class Delta:
    """What the counters did between two samples. None: this counter says nothing here."""

    seconds: float
    units: dict[str, dict[str, int | None]]
    cpu_ms: int | None
    packets: int | None
    stopped: bool = False  # for part of the time

    def total(self, name: str) -> int | None:
        """Sum over all units; None if any unit lacks it."""
        values = [unit.get(name) for unit in self.units.values()]
        known = [v for v in values if v is not None]
        return sum(known) if len(known) == len(values) else None


@dataclass(frozen=True, slots=True)
class Measure:
    """One interval, read with care: `counted` is what the guest caused, `refused` why there is no verdict."""

    delta: Delta
    raw: int | None  # as counted
    noise: int | None  # interrupts among them; None: can't be told apart
    counted: int | None  # raw - noise; None where noise is unknown or a verdict is refused
    per_second: float | None
    per_packet: float | None
    refused: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rate:
    """A recording in one number: the whole, and the quartiles of its intervals."""

    whole: float
    low: float
    high: float
    unit: str  # "per packet" or "per second"
    intervals: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two recordings side by side. `factor` is b/a, None where a is 0."""

    a: Rate
    b: Rate
    factor: float | None
    clear: bool
    verdict: str


def delta(identity: Identity, before: Sample, after: Sample, readings: int = 1) -> Delta:
    """Difference of two samples of one source, with the rules of its tier applied.

    readings: how often the source was asked from the one to the other, the last time included.
    GuestError: a counter ran backwards or a vCPU is gone, so this is no longer the VM, or these are no longer
    the ports, that were sampled before.
    """
    if after.at_ns <= before.at_ns:
        raise UsageError("the second sample is not later than the first")
    gone = before.units.keys() - after.units.keys()
    if gone:
        raise GuestError(
            f"{', '.join(sorted(gone))} went away between two samples",
            hint="measure again while no vCPU is unplugged",
        )
    units = {
        unit: _unit_delta(identity, unit, before.units.get(unit, {}), now, readings)
        for unit, now in after.units.items()
    }
    return Delta(
        seconds=(after.at_ns - before.at_ns) / 1e9,
        units=units,
        cpu_ms=_difference(before.cpu_ms, after.cpu_ms),
        packets=_packets(before.packets, after.packets),
        stopped=before.stopped or after.stopped,
    )


def span(identity: Identity, samples: Sequence[Sample]) -> Delta:
    """Difference of the first and the last of a recording.

    GuestError: there is only one.
    """
    if len(samples) < 2:
        raise GuestError("one sample is no measurement", hint="record for longer than one --interval")
    whole = delta(identity, samples[0], samples[-1], readings=len(samples) - 1)
    return replace(whole, stopped=any(sample.stopped for sample in samples))


def intervals(identity: Identity, samples: Sequence[Sample]) -> list[Delta]:
    """Differences of neighbours."""
    return [delta(identity, a, b) for a, b in itertools.pairwise(samples)]


def measure(identity: Identity, d: Delta) -> Measure:
    """Read one interval with care."""
    raw = d.total(identity.quantity.value)
    noise = d.total("irq_exits") if identity.quantity is Quantity.EXITS else 0
    refused = _refusal(identity, d, raw)
    notes = _notes(identity, d, raw, noise)
    counted = raw - noise if raw is not None and noise is not None else None
    if counted is not None and counted < 0:
        refused = refused or "irq_exits moved further than exits: these counters contradict each other"
    if refused:
        counted = None
    per_packet = counted / d.packets if counted is not None and d.packets else None
    per_second = counted / d.seconds if counted is not None else None
    return Measure(d, raw, noise, counted, per_second, per_packet, refused, notes)


def rate(identity: Identity, samples: Sequence[Sample]) -> Rate:
    """The one number of a recording: per packet if packets were counted, else per second.

    GuestError: no verdict is possible; the message says why.
    """
    whole = measure(identity, span(identity, samples))
    if whole.counted is None:
        raise GuestError(
            f"no verdict: {whole.refused or 'interrupts cannot be told from exits here (irq_exits: n/a)'}",
            hint="docs/exits.md says how to read these counters",
        )
    per_packet = whole.per_packet is not None
    parts = [measure(identity, d) for d in _full(intervals(identity, samples))]
    values = [v for m in parts if (v := _rate_of_part(identity, m, per_packet)) is not None]
    value = whole.per_packet if per_packet else whole.per_second
    assert value is not None
    low, high = _quartiles(values) if values else (value, value)
    return Rate(value, low, high, "per packet" if per_packet else "per second", len(values))


def compare(a: tuple[Identity, Sequence[Sample]], b: tuple[Identity, Sequence[Sample]]) -> Comparison:
    """Two recordings, if they may be compared at all.

    UsageError: they may not, and why.
    """
    _require_comparable(a[0], b[0])
    ra, rb = rate(*a), rate(*b)
    if ra.unit != rb.unit:
        raise UsageError(
            f"one recording is {ra.unit}, the other {rb.unit}",
            hint="record both with --port, so that packets are counted in both",
        )
    factor = rb.whole / ra.whole if ra.whole else None
    change = abs(rb.whole - ra.whole) / max(ra.whole, rb.whole) if max(ra.whole, rb.whole) else 0.0
    overlap = ra.low <= rb.high and rb.low <= ra.high
    enough = min(ra.intervals, rb.intervals) >= _LEAST_INTERVALS
    clear = change > _CLEAR_CHANGE and not overlap and enough
    return Comparison(ra, rb, factor, clear, _verdict(a[0].quantity, ra, rb, change, overlap))


def _unit_delta(
    identity: Identity, unit: str, before: dict[str, int], after: dict[str, int], readings: int
) -> dict[str, int | None]:
    """One unit's differences. A unit that was not there before (a region first touched now) began at 0."""
    out: dict[str, int | None] = dict.fromkeys(identity.missing)
    for name, now in after.items():
        moved = now - before.get(name, 0)
        if moved < 0:
            raise GuestError(
                f"{unit}: {name} ran backwards, from {before[name]} to {now}",
                hint="the VM was restarted meanwhile; measure again",
            )
        out[name] = moved
    signals = out.get("signal_exits")
    if signals is not None:
        out["signal_exits"] = max(0, signals - identity.kicks_per_query * readings)
    if identity.tier is Tier.KVM_PVM and "io_exits" in out:
        out["io_exits"] = None
    return out


def _refusal(identity: Identity, d: Delta, raw: int | None) -> str | None:
    """Why this interval gives no verdict, or None."""
    if raw is None:
        return f"this source has no counter of {identity.quantity.value} here (n/a)"
    if raw == 0:
        return _refusal_of_zero(identity, d)
    emulated = d.total("insn_emulation")
    if emulated is not None and emulated > _MIN_EMULATED and emulated > MAX_EMULATED_PER_EXIT * raw:
        return (
            f"{emulated} instructions were emulated against {raw} exits: KVM did not run this guest code but "
            "interpreted it, and exits count time slices there"
        )
    return None


def _refusal_of_zero(identity: Identity, d: Delta) -> str | None:
    """Packets show that the guest worked and did without kicks. CPU time does not: the source may not count.

    The host's timer alone makes a running vCPU exit, so that not one exit is never a good result.
    """
    what = identity.quantity
    if d.packets and what is Quantity.KICKS:
        return None
    if d.packets and what in _WITHOUT_IOEVENTFD:
        return (
            f"no {what.value} while {d.packets} packets passed: {identity.source} does not count a kick that "
            "an ioeventfd takes, as those of passthrough and vhost-user ports; --source vpt counts kicks"
        )
    if what is Quantity.KICKS:
        return "no packet passed these ports, so that no kick means nothing"
    if d.cpu_ms is None or d.cpu_ms < _CPU_RAN_MS:
        return f"no {what.value}: the guest did not run (paused, or every vCPU halted)"
    said = f"the counters did not move although the VM used {d.cpu_ms} ms of CPU: "
    if what is Quantity.EXITS:
        return f"{said}this source does not count"
    return (
        f"{said}the guest only computes, or an ioeventfd takes its kicks, or {identity.source} does not count"
    )


def _notes(identity: Identity, d: Delta, raw: int | None, noise: int | None) -> tuple[str, ...]:
    notes = []
    if noise is None:
        notes.append("irq_exits: n/a here, so interrupts are not taken off")
    elif raw and noise * 2 > raw:
        notes.append(
            f"{noise} of {raw} exits were interrupts of the host: the machine is busy, or the guest spins"
        )
    if d.packets == 0:
        notes.append("no packet passed the ports that were named")
    if d.stopped:
        notes.append(STOPPED)
    if identity.tier is Tier.TCG and identity.quantity is Quantity.DISPATCHES:
        notes.append("tcg: exits do not exist; dispatches to the device model are counted instead")
    if identity.quantity in _WITHOUT_IOEVENTFD:
        notes.append(
            f"a kick that an ioeventfd takes (passthrough, vhost-user) is not among the "
            f"{identity.quantity.value}: --source vpt counts those"
        )
    if identity.tier is Tier.KVM_PVM and d.total("mmio_exits") is not None:
        notes.append(
            "kvm-pvm: mmio_exits holds only exits that went to user space; io_exits never moves (n/a)"
        )
    return tuple(notes)


def _require_comparable(a: Identity, b: Identity) -> None:
    if a.tier is not b.tier:
        raise UsageError(
            f"not comparable: one recording is {a.tier.value} ({a.tier_evidence}), the other {b.tier.value} "
            f"({b.tier_evidence}). An exit of one is not an exit of the other",
            hint="record both on one host with one accelerator",
        )
    if a.quantity is not b.quantity:
        raise UsageError(
            f"not comparable: {a.source} counts {a.quantity.value}, {b.source} counts {b.quantity.value}",
            hint=f"record both with --source {a.source}",
        )


def _verdict(quantity: Quantity, a: Rate, b: Rate, change: float, overlap: bool) -> str:
    numbers = f"{a.whole:.4g} -> {b.whole:.4g} {quantity.value} {a.unit}"
    if min(a.intervals, b.intervals) < _LEAST_INTERVALS:
        return (
            f"undecided: {numbers}, but of {a.intervals} and {b.intervals} intervals: too few to tell; "
            f"record {_LEAST_INTERVALS} or more"
        )
    if change <= _CLEAR_CHANGE:
        return f"no difference: {numbers} (within {_CLEAR_CHANGE:.0%})"
    if overlap:
        return f"no clear difference: {numbers}, but the intervals of the two overlap; record for longer"
    return f"B {'fewer' if b.whole < a.whole else 'more'}, by {change:.0%} of the larger: {numbers}"


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _packets(before: int | None, after: int | None) -> int | None:
    if before is not None and after is not None and after < before:
        raise GuestError(
            f"the packets of the ports ran backwards, from {before} to {after}: a port was made anew "
            "meanwhile, or vptd was started again",
            hint="measure again while the ports stay as they are",
        )
    return _difference(before, after)


def _rate_of_part(identity: Identity, m: Measure, per_packet: bool) -> float | None:
    """Rate of one interval of a recording that has a verdict; None: it says nothing.

    None counted is no result by itself, but here the others show that the source counts.
    """
    if m.raw == 0 and m.delta.packets and identity.quantity in _WITHOUT_IOEVENTFD:
        return 0.0
    return m.per_packet if per_packet else m.per_second


def _full(parts: Sequence[Delta]) -> list[Delta]:
    """Without the odd short interval, as the last of a recording mostly is: its rate is mostly chance."""
    typical = statistics.median(part.seconds for part in parts)
    return [part for part in parts if part.seconds * 2 >= typical]


def _quartiles(values: Iterable[float]) -> tuple[float, float]:
    ordered = sorted(values)
    if len(ordered) < 4:
        return ordered[0], ordered[-1]
    low, _, high = statistics.quantiles(ordered, n=4)
    return low, high
