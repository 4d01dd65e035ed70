"""Frontiers: what models reach against what they cost, with the ones that nothing beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

from fullrank.chart.canvas import RIGHT, Canvas, Plot, Series, finite, number, require, short

PANEL = 500  # units of the view box, so that two panels stand side by side
_HEAD = 30
_AIR = (1 / 1.2, 1.2)  # factors on either side of a cost
_FAR = 3.0  # distances from the best to the median; what is worse than that stands at the edge


@dataclass(frozen=True)
class Reached:
    """What one model costs and reaches.

    Args:
        name: beside its point.
        cost: above zero.
        value: the mean.
        low: lower end of its interval.
        high: upper end.
    """

    name: str
    cost: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """One value against one cost.

    Args:
        x: label of the cost, with its unit; its axis is logarithmic.
        y: label of the value.
        points: one per model.
        best: names of the models on the frontier, the cheapest first.
        higher_is_better: direction of the value.
    """

    x: str
    y: str
    points: Sequence[Reached]
    best: Sequence[str]
    higher_is_better: bool = True


def frontier_chart(panels: Sequence[Panel], *, title: str) -> str:
    """Draws panels in two columns; all names on a frontier are written, others where room is left.

    A model so much worse that it would press the others together stands at the edge, with its value
    beside its name.

    Args:
        panels: at least one, each with at least one finite point of positive cost.
        title: what was measured.

    Raises:
        EmptyInputError: there is nothing to draw.
    """
    require(bool(panels), title)
    plots = [_panel(panel) for panel in panels]
    rows = [plots[i : i + 2] for i in range(0, len(plots), 2)]
    whole = Canvas(title, 0, width=PANEL * max(len(row) for row in rows))
    y = _HEAD
    for row in rows:
        for i, plot in enumerate(row):
            whole.place(plot, i * PANEL, y)
        y += max(plot.height for plot in row)
    whole.height = y
    return whole.render()


def _panel(panel: Panel) -> Plot:
    title = f"{panel.y} against {panel.x}"
    shown = [p for p in panel.points if finite(p.value) and finite(p.cost) and p.cost > 0]
    require(bool(shown), title)
    plot = Plot(title, [], width=PANEL)
    by_name = {p.name: p for p in shown}
    best = [by_name[name] for name in panel.best if name in by_name]
    far = _far(shown, panel.higher_is_better)
    near = [p for p in shown if p not in far]
    ends = [Series("", [p.cost * f for p in shown], [near[0].value] * len(shown)) for f in _AIR]
    ends += [Series("", [p.cost] * 3, [p.low, p.value, p.high]) for p in near]
    plot.scale(ends, True, False, None, None)
    plot.frame(f"{panel.x}, logarithmic", panel.y)
    _steps(plot, best)
    for p in shown:
        _dot(plot, p, "f0" if p in best else "f6", bare=p in far)
    for p in best:
        plot.name(plot.x.at(p.cost), plot.y.at(p.value), short(p.name) + _beyond(p, far))
    for p in shown:
        if p in far and p not in best:
            plot.name(plot.x.at(p.cost), plot.y.at(p.value), short(p.name) + _beyond(p, far))
        elif p not in best:
            plot.label(plot.x.at(p.cost), plot.y.at(p.value), short(p.name))
    return plot


def _far(points: Sequence[Reached], higher_is_better: bool) -> list[Reached]:
    """Returns the points that are far worse than most."""
    sign = 1.0 if higher_is_better else -1.0
    values = [sign * p.value for p in points]
    reach = _FAR * (max(values) - median(values))
    return [p for p in points if reach > 0 and sign * p.value < max(values) - reach]


def _beyond(p: Reached, far: Sequence[Reached]) -> str:
    return f": {number(p.value)}" if p in far else ""


def _steps(plot: Plot, best: Sequence[Reached]) -> None:
    """Draws the most that can be had at a cost; labels keep away from the line."""
    places = [(plot.x.at(p.cost), plot.y.at(p.value)) for p in best]
    if not places:
        return
    right = float(plot.width - RIGHT)
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    for (x, y), (after, up) in zip(places, [*places[1:], (right, places[-1][1])], strict=True):
        path += f"H{after:.1f}V{up:.1f}"
        plot.taken.append((x, y - 1, after, y + 1))
        plot.taken.append((after - 1, min(y, up), after + 1, max(y, up)))
    plot.add(f'<path class="l0" stroke-opacity=".6" d="{path}"/>')


def _dot(plot: Plot, p: Reached, kind: str, *, bare: bool) -> None:
    x, y = plot.x.at(p.cost), plot.y.at(p.value)
    if p.low < p.high and not bare:
        plot.add('<g opacity=".55">')
        plot.whisker(x, p.low, p.high)
        plot.add("</g>")
        plot.taken.append((x - 3, plot.y.at(p.high), x + 3, plot.y.at(p.low)))
    tip = f"{p.name}: {number(p.value)} ({number(p.low)} to {number(p.high)}) at {number(p.cost)}"
    plot.add(
        f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"><title>{escape(tip)}</title>'
        "</circle>"
    )
    plot.taken.append((x - 5, y - 5, x + 5, y + 5))
