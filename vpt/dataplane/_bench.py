# SPDX-License-Identifier: BSD-2-Clause
"""Loops that run in C, so that Python is not what is measured."""

from __future__ import annotations

from array import array
from dataclasses import asdict, dataclass
from typing import Any

from vpt.dataplane._app import App
from vpt.dataplane._native import check, lib, new

__all__ = [
    "CopyResult",
    "VirtqueueDriver",
    "VirtqueueRing",
    "bench_copy",
    "bench_memcpy",
    "line_ns",
    "litmus",
]

_LINE_BLOCKS = 32


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What one run moved. `ns` is from the first packet sent to the last received; `bad` were not as sent."""

    frame_len: int
    flows: int
    ns: int
    sent: int
    received: int
    bad: int


def _spec(frame_len: int, flows: int, packets: int) -> Any:
    return new("struct vpt_bench_copy *", {"frame_len": frame_len, "flows": flows, "packets": packets})


def _result(b: Any) -> CopyResult:
    return CopyResult(b.frame_len, b.flows, b.ns, b.sent, b.received, b.bad)


def bench_copy(source: App, sink: App, *, frame_len: int, packets: int, flows: int = 1) -> CopyResult:
    """Send from one app port and drain the other until `packets` arrived. ETIMEDOUT: none for 10 s."""
    b = _spec(frame_len, flows, packets)
    check(lib.vpt_bench_copy(source._handle(), sink._handle(), b), f"move {packets} packets")
    return _result(b)


def bench_memcpy(*, frame_len: int, packets: int, flows: int = 1) -> CopyResult:
    """The same bytes by plain memcpy, over buffers laid out as the two rings'."""
    b = _spec(frame_len, flows, packets)
    check(lib.vpt_bench_memcpy(b), f"copy {packets} packets")
    return _result(b)


@dataclass(frozen=True, slots=True)
class VirtqueueRing:
    """A split ring that a front-end in this process has set up, by host addresses; num buffers in a row."""

    desc: int
    avail: int
    used: int
    buffers: int
    buffers_gpa: int
    buffer_size: int
    num: int
    kick_fd: int


class VirtqueueDriver:
    """The driver of one device's transmit ring and of another's receive ring, both new and nobody else's."""

    def __init__(self, tx: VirtqueueRing, rx: VirtqueueRing, src: bytes, dst: bytes) -> None:
        self._b = new(
            "struct vpt_bench_vq *", {"tx": asdict(tx), "rx": asdict(rx), "src": list(src), "dst": list(dst)}
        )
        self.kicks = 0  #: of the last run
        self.late = 0  #: packets of it that were sent more than a gap after their time

    def run(self, packets: int, gap_ns: int, frame_len: int = 64) -> list[int]:
        """Send at a steady rate; the nanoseconds that each packet took that arrived."""
        latency = array("Q", bytes(8 * packets))
        b = self._b
        b.packets, b.gap_ns, b.frame_len = packets, gap_ns, frame_len
        b.latency_ns = latency.buffer_info()[0]
        check(lib.vpt_bench_vq(b), f"move {packets} packets from ring to ring")
        self.kicks, self.late = b.kicks, b.late
        return latency[: b.received].tolist()


def litmus(rounds: int, *, fence: bool, cpu_a: int, cpu_b: int) -> int:
    """Wake-ups lost by two threads that notify each other, with or without the fence before the look."""
    return check(lib.vpt_bench_litmus(rounds, fence, cpu_a, cpu_b), f"litmus on CPUs {cpu_a} and {cpu_b}")


def line_ns(cpu_a: int, cpu_b: int) -> float:
    """Nanoseconds that a cache line takes from one CPU to the other. Takes some milliseconds."""
    return (
        check(lib.vpt_bench_line(_LINE_BLOCKS, cpu_a, cpu_b), f"send a line between CPUs {cpu_a} and {cpu_b}")
        / 1000
    )
