# SPDX-License-Identifier: BSD-2-Clause
"""vpt's own counters: packets, kicks, interrupts by port. They hold everywhere, whatever runs the guest."""

from __future__ import annotations

from pathlib import Path

from vpt.daemon.runtime import command
from vpt.dataplane.stats import StatsReader
from vpt.errors import GuestError, MissingError, NotFoundError
from vpt.exits.model import Quantity
from vpt.exits.sources.base import Source, Units

__all__ = ["VptCounters", "open_counters"]

_NAMES = {
    "kicks": ("kicks",),
    "kicks_suppressed": ("kicks_suppressed",),
    "interrupts": ("tx_interrupts", "rx_interrupts"),
    "interrupts_suppressed": ("tx_interrupts_suppressed", "rx_interrupts_suppressed"),
    "packets": ("tx_packets", "rx_packets"),
    "copies": ("copies",),
}


def open_counters(stats: Path) -> StatsReader:
    """vptd's counters. MissingError: there are none, or they may not be read."""
    try:
        return StatsReader(stats)
    except FileNotFoundError:
        raise MissingError(
            f"{stats}: no counters there; is vptd running?",
            hint=f"{command(stats.parent, 'daemon start')}, or name the file with --stats",
        ) from None
    except PermissionError:
        raise MissingError(
            f"{stats}: no permission to read", hint="join the daemon's group, or run as root"
        ) from None


class VptCounters(Source):
    """The ports named. Also what counts the packets that other sources' numbers are divided by."""

    name = "vpt"
    quantity = Quantity.KICKS

    def __init__(self, stats: Path, ports: tuple[str, ...]) -> None:
        self._ports = frozenset(ports)
        self._reader = open_counters(stats)
        try:
            self._require_ports()
        except BaseException:
            self.close()
            raise

    def read(self) -> Units:
        """Units are port names."""
        units: Units = {}
        for queue in self._reader.read().queues:
            if queue.port not in self._ports:
                continue
            unit = units.setdefault(queue.port, dict.fromkeys(_NAMES, 0))
            for name, parts in _NAMES.items():
                unit[name] += sum(queue.counters[part] for part in parts)
        gone = self._ports - units.keys()
        if gone:
            raise GuestError(f"port {', '.join(sorted(gone))} went away while it was measured", hint="vpt ls")
        return units

    def packets(self) -> int:
        """Packets that the ports took in and gave out, since they are there."""
        return sum(unit["packets"] for unit in self.read().values())

    def close(self) -> None:
        """Unmap the counters."""
        self._reader.close()

    def _require_ports(self) -> None:
        there = {queue.port for queue in self._reader.read().queues}
        unknown = self._ports - there
        if unknown:
            raise NotFoundError(
                f"no port {', '.join(sorted(unknown))}; there {'are' if there else 'is'} "
                f"{', '.join(sorted(there)) or 'none'}",
                hint="vpt ls",
            )
