# SPDX-License-Identifier: BSD-2-Clause
"""What the demo found out, as data. `Report.as_json()` is the published form, vpt.demo/v1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["FlowReport", "PortReport", "Report", "drops", "port_report"]


@dataclass(frozen=True, slots=True)
class PortReport:
    """A port's counters over the whole demo. tx and rx are the guest's.

    kicks_suppressed: bursts that the host took without having been kicked
    interrupts_suppressed: times the host had something for the guest and found it awake
    """

    name: str
    kind: str
    driver: str
    rx_packets: int
    tx_packets: int
    kicks: int
    kicks_suppressed: int
    interrupts: int
    interrupts_suppressed: int
    copies: int
    drops: int

    @property
    def kicks_per_packet(self) -> float:
        return self.kicks / self.tx_packets if self.tx_packets else 0.0

    @property
    def interrupts_per_packet(self) -> float:
        packets = self.rx_packets + self.tx_packets
        return self.interrupts / packets if packets else 0.0

    @property
    def copies_per_packet(self) -> float:
        return self.copies / self.rx_packets if self.rx_packets else 0.0


@dataclass(frozen=True, slots=True)
class FlowReport:
    """One measurement in one direction. For tcp, sent, received and lost are packets as the ports counted.

    bytes, seconds: payload, and how long it took; throughput is their quotient
    kicks, interrupts: of both ports, during this flow
    """

    source: str
    target: str
    what: Literal["ping", "tcp", "udp"]
    sent: int
    received: int
    lost: int
    bytes: int
    seconds: float
    kicks: int
    kicks_per_packet: float
    interrupts: int
    interrupts_per_packet: float
    rtt_us_median: float | None = None
    rtt_us_p99: float | None = None
    sha256_ok: bool | None = None

    @property
    def mbit_s(self) -> float:
        return self.bytes * 8 / self.seconds / 1e6 if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        fields = asdict(self)
        return {"from": fields.pop("source"), "to": fields.pop("target"), **fields}


@dataclass(frozen=True, slots=True)
class Report:
    """The demo's result. `accel_why` is the line that says how the accelerator was chosen."""

    accel: str
    accel_why: str
    qemu: str
    kernel: str
    ports: tuple[PortReport, ...]
    flows: tuple[FlowReport, ...]

    @property
    def ok(self) -> bool:
        """Nothing lost that must not be lost, and every file arrived as it was sent."""
        return all(flow.lost == 0 for flow in self.flows if flow.what == "ping") and all(
            flow.sha256_ok for flow in self.flows if flow.what == "tcp"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "accel": self.accel,
            "accel_why": self.accel_why,
            "qemu": self.qemu,
            "kernel": self.kernel,
            "ports": [asdict(port) for port in self.ports],
            "flows": [flow.as_json() for flow in self.flows],
        }


def drops(counters: Mapping[str, int]) -> int:
    """All packets that a port did not forward or deliver, for whatever cause."""
    return sum(value for name, value in counters.items() if "_drop_" in name)


def port_report(name: str, kind: str, driver: str, counters: Mapping[str, int]) -> PortReport:
    """A port's line from its counters."""
    return PortReport(
        name=name,
        kind=kind,
        driver=driver,
        rx_packets=counters["rx_packets"],
        tx_packets=counters["tx_packets"],
        kicks=counters["kicks"],
        kicks_suppressed=counters["kicks_suppressed"],
        interrupts=counters["rx_interrupts"] + counters["tx_interrupts"],
        interrupts_suppressed=counters["rx_interrupts_suppressed"] + counters["tx_interrupts_suppressed"],
        copies=counters["copies"],
        drops=drops(counters),
    )
