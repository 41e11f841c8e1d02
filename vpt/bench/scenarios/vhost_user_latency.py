# SPDX-License-Identifier: BSD-2-Clause
"""vhost-user-latency: packets at a steady, low rate from one device to another, by vptd and dpdk-testpmd.

The driver of both devices is one loop in C (split rings), in the calling thread on the first CPU; the
back-end has the last. Each packet carries the time at which it was made available. So the instrument is the
same for both, and what it adds, too.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import ClassVar

from vpt.bench.programs import DPDK
from vpt.bench.result import Metric, Plot, Point
from vpt.bench.scenario import Measured, Params, Runnable, Scenario, Settings
from vpt.bench.scenarios._latency import log_log, percentile_metrics, percentiles
from vpt.bench.scenarios._ports import mac_of, other_cpus, undisturbed, worker_cpu
from vpt.bench.scenarios._vhost_backs import BackEnd, Vptd, cpu_ns, testpmd_backs
from vpt.conform.front_end import PLAIN, FrontEnd
from vpt.daemon.config_models import PolicyConfig
from vpt.dataplane import VirtqueueDriver, VirtqueueRing
from vpt.errors import GuestError
from vpt.vhost_user import VirtioFeature

__all__ = ["SCENARIO"]

#: Packets per second; the last is 5 % of 10 Mpps, which both back-ends move where CPUs are far apart.
_RATES = (1_000, 20_000, 500_000)
_SECONDS = 1.0
_LEARN = 64
_LEARN_GAP_NS = 100_000
_SETTLE_S = 0.01
_POLICIES = {
    "adaptive": PolicyConfig(kind="adaptive"),
    "notify": PolicyConfig(kind="notify"),
    "sleep 20 us": PolicyConfig(kind="sleep", sleep_us=20),
}
_LOAD = "pps", "packets per second"


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


def _measure(driver: VirtqueueDriver, back: BackEnd, rate: int, settings: Settings) -> Measured:
    packets = max(100, int(rate * _SECONDS * settings.scale))
    back.start()
    with undisturbed(back.moving, settings.realtime, back.ahead):
        time.sleep(_SETTLE_S)
        began, before = time.monotonic_ns(), cpu_ns(back)
        latency = driver.run(packets, 10**9 // rate)
        share = (cpu_ns(back) - before) / (time.monotonic_ns() - began)
    back.stop()
    if not latency:
        raise GuestError(
            f"of {packets} packets none came back", hint="the host may be too busy; run it again"
        )
    values = percentiles([ns / 1000 for ns in latency]) | {
        "cpu": 100 * share,
        "kicks": driver.kicks / packets,
        "late": driver.late / packets,
        "lost": float(packets - len(latency)),
    }
    return Measured(values)


class _Latency(Scenario):
    name: ClassVar[str] = "vhost-user-latency"
    title: ClassVar[str] = "vhost-user back-ends at a steady, low rate: latency, and what it costs"
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
        log_log("Median latency", "p50", *_LOAD),
        log_log("99th percentile", "p99", *_LOAD),
    )

    def points(self, settings: Settings) -> Sequence[Params]:  # noqa: ARG002
        return [{"pps": rate} for rate in _RATES]

    @contextmanager
    def session(self, params: Params, settings: Settings) -> Iterator[Mapping[str, Runnable]]:
        cpu, rate = worker_cpu(settings.cpus), int(params["pps"])
        with other_cpus(settings.cpus), ExitStack() as stack:
            vptds: dict[str, BackEnd] = {
                f"vpt {name}": Vptd(stack, cpu, 2, policy=policy) for name, policy in _POLICIES.items()
            }
            backs = vptds | testpmd_backs(stack, cpu, 2, {"testpmd": "io"})
            drivers = {name: _driver(stack, back) for name, back in backs.items()}
            yield {
                name: partial(_measure, drivers[name], back, rate, settings) for name, back in backs.items()
            }

    def notes(self, settings: Settings, points: Sequence[Point]) -> Sequence[str]:  # noqa: ARG002
        return ["testpmd polls: it takes a core, whatever the load. The driver has the first CPU to itself."]


SCENARIO = _Latency()
