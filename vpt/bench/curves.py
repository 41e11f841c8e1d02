# SPDX-License-Identifier: BSD-2-Clause
"""The model as sentences and as pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from vpt.bench.chart import Chart, Dot, Series, sheet
from vpt.bench.model import Costs, Policy, Prediction, sweep
from vpt.errors import MissingError, UsageError

__all__ = ["charts", "save", "what_to_expect"]

_POINTS = 121


def what_to_expect(c: Costs) -> list[str]:
    """How notify behaves along Wp with these costs: where the regimes begin, and where it hurts most."""
    worst = c.wc + c.sc
    slower = (worst + c.np) / worst
    return [
        f"Wp below {c.wc:,.0f} ns: the producer waits for room and is interrupted once per {c.wake_after} "
        "items or more.",
        f"Wp from {c.wc:,.0f} to {worst:,.0f} ns: the consumer waits, and is kicked once per batch; "
        "the faster it is, the smaller the batch.",
        f"Wp above {worst:,.0f} ns: one kick per item. At its beginning that is {slower:.2f} times slower "
        "than the producer alone.",
        f"Spinning for |Wp - Wc| or longer avoids both; for {c.np + c.sc:,.0f} ns (a kick and a start) it is "
        "never far from the best.",
    ]


def _range(c: Costs) -> list[float]:
    """Producers from ten times as fast as the consumer to well past one kick per item."""
    low, high = c.wc / 10 or 10.0, max(4 * c.wc, 3 * (c.wc + c.sc))
    return [round(low * (high / low) ** (i / (_POINTS - 1))) or 1 for i in range(_POINTS)]


def _series(c: Costs, policy: Policy, of: Callable[[Prediction], float]) -> Series:
    points = [(k.wp, of(p)) for k, p in sweep(c, policy, _range(c))]
    return Series(str(policy), [Dot(x, y, y, y) for x, y in points if math.isfinite(y)], marks=False)


def charts(c: Costs, policies: Sequence[Policy]) -> list[Chart]:
    """Throughput, notifications and latency along Wp, a curve per policy."""
    label = f"Wp, ns (Wc is {c.wc:g})"

    def chart(title: str, y_label: str, of: Callable[[Prediction], float], log_y: bool) -> Chart:
        curves = [_series(c, policy, of) for policy in policies]
        return Chart(title, label, y_label, curves, log_x=True, log_y=log_y)

    return [
        chart("Throughput", "items/s", lambda p: p.rate, False),
        chart("Notifications per item", "per item", lambda p: p.notifications, True),
        chart("Average latency", "us", lambda p: p.latency / 1000, True),
        chart("CPU of the side that waits", "share of a core", lambda p: p.cpu_waiter, False),
    ]


def save(drawn: Sequence[Chart], path: Path) -> None:
    """Write the pictures as one file: SVG by ourselves, other formats by matplotlib."""
    if path.suffix == ".svg":
        path.write_text(sheet(drawn))
        return
    if path.suffix not in (".png", ".pdf"):
        raise UsageError(f"can't draw {path.name}", hint="name it .svg, .png or .pdf")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingError(
            f"drawing a {path.suffix[1:].upper()} needs matplotlib",
            hint="pip install 'vpt[plot]', or name the file .svg",
        ) from None
    figure = Figure(figsize=(7, 4.2 * len(drawn)), layout="constrained")
    for axes, chart in zip(figure.subplots(len(drawn), 1, squeeze=False)[:, 0], drawn, strict=True):
        for series in chart.series:
            axes.plot([float(d.x) for d in series.dots], [d.y for d in series.dots], label=series.name)
        axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
        axes.set(xscale="log" if chart.log_x else "linear", yscale="log" if chart.log_y else "linear")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
