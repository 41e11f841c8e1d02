# SPDX-License-Identifier: BSD-2-Clause
"""The model as sentences and as pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vpt.bench.chart import Chart, Dot, Series, sheet
from vpt.bench.model import Costs, Policy, Prediction, played_items, stalls, sweep
from vpt.errors import MissingError, UsageError

__all__ = ["boundaries", "charts", "save", "what_to_expect"]

_POINTS = 121
#: Items played per curve, at most (but of one point), where both sides wait in turn.
_PLAYED = 65_536


def boundaries(c: Costs) -> tuple[float, float, float]:
    """Wp where the regimes of notify end: the producer waits, both wait in turn, one kick per batch.

    One that does not occur ends where the one before does.
    """
    waiting_p = max(0.0, min(c.wc, (c.length - c.wake_after) * c.wc - c.sp))
    both = max(c.wc, (c.sc + c.wc) / (c.length - 1))
    return waiting_p, both, c.wc + c.sc


def what_to_expect(c: Costs) -> list[str]:
    """How notify behaves along Wp with these costs: where the regimes begin, and where it hurts most."""
    waiting_p, both, worst = boundaries(c)
    slower = (worst + c.np) / worst
    lines = []
    if waiting_p > 0:
        lines.append(
            f"Wp below {waiting_p:,.0f} ns: the producer waits for room and is interrupted once per "
            f"{c.wake_after} items or more."
        )
    if waiting_p < both:
        lines.append(
            f"Wp from {waiting_p:,.0f} to {both:,.0f} ns: stalled: the queue is full, or empty, "
            "before who waits is up again, and both wait in turn."
        )
    if both < worst:
        lines.append(
            f"Wp from {both:,.0f} to {worst:,.0f} ns: the consumer waits, and is kicked once per batch; "
            "the faster it is, the smaller the batch."
        )
    return [
        *lines,
        f"Wp above {worst:,.0f} ns: one kick per item. At its beginning that is {slower:.2f} times slower "
        "than the producer alone.",
        f"Spinning for |Wp - Wc| or longer avoids both; for {c.np + c.sc:,.0f} ns (a kick and a start) it is "
        "never far from the best.",
    ]


def _range(c: Costs) -> list[float]:
    """Producers from ten times as fast as the consumer to well past one kick per item."""
    low, high = c.wc / 10 or 10.0, max(4 * c.wc, 3 * (c.wc + c.sc))
    return [round(low * (high / low) ** (i / (_POINTS - 1))) or 1 for i in range(_POINTS)]


def _curve(c: Costs, policy: Policy) -> list[tuple[float, Prediction]]:
    """The model along Wp. Where it has to be played, which takes its time, only a few points of all."""
    wps = _range(c)
    played = [wp for wp in wps if stalls(replace(c, wp=wp), policy)]
    step = max(1, math.ceil(len(played) * played_items(c) / _PLAYED))
    left_out = set(played) - set(played[::step])
    return [(k.wp, p) for k, p in sweep(c, policy, (wp for wp in wps if wp not in left_out))]


def charts(c: Costs, policies: Sequence[Policy]) -> list[Chart]:
    """Throughput, notifications and latency along Wp, a curve per policy."""
    label = f"Wp, ns (Wc is {c.wc:g})"
    curves = [(str(policy), _curve(c, policy)) for policy in policies]

    def chart(title: str, y_label: str, of: Callable[[Prediction], float], log_y: bool) -> Chart:
        series = [
            Series(name, [Dot(x, y, y, y) for x, p in curve if math.isfinite(y := of(p))], marks=False)
            for name, curve in curves
        ]
        return Chart(title, label, y_label, series, log_x=True, log_y=log_y)

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
