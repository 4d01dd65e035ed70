"""Panels of lines that share their horizontal axis and one legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fullrank.chart.canvas import Plot, Series, Value, finite, require

PANEL = 500  # units of the view box, so that two panels stand side by side


@dataclass(frozen=True)
class Lines:
    """One panel: a height per model and place.

    Args:
        title: what was measured, with its unit.
        rows: model -> a height per place; a model that is absent, or None, is a gap.
        spread: model -> half the height of a band around its line, per place.
        whole: values that the vertical axis shows in any case, such as zero.
    """

    title: str
    rows: Mapping[str, Sequence[Value]]
    spread: Mapping[str, Sequence[Value]] = field(default_factory=dict)
    whole: Sequence[float] = ()


def panel_chart(panels: Sequence[Lines], *, title: str, x: str, places: Sequence[str]) -> str:
    """Draws panels in two columns; a model has one colour in all of them.

    Args:
        panels: at least one, each with at least one finite value.
        title: of the whole.
        x: label of the horizontal axis.
        places: names of the positions 0, 1, 2, ... on it, the same for all panels.

    Raises:
        EmptyInputError: there is nothing to draw.
    """
    require(bool(panels), title)
    names = list(dict.fromkeys(name for panel in panels for name in panel.rows))
    whole = Plot(title, [Series(n, [], []) for n in names], width=PANEL * min(2, len(panels)))
    plots = [_panel(panel, names, x, places) for panel in panels]
    height = int(whole.top)
    for i in range(0, len(plots), 2):
        row = plots[i : i + 2]
        for j, plot in enumerate(row):
            whole.place(plot, PANEL * j, height)
        height += max(plot.height for plot in row)
    whole.height = height
    return whole.render()


def _panel(panel: Lines, names: Sequence[str], x: str, places: Sequence[str]) -> Plot:
    at = list(range(len(places)))
    plot = Plot(panel.title, [], places, width=PANEL)
    lines = {n: Series(n, at, panel.rows.get(n, [None] * len(at)), marks=True) for n in names}
    ends = [
        Series("", at, [_moved(v, sign, h) for v, h in zip(lines[n].y, half, strict=True)])
        for n, half in panel.spread.items()
        for sign in (-1, 1)
    ]
    ends += [Series("", [0.0] * len(panel.whole), list(panel.whole))]
    plot.scale([*lines.values(), *ends], False, False, None, None, pad=0.35)
    plot.frame(x, "")
    for i, name in enumerate(names):
        if name in panel.spread:
            _band(plot, lines[name], panel.spread[name], i)
    for i, name in enumerate(names):
        plot.line(lines[name], i)
    return plot


def _band(plot: Plot, line: Series, half: Sequence[Value], i: int) -> None:
    """Fills what lies within the spread, piece by piece between gaps."""
    pieces: list[list[tuple[float, float, float]]] = [[]]
    for x, y, h in zip(line.x, line.y, half, strict=True):
        if finite(y) and finite(h):
            pieces[-1].append((plot.x.at(x), plot.y.at(y - h), plot.y.at(y + h)))
        else:
            pieces.append([])
    for piece in (p for p in pieces if p):
        over = "L".join(f"{x:.1f} {high:.1f}" for x, _, high in piece)
        under = "L".join(f"{x:.1f} {low:.1f}" for x, low, _ in reversed(piece))
        plot.add(f'<path class="f{i % 8}" fill-opacity=".13" d="M{over}L{under}Z"/>')


def _moved(value: Value, sign: int, half: Value) -> Value:
    return value + sign * half if finite(value) and finite(half) else value
