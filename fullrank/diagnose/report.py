"""Report: one self-contained HTML page from the findings of one or several runs.

The page needs no network and no script. Every figure states which matrix it shows, whether it was
centred, and its shape; models are only drawn into one figure where these agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fullrank.diagnose.figures import Figure, Section, Shown, sections
from fullrank.diagnose.records import Findings
from fullrank.diagnose.sequence_figures import sequences_apart, sequences_together
from fullrank.diagnose.side_by_side import INSIDE, side_by_side
from fullrank.diagnose.verdict import Verdict, judge, stage_ranks
from fullrank.disk import write_text
from fullrank.errors import EmptyInputError

MOST_OPEN = 4  # models beyond which what belongs to single ones is folded


@dataclass(frozen=True, kw_only=True)
class RunFindings:
    """One model in a report.

    Args:
        name: as the reader knows it.
        findings: of one checkpoint, or of several; the newest is shown, all are drawn over time.
        metrics: such as auc, logloss, parameters, step_ms: columns of the table. None is a dash.
    """

    name: str
    findings: Findings
    metrics: Mapping[str, float | int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        heading: above it; "" continues what stands before.
        columns: of the table.
        rows: as many cells each; a first cell names the row.
        notes: how to read it.
    """

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a page says before it looks inside the models, such as which of them leads.

    Args:
        sentences: the answer, in words.
        tables: with the numbers.
        figures: drawn wide, below the tables.
    """

    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()


def write_report(
    path: Path,
    runs: Sequence[RunFindings],
    *,
    title: str = "Collapse report",
    subtitle: str = "",
    opening: Opening | None = None,
    closing: Sequence[Section] = (),
) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: of the HTML file.
        runs: the models, best first.
        title: heading of the page.
        subtitle: data set, split and rows, in one line.
        opening: what comes first; nothing when None.
        closing: what comes last, such as reliability; a section without figures is left out.

    Raises:
        EmptyInputError: there are no runs, or one has no records.
        DiskFullError: there is no room.
    """
    page = render_report(runs, title=title, subtitle=subtitle, opening=opening, closing=closing)
    write_text(path, page)


def render_report(
    runs: Sequence[RunFindings],
    *,
    title: str,
    subtitle: str = "",
    opening: Opening | None = None,
    closing: Sequence[Section] = (),
) -> str:
    """Returns the page as text; see `write_report`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if not runs or not all(run.findings.records for run in runs):
        raise EmptyInputError(
            "a report has nothing to show",
            where="write_report",
            found=f"{len(runs)} runs, at least one without records" if runs else "no runs",
            expected="one or more runs with records",
            fix="diagnose the model first",
        )
    seen = []
    for run in runs:
        newest = run.findings.latest()
        stages = stage_ranks(newest)
        seen.append(Shown(run.name, newest, run.findings, judge(newest), stages))
    environment = Environment(
        loader=PackageLoader("fullrank.diagnose"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    columns = list(dict.fromkeys(name for run in runs for name in run.metrics))
    rows = [
        [_cell(name, run.metrics.get(name)) for name in columns] + _rank_cells(known)
        for run, known in zip(runs, seen, strict=True)
    ]
    return environment.get_template("report.html").render(
        title=title,
        subtitle=subtitle,
        opening=opening or Opening(),
        headline=headline({run.name: run.verdicts for run in seen}),
        columns=[_COLUMN.get(c, c.replace("_", " ")) for c in columns]
        + ["effective rank at the end"],
        rows=rows,
        runs=seen,
        together=[s for s in (*side_by_side(seen), *sequences_together(seen)) if s.figures],
        sections=[s for s in (*sections(seen), *sequences_apart(seen), *closing) if s.figures],
        folded=len(runs) > MOST_OPEN,
    )


def headline(verdicts: Mapping[str, Sequence[Verdict]]) -> list[tuple[str, str]]:
    """Returns (level, sentence) pairs, the worst first: what a hurried reader must know."""
    order = ("collapse", "warning", "healthy")
    words = {"collapse": "is collapsing", "warning": "is losing rank"}
    out: list[tuple[str, str]] = []
    for level in order[:2]:
        for name, found in verdicts.items():
            if found[0].level == level:
                first = found[0]
                out.append((level, f"{name} {words[level]}: {_lower(first.what)} ({first.where})."))
    fine = [name for name, found in verdicts.items() if found[0].level == "healthy"]
    if fine:
        listed = fine[0] if len(fine) == 1 else f"{', '.join(fine[:-1])} and {fine[-1]}"
        verb = "shows" if len(fine) == 1 else "show"
        out.append(("healthy", f"{listed} {verb} no sign of collapse."))
    return out


def _rank_cells(run: Shown) -> list[str]:
    if not run.stages:
        return ["n/a"]
    last = run.stages[-1]
    return [f"{last.erank:.1f} of {last.bound:.0f}"]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _cell(name: str, value: float | int | None) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "n/a"
    if isinstance(value, int) or name == "parameters":
        return f"{int(value):,}"
    if name in INSIDE:
        return f"{value:.2f}"
    return f"{value:.1f}" if name.endswith(("_ms", "seconds")) else f"{value:.4f}"


_COLUMN = {
    **INSIDE,
    "auc": "AUC",
    "gauc": "GAUC",
    "logloss": "log-loss",
    "ece": "ECE",
    "step_ms": "ms per step, all in",
}
