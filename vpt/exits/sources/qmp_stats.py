# SPDX-License-Identifier: BSD-2-Clause
"""KVM's counters through QMP query-stats (QEMU 7.1 and later). Costs QEMU's main loop 1-2 ms per reading."""

from __future__ import annotations

from typing import Any

from vpt.errors import GuestError, MissingError
from vpt.exits.meter import COUNTERS
from vpt.exits.sources.base import Source, Units
from vpt.qemu.qmp import QmpCommandError, QmpSession

__all__ = ["QmpStats", "parse_stats", "schema_names"]

# From 8.1 on QEMU keeps a descriptor per vCPU; before, it runs a work item on each, which means a signal to
# it.
_KEEPS_STATS_FD = (8, 1, 0)


class QmpStats(Source):
    """query-stats of the vCPUs, asked for the needed names only."""

    name = "qmp"

    def __init__(self, session: QmpSession) -> None:
        self._qmp = session
        try:
            schemas = session.execute("query-stats-schemas", provider="kvm")
        except QmpCommandError as exc:
            if exc.error_class != "CommandNotFound":
                raise
            version = ".".join(map(str, session.version))
            raise MissingError(
                f"QEMU {version} is too old: query-stats came with 7.1",
                hint="use a newer QEMU, or name the VM by pid and use --source tracepoints",
            ) from exc
        known = schema_names(schemas)
        if not known:
            raise MissingError(
                "QEMU offers no KVM counters (query-stats-schemas is empty): this VM does not run under KVM, "
                "or the host's kernel is older than 5.14",
                hint="for a VM under TCG: --source qemu-trace",
            )
        self.missing = tuple(n for n in COUNTERS if n not in known)
        self.kicks_per_query = 0 if session.version >= _KEEPS_STATS_FD else 1
        self._ask = [{"provider": "kvm", "names": [n for n in COUNTERS if n in known]}]
        cpus = session.execute("query-cpus-fast")
        self._index = {cpu["qom-path"]: cpu["cpu-index"] for cpu in cpus}

    def read(self) -> Units:
        """Counters by vCPU, keyed by QEMU's index, for query-stats keeps no order."""
        units = parse_stats(self._qmp.execute("query-stats", target="vcpu", providers=self._ask), self._index)
        if not units:
            raise GuestError(
                "QEMU returned no counters for any vCPU", hint="look at the VM: is it shutting down?"
            )
        return units


def schema_names(schemas: list[dict[str, Any]]) -> frozenset[str]:
    """Names of the vCPU counters that only grow; others (peaks, histograms) make no differences."""
    return frozenset(
        stat["name"]
        for schema in schemas
        if schema.get("target") == "vcpu" and schema.get("provider") == "kvm"
        for stat in schema.get("stats", ())
        if stat.get("type") == "cumulative"
    )


def parse_stats(results: list[dict[str, Any]], index: dict[str, int]) -> Units:
    """query-stats results as units. A vCPU plugged in after `index` was made is named by its path."""
    units: Units = {}
    for result in results:
        path = result.get("qom-path", "?")
        unit = f"vcpu{index[path]}" if path in index else path
        units[unit] = {s["name"]: s["value"] for s in result["stats"] if type(s["value"]) is int}
    return units
