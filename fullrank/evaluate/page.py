"""A comparison as a page: what is decided in words, tables, pictures, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fullrank.chart import Panel, Reached, frontier_chart, interval_chart
from fullrank.config import require
from fullrank.disk import write_text
from fullrank.evaluate.compare import Comparison, Difference, Gain, frontier, is_better_higher
from fullrank.evaluate.tables import (
    code,
    costs,
    gain_cell,
    gain_notes,
    gains_grid,
    joined,
    listed,
    main_grid,
    notes,
    number_cell,
    other_grid,
    plus_minus,
)


def write_comparison(
    comparison: Comparison,
    folder: Path,
    name: str,
    command: str,
    *,
    inside: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Path]:
    """Writes NAME.svg, NAME_frontier.svg, NAME.json and NAME.md into a folder, each in one piece.

    Args:
        comparison: what is shown.
        folder: such as docs/results; made where it does not exist.
        name: of all files, without a folder or an ending.
        command: what to type to make them again; the page states it.
        inside: recipe -> what else was measured of it, for NAME.json alone.

    Returns:
        The paths of `table`, `picture` and `data`, and of `frontier` where costs are known.

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
    paths = {"table": folder / f"{name}.md", "picture": folder / f"{name}.svg"}
    paths["data"] = folder / f"{name}.json"
    write_text(paths["picture"], svg(comparison) + "\n")  # first, so that no page lacks its picture
    pareto = frontier_svg(comparison)
    if pareto:
        paths["frontier"] = folder / f"{name}_frontier.svg"
        write_text(paths["frontier"], pareto + "\n")
    data = {"name": name, "command": command, **as_data(comparison), "inside": inside or {}}
    write_text(paths["data"], json.dumps(data, indent=1, allow_nan=False) + "\n")
    write_text(paths["table"], markdown(comparison, name, command))
    return paths


def markdown(comparison: Comparison, name: str, command: str) -> str:
    """Returns the page as Markdown; it expects the pictures beside it."""
    parts = [
        f"# {name}",
        f"Made by `{command}`.",
        " ".join(answer(comparison)),
        f"![{_caption(comparison)}]({name}.svg)",
        main_grid(comparison).markdown(),
        listed(notes(comparison)),
    ]
    if comparison.gains:
        parts.append("## Gains")
        tested = gains_grid(comparison)
        parts += [tested.markdown()] if tested.rows else []
        parts.append(listed(gain_notes(comparison)))
    if frontier_svg(comparison):
        parts += ["## What it costs", f"![{FRONTIER}]({name}_frontier.svg)", FRONTIER_NOTE]
    others = other_grid(comparison)
    if len(others.heading) > 1:
        parts += [
            "## Other metrics",
            "Mean ± standard deviation over seeds.",
            others.markdown(),
        ]
    return "\n\n".join(parts) + "\n"


def answer(comparison: Comparison) -> list[str]:
    """Returns the outcome in sentences: who leads, who might, who does not, and which gains hold.

    Names of recipes stand between backticks.
    """
    metric, (best, leads) = comparison.metric, comparison.lead()
    reached = f"`{metric}` {plus_minus(comparison.value(best, metric))}"
    rivals = [d for d in leads if d.verdict != "holds"]
    said = []
    if not leads:
        said.append(f"{code(best)} reaches {reached}.")
    elif not rivals:
        closest = code(leads[0].baseline)
        said.append(
            f"{code(best)} leads: {reached}, {gain_cell(leads[0])} over {closest}, the next."
        )
    else:
        over = f"{code(rivals[0].baseline)}, the next, {gain_cell(rivals[0])}, may be chance"
        rest = [code(d.baseline) for d in rivals[1:]]
        over += f"; so may those over {joined(rest)}" if rest else ""
        said.append(
            f"Undecided: {code(best)} has the best mean, {reached}, but its lead over {over}."
        )
        said += _cheapest(comparison, [best, *(d.baseline for d in rivals)])
    beaten = [code(d.baseline) for d in leads if d.verdict == "holds"]
    if rivals and beaten:
        said.append(f"Behind with {100 * comparison.level:g} % confidence: {joined(beaten)}.")
    for verdict, words in _GAINS.items():
        found = [_in_words(g, metric) for g in comparison.gains if _verdict(g) == verdict]
        said += [f"{words}: {joined(found)}."] if found else []
    return said


_GAINS = {
    "holds": "Gains that hold",
    "does not hold": "Gains that do not hold",
    "undecided": "Gains still undecided",
}


def _verdict(gain: Gain) -> str:
    return gain.difference.verdict if gain.difference else ""


def _in_words(gain: Gain, metric: str) -> str:
    where = "" if gain.promise.metric == metric else f" in `{gain.promise.metric}`"
    return f"{code(gain.promise.recipe)} over {code(gain.promise.over)}{where}"


def _cheapest(comparison: Comparison, names: Sequence[str]) -> list[str]:
    """Returns what to prefer among recipes that quality does not tell apart."""
    words = {"parameters": "the fewest parameters ({})", "ms per step": "the shortest step ({} ms)"}
    found: dict[str, list[str]] = {}
    for cost, of in costs(comparison).items():
        known = [n for n in names if n in of]
        if len(known) > 1:
            least = min(known, key=lambda n: of[n])
            found.setdefault(least, []).append(words[cost].format(number_cell(of[least])))
    has = joined([f"{code(name)} has {' and '.join(what)}" for name, what in found.items()])
    return [f"Of these, {has}."] if has else []


