"""Charts as inline SVG text: no dependency, no script, readable in light and dark.

Every function returns one `<svg>` element that stands alone as a file or inside a page. Legends lie
above the plot, never over the data. A value of None or NaN is a gap. Give a title that says what
was measured; it is also what a screen reader says.

Example:
    >>> svg = line_chart([Series("dcnv2", [0, 1], [3.0, 2.0])], title="Loss", x="epoch", y="nats")
    >>> svg.startswith("<svg") and "dcnv2" in svg
    True
"""

from __future__ import annotations

from fullrank.chart.canvas import WIDTH, Series
from fullrank.chart.draw import (
    bar_chart,
    density_chart,
    heat_map,
    interval_chart,
    line_chart,
    scatter_chart,
)
from fullrank.chart.frontier import Panel, Reached, frontier_chart
from fullrank.chart.panels import Lines, panel_chart

__all__ = [
    "WIDTH",
    "Lines",
    "Panel",
    "Reached",
    "Series",
    "bar_chart",
    "density_chart",
    "frontier_chart",
    "heat_map",
    "interval_chart",
    "line_chart",
    "panel_chart",
    "scatter_chart",
]
