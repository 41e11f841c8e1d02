# SPDX-License-Identifier: BSD-2-Clause
"""The report in a real browser: it fits a phone and a sheet of paper, shows its curves, and asks nobody for
anything.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from vpt.bench.chart import Chart, Dot, Series, svg
from vpt.bench.model import PUBLISHED, Kind, Policy, sweep
from vpt.bench.report import charts, coloured, page
from vpt.bench.result import Metric, Plot, Point, Result, Sample, ScenarioResult, Variant

# A browser does not run under AddressSanitizer, which that step preloads into all that is started.
pytestmark = pytest.mark.native

_SERIES = {
    "threads": (0x0B, 0x62, 0xA4),
    "the model, with a name of some length": (0xC8, 0x50, 0x0A),
    "small": (0x1D, 0x7A, 0x3C),
    "tiny": (0x8A, 0x2C, 0x8C),
}


def _variant(name: str, rate: float) -> Variant:
    """Five samples around a value."""
    values = [rate * (1 + (i - 2) / 50) for i in range(5)]
    return Variant(
        name=name, samples=[Sample(repetition=i, at=i, values={"rate": v}) for i, v in enumerate(values)]
    )


@pytest.fixture
def report() -> str:
    """A sweep as curves and its ends as bars, with awkward names."""
    scales = dict(zip(_SERIES, (1, 1.2, 1 / 7, 1 / 12_345_678), strict=True))
    points = [
        Point(
            params={"wp": c.wp, "policy": "notify"},
            variants=[_variant(name, p.rate * scale) for name, scale in scales.items()],
        )
        for c, p in sweep(PUBLISHED, Policy(Kind.NOTIFY), range(250, 6000, 250))
    ]
    points += [
        Point(
            params={"device": device, "load": "saturation"},
            variants=[_variant(name, 27.13 * scale) for name, scale in scales.items()],
        )
        for device in ("passthrough", "virtio-net, event index", "virtio-net, kicks each")
    ]
    common = {"x": "wp", "y": ["rate"], "x_label": "Wp, ns", "y_label": "items/s"}
    scenario = ScenarioResult(
        name="toy",
        title="A toy <with> & awkward names",
        metrics=[
            Metric(name="rate", unit="items/s", better="higher", title="Throughput"),
            Metric(name="unseen", unit="per item", title="Of another tier"),
        ],
        reference="threads",
        points=points,
        plots=[
            Plot(title="Curves", **common),
            Plot(title="Logarithmic", **common, log_x=True, log_y=True),
            Plot(title="Bars", **common, style="bar", where={"wp": 250.0}),
            Plot(title="Devices", **common | {"x": "device"}, style="bar", where={"load": "saturation"}),
            Plot(title="Profile", **common, style="profile", where={"wp": 250.0}),
        ],
        notes=["A note that is long enough to need more than one line on a phone, as notes often are."],
    )
    return page(
        Result(
            created="2026-01-01T00:00:00+00:00",
            machine={"cpu": "A processor with a rather long name @ 2.60GHz", "cpus": 2},
            versions={"vpt": "0"},
            revision={"commit": "0" * 40, "modified": True},
            settings={"repetitions": 5},
            scenarios=[scenario],
        )
    )


def test_the_page_asks_nobody_for_anything(report: str) -> None:
    without_names = report.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|src=|href=|url\(|@import|<script|<link", without_names)


def test_a_metric_that_nothing_measured_has_no_column(report: str) -> None:
    assert "Throughput" in report
    assert "Of another tier" not in report


def test_of_one_place_along_x_there_are_bars_and_no_axis_of_one_number() -> None:
    at = [Point(params={"rate": 1000}, variants=[_variant("one", 5.0), _variant("two", 7.0)])]
    plot = Plot(title="t", x="rate", y=["rate"], x_label="packets/s", y_label="us", log_x=True, log_y=True)
    scenario = ScenarioResult(name="n", title="t", metrics=[], reference=None, points=at, plots=[plot])
    (chart,) = charts(scenario)
    assert chart.bars
    assert not chart.log_y, "bars begin at 0"
    at.append(Point(params={"rate": 2000}, variants=at[0].variants))
    (chart,) = charts(scenario.model_copy(update={"points": at}))
    assert not chart.bars


def _chart_of(*names: str) -> Chart:
    return Chart("t", "x", "y", [Series(name, [Dot(1, 1, 1, 1)]) for name in names])


def _places(*drawn: Chart) -> list[list[int | None]]:
    return [[s.place for s in chart.series] for chart in coloured(drawn)]


def test_a_policy_has_one_colour_in_all_plots_of_a_page() -> None:
    """Whichever others a plot has, and in whatever order."""
    first, second, third = _places(
        _chart_of("notify", "sleep", "poll", "adaptive"),
        _chart_of("notify"),
        _chart_of("poll", "adaptive 50 us", "notify", "sleep 50 us"),
    )
    assert first == [0, 1, 2, 3]
    assert second == [0]
    assert third == [2, 3, 0, 1]


def test_no_two_names_of_one_plot_share_a_colour_while_there_are_six() -> None:
    drawn = [_chart_of("a", "b"), _chart_of("c", "d"), _chart_of("d", "b", "a", "c"), _chart_of("x", "b")]
    for chart in (*_places(*drawn), *_places(_chart_of("sleep 1 us", "sleep 2 us", "sleep"))):
        assert len(set(chart)) == len(chart)
        assert max(place or 0 for place in chart) < 6


def test_a_colour_that_comes_again_has_another_mark() -> None:
    drawn = svg(_chart_of(*"abcdefg"))
    in_legend = re.findall(r'<g class="s0"><(\w+) ', drawn)[:2]
    assert in_legend == ["circle", "rect"]


def test_several_metrics_on_one_plot_are_called_by_their_titles() -> None:
    values = {"p50": 1.0, "n": 2.0}
    variant = Variant(name="one", samples=[Sample(repetition=0, at=0, values=values)])
    scenario = ScenarioResult(
        name="n",
        title="t",
        metrics=[Metric(name="p50", unit="us", title="Latency, median"), Metric(name="n", unit="")],
        reference=None,
        points=[Point(params={"x": 1}, variants=[variant])],
        plots=[Plot(title="t", x="x", y=["p50", "n"], x_label="x", y_label="us")],
    )
    (chart,) = charts(scenario)
    assert [s.name for s in chart.series] == ["one, Latency, median", "one, n"]


def test_names_can_not_break_the_page(report: str) -> None:
    assert "A toy &lt;with&gt; &amp; awkward names" in report


def _chromium(tmp_path: Path, *arguments: str) -> str:
    """Run it once; what it prints. Without a sanitizer that this process may carry along."""
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
    ]
    command += ["--virtual-time-budget=2000", f"--user-data-dir={tmp_path}/profile", *arguments]
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100, env=env)
    return done.stdout


# Runs beside the page, in a frame of a phone's width: what sticks out of the page, out of its drawing, or
# lies over another text of the same drawing.
_MEASURE = """
onload = () => {
  const page = document.querySelector("iframe").contentDocument, out = [], over = [];
  for (const svg of page.querySelectorAll("svg.chart")) {
    const frame = svg.viewBox.baseVal, texts = [...svg.querySelectorAll("text")], boxes = [];
    for (const text of texts) {
      const b = text.getBoundingClientRect(), s = svg.getBoundingClientRect();
      if (b.left < s.left - 1 || b.right > s.right + 1 || b.top < s.top - 1 || b.bottom > s.bottom + 1)
        out.push(text.textContent);
      for (const [other, o] of boxes)
        if (b.left < o.right - 1 && o.left < b.right - 1 && b.top < o.bottom - 3 && o.top < b.bottom - 3)
          over.push(text.textContent + " / " + other);
      boxes.push([text.textContent, b]);
    }
  }
  const root = page.documentElement;
  document.body.dataset.seen = JSON.stringify({
    width: root.clientWidth, needs: root.scrollWidth, charts: page.querySelectorAll("svg.chart").length, out,
    over});
};
"""


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_sticks_out_or_overlaps(report: str, tmp_path: Path, width: int) -> None:
    """The page itself never scrolls sideways (tables do, in their own box), and every label can be read."""
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        f'<!doctype html><meta charset="utf-8"><script>{_MEASURE}</script><body>'
        f'<iframe style="border:0;width:{width}px;height:3000px" srcdoc="{html.escape(report)}"></iframe>'
    )
    dom = _chromium(tmp_path, "--dump-dom", wrapper.as_uri())
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found, dom[:500]
    seen = json.loads(html.unescape(found[1]))
    assert seen == {"width": width, "needs": width, "charts": 5, "out": [], "over": []}


def _pixels(png: bytes) -> set[tuple[int, int, int]]:
    """All colours of an 8-bit RGB or RGBA picture."""
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert (depth, kind) in ((8, 2), (8, 6))
    step = 3 if kind == 2 else 4
    packed, at = b"", 8
    while at < len(png):
        size, name = struct.unpack(">I4s", png[at : at + 8])
        packed += png[at + 8 : at + 8 + size] if name == b"IDAT" else b""
        at += 12 + size
    raw, line, before = zlib.decompress(packed), width * step, bytearray(width * step)
    colours = set()
    for row in range(height):
        start = row * (line + 1)
        now = bytearray(raw[start + 1 : start + 1 + line])
        _unfilter(raw[start], now, before, step)
        colours.update(zip(now[0::step], now[1::step], now[2::step], strict=True))
        before = now
    return colours


def _unfilter(kind: int, now: bytearray, up: bytearray, step: int) -> None:
    """PNG's five filters (RFC 2083, 6)."""
    for i in range(len(now)):
        a, b = now[i - step] if i >= step else 0, up[i]
        c = up[i - step] if i >= step else 0
        if kind == 1:
            guess = a
        elif kind == 2:
            guess = b
        elif kind == 3:
            guess = (a + b) // 2
        elif kind == 4:
            guess = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
        else:
            return
        now[i] = (now[i] + guess) & 255


