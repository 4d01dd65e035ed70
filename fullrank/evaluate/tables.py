"""Tables of a comparison as text, and the notes that say how to read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median, stdev

from fullrank.evaluate.compare import Comparison, Difference
from fullrank.evaluate.interval import Interval
from fullrank.evaluate.popularity import popularity_line
from fullrank.evaluate.results import RunResult

NONE = "-"
TESTS = {"p, sign flip": "flip", "p, paired t": "t"}  # heading -> attribute of a Difference
_Columns = dict[str, Callable[[str], str]]  # heading -> the cell of a recipe
_Fact = Callable[[RunResult], float | None]
_FACTS: dict[str, _Fact] = {
    "parameters": lambda run: run.parameters,
    "ms per step": lambda run: None if run.step_seconds is None else 1e3 * run.step_seconds,
}


@dataclass(frozen=True)
class Grid:
    """A table as text.

    Args:
        heading: of each column.
        rows: as many cells each.
        names: how many of the first columns hold names of recipes.
    """

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1

    def without(self, *headings: str) -> Grid:
        """Returns the table without some of its columns."""
        kept = [i for i, name in enumerate(self.heading) if name not in headings]
        rows = [[row[i] for i in kept] for row in self.rows]
        return Grid([self.heading[i] for i in kept], rows, self.names)

    def markdown(self) -> str:
        """Returns the table as Markdown."""
        numbers = len(self.heading) - self.names
        lines = [list(self.heading), [*["---"] * self.names, *["---:"] * numbers]]
        for row in self.rows:
            lines.append([*(code(cell) for cell in row[: self.names]), *row[self.names :]])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def costs(comparison: Comparison) -> dict[str, dict[str, float]]:
    """Returns kind of cost -> recipe -> its median over seeds; costs of zero cannot be drawn."""
    found: dict[str, dict[str, float]] = {}
    for cost in ("parameters", "ms per step"):
        of = {r: _middle(_FACTS[cost], comparison.runs[r]) for r in comparison.runs}
        found[cost] = {r: value for r, value in of.items() if value}
    return found


def main_grid(comparison: Comparison) -> Grid:
    """Returns a row per recipe, with the columns that have something to show."""
    metric, runs = comparison.metric, comparison.runs

    def seeds(recipe: str) -> str:
        return str(len(runs[recipe]))

    def value(recipe: str) -> str:
        return plus_minus(comparison.value(recipe, metric))

    columns: _Columns = {"recipe": str, "seeds": seeds, metric: value}
    facts: dict[str, _Fact] = {
        "floor": lambda run: run.floor.get(metric),
        "popularity alone": lambda run: run.popularity.get(metric),
        "paper": lambda run: run.paper.get(metric),
        **_FACTS,
    }
    for heading, fact in facts.items():
        if any(fact(run) is not None for of in runs.values() for run in of):
            columns[heading] = partial(_middle_cell, fact, runs)
    if comparison.differences:
        columns["difference"] = lambda recipe: gain_cell(comparison.difference(recipe))
        for heading, test in TESTS.items():
            columns[heading] = partial(_p, comparison, test)
        columns["verdict"] = lambda recipe: _verdict(comparison.difference(recipe))
    return _grid(columns, runs)


def other_grid(comparison: Comparison) -> Grid:
    """Returns a row per recipe, with a column for each metric that does not decide."""
    runs = comparison.runs
    names = {name for of in runs.values() for run in of for name in run.metrics}
    columns: _Columns = {"recipe": str}
    for name in sorted(names - {comparison.metric}):

        def cell(recipe: str, name: str = name) -> str:
            values = [run.metrics[name] for run in runs[recipe] if name in run.metrics]
            if not values:
                return NONE
            spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
            return f"{fmean(values):.4f}{spread}"

        columns[name] = cell
    return _grid(columns, runs)


def gains_grid(comparison: Comparison) -> Grid:
    """Returns a row per gain that was tested."""
    tested = [(g.promise, g.difference) for g in comparison.gains if g.difference]
    sizes = costs(comparison)["parameters"]
    rows = []
    for promise, d in tested:
        both = [number_cell(sizes[n]) if n in sizes else NONE for n in (d.recipe, d.baseline)]
        better = f"{sum(gain > 0 for gain in d.gains)}/{len(d.gains)}"
        paper = NONE if promise.paper is None else f"{promise.paper:+.5f}"
        row = [d.recipe, d.baseline, promise.metric, " / ".join(both), gain_cell(d), better]
        rows.append([*row, paper, d.verdict])
    heading = ("recipe", "over", "metric", "parameters of both", "gain", "seeds better")
    return Grid((*heading, "paper's gain", "verdict"), rows, names=2)


def gain_notes(comparison: Comparison) -> list[str]:
    """Returns how to read the table of gains, and which could not be tested."""
    tested = [g for g in comparison.gains if g.difference]
    said = []
    if tested:
        said.append(
            "Gain: within each seed, positive is better whatever the metric; intervals hold "
            f"together with {100 * comparison.level:g} % confidence (Bonferroni over "
            f"{len(tested)}). It holds when the whole interval lies above zero, does not hold when "
            "none of it does, else it is undecided."
        )
    said += [
        f"{code(g.promise.recipe)} over {code(g.promise.over)}: published in {g.promise.source}."
        for g in tested
        if g.promise.source
    ]
    return said + untested(comparison)


def untested(comparison: Comparison) -> list[str]:
    """Returns which gains could not be tested, and why."""
    return [
        f"{code(g.promise.recipe)} over {code(g.promise.over)}: not tested, {g.untested}."
        for g in comparison.gains
        if g.untested
    ]


def notes(comparison: Comparison) -> list[str]:
    """Returns how to read the table of recipes."""
    direction = "higher" if comparison.higher_is_better else "lower"
    per_cent = f"{100 * comparison.level:g} %"
    said = [
        f"`{comparison.metric}`: {direction} is better; mean over seeds ± half of its {per_cent} "
        "interval (Student)."
    ]
    if len(comparison.runs) > 1:
        said.append(
            "The leader has the best mean. Its leads hold together with "
            f"{per_cent} confidence (Bonferroni over {len(comparison.runs) - 1}), so that the best "
            "recipe is the leader or one over which its lead may be chance."
        )
    runs = [run for recipe in comparison.runs.values() for run in recipe]
    if any(run.step_seconds is not None for run in runs):
        said.append(
            "ms per step: forward, backward and update on one batch, CPU time of one thread; models"
            " take turns."
        )
    said += dict.fromkeys(f"Data: {note}." for run in runs for note in run.notes)
    said += dict.fromkeys(
        f"{line[0].upper()}{line[1:]}, of scores log(1 + positive training rows of the item)."
        for run in runs
        if (line := popularity_line(run.popularity))
    )
    if comparison.differences:
        first = comparison.differences[0]
        said.append(
            f"Difference: gain over {code(first.baseline)} within each seed, positive is better; "
            f"intervals hold together with {per_cent} confidence (Bonferroni over "
            f"{len(comparison.differences)})."
        )
        said.append(
            f"Verdict: the claim is a gain above {first.margin:g}. It holds when the whole "
            "interval lies above, does not hold when none of it does, else it is undecided."
        )
        for d in comparison.differences:
            unpaired = {
                run.seed for name in (d.recipe, d.baseline) for run in comparison.runs[name]
            } - set(d.seeds)
            if unpaired:
                said.append(
                    f"{code(d.recipe)}: seeds {', '.join(map(str, sorted(unpaired)))} are left "
                    "out of the difference, because one side has not run them."
                )
    return said


def _grid(columns: _Columns, recipes: Iterable[str]) -> Grid:
    return Grid(list(columns), [[cell(r) for cell in columns.values()] for r in recipes])


def listed(sentences: Iterable[str]) -> str:
    """Returns a Markdown list."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


