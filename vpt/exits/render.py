# SPDX-License-Identifier: BSD-2-Clause
"""Measures as JSON, CSV, Prometheus text, tables. "n/a" is null, empty or absent, and never 0."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vpt.exits.meter import COUNTERS, Comparison, Delta, Measure
from vpt.exits.model import SCHEMA, Identity, Recording, Sample, Tier

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "comparison_json",
    "csv_text",
    "headline",
    "json_text",
    "measures_json",
    "prometheus_text",
    "table",
    "unfinished",
]

_NA = "n/a"


def json_text(document: dict[str, Any]) -> str:
    """One document, for a person's eyes too."""
    return json.dumps(document, indent=1)


def measures_json(
    identity: Identity, measures: Sequence[Measure], recording: Recording | None = None
) -> dict[str, Any]:
    """What top and report print with --json."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "measurement",
        "identity": identity.model_dump(mode="json"),
        "measures": [_measure(m) for m in measures],
    }
    if recording is not None:
        document |= recording.model_dump(
            mode="json",
            include={"started", "machine", "command", "command_rc", "complete", "ended", "notes"},
        )
    return document


def unfinished(recording: Recording) -> list[str]:
    """Why a recording is not what its command says, if so."""
    if not recording.complete:
        ended = recording.ended or "the VM or a source of counts went away"
        return [f"incomplete: {ended}, before the command ended"]
    if recording.command_rc:
        return [f"its command failed (ended with {recording.command_rc})"]
    return []


def comparison_json(a: Recording, b: Recording, c: Comparison) -> dict[str, Any]:
    """What diff prints with --json."""
    rates = {
        side: {
            **recording.model_dump(
                mode="json", include={"identity", "complete", "ended", "notes", "command_rc"}
            ),
            "value": r.whole,
            "low": r.low,
            "high": r.high,
        }
        for side, recording, r in (("a", a, c.a), ("b", b, c.b))
    }
    return {
        "schema": SCHEMA,
        "kind": "comparison",
        "unit": c.a.unit,
        **rates,
        "factor": c.factor,
        "clear": c.clear,
        "verdict": c.verdict,
    }


def csv_text(identity: Identity, measures: Sequence[Measure], *, header: bool = True) -> str:
    """One line per interval, unit and counter; an empty value is n/a."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if header:
        writer.writerow(("interval", "seconds", "tier", "source", "unit", "counter", "value"))
    for number, m in enumerate(measures):
        key = (number, f"{m.delta.seconds:.6f}", identity.tier.value, identity.source)
        for unit, counters in sorted(m.delta.units.items()):
            for name, value in sorted(counters.items()):
                writer.writerow((*key, unit, name, "" if value is None else value))
        for name, value in (("counted", m.counted), ("packets", m.delta.packets)):
            writer.writerow((*key, "all", name, "" if value is None else value))
    return out.getvalue()


def prometheus_text(identity: Identity, sample: Sample, remarks: Sequence[str] = ()) -> str:
    """The counters of one moment, as they stand, for a textfile collector; remarks are comments."""
    lines = [
        *(f"# {' '.join(remark.split())}" for remark in remarks),
        "# HELP vpt_exits_counter_total Counters of a VM's exits, by tier and source.",
        "# TYPE vpt_exits_counter_total counter",
    ]
    common = f'vm="{_escape(identity.vm)}",tier="{identity.tier.value}",source="{identity.source}"'
    for unit, counters in sorted(sample.units.items()):
        for name, value in sorted(counters.items()):
            if identity.tier is Tier.KVM_PVM and name == "io_exits":
                continue
            lines.append(
                f'vpt_exits_counter_total{{{common},unit="{_escape(unit)}",counter="{_escape(name)}"}} '
                f"{value}"
            )
    if sample.packets is not None:
        lines += [
            "# HELP vpt_exits_packets_total Packets of the ports that were named.",
            "# TYPE vpt_exits_packets_total counter",
            f"vpt_exits_packets_total{{{common}}} {sample.packets}",
        ]
    return "\n".join(lines) + "\n"


def headline(identity: Identity, m: Measure) -> str:
    """The interval in one line."""
    what = identity.quantity.value
    if m.refused:
        return f"no verdict: {m.refused}"
    if m.counted is None:
        return f"{_number(m.raw)} {what}, interrupts among them unknown"
    parts = [f"{m.counted} {what} in {m.delta.seconds:.2f} s ({m.per_second:.0f}/s)"]
    if m.noise:
        parts.append(f"{m.noise} interrupts taken off")
    if m.per_packet is not None:
        parts.append(f"{m.per_packet:.4g} per packet over {m.delta.packets} packets")
    return ", ".join(parts)


def table(identity: Identity, m: Measure) -> RenderableType:
    """One interval: a row per unit, a column per counter."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    names = _columns(m.delta)
    # Not the grid's title, which would be folded to the width of a grid without counters.
    title = Text(f"{identity.vm}: {identity.tier.value}, source {identity.source}", style="italic")
    grid = Table()
    grid.add_column("unit")
    for name in names:
        grid.add_column(name, justify="right")
    for unit, counters in sorted(m.delta.units.items()):
        grid.add_row(unit, *(_number(counters.get(name)) for name in names))
    verdict = Text(headline(identity, m), style="red" if m.refused else "bold")
    lines: list[RenderableType] = [title, grid, verdict]
    lines += [Text(f"note: {note}", style="dim") for note in m.notes]
    return Group(*lines)


def _measure(m: Measure) -> dict[str, Any]:
    return {
        "seconds": m.delta.seconds,
        "raw": m.raw,
        "noise": m.noise,
        "counted": m.counted,
        "per_second": m.per_second,
        "per_packet": m.per_packet,
        "packets": m.delta.packets,
        "cpu_ms": m.delta.cpu_ms,
        "refused": m.refused,
        "notes": list(m.notes),
        "units": m.delta.units,
    }


def _columns(d: Delta) -> list[str]:
    """Known counters in the meter's order, then the rest by name."""
    there = {name for unit in d.units.values() for name in unit}
    return [n for n in COUNTERS if n in there] + sorted(there.difference(COUNTERS))


def _number(value: int | None) -> str:
    return _NA if value is None else str(value)


def _escape(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