def svg(comparison: Comparison) -> str:
    """Returns dots with intervals: of the differences, or of the values without a baseline."""
    names = short_names(comparison.runs)
    rows = [
        (names[d.recipe], d.gain, d.interval.low, d.interval.high)
        if d.interval
        else (names[d.recipe], d.gain, d.gain, d.gain)
        for d in comparison.differences
    ]
    if rows:
        first = comparison.differences[0]
        axis = f"gain in {comparison.metric} over {first.baseline}; claimed: right of the line"
        return interval_chart(rows, title=_caption(comparison), x=axis, reference=first.margin)
    for recipe in comparison.runs:
        value = comparison.value(recipe, comparison.metric)
        if value is not None:
            rows.append((names[recipe], value.value, value.low, value.high))
    return interval_chart(rows, title=_caption(comparison), x=comparison.metric)


FRONTIER = "What each recipe reaches against what it costs"
FRONTIER_NOTE = (
    "Means over seeds, with their intervals. Blue: no other recipe is both cheaper and better, by "
    "means; neighbours on the line may still be undecided."
)


def frontier_svg(comparison: Comparison) -> str:
    """Returns AUC and log-loss against parameters and step time; empty where no cost is known."""
    names, panels = short_names(comparison.runs), []
    shown = [m for m in dict.fromkeys((comparison.metric, "auc", "logloss")) if _has(comparison, m)]
    for metric in shown[:2]:
        higher = comparison.higher_is_better
        if metric != comparison.metric:
            higher = is_better_higher(metric)
        values = {r: v for r in comparison.runs if (v := comparison.value(r, metric))}
        means = {r: v.value for r, v in values.items()}
        for cost, of in costs(comparison).items():
            points = [
                Reached(names[r], of[r], v.value, v.low, v.high)
                for r, v in values.items()
                if r in of
            ]
            if points:
                best = [names[r] for r in frontier(of, means, higher_is_better=higher)]
                panels.append(Panel(cost, metric, points, best, higher))
    return frontier_chart(panels, title=FRONTIER) if panels else ""


def short_names(names: Collection[str]) -> dict[str, str]:
    """Returns each name without the words that all begin with, such as the data set's."""
    words = [name.split("_") for name in names]
    while len(words) > 1 and all(len(w) > 1 and w[0] == words[0][0] for w in words):
        words = [w[1:] for w in words]
    return {name: "_".join(w) for name, w in zip(names, words, strict=True)}


def _has(comparison: Comparison, metric: str) -> bool:
    return any(metric in run.metrics for of in comparison.runs.values() for run in of)


def as_data(comparison: Comparison) -> dict[str, Any]:
    """Returns everything that the page says, as plain JSON types."""
    first = comparison.differences[0] if comparison.differences else None
    return {
        "metric": comparison.metric,
        "higher_is_better": comparison.higher_is_better,
        "level": comparison.level,
        "baseline": first.baseline if first else None,
        "answer": [sentence.replace("`", "") for sentence in answer(comparison)],
        "recipes": [_recipe_data(comparison, recipe) for recipe in comparison.runs],
        "differences": [_difference_data(d, comparison.metric) for d in comparison.differences],
        "gains": [_gain_data(comparison, gain) for gain in comparison.gains],
    }


def _recipe_data(comparison: Comparison, recipe: str) -> dict[str, Any]:
    runs = comparison.runs[recipe]
    metrics = {}
    for metric in dict.fromkeys(name for run in runs for name in run.metrics):
        value = comparison.value(recipe, metric)
        assert value is not None
        each = [run.metrics.get(metric) for run in runs]
        metrics[metric] = {
            "mean": value.value, "low": value.low, "high": value.high, "values": each,
        }  # fmt: skip
    cost = costs(comparison)
    return {
        "recipe": recipe,
        "seeds": [run.seed for run in runs],
        "parameters": cost["parameters"].get(recipe),
        "step_ms": cost["ms per step"].get(recipe),
        "metrics": metrics,
        "paper": runs[0].paper,
        "floor": runs[0].floor,
        "popularity": runs[0].popularity,
        "notes": list(dict.fromkeys(note for run in runs for note in run.notes)),
    }


def _difference_data(d: Difference, metric: str) -> dict[str, Any]:
    return {
        "recipe": d.recipe,
        "over": d.baseline,
        "metric": metric,
        "seeds": list(d.seeds),
        "gains": list(d.gains),
        "mean": d.gain,
        "low": d.interval.low if d.interval else None,
        "high": d.interval.high if d.interval else None,
        "level": d.interval.level if d.interval else None,
        "seeds_better": sum(gain > 0 for gain in d.gains),
        "p_sign_flip": d.flip,
        "p_paired_t": d.t,
        "verdict": d.verdict,
    }


def _gain_data(comparison: Comparison, gain: Gain) -> dict[str, Any]:
    promise, parameters = gain.promise, costs(comparison)["parameters"]
    said = {"paper": promise.paper, "source": promise.source, "untested": gain.untested}
    if gain.difference is None:
        named = {"recipe": promise.recipe, "over": promise.over, "metric": promise.metric}
        return named | said
    sides = [parameters.get(promise.recipe), parameters.get(promise.over)]
    return _difference_data(gain.difference, promise.metric) | {"parameters": sides} | said


def _caption(comparison: Comparison) -> str:
    if comparison.differences:
        return f"Gain in {comparison.metric} over {comparison.differences[0].baseline}, by seed"
    return f"{comparison.metric}, mean and interval over seeds"
