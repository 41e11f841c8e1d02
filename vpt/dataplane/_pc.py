# SPDX-License-Identifier: BSD-2-Clause
"""A producer and a consumer on two CPUs (vpt_bench_pc): the notification protocol with costs to choose."""

from __future__ import annotations

import errno
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

from vpt.dataplane._native import check, ffi, lib, new
from vpt.dataplane._types import PolicyKind

__all__ = ["PcNotify", "PcResult", "PcSide", "PcSpec", "bench_pc"]


class PcNotify(IntEnum):
    """How one side tells the other (enum vpt_pc_notify)."""

    EVENTFD = lib.VPT_PC_EVENTFD
    FUTEX = lib.VPT_PC_FUTEX
    EMULATED = lib.VPT_PC_EMULATED


@dataclass(frozen=True, slots=True)
class PcSpec:
    """What to run. Fields are those of struct vpt_bench_pc; times in nanoseconds."""

    policy: PolicyKind
    items: int
    work_p_ns: int
    work_c_ns: int
    notify_by: PcNotify = PcNotify.EVENTFD
    length: int = 512
    notify_after: int = 384
    cpu_producer: int = -1
    cpu_consumer: int = -1
    realtime: bool = False
    samples: int = 0
    sample_every: int = 1
    start_samples: int = 0
    batch_samples: int = 0
    warmup: int = 0
    notify_p_ns: int = 0
    notify_c_ns: int = 0
    start_p_ns: int = 0
    start_c_ns: int = 0
    spin_ns: int = 0
    sleep_ns: int = 0


@dataclass(frozen=True, slots=True)
class PcSide:
    """What one side did (struct vpt_bench_pc_side)."""

    notifications: int
    notify_ns: int
    first_notified: int
    last_notified: int
    wishes: int
    blocks: int
    starts: int
    start_ns: int
    sleeps: int
    idle_ns: int
    late: int
    cpu_ns: int
    preempted: int
    stalls: int
    stalled_ns: int


@dataclass(frozen=True, slots=True)
class PcResult:
    """What happened to `items` items after the warm-up. `latency` and `starts_*`: nanoseconds, `batches_*`:
    items from one notification that this side sent to the next; the samples asked for.
    """

    items: int
    ns: int
    latency_sum_ns: int
    latency_max_ns: int
    bad: int
    producer: PcSide
    consumer: PcSide
    latency: tuple[int, ...]
    starts_producer: tuple[int, ...]
    starts_consumer: tuple[int, ...]
    batches_producer: tuple[int, ...]
    batches_consumer: tuple[int, ...]


def _side(c: Any) -> PcSide:
    return PcSide(*(int(getattr(c, name)) for name in PcSide.__dataclass_fields__))


def _halves(samples: Any, cap: int, consumer: int, producer: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(producer's, consumer's) of an array in which the consumer's come first."""
    consumer, producer = (min(cap, max(0, n)) for n in (consumer, producer))
    return tuple(samples[cap : cap + producer]), tuple(samples[0:consumer])


def bench_pc(spec: PcSpec) -> PcResult:
    """Move the items and say how it went."""
    b = new("struct vpt_bench_pc *", asdict(spec))
    latency = ffi.new("uint64_t[]", max(1, spec.samples))
    starts = ffi.new("uint64_t[]", max(1, 2 * spec.start_samples))
    batches = ffi.new("uint64_t[]", max(1, 2 * spec.batch_samples))
    hints = {
        errno.EINVAL: "length 2..65536, notify_after 1..length, times up to 1 s; real time needs two CPUs",
        errno.EPERM: "real-time priority needs root or CAP_SYS_NICE",
    }
    check(lib.vpt_bench_pc(b, latency, starts, batches), "run a producer and a consumer", hints)
    taken = min(spec.samples, -(-spec.items // spec.sample_every)) if spec.samples else 0
    return PcResult(
        spec.items, b.ns, b.latency_sum_ns, b.latency_max_ns, b.bad,
        _side(b.producer), _side(b.consumer), tuple(latency[0:taken]),
        *_halves(starts, spec.start_samples, b.consumer.starts, b.producer.starts),
        *_halves(batches, spec.batch_samples, b.consumer.notifications - 1, b.producer.notifications - 1),
    )  # fmt: skip
