# SPDX-License-Identifier: BSD-2-Clause
"""From two snapshots of the counters to rates per port."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from vpt.dataplane.stats import Snapshot

__all__ = ["PortRates", "rates"]


@dataclass(frozen=True, slots=True)
class PortRates:
    """One port over one interval. A ratio is None where there were no packets."""

    port: str
    switch: str
    kind: str
    tx_pps: float
    rx_pps: float
    tx_bps: float
    rx_bps: float
    kicks_per_packet: float | None
    interrupts_per_packet: float | None
    drops_per_s: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def rates(before: Snapshot, after: Snapshot, seconds: float) -> list[PortRates]:
    """Of the ports that are in `after`, by name; a new one counts from zero. bps are bits per second."""
    old, new = before.by_port(), after.by_port()
    named = {queue.port_id: queue for queue in after.queues}
    found = []
    for port_id, total in new.items():
        earlier = old.get(port_id, Counter[str]())
        delta = Counter({name: value - earlier[name] for name, value in total.items()})
        queue = named[port_id]
        tx, rx = delta["tx_packets"], delta["rx_packets"]
        interrupts = delta["tx_interrupts"] + delta["rx_interrupts"]
        drops = sum(value for name, value in delta.items() if "_drop_" in name)
        found.append(
            PortRates(
                port=queue.port,
                switch=queue.switch,
                kind=queue.kind.label,
                tx_pps=tx / seconds,
                rx_pps=rx / seconds,
                tx_bps=8 * delta["tx_bytes"] / seconds,
                rx_bps=8 * delta["rx_bytes"] / seconds,
                kicks_per_packet=delta["kicks"] / tx if tx else None,
                interrupts_per_packet=interrupts / (tx + rx) if tx + rx else None,
                drops_per_s=drops / seconds,
            )
        )
    return sorted(found, key=lambda rate: rate.port)
