# SPDX-License-Identifier: BSD-2-Clause
"""vpt's own counters: packets, kicks, interrupts by port. They hold everywhere, whatever runs the guest."""

from __future__ import annotations

import select
from pathlib import Path

from vpt.daemon.client import Client
from vpt.daemon.runtime import RuntimePaths, command
from vpt.dataplane.stats import StatsReader
from vpt.errors import GuestError, MissingError, NotFoundError, VptError
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
_ANSWER_S = 5.0


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
        self._path = stats
        # Asked for first: a file that takes its place before it is mapped is noticed, too. From then on the
        # mapping keeps the number from being given to another.
        self._file = _file_number(stats)
        self._reader = open_counters(stats)
        self._vptd = _connect(stats)
        try:
            self._ids = self._ids_of_ports()
        except BaseException:
            self.close()
            raise

    def read(self) -> Units:
        """Units are port names. GuestError: these are no longer the ports, or the vptd, of the beginning."""
        self._require_same_daemon()
        units: Units = {}
        for queue in self._reader.read().queues:
            if queue.port not in self._ports:
                continue
            if queue.port_id != self._ids[queue.port]:
                raise GuestError(
                    f"port {queue.port} was deleted and made anew while it was measured: its counters began "
                    "again",
                    hint="measure again while the port stays",
                )
            unit = units.setdefault(queue.port, dict.fromkeys(_NAMES, 0))
            for name, parts in _NAMES.items():
                unit[name] += sum(queue.counters[part] for part in parts)
        gone = self._ports - units.keys()
        if gone:
            raise GuestError(
                f"port {', '.join(sorted(gone))} was deleted while it was measured",
                hint=f"{command(self._path.parent, 'ls')} shows the ports that there are;"
                " measure again while they stay",
            )
        return units

    def packets(self) -> int:
        """Packets that the ports took in and gave out, since they are there."""
        return sum(unit["packets"] for unit in self.read().values())

    def close(self) -> None:
        """Unmap the counters."""
        self._reader.close()
        if self._vptd is not None:
            self._vptd.close()

    def _require_same_daemon(self) -> None:
        """One that was started again has a file of its own; the one that is mapped here stands still."""
        now = _file_number(self._path)
        if now == self._file and not self._hung_up():
            return
        if now is None or now == self._file:
            raise GuestError(
                "vptd ended while it was measured",
                hint=f"{command(self._path.parent, 'daemon start')}, and measure again while it runs",
            )
        raise GuestError(
            "vptd was started again while it was measured: its counters began anew",
            hint="measure again while it runs on",
        )

    def _hung_up(self) -> bool:
        """Has vptd ended, by SIGKILL even, which leaves its file as it is? False if it can't be said."""
        if self._vptd is None:
            return False
        poll = select.poll()
        poll.register(self._vptd, select.POLLIN)
        return bool(poll.poll(0))

    def _ids_of_ports(self) -> dict[str, int]:
        """By the names that were given. Two ports of one name, one after the other, have two ids."""
        there = {queue.port: queue.port_id for queue in self._reader.read().queues}
        unknown = self._ports - there.keys()
        if unknown:
            raise NotFoundError(
                f"no port {', '.join(sorted(unknown))}; there {'are' if there else 'is'} "
                f"{', '.join(sorted(there)) or 'none'}",
                hint=command(self._path.parent, "ls"),
            )
        return {name: there[name] for name in self._ports}


def _connect(stats: Path) -> Client | None:
    """A connection that breaks when vptd ends; None: there is none that answers, or not us."""
    vptd = None
    try:
        vptd = Client(RuntimePaths(stats.parent, stats.parent).control, timeout=_ANSWER_S)
        vptd.call("daemon.status")
    except VptError:
        if vptd is not None:
            vptd.close()
        return None
    return vptd


def _file_number(path: Path) -> tuple[int, int] | None:
    try:
        at = path.stat()
    except FileNotFoundError:
        return None
    return at.st_dev, at.st_ino
