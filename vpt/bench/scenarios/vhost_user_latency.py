# SPDX-License-Identifier: BSD-2-Clause
"""vhost-user-latency: packets at a low rate from one device to another, by vptd and dpdk-testpmd.

They come evenly, or on and off: at a high rate for a while, and then none, as from who has something to say
now and then. Who sleeps pays for it in latency: once for each packet where they come evenly and far apart,
once for many where they come on and off.

The driver of both devices is one loop in C (split rings), in the calling thread on the first CPU; the
back-end has the last. Each packet carries the time at which it was made available. So the instrument is the
same for both, and what it adds, too.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from vpt.bench.numbers import beside
from vpt.bench.programs import DPDK
from vpt.bench.result import Metric, Plot, Point
from vpt.bench.scenario import Measured, Params, Runnable, Scenario, Settings
from vpt.bench.scenarios._latency import log_log, percentile_metrics, percentiles
from vpt.bench.scenarios._ports import mac_of, other_cpus, undisturbed, worker_cpu
from vpt.bench.scenarios._verdict import at_most, pair, said
from vpt.bench.scenarios._vhost_backs import BackEnd, Vptd, cpu_ns, testpmd_backs
from vpt.bench.stats import ratios
from vpt.conform.front_end import PLAIN, FrontEnd
from vpt.daemon.config_models import PolicyConfig
from vpt.dataplane import VirtqueueDriver, VirtqueueRing
from vpt.errors import GuestError
from vpt.vhost_user import VirtioFeature

__all__ = ["SCENARIO"]

_SECONDS = 1.0
#: Packets per second; 500,000 are 5 % of 10 Mpps, which both back-ends move where CPUs are far apart.
_RATES = (1_000, 20_000, 500_000)
_EVEN, _ON_OFF = "even", "on-off"
#: On and off: packets come in the first so many seconds of each period, at a rate whose mean is the point's.
_ON_S, _PERIOD_S = 0.01, 0.1
_LEAST_PACKETS = 100
#: What the project says of itself, of adaptive: under this share of testpmd's CPU, and its p99 no worse.
_CPU_SHARE = 1 / 3
_LEARN = 64
_LEARN_GAP_NS = 100_000
_SETTLE_S = 0.01
_POLICIES = {
    "adaptive": PolicyConfig(kind="adaptive"),
    "notify": PolicyConfig(kind="notify"),
    "sleep 20 us": PolicyConfig(kind="sleep", sleep_us=20),
}
_LOAD = "pps", "packets per second"


@dataclass(frozen=True, slots=True)
class _Load:
    """In each of so many periods, packets at a rate for its first seconds."""

    pps: float
    on: float
    period: float
    periods: int

    @classmethod
    def of(cls, params: Params, scale: float) -> _Load:
        """A point's, for as long as a repetition takes, but one period at least."""
        pps, seconds = int(params["pps"]), _SECONDS * scale
        if params["arrival"] == _EVEN:
            return cls(pps, seconds, seconds, 1)
        return cls(pps * _PERIOD_S / _ON_S, _ON_S, _PERIOD_S, max(1, round(seconds / _PERIOD_S)))


def _ring(front: FrontEnd, *, tx: bool) -> VirtqueueRing:
    pair, region = front.pairs[0], front.memory.regions[0]
    base = ctypes.addressof(ctypes.c_char.from_buffer(region.map))
    queue, buffers = (pair.tx, pair.tx_buffers) if tx else (pair.rx, pair.rx_buffers)
    at = {name: base + region.index(getattr(queue, name)) for name in ("desc", "avail", "used")}
    return VirtqueueRing(
        **at,
        buffers=base + region.index(buffers),
        buffers_gpa=buffers,
        buffer_size=front.buffer_size,
        num=front.num,
        kick_fd=queue.kick_fd,
    )


def _driver(stack: ExitStack, back: BackEnd) -> VirtqueueDriver:
    """Both devices up; each has sent, so that a switch knows where they are."""
    features = int(PLAIN | VirtioFeature.MRG_RXBUF)
    fronts = [stack.enter_context(FrontEnd(path, features=features).start(fill=0)) for path in back.sockets]
    macs = [bytes.fromhex(mac_of(i).replace(":", "")) for i in (2, 3)]
    there = VirtqueueDriver(_ring(fronts[0], tx=True), _ring(fronts[1], tx=False), macs[0], macs[1])
    home = VirtqueueDriver(_ring(fronts[1], tx=True), _ring(fronts[0], tx=False), macs[1], macs[0])
    back.start()
    for driver in (home, there):
        driver.run(_LEARN, _LEARN_GAP_NS)
    back.stop()
    return there


@dataclass(slots=True)
class _Seen:
    """By the driver, of all periods."""

    latency: list[int]
    sent: int = 0
    kicks: int = 0
    late: int = 0


