# SPDX-License-Identifier: BSD-2-Clause
"""Charts: round ticks around all values, and SVG that is well-formed whatever the names are."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpt.bench.chart import Chart, Dot, Series, sheet, svg, ticks
from vpt.bench.numbers import apart, beside, engineering

values = st.floats(-1e12, 1e12)


@given(values, values)
def test_ticks_enclose_what_they_are_for(a: float, b: float) -> None:
    low, high = sorted((a, b))
    marks = ticks(low, high)
    slack = 1e-6 * (abs(low) + abs(high)) + 1e-30
    assert marks[0] <= low + slack
    assert marks[-1] >= high - slack
    assert 2 <= len(marks) <= 9
    assert marks == sorted(set(marks))


@given(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9))
def test_logarithmic_ticks_are_powers_of_ten(a: float, b: float) -> None:
    low, high = sorted((a, b))
    marks = ticks(low, high, log=True)
    assert marks[0] <= low * 1.000001
    assert marks[-1] >= high * 0.999999
    assert all(math.log10(m) == pytest.approx(round(math.log10(m))) for m in marks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (999, "999"),
        (9999, "9999"),
        (12_345, "12.3k"),
        (3.2e6, "3.2M"),
        (5e9, "5G"),
        (999.7, "1000"),
        (9999.7, "10k"),
        (999_999, "1M"),
        (0.00098, "0.00098"),
        (-1e-20, "-1e-20"),
        (math.inf, "inf"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert engineering(value) == text


@pytest.mark.parametrize(
    ("value", "bound", "text"),
    [
        (0.0098, 20, "0.0098"),
        (19.996, 20, "19.996"),
        (20.004, 20, "20.004"),
        (20, 20, "20"),
        (7.2512, 20, "7.25"),
        (0.00100004, 0.001, "0.00100004"),
        (0.0, 0.001, "0"),
        (1203.7, 1000, "1204"),
        (30_012.3, 20, "30012"),
        (99999.96, 100_000, "99999.96"),
    ],
)
def test_beside_a_bound_a_number_is_on_its_side(value: float, bound: float, text: str) -> None:
    assert beside(value, bound) == text


@pytest.mark.parametrize(
    ("one", "other", "texts"),
    [(12.41, 12.38, ("12.41", "12.38")), (1, 2, ("1", "2")), (0.5, 0.5, ("0.5", "0.5"))],
)
def test_numbers_that_differ_look_different(one: float, other: float, texts: tuple[str, str]) -> None:
    assert apart(one, other) == texts


def dots(*pairs: tuple[float | str, float]) -> list[Dot]:
    return [Dot(x, y, y * 0.9, y * 1.1) for x, y in pairs]


CHARTS = {
    "line": Chart("t", "x", "y", [Series("a", dots((1, 2), (3, 4)))]),
    "log": Chart("t", "x", "y", [Series("a", dots((1, 0), (10, 0.01), (100, 1)))], log_x=True, log_y=True),
    "bars": Chart(
        "t", "x", "y", [Series("a", dots(("p", 2), (64, 3))), Series("b", dots(("p", 0)))], bars=True
    ),
    "one point": Chart("t", "x", "y", [Series("a", dots((5, 5)))]),
    "infinite": Chart("t", "x", "y", [Series("a", [Dot(1, math.inf, 1, 1), Dot(2, 3, 3, 3)])]),
    "hostile names": Chart("<t&>", '"x"', "<y>", [Series("<script>&", dots((1, 1)))]),
    "many names": Chart("t", "x", "y", [Series("a rather long name " * 2, dots((1, i))) for i in range(9)]),
}


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_svg_is_well_formed_and_says_all_names(chart: Chart) -> None:
    root = ElementTree.fromstring(svg(chart))
    said = " ".join(root.itertext())
    for name in (chart.title, chart.x_label, chart.y_label, *(s.name for s in chart.series)):
        assert name in said
    assert not root.findall(".//{http://www.w3.org/2000/svg}script")


def test_a_sheet_holds_all_charts_and_stands_alone() -> None:
    root = ElementTree.fromstring(sheet(list(CHARTS.values())))
    inner = root.findall("{http://www.w3.org/2000/svg}svg")
    assert len(inner) == len(CHARTS)
    assert root.find("{http://www.w3.org/2000/svg}style") is not None


def test_names_of_bars_are_broken_at_a_space_if_they_need_room() -> None:
    dots = [Dot(name, 1, 1, 1) for name in ("short", "virtio-net, event index", "virtio-net, kicks each")]
    drawn = svg(Chart("t", "x", "y", [Series("s", dots)], bars=True))
    assert ">short</text>" in drawn
    assert ">virtio-net,</text>" in drawn
    assert ">event index</text>" in drawn


@pytest.mark.parametrize(
    ("bars", "value", "said", "upright"),
    [(1, 27.1, True, False), (4, 27.1, True, True), (4, 0.5, True, False), (12, 27.1, False, False)],
)
def test_values_of_bars_are_upright_where_they_are_wider(
    bars: int, value: float, said: bool, upright: bool
) -> None:
    """And left out only where a bar is narrower than a line of text is high."""
    groups = dots(*((group, value) for group in ("passthrough", "virtio-net, event index", "kicks each")))
    drawn = svg(Chart("t", "x", "Mpps", [Series(f"s{i}", groups) for i in range(bars)], bars=True))
    values = re.findall(rf"<text [^>]*>{re.escape(engineering(value))}</text>", drawn)
    above = [text for text in values if 'text-anchor="end"' not in text]  # which those of the axis have
    assert len(above) == (3 * bars if said else 0)
    assert all(("rotate(-90" in text) == upright for text in above)
