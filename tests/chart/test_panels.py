"""Panels: inside their box, one colour per model, gaps and bands where they belong."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from fullrank.chart import Lines, panel_chart
from fullrank.errors import EmptyInputError

SVG = "{http://www.w3.org/2000/svg}"
NAME = 'a <b> & "c"'
PLACES = [f"block{i}" for i in range(4)]


def drawn() -> str:
    first = Lines("first", {NAME: [1, 2, None, 4], "b": [3.0, 1.0, 2.0, 2.5]})
    second = Lines("second", {"b": [5, 6, 7, 8]}, {"b": [0.5, 9, None, 1]}, whole=(0.0, 30.0))
    third = Lines("third", {NAME: [0.0, 0.0, 0.0, 0.0]})
    return panel_chart([first, second, third], title=NAME, x="layer", places=PLACES)


def test_everything_is_well_formed_and_inside_the_box() -> None:
    root = ElementTree.fromstring(drawn())
    width, height = (float(v) for v in root.get("viewBox", "").split()[2:])

    def walk(element: ElementTree.Element, right: float, down: float) -> None:
        moved = re.match(r"translate\(([\d.]+) ([\d.]+)\)", element.get("transform", ""))
        if moved:
            right, down = right + float(moved[1]), down + float(moved[2])
        if element.tag in (f"{SVG}text", f"{SVG}circle"):
            x, y = (float(element.get(c + k, "0")) for c, k in (("", "x"), ("", "y")))
            x, y = x or float(element.get("cx", "0")), y or float(element.get("cy", "0"))
            assert 0 <= x + right <= width
            assert 0 <= y + down <= height
        for child in element:
            walk(child, right, down)

    walk(root, 0.0, 0.0)
    for path in root.iter(f"{SVG}path"):
        assert not re.search("nan|inf", path.get("d", ""))


def test_a_model_keeps_its_colour_in_a_panel_without_the_others() -> None:
    svg = drawn()
    title = svg.index(">second<")
    panel = svg[title : svg.index(">third<")]
    assert set(re.findall(r'<path class="l(\d)"', panel)) == {"1"}
    legend = svg[: svg.index(">first<")]
    assert re.findall(r'<path class="l(\d)"', legend) == ["0", "1"]


def test_a_band_reaches_as_far_as_the_spread_and_stops_at_gaps() -> None:
    svg = drawn()
    panel = svg[svg.index(">second<") : svg.index(">third<")]
    bands = re.findall(r'fill-opacity=".13" d="M([^"]*)Z"', panel)
    assert len(bands) == 2  # the third place has no spread
    points = [[float(v) for v in p.split()] for p in bands[0].split("L")]
    dots = re.findall(r'<circle class="f1" cx="([\d.]+)" cy="([\d.]+)"', panel)
    middles = [float(y) for _, y in dots[:2]]
    assert points[0][1] < middles[0] < points[3][1]
    half = (points[3][1] - points[0][1], points[2][1] - points[1][1])
    assert half[1] == pytest.approx(half[0] * 9 / 0.5, rel=0.02)
    ticks = [float(t) for t in re.findall(r'<text class="e s"[^>]*>(-?[\d.]+)</text>', panel)]
    assert min(ticks) <= 6 - 9  # the axis holds the band
    assert max(ticks) >= 30  # and what it was asked to show


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(EmptyInputError):
        panel_chart([], title="t", x="x", places=PLACES)
    with pytest.raises(EmptyInputError):
        panel_chart([Lines("y", {"a": [None] * 4})], title="t", x="x", places=PLACES)
