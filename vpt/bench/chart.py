# SPDX-License-Identifier: BSD-2-Clause
"""A chart as data, and as SVG: no dependency, no script, colours by CSS so that it prints and follows a dark
page.

Numbers go in, a string comes out. Axis ticks are round numbers (1, 2, 5 times a power of ten), a band shows
the spread, and each curve is named at the side in its own colour and by its own mark, so that colour alone
carries nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

from vpt.bench.numbers import engineering

__all__ = ["STYLE", "Chart", "Dot", "Series", "sheet", "svg", "ticks"]

_WIDTH, _HEIGHT = 540, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 24, 6, 52
_LEGEND = 22
#: Average width of one in the font that is used, a little generous.
_CHARACTER = 7.8
#: Height of a line of it.
_LINE = 15.0
_BOLD = ' font-weight="bold"'
_COLOURS = 6
_MARKS = "circle", "square", "diamond", "triangle", "cross", "plus"


@dataclass(frozen=True, slots=True)
class Dot:
    """A value with the spread around it. x: a number on a line chart, a category on a bar chart."""

    x: float | str
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Series:
    """A curve, or the bars of one colour. place: in the row of colours and marks, None: as in its chart's."""

    name: str
    dots: Sequence[Dot]
    marks: bool = True
    place: int | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """What to draw. A chart whose x are categories is drawn as bars."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    bars: bool = False
    log_x: bool = False
    log_y: bool = False


def ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Round numbers from below `low` to above `high`; the ends are the axis's."""
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        if first == last:
            last += 1
        return [10.0**e for e in range(first, last + 1)]
    size = max(abs(low), abs(high))
    # Values that differ by less than a rounding error, or are nothing at all, still need an axis.
    span = max(high - low, 1e-6 * size) if size > 1e-30 else 1.0
    raw = span / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


@dataclass(slots=True)
class _Axis:
    """Values to pixels."""

    marks: list[float]
    begin: float
    end: float
    log: bool
    low: float = field(init=False)
    high: float = field(init=False)

    def __post_init__(self) -> None:
        self.low, self.high = self._scale(self.marks[0]), self._scale(self.marks[-1])

    def _scale(self, value: float) -> float:
        return math.log10(max(value, self.marks[0])) if self.log else value

    def at(self, value: float) -> float:
        share = (self._scale(value) - self.low) / (self.high - self.low)
        return self.begin + (self.end - self.begin) * min(1.0, max(0.0, share))


def _extent(values: Iterable[float], log: bool, zero: bool) -> list[float]:
    """Ticks that hold all values; a logarithmic axis leaves out what it can't show."""
    found = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    if not found:
        return [1.0, 10.0] if log else [0.0, 1.0]
    return ticks(min([*found, 0.0]) if zero and not log else min(found), max(found), log)


def _places(series: Sequence[Series]) -> Iterator[tuple[int, Series]]:
    for i, s in enumerate(series):
        yield i if s.place is None else s.place, s


def _class(place: int) -> str:
    return f"s{place % _COLOURS}"


