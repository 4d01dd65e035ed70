"""The chart functions; `fullrank.chart` is their door."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from html import escape

from fullrank.chart.canvas import (
    RIGHT,
    WIDTH,
    Axis,
    Canvas,
    Plot,
    Series,
    Value,
    finite,
    number,
    require,
    short,
)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    floor: float | None = None,
    x_names: Sequence[str] = (),
    y_range: tuple[float, float] | None = None,
) -> str:
    """Draws lines.

    Args:
        series: what to draw, at least one finite point among them.
        title: what was measured.
        x: label of the horizontal axis, with its unit.
        y: label of the vertical axis, with its unit.
        log_x: decades on the horizontal axis.
        log_y: decades on the vertical axis.
        floor: values at or under it are not data. They are drawn as ticks in a hatched zone.
        x_names: names for the positions 0, 1, 2, ... instead of numbers.
        y_range: fixes the vertical axis.

    Raises:
        EmptyInputError: there is not one finite point.
    """
    plot = Plot(title, series, names=x_names, below=floor is not None)
    plot.scale(series, log_x, log_y, y_range, floor, pad=0.35 if x_names else 0.0)
    plot.frame(x, y)
    for i, s in enumerate(series):
        plot.line(s, i)
    return plot.render()


def density_chart(
    histograms: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x: str,
    marks: Mapping[str, float] | None = None,
) -> str:
    """Draws histograms as densities, one area each.

    Args:
        histograms: name -> (edges, counts), one more edge than counts.
        title: what was measured.
        x: label of the horizontal axis, with its unit.
        marks: name -> position of a dashed vertical line, such as a ceiling.
    """
    curves = []
    for name, (edges, counts) in histograms.items():
        total = sum(counts) or 1.0
        middle = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
        height = [c / total / (b - a) for a, b, c in zip(edges, edges[1:], counts, strict=False)]
        curves.append(Series(name, middle, height, area=True))
    top = max((h for c in curves for h in c.y if h is not None), default=1.0)
    for name, at in (marks or {}).items():
        curves.append(Series(name, [at, at], [0.0, top], dashed=True))
    return line_chart(curves, title=title, x=x, y="density", y_range=(0.0, top * 1.05))


def scatter_chart(
    series: Sequence[Series],
    *,
    title: str,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """Draws points; labels are placed where they hit nothing and otherwise left to the hover."""
    plot = Plot(title, series, filled=True)
    plot.scale(series, log_x, log_y, None, None)
    plot.frame(x, y)
    for i, s in enumerate(series):
        if s.dashed:
            plot.line(s, i)
        else:
            plot.points(s, i)
    return plot.render()


def bar_chart(
    names: Sequence[str],
    series: Mapping[str, Sequence[Value]],
    *,
    title: str,
    x: str,
    y: str,
    spread: Mapping[str, Sequence[Value]] | None = None,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Draws grouped bars from zero, or from the low end of `y_range`.

    Args:
        names: one per group of bars.
        series: name -> a height per group.
        title: what was measured.
        x: label of the horizontal axis.
        y: label of the vertical axis, with its unit.
        spread: name -> half the length of an error bar per group.
        y_range: fixes the vertical axis.
    """
    rows = [Series(n, list(range(len(names))), v) for n, v in series.items()]
    plot = Plot(title, rows, names, filled=True)
    tops = [Series("", [-0.5, len(names) - 0.5], [0.0, 0.0])] if y_range is None else []
    for name, halves in (spread or {}).items():
        ends = [(v or 0) + (h or 0) for v, h in zip(series[name], halves, strict=True)]
        tops.append(Series("", list(range(len(names))), ends))
    plot.scale([*rows, *tops], False, False, y_range, None, pad=0.5)
    plot.frame(x, y)
    width = 0.8 * (plot.x.at(1) - plot.x.at(0)) / max(1, len(rows))
    base = plot.y.at(max(plot.y.low, min(0.0, plot.y.high)))
    for i, s in enumerate(rows):
        for j, value in enumerate(s.y):
            if not finite(value):
                continue
            left = plot.x.at(j) + (i - len(rows) / 2) * width
            top = plot.y.at(value)
            plot.add(
                f'<rect class="f{i % 8}" x="{left:.1f}" y="{min(top, base):.1f}" '
                f'width="{max(1.0, width - 1):.1f}" height="{abs(top - base):.1f}" rx="1">'
                f"<title>{escape(names[j])}, {escape(s.name)}: {number(value)}</title></rect>"
            )
            half = (spread or {}).get(s.name, [None] * len(names))[j]
            if finite(half) and half > 0:
                plot.whisker(left + width / 2, value - half, value + half)
    return plot.render()


