"""Charts: well-formed, escaped, inside their box, and honest about gaps and floors."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from fullrank.chart import (
    WIDTH,
    Panel,
    Reached,
    Series,
    bar_chart,
    density_chart,
    frontier_chart,
    heat_map,
    interval_chart,
    line_chart,
    scatter_chart,
)
from fullrank.chart.canvas import Axis, number
from fullrank.errors import EmptyInputError

SVG = "{http://www.w3.org/2000/svg}"
NAME = 'a <b> & "c"'
CHARTS = {
    "line": line_chart([Series(NAME, [0, 1, 2], [1, None, 3])], title=NAME, x=NAME, y=NAME),
    "log": line_chart(
        [Series("a", [1, 10, 100], [1.0, 1e-4, 1e-12])],
        title="t", x="x", y="y", log_x=True, log_y=True, floor=1e-10,
    ),
    "named": line_chart(
        [Series("a", [0, 1], [1, 2])], title="t", x="x", y="y", x_names=["a" * 40, NAME]
    ),
    "bars": bar_chart(
        ["u", NAME], {"a": [1, None], "b": [-2, 3]}, title="t", x="x", y="y", spread={"b": [1, 2]}
    ),
    "density": density_chart({"a": ([0, 1, 2], [3, 1])}, title="t", x="x", marks={"ceiling": 1.5}),
    "scatter": scatter_chart(
        [Series("a", [1, 1000], [1, 2], labels=["u", NAME])], title="t", x="x", y="y", log_x=True
    ),
    "heat": heat_map(
        [[1, -0.5], [None, 0]], title="t", rows=["a", NAME], columns=["c", "d"], x="x", y="y"
    ),
    "interval": interval_chart(
        [(NAME, 1, 0.5, 1.5), ("b", 2, 1, 3)], title="t", x="x", reference=1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHARTS)
def test_charts_are_well_formed_titled_and_stay_inside_their_box(name: str) -> None:
    root = ElementTree.fromstring(CHARTS[name])
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    assert root.find(f"{SVG}title") is not None
    height = float(root.get("viewBox", "").split()[3])
    for element in root.iter():
        x, y = (float(element.get(k, "0")) for k in ("x", "y"))
        if element.tag in (f"{SVG}rect", f"{SVG}text", f"{SVG}circle"):
            right = x + float(element.get("width", "0"))
            bottom = y + float(element.get("height", "0"))
            assert 0 <= x <= right <= WIDTH + 0.1, ElementTree.tostring(element)
            assert 0 <= y <= bottom <= height + 0.1, ElementTree.tostring(element)
    for path in root.iter(f"{SVG}path"):
        assert not re.search("nan|inf", path.get("d", ""))


def texts(svg: str) -> list[str]:
    return [t.text or "" for t in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_gap_breaks_the_line() -> None:
    points = [1.0, 2.0, math.nan, 3.0, 4.0]
    svg = line_chart([Series("a", range(5), points)], title="t", x="x", y="y")
    pieces = re.findall(r'class="l0" stroke-dasharray="" d="(M[^"]*L[^"]*)"', svg)
    assert len(pieces) == 2


def test_values_below_the_floor_are_ticks_and_not_data() -> None:
    svg = CHARTS["log"]
    assert "below the floor: not data" in texts(svg)
    assert svg.count('class="l0 b"') == 1
    without = line_chart([Series("a", [1, 2], [1.0, 0.1])], title="t", x="x", y="y", log_y=True)
    assert "below" not in " ".join(texts(without))


def test_legends_hold_every_name_and_never_overlap() -> None:
    many = [Series(f"a rather long name, number {i}", [0, 1], [i, i + 1]) for i in range(9)]
    svg = line_chart(many, title="t", x="x", y="y")
    root = ElementTree.fromstring(svg)
    boxes = []
    for text in root.iter(f"{SVG}text"):
        if text.text and text.text.startswith("a rather"):
            x, y = float(text.get("x", "0")), float(text.get("y", "0"))
            boxes.append((x - 30, y - 12, x + 6.6 * len(text.text), y))
    assert len(boxes) == 9
    for i, a in enumerate(boxes):
        assert a[2] <= WIDTH
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def label_boxes(svg: str, names: list[str]) -> list[tuple[float, ...]]:
    """Where the names stand, with the panel that they stand in."""
    root, boxes = ElementTree.fromstring(svg), []
    panels = root.findall(f"{SVG}g") or [root]
    for i, panel in enumerate(panels):
        for text in panel.iter(f"{SVG}text"):
            if text.text in names:
                x, y = float(text.get("x", "0")), float(text.get("y", "0"))
                kinds, width = text.get("class", "").split(), 6.2 * len(text.text)
                x -= width if "e" in kinds else width / 2 if "m" in kinds else 0
                boxes.append((1e4 * i + x, y - 10, 1e4 * i + x + width, y + 2))
    return boxes


def assert_apart(boxes: list[tuple[float, ...]]) -> None:
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@pytest.mark.parametrize("seed", range(8))
def test_every_name_on_a_frontier_is_written_and_no_two_overlap(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"model_with_name_{i}" for i in range(12)]
    points = [
        Reached(n, rng.lognormvariate(12, 0.2), 0.98 + i * 1e-4, 0.9, 0.99)
        for i, n in enumerate(sorted(names, key=lambda _: rng.random()))
    ]
    reach = [0, 2e-4] * 6
    points = [
        replace(p, low=p.value - e, high=p.value + e) for p, e in zip(points, reach, strict=True)
    ]
    best = [p.name for p in sorted(points[::4] + points[1::4], key=lambda p: p.cost)]
    panel = Panel("parameters", "auc", points, best)
    svg = frontier_chart([panel, panel, panel], title="t")
    assert len(label_boxes(svg, best)) == 3 * len(best)
    boxes = label_boxes(svg, names)
    assert_apart(boxes)
    root = ElementTree.fromstring(svg)
    for i, group in enumerate(root.iterfind(f"{SVG}g")):
        for dot in group.iter(f"{SVG}circle"):
            x, y = 1e4 * i + float(dot.get("cx", "0")), float(dot.get("cy", "0"))
            assert not any(b[0] < x < b[2] and b[1] < y < b[3] for b in boxes)
    width = float(root.get("width", "0"))
    assert all(b[0] % 1e4 <= b[2] % 1e4 <= width / 2 for b in boxes)


def test_a_hopeless_model_stands_at_the_edge_with_its_value() -> None:
    near = [Reached(f"m{i}", 10.0 + i, 0.98 + i / 1000, 0.97, 0.99) for i in range(4)]
    far = Reached("lr", 5.0, 0.6, 0.6, 0.6)
    for higher, sign in ((True, 1), (False, -1)):
        points = [
            replace(p, value=sign * p.value, low=sign * p.value, high=sign * p.value)
            for p in (*near, far)
        ]
        svg = frontier_chart([Panel("x", "y", points, ["lr", "m3"], higher)], title="t")
        assert f"lr: {sign * 0.6:g}" in texts(svg)
        ticks = [float(t) for t in texts(svg) if re.fullmatch(r"-?[01]\.\d+", t)]
        assert min(map(abs, ticks)) > 0.9
    svg = frontier_chart([Panel("x", "y", near, ["m3"])], title="t")
    assert not any(":" in t for t in texts(svg))


def test_labels_of_crowded_points_do_not_overlap() -> None:
    names = [f"label {i}" for i in range(30)]
    across = [(i * 37) % 100 for i in range(30)]
    up = [(i * i * 13) % 17 for i in range(30)]
    svg = scatter_chart([Series("", across, up, labels=names)], title="t", x="x", y="y")
    boxes = label_boxes(svg, names)
    assert 0 < len(boxes) < 30
    assert_apart(boxes)
    assert svg.count("<circle") == 30  # the points and their hover texts are all there


def test_a_density_has_area_one() -> None:
    edges, counts = [0.0, 0.5, 1.0, 3.0], [10, 30, 60]
    width = [0.5, 0.5, 2.0]
    tall = max(c / 100 / w for c, w in zip(counts, width, strict=True))
    assert tall == pytest.approx(0.6)
    svg = density_chart({"a": (edges, counts)}, title="t", x="x")
    outline = re.findall(r'fill-opacity=".18" d="(M[^"]*V)', svg)[0]
    heights = [float(y) for y in re.findall(r"[\d.]+ ([\d.]+)", outline)]
    low, top = max(heights), min(heights)
    bottom = float(re.findall(r"V([\d.]+)H[\d.]+Z", svg)[0])
    shares = [(bottom - h) / (bottom - top) for h in heights]
    assert shares == pytest.approx([0.2 / 0.6, 1.0, 0.3 / 0.6], abs=0.01)
    assert low < bottom


def test_strength_of_a_cell_is_its_share_of_the_limit() -> None:
    svg = heat_map([[0.5, -1.0]], title="t", rows=["r"], columns=["a", "b"], limit=1.0)
    cells = re.findall(r'class="(f\d)" fill-opacity="([\d.]+)"', svg)[:2]
    assert cells == [("f0", "0.50"), ("f7", "1.00")]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-3.0, 17.0), (0.98, 0.984), (1e-9, 2e-9), (0.0, 123456.0)]
)
def test_linear_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = Axis(low, high, 0, 100, False).ticks(6)
    assert 3 <= len(ticks) <= 14
    assert all(low - 1e-12 <= t <= high + 1e-9 * abs(high) for t in ticks)


def test_numbers_are_short() -> None:
    found = [number(v) for v in (0, 0.5, 12, 1000, 12_345, 1e-4, 2.5e-10, 457_191, -1e7)]
    assert found == ["0", "0.5", "12", "1000", "12.35k", "1e-4", "2.5e-10", "457.2k", "-10M"]


def test_nothing_to_draw_is_an_error() -> None:
    for series in ([], [Series("a", [], [])], [Series("a", [0], [math.nan])]):
        with pytest.raises(EmptyInputError):
            line_chart(series, title="t", x="x", y="y")
    with pytest.raises(EmptyInputError):
        heat_map([], title="t", rows=[], columns=[])
    with pytest.raises(EmptyInputError):
        interval_chart([], title="t", x="x")


def test_colours_exist_for_light_and_dark() -> None:
    style = re.search(r"<style>(.*?)</style>", CHARTS["line"])
    assert style is not None
    assert "prefers-color-scheme:dark" in style[1]
    assert style[1].count("--s7:") == 2