@pytest.mark.needs("chromium")
def test_the_picture_shows_every_curve(report: str, tmp_path: Path) -> None:
    """Each series' colour is in the picture that a browser makes of the page."""
    (tmp_path / "page.html").write_text(report)
    picture = tmp_path / "page.png"
    _chromium(tmp_path, "--window-size=600,700", f"--screenshot={picture}", (tmp_path / "page.html").as_uri())
    colours = _pixels(picture.read_bytes())
    assert set(_SERIES.values()) <= colours


def _streams(pdf: bytes) -> list[bytes]:
    """Decompressed streams of a PDF, those that are compressed."""
    found = []
    for start in re.finditer(rb"stream\r?\n", pdf):
        with contextlib.suppress(zlib.error):
            found.append(zlib.decompressobj().decompress(pdf[start.end() :]))
    return found


def _drawn(content: bytes) -> tuple[list[float], set[tuple[int, ...]]]:
    """How far right each line, rectangle and text begins or ends, in points, and the colours of lines."""
    matrix, saved, seen = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0], [], []
    colours: set[tuple[int, ...]] = set()
    for line in content.decode("latin-1").splitlines():
        *words, operator = line.split() or [""]
        if operator == "q":
            saved.append(matrix)
        elif operator == "Q":
            matrix = saved.pop()
        elif operator in ("cm", "Tm", "m", "l", "re"):
            numbers = [float(word) for word in words]
            a, b, c, d, e, f = matrix
            if operator == "cm":
                p, q, r, s, t, u = numbers
                matrix = [a * p + c * q, b * p + d * q, a * r + c * s, b * r + d * s, a * t + c * u + e,
                          b * t + d * u + f]  # fmt: skip
                continue
            x, y = numbers[4:] if operator == "Tm" else numbers[:2]
            width = numbers[2] if operator == "re" else 0.0
            seen.append(a * (x + width) + c * y + e)
        elif " RG " in line:
            colours.add(tuple(round(255 * float(word)) for word in words[:3]))
    return seen, colours


@pytest.mark.needs("chromium")
def test_it_prints_with_every_plot_and_nothing_beyond_the_paper(report: str, tmp_path: Path) -> None:
    """Read from what Chromium writes: pages, the outline that it makes of headings, and lines."""
    (tmp_path / "page.html").write_text(report)
    pdf = tmp_path / "page.pdf"
    address = (tmp_path / "page.html").as_uri()
    _chromium(tmp_path, "--generate-pdf-document-outline", f"--print-to-pdf={pdf}", address)
    printed = pdf.read_bytes()
    headings = {title.decode() for title in re.findall(rb"/Title \((.*)\)", printed)}
    assert headings >= {"toy", "Curves", "Logarithmic", "Bars", "Devices", "Profile", "Where and with what"}
    (width,) = {float(w) for w in re.findall(rb"/MediaBox \[0 0 ([0-9.]+)", printed)}
    pages = [_drawn(content) for content in _streams(printed) if b" 0 0 -" in content[:20]]
    assert len(pages) == len(re.findall(rb"/Type /Page\b", printed))
    for seen, _ in pages:
        assert width / 2 < max(seen) < width
    assert set(_SERIES.values()) <= set().union(*(colours for _, colours in pages))