def _mark(place: int, x: float, y: float) -> str:
    """Another one for those that are of one colour."""
    match _MARKS[(place + place // _COLOURS) % len(_MARKS)]:
        case "circle":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
        case "square":
            return f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>'
        case "diamond":
            return f'<path d="M{x:.1f} {y - 4.5:.1f}l4.5 4.5-4.5 4.5-4.5-4.5z"/>'
        case "triangle":
            return f'<path d="M{x:.1f} {y - 4.5:.1f}l4.5 8h-9z"/>'
        case "cross":
            return f'<path class="open" d="M{x - 3.5:.1f} {y - 3.5:.1f}l7 7m0-7l-7 7"/>'
        case _:
            return f'<path class="open" d="M{x - 4.5:.1f} {y:.1f}h9m-4.5-4.5v9"/>'


def _text(x: float, y: float, content: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(content)}</text>'


def _tip(content: str) -> str:
    return f"<title>{escape(content)}</title>"


def _legend(series: Sequence[Series]) -> tuple[list[str], float]:
    """The names, in rows; and how high they are."""
    out: list[str] = []
    x, row = float(_LEFT), 0
    for place, s in _places(series):
        width = 28 + _CHARACTER * len(s.name)
        if x + width > _WIDTH - _RIGHT and x > _LEFT:
            x, row = float(_LEFT), row + 1
        y = _TOP + _LEGEND * (row + 0.5)
        mark = f'<g class="{_class(place)}">{_mark(place, x + 6, y)}</g>'
        out.append(f"{mark}{_text(x + 16, y + 4, s.name, 'start')}")
        x += width
    return out, float(_LEGEND * (row + 1))


def _grid(x_axis: _Axis | None, y_axis: _Axis, top: float) -> list[str]:
    bottom = _HEIGHT - _BOTTOM
    out = []
    for value in y_axis.marks:
        y = y_axis.at(value)
        out.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        out.append(_text(_LEFT - 8, y + 4, engineering(value), "end"))
    for value in x_axis.marks if x_axis else ():
        x = x_axis.at(value) if x_axis else 0.0
        out.append(f'<path class="grid" d="M{x:.1f} {top:.1f}V{bottom}"/>')
        out.append(_text(x, bottom + 18, engineering(value)))
    return out


def _curve(place: int, s: Series, x_axis: _Axis, y_axis: _Axis) -> str:
    dots = sorted((d for d in s.dots if math.isfinite(d.y)), key=lambda d: float(d.x))
    if y_axis.log:
        dots = [d for d in dots if d.y > 0]
    spots = [(x_axis.at(float(d.x)), y_axis.at(d.y)) for d in dots]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    upper = [f"{x:.1f},{y_axis.at(d.high):.1f}" for d, (x, _) in zip(dots, spots, strict=True)]
    lower = [f"{x:.1f},{y_axis.at(d.low):.1f}" for d, (x, _) in zip(dots, spots, strict=True)]
    band = f'<polygon class="band" points="{" ".join([*upper, *reversed(lower)])}"/>' if len(dots) > 1 else ""
    marks = (
        ""
        if not s.marks
        else "".join(
            f"<g>{_tip(f'{s.name}: {engineering(float(d.x))}, {engineering(d.y)}')}{_mark(place, x, y)}</g>"
            for d, (x, y) in zip(dots, spots, strict=True)
        )
    )
    return f'<g class="{_class(place)}">{band}<polyline points="{line}"/>{marks}</g>'


def _lines(chart: Chart, top: float) -> list[str]:
    dots = [d for s in chart.series for d in s.dots]
    x_axis = _Axis(
        _extent([float(d.x) for d in dots], chart.log_x, False), _LEFT, _WIDTH - _RIGHT, chart.log_x
    )
    ys = _extent([v for d in dots for v in (d.y, d.low, d.high)], chart.log_y, True)
    y_axis = _Axis(ys, _HEIGHT - _BOTTOM, top, chart.log_y)
    curves = [_curve(place, s, x_axis, y_axis) for place, s in _places(chart.series)]
    # The first one is what the chart is about: on top.
    return [*_grid(x_axis, y_axis, top), *reversed(curves)]


def _bars(chart: Chart, top: float) -> list[str]:
    dots = [d for s in chart.series for d in s.dots if math.isfinite(d.y)]
    groups = list(dict.fromkeys(d.x for d in dots))
    room = (_WIDTH - _LEFT - _RIGHT) / max(1, len(groups))
    width = min(60.0, room * 0.8 / max(1, len(chart.series)))
    longest = _CHARACTER * max((len(engineering(d.y)) for d in dots), default=0)
    upright = longest > width
    ys = _extent([v for d in dots for v in (d.y, d.high)], chart.log_y, True)
    y_axis = _Axis(ys, _HEIGHT - _BOTTOM, top + (longest if upright else 0), chart.log_y)
    out = _grid(None, y_axis, top)
    for g, group in enumerate(groups):
        middle = _LEFT + room * (g + 0.5)
        name = group if isinstance(group, str) else engineering(group)
        for line, text in enumerate(_wrapped(name, room)):
            out.append(_text(middle, _HEIGHT - _BOTTOM + 15 + 14 * line, text))
        for i, (place, s) in enumerate(_places(chart.series)):
            x = middle + width * (i - len(chart.series) / 2)
            for d in s.dots:
                if d.x == group and math.isfinite(d.y):
                    out += [
                        _bar(place, s.name, d, x, width, y_axis),
                        _value(d, x + width / 2, width, upright, y_axis),
                    ]
    return out


def _wrapped(name: str, room: float) -> list[str]:
    """In two lines at most, broken at a space, if it is wider than its room."""
    if _CHARACTER * len(name) <= room or " " not in name:
        return [name]
    spaces = [i for i, letter in enumerate(name) if letter == " "]
    at = min(spaces, key=lambda i: max(i, len(name) - i - 1))
    return [name[:at], name[at + 1 :]]


def _bar(place: int, name: str, d: Dot, x: float, width: float, y_axis: _Axis) -> str:
    """A bar, and the spread on it."""
    y, low, high = y_axis.at(d.y), y_axis.at(d.low), y_axis.at(d.high)
    height = max(0.5, _HEIGHT - _BOTTOM - y)
    return (
        f'<g class="{_class(place)}">{_tip(f"{name}: {engineering(d.y)}")}'
        f'<rect x="{x + 1:.1f}" y="{y:.1f}" width="{width - 2:.1f}" height="{height:.1f}"/></g>'
        f'<path class="whisker" d="M{x + width / 2:.1f} {low:.1f}V{high:.1f}"/>'
    )


def _value(d: Dot, x: float, width: float, upright: bool, y_axis: _Axis) -> str:
    """A bar's value above it; upright where one is wider than its bar, and nowhere if it is so even then."""
    y = min(y_axis.at(d.y), y_axis.at(d.high)) - 4
    if not upright:
        return _text(x, y, engineering(d.y))
    if width < _LINE:
        return ""
    return _text(x + 5, y, engineering(d.y), "start", f' transform="rotate(-90 {x + 5:.1f} {y:.1f})"')


#: What the classes in the drawing mean; for a page, once, or for a drawing that stands alone.
STYLE = """
.chart text{font:14px system-ui,sans-serif;fill:var(--ink,#222)}
.chart .grid{stroke:var(--grid,#ddd);fill:none}
.chart polyline{fill:none;stroke:currentColor;stroke-width:1.6}
.chart g{color:inherit;fill:currentColor}
.chart .band{opacity:.16}
.chart .open{fill:none;stroke:currentColor;stroke-width:1.8}
.chart .whisker{stroke:var(--ink,#222);fill:none}
.chart .s0{color:#0b62a4}.chart .s1{color:#c8500a}.chart .s2{color:#1d7a3c}
.chart .s3{color:#8a2c8c}.chart .s4{color:#8a6d00}.chart .s5{color:#b3224a}
"""


def sheet(charts: Sequence[Chart]) -> str:
    """A file of its own: all drawings below each other, each under its title."""
    step = _HEIGHT + 28
    drawn = (
        f'<g transform="translate(0 {i * step})">{_text(_LEFT, 20, chart.title, "start", _BOLD)}</g>'
        f'<svg y="{i * step + 28}" width="{_WIDTH}" height="{_HEIGHT}">{svg(chart)}</svg>'
        for i, chart in enumerate(charts)
    )
    high = len(charts) * step
    size = f'width="{_WIDTH}" height="{high}"'
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {high}" {size}>'
        f'<style>{STYLE}</style><rect {size} fill="#fff"/>{"".join(drawn)}</svg>\n'
    )


def svg(chart: Chart) -> str:
    """The drawing, for a page that has STYLE."""
    legend, used = _legend(chart.series)
    top = _TOP + used + 4
    body = [*legend, *(_bars(chart, top) if chart.bars else _lines(chart, top))]
    body.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 5, chart.x_label))
    middle = (top + _HEIGHT - _BOTTOM) / 2
    body.append(_text(14, middle, chart.y_label, extra=f' transform="rotate(-90 14 {middle:.1f})"'))
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
        f"{_tip(chart.title)}{''.join(body)}</svg>"
    )
