# SPDX-License-Identifier: BSD-2-Clause
"""exits: what a packet costs in VM exits, kicks and interrupts, and what saving them costs in CPU and time.

A micro guest sends through the switch to a sink that reads each byte, at a pace or as fast as it goes; then
it pings a second guest that echoes, one packet at a time, both asleep while they wait. Under each policy the
same two guests run in turn. KVM counts the exits; its own interrupts are taken off as vpt.exits says. Under
TCG there are none, and the run only shows that everything works.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import ClassVar

from vpt.bench.micro import Kick, Order, Report, Role, Touch, Wait
from vpt.bench.programs import QEMU
from vpt.bench.result import Metric, Plot, Point
from vpt.bench.scenario import Measured, Params, Runnable, Scenario, Settings
from vpt.bench.scenarios._claims import verdicts
from vpt.bench.scenarios._latency import PERCENTILES, percentile_metrics
from vpt.bench.scenarios._ports import undisturbed
from vpt.bench.scenarios._rig import (
    ATTACHMENTS,
    POLICIES,
    Plugged,
    PolicyName,
    Rig,
    accelerator,
    rig,
    tier_of,
)
from vpt.errors import GuestError
from vpt.exits import delta, measure
from vpt.exits.model import Quantity, Tier
from vpt.exits.session import Session, open_session
from vpt.percentile import tells
from vpt.processor import emulated, patience
from vpt.qemu import Accel

__all__ = ["BATCHES", "RATES", "SCENARIO"]

#: Packets per second; one at a time, evenly.
RATES = (1_000, 10_000, 100_000)
_TYPICAL = 10_000
_ALL_RATES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000)
#: Packets per kick of a guest that does not ask whether one is wanted: the control.
BATCHES = (1, 8, 32)
_BURST = 64
_SECONDS = 0.3
_PING_SECONDS = 0.2
#: So that a 99th percentile is not one trip's bad luck; times the scale, but as many as have one at all.
_LEAST_PINGS, _LEAST_PINGS_EVER = 1000, 100
_WARM_UP = 5_000
#: For what is still under way at the end; a host that is busy is late for it.
_LINGER_S = patience(1.0)


def _percentiles(device: str) -> Plot:
    """Of the round trip, at a rate that is not yet one request after the other."""
    return Plot(
        title=f"Round trip at {_TYPICAL} a second, {device}",
        x="",
        where={"device": device, "rate": _TYPICAL},
        y=list(PERCENTILES),
        x_label="percentile",
        y_label="us",
        style="profile",
    )


def _plots(device: str) -> list[Plot]:
    paced = Plot(
        title="", x="rate", x_label="packets/s", log_x=True, where={"device": device}, y=[], y_label=""
    )
    return [
        *(
            paced.model_copy(update={"title": f"{title}, {device}", "y": [y], "y_label": unit, "log_y": log})
            for title, y, unit, log in (
                ("Exits per packet", "exits", "per packet", False),
                ("Round trip, 99th percentile", "p99", "us", True),
                ("CPU of the worker", "cpu", "% of a core", False),
            )
        ),
        _percentiles(device),
    ]


class _Exits(Scenario):
    name: ClassVar[str] = "exits"
    title: ClassVar[str] = "Exits, kicks and interrupts per packet, by device, policy and rate"
    metrics: ClassVar[Sequence[Metric]] = (
        Metric(name="exits", unit="per packet", better="lower", kind="count", title="Exits"),
        Metric(name="dispatches", unit="per packet", better="lower", kind="count", title="Dispatches"),
        Metric(name="kicks", unit="per packet", better="lower", kind="count", title="Kicks"),
        Metric(name="interrupts", unit="per packet", better="lower", kind="count", title="Interrupts"),
        Metric(name="syscalls", unit="per packet", better="lower", kind="count", title="Worker's calls"),
        Metric(name="mpps", unit="Mpps", better="higher", title="Rate"),
        Metric(name="cpu", unit="% of a core", better="lower", title="Worker's CPU"),
        *percentile_metrics("Round trip"),
        Metric(name="trip_cpu", unit="% of a core", better="lower", title="Worker's CPU, round trips"),
    )
    reference: ClassVar[str | None] = "notify"
    programs: ClassVar[Sequence[str]] = (QEMU,)
    plots: ClassVar[Sequence[Plot]] = (
        *(plot for device in ATTACHMENTS for plot in _plots(device)),
        Plot(
            title="Packets per second at saturation",
            x="device",
            where={"load": "saturation"},
            y=["mpps"],
            x_label="device",
            y_label="Mpps",
            style="bar",
        ),
    )

    def __init__(self) -> None:
        self._provenance: dict[str, str] = {}
        self._remarks: dict[str, None] = {}
        # Why a repetition has no count, of each that has none.
        self._uncounted: list[str] = []

    def points(self, settings: Settings) -> Sequence[Params]:
        rates = _ALL_RATES if settings.full else RATES
        loads: list[Params] = [*({"rate": rate} for rate in rates), {"load": "saturation"}]
        batches: list[Params] = [{"device": "passthrough", "batch": n} for n in BATCHES]
        return [*batches, *({"device": device, **load} for device in ATTACHMENTS for load in loads)]

    @contextmanager
    def session(self, params: Params, settings: Settings) -> Iterator[Mapping[str, Runnable]]:
        accel = accelerator(settings)
        policies: tuple[PolicyName, ...] = ("notify",) if "batch" in params else POLICIES
        with rig(settings, accel) as made:
            made.null_port()
            # Under TCG a guest may have to spin for an answer, which the one that answers must get a CPU for.
            realtime = settings.realtime and accel.name == "kvm"
            bench = _Bench(made, params, replace(settings, realtime=realtime))
            with open_session(f"qmp:{bench.sender.qmp}") as exits:
                self._note(exits, accel)
                yield {p: partial(self._run, bench, exits, p) for p in policies}

    def _note(self, exits: Session, accel: Accel) -> None:
        tier, _ = tier_of(accel)
        identity = exits.identity
        self._provenance = {"tier": tier.value, "counted": identity.quantity.value, "source": identity.source}
        self._remarks[f"Tier {tier.value}: {identity.tier_evidence}. Accelerator: {accel.why}."] = None

    def _run(self, bench: _Bench, exits: Session, policy: PolicyName) -> Measured:
        values, uncounted = bench.run(exits, policy)
        if uncounted:
            self._uncounted.append(uncounted)
        return Measured(values)

    def _without(self) -> Iterator[str]:
        """One line, for the numbers in a reason differ from one repetition to the next."""
        if self._uncounted:
            what, times = self._provenance.get("counted", "exits"), len(self._uncounted)
            yield f"No count of {what} in {times} repetition{'s'[: times > 1]}: {self._uncounted[0]}."

    def provenance(self) -> Mapping[str, str]:
        return self._provenance

    def notes(self, settings: Settings, points: Sequence[Point]) -> Sequence[str]:  # noqa: ARG002
        native = self._provenance.get("tier") != Tier.TCG.value
        return [
            *verdicts(points, native=native, timed=not emulated()),
            *self._remarks,
            *self._without(),
            f"Guests send one packet at a time when paced, {_BURST} when not; one that kicks each, one.",
            "Round trips have one packet in flight, so that the time per trip bounds their rate.",
        ]


class _Bench:
    """One point: two guests of one kind, and an order to carry out under each policy."""

    def __init__(self, made: Rig, params: Params, settings: Settings) -> None:
        self._rig = made
        self._attachment = ATTACHMENTS[str(params["device"])]
        self._rate = float(params["rate"]) if "rate" in params else None
        self._batch = int(params["batch"]) if "batch" in params else None
        self._scale, self._realtime = settings.scale, settings.realtime
        # The echo first: once it echoes it sleeps, and leaves the CPU to the other's boot.
        self._echo = None if self._rate is None else self._echoing()
        self.sender = made.guest("sender", self._attachment)
        # A lap and more of the ring: where KVM shadows page tables, the first touch of each page is an exit.
        self.sender.guest.run(self._order(role=Role.GEN, packets=_WARM_UP, rate=None))

    def _echoing(self) -> Plugged:
        """A guest that echoes for as long as the point takes; asleep where it can be.

        What goes to the sink has an address that no port is known for, and must not get here as well.
        """
        echo = self._rig.guest("echo", self._attachment)
        echo.guest.begin(
            Order(role=Role.ECHO, seconds=3600, burst=1, kick=self._attachment.kick, wait=_waits(echo))
        )
        self._rig.set_link(echo.name, False)
        return echo

    def _order(self, role: Role, packets: int | None, rate: float | None, seconds: float = 10) -> Order:
        every = self._attachment.kick is Kick.EVERY
        if self._batch is not None:
            return Order(
                role=role,
                packets=packets,
                seconds=seconds,
                burst=self._batch,
                kick=Kick.EVERY,
                kick_every=self._batch,
                linger=_LINGER_S,
            )
        return Order(
            role=role,
            packets=packets,
            seconds=seconds,
            rate=rate,
            burst=1 if every or rate else _BURST,
            kick=self._attachment.kick,
            linger=_LINGER_S,
        )

    def run(self, exits: Session, policy: PolicyName) -> tuple[dict[str, float], str | None]:
        """One repetition under a policy: the numbers, and why exits are not among them if so."""
        self._rig.set_policy(policy, [p.name for p in (self.sender, self._echo) if p])
        values, uncounted = self._send(exits)
        if self._echo is not None and self._rate is not None:
            with self._rig.linked(self._echo.name):
                values |= self._ping(self._echo, self._rate)
        return values, uncounted

    def _send(self, exits: Session) -> tuple[dict[str, float], str | None]:
        before, worker = self._rig.port_counters(self.sender.name), self._rig.worker_counters()
        first = exits.sample()
        order = self._order(Role.GEN, None, self._rate, _SECONDS * self._scale)
        report, cpu = self._timed(order, self.sender)
        last = exits.sample()
        if not report.packets or report.drained is None:
            raise GuestError(
                f"of {report.packets} packets that the guest sent, not all were taken: no measurement",
                hint="the host may be too busy; give it CPUs of its own: vpt bench run exits --cpus 0,1",
            )
        sent = {"packets": report.packets}
        read = measure(
            exits.identity,
            delta(exits.identity, first.model_copy(update={"packets": 0}), last.model_copy(update=sent)),
        )
        after = self._rig.port_counters(self.sender.name) - before
        calls = self._rig.worker_counters() - worker
        values = {
            "kicks": report.kicks_per_packet,
            "interrupts": (after["tx_interrupts"] + after["rx_interrupts"]) / report.packets,
            "syscalls": calls["syscalls"] / report.packets,
            "mpps": report.mpps,
            "cpu": cpu,
        }
        if exits.identity.quantity is Quantity.DISPATCHES:
            # As `vpt exits` does: ioeventfds take the kicks, so that none dispatched is no result.
            if not read.raw:
                return values, "QEMU's ioeventfds take the kicks before"
            return {"dispatches": read.raw / report.packets, **values}, None
        if read.per_packet is None:
            return values, read.refused or "irq_exits is n/a"
        return {"exits": read.per_packet, **values}, None

    def _timed(self, order: Order, *guests: Plugged) -> tuple[Report, float]:
        """Have the sender carry out an order; these guests and the worker alone on the CPUs, if asked for.

        Returns what came of it, and the worker's CPU time in percent.
        """
        threads = {*self._rig.workers(), *(g.guest.vcpu_tid for g in guests)}
        with undisturbed(threads, self._realtime):
            # The clock is read outside of the CPU time: no worker can have used more than all of it.
            began, cpu = time.monotonic_ns(), self._rig.worker_ns()
            report = self.sender.guest.run(order)
            used = self._rig.worker_ns() - cpu
            return report, used / (time.monotonic_ns() - began) * 100

    def _ping(self, echo: Plugged, rate: float) -> dict[str, float]:
        pings = max(_LEAST_PINGS * self._scale, _LEAST_PINGS_EVER)
        seconds = max(_PING_SECONDS * self._scale, pings / rate)
        report, cpu = self._timed(
            Order(
                role=Role.PING,
                seconds=seconds,
                rate=rate,
                burst=1,
                window=1,
                touch=Touch.STAMP,
                kick=self._attachment.kick,
                wait=_waits(self.sender),
                dst=echo.mac,
                linger=_LINGER_S,
            ),
            self.sender,
            echo,
        )
        if report.latency is None:
            raise GuestError(
                f"of {report.packets} pings none came back within {seconds:g} s",
                hint="the host may be too busy; give it CPUs of its own: vpt bench run exits --cpus 0,1",
            )
        trips = report.latency
        times = {n: trips.percentile(p) / 1000 for n, p in PERCENTILES.items() if tells(p, trips.count)}
        return times | {"trip_cpu": cpu}


def _waits(guest: Plugged) -> Wait:
    return Wait.IRQ if guest.found.irq else Wait.POLL


SCENARIO = _Exits()
