# SPDX-License-Identifier: BSD-2-Clause
"""What the guest is asked to do and what came of it, in the caller's units."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field, fields

from vpt.bench.micro._desk import (
    CMD_RUN,
    HIST_STEPS,
    MAX_BURST,
    MIN_FRAME,
    Desk,
    DeskFound,
    DeskOrder,
    DeskResult,
    Device,
    Flow,
    Kick,
    Role,
    Touch,
    Wait,
)
from vpt.errors import UsageError

__all__ = ["Counters", "Found", "Latency", "Order", "Report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the guest shall do.

    packets:    end after so many, None: when `seconds` are over
    seconds:    longest duration
    size:       frame without FCS, bytes; 60 is what is called a 64-byte packet
    burst:      packets published together
    rate:       packets per second, None: as fast as it goes
    kick_every: with Kick.EVERY, packets per kick; a burst is published at once, so it must not be larger
    window:     PING: most packets in flight, 0: as many as fit
    linger:     seconds to wait at the end for what is still under way
    """

    role: Role
    packets: int | None = None
    seconds: float = 10.0
    size: int = MIN_FRAME
    burst: int = 64
    rate: float | None = None
    touch: Touch = Touch.SLOT
    kick: Kick = Kick.WANTED
    kick_every: int = 1
    wait: Wait = Wait.POLL
    window: int = 0
    flows: int = 1
    flow_fields: Flow = Flow.PORT
    dst: bytes = b"\x02\x00\x00\x00\x00\xfe"
    src: bytes | None = None
    linger: float = 0.5

    def __post_init__(self) -> None:
        def require(ok: bool, what: str) -> None:
            if not ok:
                raise UsageError(f"micro guest order: {what}")

        require(self.packets is None or self.packets > 0, f"{self.packets} packets")
        require(0 < self.seconds <= 3600, f"{self.seconds} seconds; it must be in 0..3600, without 0")
        require(MIN_FRAME <= self.size <= 65535, f"frame of {self.size} bytes; at least {MIN_FRAME}")
        require(1 <= self.burst <= MAX_BURST, f"burst of {self.burst}; it must be in 1..{MAX_BURST}")
        require(self.rate is None or self.rate > 0, f"rate of {self.rate} packets per second")
        require(1 <= self.flows <= 65536, f"{self.flows} flows; it must be in 1..65536")
        require(self.window == 0 or self.window >= self.burst, "a window smaller than the burst never opens")
        require(
            self.kick is not Kick.EVERY or self.kick_every >= self.burst,
            f"kick every {self.kick_every} packets, bursts of {self.burst}: a burst is published at once",
        )

    def to_desk(self, tsc_hz: float) -> DeskOrder:
        """As the guest takes it; rate and times in cycles of its clock."""
        interval = self.burst / self.rate * tsc_hz * 65536 if self.rate else 0
        return DeskOrder(
            cmd=CMD_RUN,
            role=self.role,
            touch=self.touch,
            kick=self.kick,
            kick_every=self.kick_every,
            wait=self.wait,
            frame_len=self.size,
            burst=self.burst,
            window=self.window,
            flows=self.flows,
            flow_fields=self.flow_fields,
            count=self.packets or 0,
            duration=max(1, int(self.seconds * tsc_hz)),
            interval=min(int(interval), (1 << 64) - 1),
            linger=int(self.linger * tsc_hz),
            dst=(ctypes.c_uint8 * 6)(*self.dst),
            src=(ctypes.c_uint8 * 6)(*(self.src or bytes(6))),
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What the guest opened, and what it negotiated."""

    device: Device
    name: str
    mac: str
    slots: int
    features: int
    irq: bool  # Wait.IRQ works on it
    max_frame: int

    @classmethod
    def from_desk(cls, found: DeskFound) -> Found:
        return cls(
            device=Device(found.device),
            name=bytes(found.name).decode(errors="replace"),
            mac=bytes(found.mac).hex(":"),
            slots=found.slots,
            features=found.features,
            irq=bool(found.irq),
            max_frame=found.max_frame,
        )


@dataclass(frozen=True, slots=True)
class Counters:
    """struct micro_result's counts; while the guest runs, a moment's view."""

    tx_packets: int
    tx_bytes: int
    tx_bursts: int
    tx_full: int
    rx_packets: int
    rx_bytes: int
    rx_bursts: int
    rx_empty: int
    kicks: int
    kicks_suppressed: int
    sleeps: int
    interrupts: int
    ticks: int
    late: int
    seq_lost: int
    seq_late: int
    foreign: int

    @classmethod
    def from_desk(cls, result: DeskResult) -> Counters:
        return cls(**{f.name: int(getattr(result, f.name)) for f in fields(cls)})


def _cell_middle(index: int) -> float:
    """Middle of a histogram cell in cycles: hist.c's cell() turned around."""
    if index < HIST_STEPS:
        return float(index)
    exponent, step = divmod(index, HIST_STEPS)
    low: int = (HIST_STEPS + step) << (exponent - 1)
    return low + (1 << (exponent - 1)) / 2 - 0.5


@dataclass(frozen=True, slots=True)
class Latency:
    """Round trips, nanoseconds. Percentiles come from a histogram whose steps are 3% wide."""

    count: int
    mean: float
    min: float
    max: float
    cells: tuple[tuple[float, int], ...] = field(repr=False)  # middle of the cell, how many fell there

    @classmethod
    def from_desk(cls, desk: Desk, tsc_hz: float) -> Latency | None:
        """None: the run measured none."""
        result, ns = desk.result, 1e9 / tsc_hz
        if not result.lat_count:
            return None
        return cls(
            count=result.lat_count,
            mean=result.lat_sum / result.lat_count * ns,
            min=result.lat_min * ns,
            max=result.lat_max * ns,
            cells=tuple((_cell_middle(i) * ns, n) for i, n in enumerate(desk.hist) if n),
        )

    def percentile(self, p: float) -> float:
        """The value that p percent stay at or below; 0 and 100 are exact."""
        if p <= 0:
            return self.min
        if p >= 100:
            return self.max
        wanted, seen = self.count * p / 100, 0
        for value, n in self.cells:
            seen += n
            if seen >= wanted:
                return min(max(value, self.min), self.max)
        return self.max


@dataclass(frozen=True, slots=True)
class Report:
    """What one order came to."""

    order: Order
    counters: Counters
    seconds: float  # from the first packet to the last one published or received
    drained: float | None  # from the first packet until the host had taken the last; None: it had not
    latency: Latency | None  # PING only

    @classmethod
    def from_desk(cls, order: Order, desk: Desk, tsc_hz: float) -> Report:
        result = desk.result
        return cls(
            order=order,
            counters=Counters.from_desk(result),
            seconds=(result.end - result.start) / tsc_hz,
            drained=(result.drained - result.start) / tsc_hz if result.drained else None,
            latency=Latency.from_desk(desk, tsc_hz),
        )

    @property
    def packets(self) -> int:
        """Packets of the role: received by a sink or an echo, sent by the others."""
        receives = self.order.role in (Role.SINK, Role.ECHO)
        return self.counters.rx_packets if receives else self.counters.tx_packets

    @property
    def complete(self) -> bool:
        """Did it do all packets that the order named before its time was up?"""
        return self.order.packets is None or self.packets >= self.order.packets

    @property
    def mpps(self) -> float:
        """Million packets per second; for a generator until the host had taken the last one."""
        seconds = self.drained or self.seconds
        return self.packets / seconds / 1e6 if seconds else 0.0

    @property
    def kicks_per_packet(self) -> float:
        return self.counters.kicks / self.packets if self.packets else 0.0

    @property
    def interrupts_per_packet(self) -> float:
        return self.counters.interrupts / self.packets if self.packets else 0.0
