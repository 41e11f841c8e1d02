# SPDX-License-Identifier: BSD-2-Clause
"""vpt top: rates from the stats file, without asking vptd."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from vpt.cli._common import FiniteFloat, console, emit_json, json_option, paths

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from vpt.dataplane.rates import PortRates

__all__ = ["top"]


@click.command()
@click.option(
    "--interval", type=FiniteFloat(0.1, 60), default=1.0, show_default=True, help="Seconds per reading."
)
@click.option("--once", is_flag=True, help="Print one reading and end, as in a pipe.")
@json_option
def top(interval: float, once: bool, as_json: bool) -> None:
    """Show packet rates and notifications per packet, live.

    tx is what the guest sends, rx what it receives. KICKS are doorbells that the guest rang, per packet sent;
    INTR are interrupts that it got, per packet in either direction. Each costs a virtual machine an exit,
    which is why they matter. Counters are read from shared memory: looking costs vptd nothing. End with
    Ctrl-C.

    \b
    Examples:
      vpt top
      vpt top --once --interval 5
      vpt top --once --json
    """
    source = paths().stats
    if once or as_json or not sys.stdout.isatty():
        rates, seconds = _reading(source, interval)
        if as_json:
            emit_json("top", {"seconds": round(seconds, 3), "ports": [port.as_dict() for port in rates]})
        else:
            console().print(_table(rates))
        return
    _live(source, interval)


def _live(source: Path, interval: float) -> None:
    from rich.live import Live

    with Live(_table([]), console=console(), auto_refresh=False, screen=True) as live:
        try:
            while True:
                rates, _ = _reading(source, interval)
                live.update(_table(rates), refresh=True)
        except KeyboardInterrupt:
            pass


def _reading(source: Path, interval: float) -> tuple[list[PortRates], float]:
    """Rates over one interval. Opens the file each time: a vptd that came back has a new one."""
    from vpt.daemon.runtime import not_running
    from vpt.dataplane.rates import rates
    from vpt.dataplane.stats import StatsReader

    try:
        reader = StatsReader(source)
    except FileNotFoundError:
        raise not_running(source.parent, f"no {source}") from None
    with reader:
        begin, before = time.monotonic(), reader.read()
        time.sleep(interval)
        seconds, after = time.monotonic() - begin, reader.read()
    return rates(before, after, seconds), seconds


def _table(rates: list[PortRates]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("PORT", "SWITCH", "KIND"):
        table.add_column(column)
    for column in ("TX pkt/s", "RX pkt/s", "TX Mb/s", "RX Mb/s", "KICKS/pkt", "INTR/pkt", "DROPS/s"):
        table.add_column(column, justify="right")
    for port in rates:
        table.add_row(*_cells(port))
    return table


def _cells(port: PortRates) -> list[Any]:
    return [
        port.port,
        port.switch,
        port.kind,
        f"{port.tx_pps:,.0f}",
        f"{port.rx_pps:,.0f}",
        f"{port.tx_bps / 1e6:,.1f}",
        f"{port.rx_bps / 1e6:,.1f}",
        _ratio(port.kicks_per_packet),
        _ratio(port.interrupts_per_packet),
        f"{port.drops_per_s:,.0f}",
    ]


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