def _send(driver: VirtqueueDriver, load: _Load) -> _Seen:
    seen = _Seen([])
    packets = max(_LEAST_PACKETS, int(load.pps * load.on))
    for _ in range(load.periods):
        end = time.monotonic() + load.period
        seen.latency += driver.run(packets, int(1e9 / load.pps))
        seen.sent += packets
        seen.kicks += driver.kicks
        seen.late += driver.late
        time.sleep(max(0.0, end - time.monotonic()))
    return seen


def _measure(driver: VirtqueueDriver, back: BackEnd, load: _Load, settings: Settings) -> Measured:
    back.start()
    with undisturbed(back.moving, settings.realtime, back.ahead):
        time.sleep(_SETTLE_S)
        began, before = time.monotonic_ns(), cpu_ns(back)
        seen = _send(driver, load)
        share = (cpu_ns(back) - before) / (time.monotonic_ns() - began)
    back.stop()
    latency, packets = seen.latency, seen.sent
    if not latency:
        raise GuestError(
            f"of {packets} packets none came back", hint="the host may be too busy; run it again"
        )
    values = percentiles([ns / 1000 for ns in latency]) | {
        "cpu": 100 * share,
        "kicks": seen.kicks / packets,
        "late": seen.late / packets,
        "lost": float(packets - len(latency)),
    }
    return Measured(values)


class _Latency(Scenario):
    name: ClassVar[str] = "vhost-user-latency"
    title: ClassVar[str] = "vhost-user back-ends at a low rate: latency, and what it costs"
    metrics: ClassVar[Sequence[Metric]] = (
        *percentile_metrics("Latency"),
        Metric(name="cpu", unit="% of a core", better="lower", title="Back-end's CPU"),
        Metric(name="kicks", unit="per packet", better="lower", title="Kicks"),
        Metric(name="late", unit="per packet", better="lower", title="Sent late"),
        Metric(name="lost", unit="packets", better="lower", title="Lost"),
    )
    reference: ClassVar[str | None] = "testpmd"
    programs: ClassVar[Sequence[str]] = (DPDK,)
    plots: ClassVar[Sequence[Plot]] = (
        log_log("Median latency", "p50", *_LOAD, where={"arrival": _EVEN}),
        log_log("99th percentile", "p99", *_LOAD, where={"arrival": _EVEN}),
    )

    def points(self, settings: Settings) -> Sequence[Params]:  # noqa: ARG002
        every = [*((rate, _EVEN) for rate in _RATES), (_RATES[-1], _ON_OFF)]
        return [{"pps": rate, "arrival": arrival} for rate, arrival in every]

    @contextmanager
    def session(self, params: Params, settings: Settings) -> Iterator[Mapping[str, Runnable]]:
        cpu, load = worker_cpu(settings.cpus), _Load.of(params, settings.scale)
        with other_cpus(settings.cpus), ExitStack() as stack:
            vptds: dict[str, BackEnd] = {
                f"vpt {name}": Vptd(stack, cpu, 2, policy=policy) for name, policy in _POLICIES.items()
            }
            backs = vptds | testpmd_backs(stack, cpu, 2, {"testpmd": "io"})
            drivers = {name: _driver(stack, back) for name, back in backs.items()}
            yield {
                name: partial(_measure, drivers[name], back, load, settings) for name, back in backs.items()
            }

    def notes(self, settings: Settings, points: Sequence[Point]) -> Sequence[str]:  # noqa: ARG002
        return [
            "testpmd polls: it takes a core, whatever the load. The driver has the first CPU to itself.",
            *_verdicts(points),
        ]


def _verdicts(points: Sequence[Point]) -> Iterator[str]:
    """What adaptive claims at 5 % load, for each way in which packets arrive."""
    for point in points:
        ours, theirs = point.variant("vpt adaptive"), point.variant("testpmd")
        if point.params["pps"] != _RATES[-1] or not ours or not theirs:
            continue
        at = f"at {point.params['pps']} packets/s, {point.params['arrival']}, adaptive's"
        p99, its_p99 = (v.summary("p99") for v in (ours, theirs))
        times, share = (ratios(ours.values(m), theirs.values(m)) for m in ("p99", "cpu"))
        if p99 and its_p99 and times:
            both = f"{pair(p99, its_p99, ' us')}, {beside(times.median, 1)} of it pair by pair"
            yield said(at_most(times, 1), f"{at} p99 no worse than testpmd's", both)
        if share:
            claim = f"{at} CPU time less than a third of testpmd's"
            yield said(at_most(share, _CPU_SHARE), claim, f"{beside(share.median, _CPU_SHARE)} of it")


SCENARIO = _Latency()
