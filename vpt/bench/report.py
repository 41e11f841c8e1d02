# SPDX-License-Identifier: BSD-2-Clause
"""A result as one page: no network, no script, readable on a phone and on paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from itertools import count, islice

from vpt.bench.chart import STYLE, Chart, Dot, Series, svg
from vpt.bench.costs import Kind
from vpt.bench.numbers import engineering
from vpt.bench.result import Metric, Plot, Point, Result, ScenarioResult
from vpt.bench.stats import Summary

__all__ = ["charts", "coloured", "page"]

#: A table of more points than this is folded away.
_MANY = 12
_PAGE_STYLE = """
:root{color-scheme:light dark;--ink:#222;--grid:#ddd;--back:#fff;--soft:#f4f5f7}
@media (prefers-color-scheme:dark){:root{--ink:#e6e6e6;--grid:#444;--back:#16181c;--soft:#22252b}
.chart .s0{color:#6db3f2}.chart .s1{color:#f59a5b}.chart .s2{color:#6fce8d}
.chart .s3{color:#d891da}.chart .s4{color:#d9bd4a}.chart .s5{color:#f2839f}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:1rem;background:var(--back);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem}h2{font-size:1.25rem;margin-top:2.5rem;border-bottom:1px solid var(--grid)}
h3{font-size:1rem;margin:0 0 .25rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1.5rem}
figure{margin:0;max-width:40rem;break-inside:avoid}
.chart{width:100%;height:auto;display:block}
.wide{overflow-x:auto}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.25rem .6rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--grid)}
th{background:var(--soft)}td.l,th.l{text-align:left}
small{opacity:.75}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;font-size:.9rem}
dt{opacity:.75}dd{margin:0;overflow-wrap:anywhere}
@media
print{:root{--ink:#000;--grid:#bbb;--back:#fff;--soft:#eee}body{max-width:none;padding:0;font-size:10pt}
.plots{grid-template-columns:1fr
1fr}.wide{overflow:visible}h2,h3{break-after:avoid}tr{break-inside:avoid}
table{font-size:7pt;width:100%}th,td{white-space:normal;padding:.1rem .2rem}td small{display:block}
summary{display:none}details::details-content{content-visibility:visible;block-size:auto}}
"""


def charts(scenario: ScenarioResult) -> list[Chart]:
    """The pictures that the scenario asks for, filled in."""
    drawn = (_chart(scenario, plot) for plot in scenario.plots)
    return [chart for chart in drawn if any(s.dots for s in chart.series)]


def coloured(drawn: Sequence[Chart]) -> list[Chart]:
    """For each name one place in the row of colours, on all charts, and for others on one chart others.

    What follows a policy's own word (`adaptive 50 us`) tells it from no other, unless a chart has both.
    """
    names = [[s.name for s in chart.series] for chart in drawn]
    doubled = {n for on_one in names for n in on_one if sum(_policy(n) == _policy(o) for o in on_one) > 1}

    def key(name: str) -> str:
        return name if name in doubled else _policy(name)

    neighbours: dict[str, set[str]] = {}
    for on_one in names:
        for name in on_one:
            neighbours.setdefault(key(name), set()).update(map(key, on_one))
    places: dict[str, int] = {}
    for name, others in neighbours.items():
        taken = {places[other] for other in others if other in places}
        places[name] = next(place for place in count() if place not in taken)
    return [
        replace(chart, series=[replace(s, place=places[key(s.name)]) for s in chart.series])
        for chart in drawn
    ]


def _policy(name: str) -> str:
    word = name.partition(" ")[0].rstrip(",")
    return word if word in set(Kind) else name


def _chart(scenario: ScenarioResult, plot: Plot) -> Chart:
    points = [p for p in scenario.points if plot.where.items() <= p.params.items()]
    names = dict.fromkeys(v.name for p in points for v in p.variants)
    series = []
    for name in names:
        if plot.style == "profile":
            dots = [d for y in plot.y if (d := _profile_dot(points[0], name, y))]
            series.append(Series(name, dots))
            continue
        for y in plot.y:
            metric = scenario.metric(y)
            title = name if len(plot.y) == 1 else f"{name}, {(metric and metric.title) or y}"
            series.append(Series(title, [d for p in points if (d := _dot(p, name, plot.x, y))]))
    # Of one place along x there is no curve to draw, and no axis.
    one = plot.style == "line" and len({d.x for s in series for d in s.dots}) == 1
    return Chart(
        plot.title,
        plot.x_label,
        plot.y_label,
        [s for s in series if s.dots],
        bars=one or plot.style != "line",
        log_x=plot.log_x,
        log_y=plot.log_y and not one,
    )


def _dot(point: Point, variant: str, x: str, y: str) -> Dot | None:
    found = point.variant(variant)
    summary = found.summary(y) if found else None
    if summary is None or x not in point.params:
        return None
    where = point.params[x]
    return Dot(where, summary.median, summary.low, summary.high)


def _profile_dot(point: Point, variant: str, metric: str) -> Dot | None:
    found = point.variant(variant)
    summary = found.summary(metric) if found else None
    return Dot(metric, summary.median, summary.low, summary.high) if summary else None


def _number(s: Summary) -> str:
    spread = f" <small>±{engineering(s.spread / 2)}</small>" if s.spread else ""
    return f"{engineering(s.median)}{spread}"


def _row(scenario: ScenarioResult, point: Point, metrics: Iterable[Metric]) -> Iterable[str]:
    for i, variant in enumerate(point.variants):
        where = escape(point.label) if i == 0 else ""
        cells = [f'<td class="l">{where}</td><td class="l">{escape(variant.name)}</td>']
        for metric in metrics:
            summary = variant.summary(metric.name)
            ratio = scenario.ratio(point, variant, metric.name)
            beside = f" <small>×{ratio.median:.3g}</small>" if ratio else ""
            cells.append(f"<td>{_number(summary) + beside if summary else ''}</td>")
        yield f"<tr>{''.join(cells)}</tr>"


def _table(scenario: ScenarioResult) -> str:
    seen = {metric.name for _, _, metric, _ in scenario.rows()}
    metrics = [m for m in scenario.metrics if m.name in seen]
    head = "".join(
        f"<th>{escape(m.title or m.name)}<br><small>{escape(m.unit)}</small></th>" for m in metrics
    )
    rows = "".join("".join(_row(scenario, p, metrics)) for p in scenario.points)
    table = (
        f'<div class="wide"><table><thead><tr><th class="l">at</th><th class="l">what</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    if len(scenario.points) <= _MANY:
        return table
    return f"<details><summary>All {len(scenario.points)} points</summary>{table}</details>"


def _scenario(scenario: ScenarioResult, drawn: Iterable[Chart], where: str) -> str:
    plots = "".join(f"<figure><h3>{escape(c.title)}</h3>{svg(c)}</figure>" for c in drawn)
    notes = "".join(f"<li>{escape(n)}</li>" for n in scenario.notes)
    provenance = _facts(scenario.provenance.items()) if scenario.provenance else ""
    against = f"× is against “{escape(scenario.reference)}”, pair by pair." if scenario.reference else ""
    return (
        f"<section><h2>{escape(scenario.name)}</h2><p>{escape(scenario.title)}.{where}</p>{provenance}"
        f'<div class="plots">{plots}</div>{f"<ul>{notes}</ul>" if notes else ""}{_table(scenario)}'
        "<p><small>Medians; ± is half of what the middle half of the samples covers. "
        f"{against}</small></p></section>"
    )


def _facts(facts: Iterable[tuple[str, object]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts) + "</dl>"


def _revision(result: Result) -> str:
    commit = str(result.revision.get("commit") or "unknown")[:12]
    return commit + (" (modified)" if result.revision.get("modified") else "")


def _made(result: Result) -> str:
    """Where and with what one result was measured."""
    facts = [
        ("measured", result.created),
        ("revision", _revision(result)),
        *result.machine.items(),
        *result.versions.items(),
        *result.settings.items(),
    ]
    facts = [(name, value) for name, value in facts if value not in ("", None)]
    names = ", ".join(s.name for s in result.scenarios)
    return f"<h3>{escape(names)}</h3>{_facts(facts)}"


def _told_apart(result: Result) -> str:
    """Which of several results a section is of."""
    return escape(f" Measured {result.created}, revision {_revision(result)}.")


def page(*results: Result) -> str:
    """The whole page, of one result or several below each other."""
    drawn = [(result, s, charts(s)) for result in results for s in result.scenarios]
    left = iter(coloured([chart for _, _, of_one in drawn for chart in of_one]))
    body = "".join(
        _scenario(s, islice(left, len(of_one)), _told_apart(result) if len(results) > 1 else "")
        for result, s, of_one in drawn
    )
    made = "".join(_made(result) for result in results)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>vpt bench</title>'
        f"<style>{STYLE}{_PAGE_STYLE}</style></head><body><h1>vpt bench</h1>{body}"
        f"<h2>Where and with what</h2>{made}</body></html>\n"
    )