def interval_chart(
    rows: Sequence[tuple[str, float, float, float]],
    *,
    title: str,
    x: str,
    reference: float | None = None,
) -> str:
    """Draws one dot with an interval per row: what a comparison of models shows.

    Args:
        rows: (name, value, low end, high end).
        title: what was measured.
        x: label of the horizontal axis, with its unit.
        reference: position of a dashed vertical line, such as no difference.
    """
    require(bool(rows), title)
    left = 24 + 6.6 * max(len(short(name)) for name, *_ in rows)
    ends = [e for _, *values in rows for e in values] + ([] if reference is None else [reference])
    canvas = Canvas(title, 92 + 26 * len(rows))
    air = 0.04 * (max(ends) - min(ends))
    axis = Axis.around(ends, False, left, WIDTH - RIGHT, air)
    bottom = 44 + 26 * len(rows)
    for tick in axis.ticks(6):
        at = axis.at(tick)
        canvas.add(f'<path class="g" d="M{at:.1f} 36V{bottom}"/>')
        canvas.text(at, bottom + 16, number(tick), "m s")
    canvas.text((left + WIDTH) / 2, bottom + 38, x, "m s")
    if reference is not None:
        canvas.add(
            f'<path class="a" stroke-dasharray="5 4" d="M{axis.at(reference):.1f} 36V{bottom}"/>'
        )
    for i, (name, value, low, high) in enumerate(rows):
        y = 54 + 26 * i
        canvas.text(left - 10, y + 4, short(name), "e")
        canvas.add(
            f'<path class="l0" d="M{axis.at(low):.1f} {y}H{axis.at(high):.1f}"/>'
            f'<circle class="f0" cx="{axis.at(value):.1f}" cy="{y}" r="4.5"><title>'
            f"{escape(name)}: {number(value)} ({number(low)} to {number(high)})</title></circle>"
        )
    return canvas.render()


def heat_map(
    values: Sequence[Sequence[Value]],
    *,
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    x: str = "",
    y: str = "",
    limit: float | None = None,
) -> str:
    """Draws a matrix: blue above zero, red below, paler towards zero; a gap is hatched.

    Args:
        values: [R][C].
        title: what was measured.
        rows: R names.
        columns: C names.
        x: label of the columns.
        y: label of the rows.
        limit: the magnitude drawn at full strength; the largest one present when None.
    """
    require(bool(rows) and bool(columns), title)
    flat = [v for row in values for v in row if finite(v)]
    top = limit or max((abs(v) for v in flat), default=0.0) or 1.0
    left = 40 + 6.2 * max(len(short(n)) for n in rows)
    side = min(30.0, (WIDTH - left - 100) / len(columns))
    head = 52 + 4.4 * max(len(short(n)) for n in columns)
    signed = any(v < 0 for v in flat)
    key = 14 * (9 if signed else 6)
    canvas = Canvas(title, int(head + max(side * len(rows) + 34, key + 8)))
    every = max(1, math.ceil(11 / side))  # names that would touch are left out
    slanted = max(1, math.ceil(9 / (0.7 * side)))  # of lines at 45 degrees
    for j, name in enumerate(columns):
        if j % slanted == 0:
            at = left + side * (j + 0.5)
            canvas.text(at, head - 6, short(name), "s", f"rotate(-45 {at:.1f} {head - 6:.1f})")
    for i, (name, row) in enumerate(zip(rows, values, strict=True)):
        y_at = head + side * i
        if i % every == 0:
            canvas.text(left - 6, y_at + side / 2 + 4, short(name), "e s")
        for j, v in enumerate(row):
            canvas.add(_cell(v, top, left + side * j, y_at, side, f"{name}, {columns[j]}"))
            if side >= 28 and finite(v) and abs(v) < 1000:
                kind = "m t k" if abs(v) > 0.6 * top else "m t"  # legible on a strong colour
                canvas.text(left + side * (j + 0.5), y_at + side / 2 + 4, f"{v:.2f}"[:5], kind)
    if x:
        canvas.text(left + side * len(columns) / 2, head + side * len(rows) + 20, x, "m s")
    if y:
        middle = head + side * len(rows) / 2
        canvas.text(14, middle, y, "m s", f"rotate(-90 14 {middle:.1f})")
    _key(canvas, left + side * len(columns) + 18, head, top, signed)
    return canvas.render()


def _cell(value: Value, top: float, x: float, y: float, side: float, where: str) -> str:
    box = f'x="{x:.1f}" y="{y:.1f}" width="{side - 0.5:.1f}" height="{side - 0.5:.1f}"'
    if not finite(value):
        return f'<rect class="z" {box}/>'
    strength = min(1.0, abs(value) / top)
    kind = "f0" if value >= 0 else "f7"
    tip = f"<title>{escape(where)}: {number(value)}</title>"
    return f'<rect class="{kind}" fill-opacity="{strength:.2f}" {box}>{tip}</rect>'


def _key(canvas: Canvas, x: float, y: float, top: float, signed: bool) -> None:
    steps = 9 if signed else 6
    for i in range(steps):
        value = top * (1 - i / (4 if signed else 5))
        canvas.add(_cell(value, top, x, y + 14 * i, 14, "key"))
        if i in (0, steps - 1) or (signed and i == 4):
            canvas.text(x + 20, y + 14 * i + 11, number(value), "s")
