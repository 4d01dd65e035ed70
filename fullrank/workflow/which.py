"""Which one, and why: a comparison and what was measured inside its models, on one page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fullrank.diagnose.figures import Figure
from fullrank.diagnose.records import Findings
from fullrank.diagnose.report import Opening, RunFindings, Table, write_report
from fullrank.diagnose.side_by_side import INSIDE, inside
from fullrank.evaluate.compare import Comparison
from fullrank.evaluate.page import FRONTIER_NOTE, answer, frontier_svg, short_names
from fullrank.evaluate.tables import NONE, TESTS, Grid, gain_notes, gains_grid, main_grid, notes

_Inside = Mapping[str, Mapping[str, float | None]]  # recipe -> measure -> value
_CAUSE = (
    "Measured on one seed. Ranks are shares of what noise of the same shape has, tables of what "
    "their shape allows; for both, more is better, for correlations less. What moves together with "
    "a gain need not be its cause: a control of as many parameters tells."
)


def inside_all(findings: Mapping[str, Findings]) -> dict[str, dict[str, float | None]]:
    """Returns recipe -> measure -> value, for programs."""
    return {recipe: inside(found) for recipe, found in findings.items()}


def write_which(
    path: Path,
    comparison: Comparison,
    findings: Mapping[str, Findings],
    *,
    name: str,
    command: str,
    about: str,
) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: of the HTML file.
        comparison: of the recipes.
        findings: recipe -> what was measured inside the model of one seed.
        name: of the comparison.
        command: what to type to make it again.
        about: data set, split and rows, in one line.

    Raises:
        DiskFullError: there is no room.
    """
    measured = inside_all(findings)
    names = short_names(comparison.runs)
    runs = [
        RunFindings(name=names[recipe], findings=found, metrics=measured[recipe])
        for recipe, found in findings.items()
    ]
    write_report(
        path,
        runs,
        title=f"{name}: which one, and why",
        subtitle=f"{about}. Made by: {command}",
        opening=_opening(comparison, measured),
    )


def _opening(comparison: Comparison, measured: _Inside) -> Opening:
    tables = [_table("", main_grid(comparison).without(*TESTS), notes(comparison))]
    if comparison.gains:
        tables.append(_table("Gains", gains_grid(comparison), gain_notes(comparison)))
        changes = _changes(comparison, measured)
        if changes.rows:
            tables.append(_table("What changed inside", changes, [_CAUSE]))
    pareto = frontier_svg(comparison)
    return Opening(
        sentences=[_bare(sentence) for sentence in answer(comparison)],
        tables=tables,
        figures=[Figure(pareto, FRONTIER_NOTE)] if pareto else [],
    )


def _table(heading: str, grid: Grid, said: list[str]) -> Table:
    return Table(heading, grid.heading, grid.rows, [_bare(note) for note in said])


def _bare(text: str) -> str:
    """Returns Markdown without the marks of code."""
    return text.replace("\\|", "|").replace("`", "")


def _changes(comparison: Comparison, measured: _Inside) -> Grid:
    """Returns, for each gain that was tested, the measures of both models: from, to."""
    rows = []
    for recipe, over in dict.fromkeys(
        (g.promise.recipe, g.promise.over) for g in comparison.gains if g.difference
    ):
        cells = [_change(measured[over][m], measured[recipe][m]) for m in INSIDE]
        rows.append([f"{recipe} over {over}", *cells])
    return Grid(["gain", *INSIDE.values()], rows)


def _change(before: float | None, after: float | None) -> str:
    words = [NONE if value is None else f"{value:.2f}" for value in (before, after)]
    return " \N{RIGHTWARDS ARROW} ".join(words)