def joined(words: Sequence[str]) -> str:
    """Returns words as a phrase, with "and" before the last."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def code(name: str) -> str:
    """Returns a name as Markdown code that no table is broken by."""
    return "`" + name.replace("|", "\\|").replace("`", "'") + "`"


def plus_minus(value: Interval | None) -> str:
    """Returns a mean and half of its interval."""
    if value is None:
        return NONE
    reach = f" ± {value.high - value.value:.4f}" if value.samples > 1 else ""
    return f"{value.value:.4f}{reach}"


def _middle(fact: _Fact, runs: Iterable[RunResult]) -> float | None:
    """Returns the median over seeds of what is known of a recipe."""
    values = [value for run in runs if (value := fact(run)) is not None]
    return median(values) if values else None


def _middle_cell(fact: _Fact, runs: Mapping[str, tuple[RunResult, ...]], recipe: str) -> str:
    value = _middle(fact, runs[recipe])
    return NONE if value is None else number_cell(value)


def number_cell(value: float) -> str:
    """Returns a cost."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def gain_cell(difference: Difference | None) -> str:
    """Returns a mean gain and its interval."""
    if difference is None:
        return NONE
    if difference.interval is None:
        return f"{difference.gain:+.5f}"
    return (
        f"{difference.gain:+.5f} [{difference.interval.low:+.5f}, {difference.interval.high:+.5f}]"
    )


def _p(comparison: Comparison, test: str, recipe: str) -> str:
    difference = comparison.difference(recipe)
    value = None if difference is None else getattr(difference, test)
    return NONE if value is None else f"{value:.3g}"


def _verdict(difference: Difference | None) -> str:
    return "baseline" if difference is None else difference.verdict
