"""A comparison as a page: a Markdown table and one self-contained picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import fmean, median, stdev

from fullrank.chart import interval_chart
from fullrank.config import require
from fullrank.disk import write_text
from fullrank.evaluate.compare import Comparison, Difference
from fullrank.evaluate.interval import Interval
from fullrank.evaluate.results import RunResult

NONE = "-"
_Columns = dict[str, Callable[[str], str]]  # heading -> the cell of a recipe


def write_comparison(
    comparison: Comparison, folder: Path, name: str, command: str
) -> tuple[Path, Path]:
    """Writes NAME.svg and NAME.md into a folder, each in one piece.

    Args:
        comparison: what is shown.
        folder: such as docs/results; made where it does not exist.
        name: of both files, without a folder or an ending.
        command: what to type to make them again; the page states it.

    Returns:
        The paths of the table and of the picture.

    Raises:
        ConfigError: the name holds a folder.
        DiskFullError: there is no room; older files stay as they were.
    """
    require(
        bool(name) and Path(name).name == name,
        where="write_comparison, name",
        found=name,
        expected="a file name without folder or ending",
        fix="put the folder into `folder`",
    )
    picture, table = folder / f"{name}.svg", folder / f"{name}.md"
    write_text(picture, svg(comparison) + "\n")  # first, so that no page lacks its picture
    write_text(table, markdown(comparison, name, command))
    return table, picture


def markdown(comparison: Comparison, name: str, command: str) -> str:
    """Returns the page as Markdown; it expects the picture beside it as NAME.svg."""
    parts = [
        f"# {name}",
        f"Made by `{command}`.",
        f"![{_caption(comparison)}]({name}.svg)",
        _table(_main_columns(comparison), comparison.runs),
        _notes(comparison),
    ]
    if others := _other_columns(comparison):
        parts += [
            "Other metrics, mean ± standard deviation over seeds:",
            _table(others, comparison.runs),
        ]
    return "\n\n".join(parts) + "\n"


def svg(comparison: Comparison) -> str:
    """Returns dots with intervals: of the differences, or of the values without a baseline."""
    rows = [
        (d.recipe, d.gain, d.interval.low, d.interval.high)
        if d.interval
        else (d.recipe, d.gain, d.gain, d.gain)
        for d in comparison.differences
    ]
    if rows:
        first = comparison.differences[0]
        axis = f"gain in {comparison.metric} over {first.baseline}; claimed: right of the line"
        return interval_chart(rows, title=_caption(comparison), x=axis, reference=first.margin)
    for recipe in comparison.runs:
        value = comparison.value(recipe, comparison.metric)
        if value is not None:
            rows.append((recipe, value.value, value.low, value.high))
    return interval_chart(rows, title=_caption(comparison), x=comparison.metric)


def _caption(comparison: Comparison) -> str:
    if comparison.differences:
        return f"Gain in {comparison.metric} over {comparison.differences[0].baseline}, by seed"
    return f"{comparison.metric}, mean and interval over seeds"


def _main_columns(comparison: Comparison) -> _Columns:
    """Returns the columns that have something to show."""
    metric, runs = comparison.metric, comparison.runs

    def seeds(recipe: str) -> str:
        return str(len(runs[recipe]))

    def value(recipe: str) -> str:
        return _plus_minus(comparison.value(recipe, metric))

    columns: _Columns = {"recipe": _code, "seeds": seeds, metric: value}
    facts: dict[str, Callable[[RunResult], float | None]] = {
        "floor": lambda run: run.floor.get(metric),
        "paper": lambda run: run.paper.get(metric),
        "parameters": lambda run: run.parameters,
        "ms per step": lambda run: None if run.step_seconds is None else 1e3 * run.step_seconds,
    }
    for heading, fact in facts.items():
        if any(fact(run) is not None for of in runs.values() for run in of):
            columns[heading] = partial(_middle, fact, runs)
    if comparison.differences:
        columns["difference"] = lambda recipe: _gain(comparison.difference(recipe))
        columns["p, sign flip"] = lambda recipe: _p(comparison.difference(recipe), "flip")
        columns["p, paired t"] = lambda recipe: _p(comparison.difference(recipe), "t")
        columns["verdict"] = lambda recipe: _verdict(comparison.difference(recipe))
    return columns


def _other_columns(comparison: Comparison) -> _Columns:
    """Returns a column for each metric that does not decide; empty when there is none."""
    runs = comparison.runs
    names = {name for of in runs.values() for run in of for name in run.metrics}
    columns: _Columns = {}
    for name in sorted(names - {comparison.metric}):

        def cell(recipe: str, name: str = name) -> str:
            values = [run.metrics[name] for run in runs[recipe] if name in run.metrics]
            if not values:
                return NONE
            spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
            return f"{fmean(values):.4f}{spread}"

        columns[name] = cell
    return {"recipe": _code, **columns} if columns else {}


def _notes(comparison: Comparison) -> str:
    """Returns how to read the table."""
    direction = "higher" if comparison.higher_is_better else "lower"
    per_cent = f"{100 * comparison.level:g} %"
    notes = [
        f"`{comparison.metric}`: {direction} is better; mean over seeds ± half of its {per_cent} "
        "interval (Student)."
    ]
    runs = [run for recipe in comparison.runs.values() for run in recipe]
    if any(run.step_seconds is not None for run in runs):
        notes.append(
            "ms per step: wall time with validation and saving, while other cores had runs too."
        )
    notes += dict.fromkeys(f"Data: {note}." for run in runs for note in run.notes)
    if comparison.differences:
        first = comparison.differences[0]
        notes.append(
            f"Difference: gain over {_code(first.baseline)} within each seed, positive is better; "
            f"intervals hold together with {per_cent} confidence (Bonferroni over "
            f"{len(comparison.differences)})."
        )
        notes.append(
            f"Verdict: the claim is a gain above {first.margin:g}. It holds when the whole "
            "interval lies above, does not hold when none of it does, else it is undecided."
        )
        for d in comparison.differences:
            unpaired = {
                run.seed for name in (d.recipe, d.baseline) for run in comparison.runs[name]
            } - set(d.seeds)
            if unpaired:
                notes.append(
                    f"{_code(d.recipe)}: seeds {', '.join(map(str, sorted(unpaired)))} are left "
                    "out of the difference, because one side has not run them."
                )
    return "\n".join(f"- {note}" for note in notes)


def _table(columns: _Columns, recipes: Iterable[str]) -> str:
    lines = [list(columns), ["---", *["---:"] * (len(columns) - 1)]]
    lines += [[cell(recipe) for cell in columns.values()] for recipe in recipes]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _code(name: str) -> str:
    return "`" + name.replace("|", "\\|").replace("`", "'") + "`"


def _plus_minus(value: Interval | None) -> str:
    if value is None:
        return NONE
    reach = f" ± {value.high - value.value:.4f}" if value.samples > 1 else ""
    return f"{value.value:.4f}{reach}"


def _middle(
    fact: Callable[[RunResult], float | None],
    runs: dict[str, tuple[RunResult, ...]],
    recipe: str,
) -> str:
    """Returns the median over seeds of what is known of a recipe."""
    values = [value for run in runs[recipe] if (value := fact(run)) is not None]
    if not values:
        return NONE
    middle = median(values)
    return f"{middle:,.0f}" if middle >= 1000 else f"{middle:.4g}"


def _gain(difference: Difference | None) -> str:
    if difference is None:
        return NONE
    if difference.interval is None:
        return f"{difference.gain:+.5f}"
    return (
        f"{difference.gain:+.5f} [{difference.interval.low:+.5f}, {difference.interval.high:+.5f}]"
    )


def _p(difference: Difference | None, test: str) -> str:
    value = None if difference is None else getattr(difference, test)
    return NONE if value is None else f"{value:.3g}"


def _verdict(difference: Difference | None) -> str:
    return "baseline" if difference is None else difference.verdict
