"""Comparing recipes over seeds: paired differences, and whether a claim holds.

A difference is taken within one seed, so what a seed does to both sides cancels. A verdict needs
the whole interval on one side of the claimed margin; a table and a picture are in `page.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from fullrank.config import require
from fullrank.errors import EmptyInputError, IncomparableError, UnknownNameError, nearest
from fullrank.evaluate.interval import (
    MOST_FLIPPED,
    Interval,
    paired_t_test,
    require_level,
    sign_flip_test,
    student_interval,
)
from fullrank.evaluate.results import RunResult

Verdict = Literal["holds", "does not hold", "undecided"]
BETTER_HIGHER = ("auc", "gauc", "gauc_mean")
BETTER_LOWER = ("logloss", "ne", "ece", "ece_mass")


@dataclass(frozen=True)
class Difference:
    """How much better a recipe is than the baseline, seed by seed.

    Args:
        recipe: the one that should be better.
        baseline: the one it is measured against.
        seeds: those that both have run.
        gains: per seed, positive where the recipe is better, whatever the metric's direction.
        margin: the gain that was claimed; the verdict asks for more than it.
        interval: Student's, of the mean gain; None with a single seed.
        flip: p-value of the exact sign-flip test of "no gain"; None with more than 20 seeds.
        t: p-value of the paired t-test of "no gain"; None with a single seed.
    """

    recipe: str
    baseline: str
    seeds: tuple[int, ...]
    gains: tuple[float, ...]
    margin: float
    interval: Interval | None
    flip: float | None
    t: float | None

    @property
    def gain(self) -> float:
        """The mean gain."""
        return fmean(self.gains)

    @property
    def verdict(self) -> Verdict:
        """Whether the recipe is better than the baseline by more than the margin."""
        if self.interval is None:
            return "undecided"
        if self.interval.low > self.margin:
            return "holds"
        return "does not hold" if self.interval.high <= self.margin else "undecided"


@dataclass(frozen=True)
class Comparison:
    """Recipes over seeds, and their differences from one of them.

    Args:
        metric: the one that decides.
        higher_is_better: its direction.
        level: confidence of one interval of a value, and of all intervals of differences together.
        runs: recipe -> its results in order of seed; recipes in order of first appearance.
        differences: one per recipe that is not the baseline; none without a baseline.
    """

    metric: str
    higher_is_better: bool
    level: float
    runs: dict[str, tuple[RunResult, ...]]
    differences: tuple[Difference, ...]

    def value(self, recipe: str, metric: str) -> Interval | None:
        """Returns the mean of a metric over a recipe's seeds, or None where no run has it.

        The interval is Student's; with a single seed both ends are the value itself.
        """
        values = [run.metrics[metric] for run in self.runs[recipe] if metric in run.metrics]
        if len(values) > 1:
            return student_interval(values, self.level)
        return Interval(values[0], values[0], values[0], self.level, 1) if values else None

    def difference(self, recipe: str) -> Difference | None:
        """Returns how a recipe differs from the baseline; None for the baseline itself."""
        return next((d for d in self.differences if d.recipe == recipe), None)


def compare(
    results: Iterable[RunResult],
    metric: str,
    *,
    baseline: str | None = None,
    margin: float = 0.0,
    level: float = 0.95,
    higher_is_better: bool | None = None,
) -> Comparison:
    """Compares recipes by one metric, paired by seed.

    With k recipes beside the baseline, each difference gets an interval at 1 - (1 - level) / k,
    so that all of them hold together with confidence `level` (Bonferroni).

    Args:
        results: of finished runs, one per recipe and seed.
        metric: the one that decides, such as "auc" or "click/logloss".
        baseline: the recipe that the others should beat; None makes no differences.
        margin: the gain that is claimed, in the metric's unit; 0 asks for any gain.
        level: confidence in (0, 1).
        higher_is_better: the metric's direction; None looks it up among our own metrics.

    Raises:
        EmptyInputError: there are no results.
        UnknownNameError: the baseline has no results, or the metric's direction is not known.
        IncomparableError: a run lacks the metric, a seed occurs twice or belongs to another
            version of its recipe, or two recipes share no seed.
    """
    require_level(level)
    require(
        margin >= 0.0,
        where="compare.margin",
        found=margin,
        expected="0 or above: the gain that is claimed, whatever the metric's direction",
        fix="drop the sign",
    )
    runs = _by_recipe(results, metric)
    higher = _direction(metric) if higher_is_better is None else higher_is_better
    if baseline is None:
        return Comparison(metric, higher, level, runs, ())
    if baseline not in runs:
        raise UnknownNameError(
            "the baseline has no results",
            where="compare, baseline",
            found=f"'{baseline}'",
            expected="one of: " + ", ".join(runs),
            fix=nearest(baseline, runs),
        )
    others = [recipe for recipe in runs if recipe != baseline]
    each = 1.0 - (1.0 - level) / max(1, len(others))
    sign = 1.0 if higher else -1.0
    values = {
        recipe: {run.seed: sign * run.metrics[metric] for run in of} for recipe, of in runs.items()
    }
    differences = tuple(
        _difference(recipe, baseline, values[recipe], values[baseline], margin, each)
        for recipe in others
    )
    return Comparison(metric, higher, level, runs, differences)


def _difference(
    recipe: str,
    baseline: str,
    mine: dict[int, float],
    theirs: dict[int, float],
    margin: float,
    level: float,
) -> Difference:
    seeds = tuple(sorted(mine.keys() & theirs.keys()))
    if not seeds:
        raise IncomparableError(
            "two recipes share no seed, so their runs cannot be paired",
            where=f"recipes '{recipe}' and '{baseline}'",
            found=f"seeds {sorted(mine)} and {sorted(theirs)}",
            expected="the same seeds for both",
            fix="run the missing seeds",
        )
    gains = tuple(mine[seed] - theirs[seed] for seed in seeds)
    several = len(gains) > 1
    return Difference(
        recipe,
        baseline,
        seeds,
        gains,
        margin,
        interval=student_interval(gains, level) if several else None,
        flip=sign_flip_test(gains) if len(gains) <= MOST_FLIPPED else None,
        t=paired_t_test(gains) if several else None,
    )


def _by_recipe(results: Iterable[RunResult], metric: str) -> dict[str, tuple[RunResult, ...]]:
    runs: dict[str, list[RunResult]] = {}
    for result in results:
        where = f"recipe '{result.recipe}', seed {result.seed}"
        if metric not in result.metrics:
            raise IncomparableError(
                "a run has no value of the metric that decides",
                where=where,
                found="metrics " + (", ".join(sorted(result.metrics)) or "(none)"),
                expected=f"'{metric}' among them",
                fix=nearest(metric, result.metrics),
            )
        earlier = runs.setdefault(result.recipe, [])
        if any(run.seed == result.seed for run in earlier):
            raise IncomparableError(
                "a recipe has two results of one seed",
                where=where,
                found="two results",
                expected="one per seed",
                fix="remove one of them",
            )
        if earlier and earlier[0].fingerprint != result.fingerprint:
            raise IncomparableError(
                "runs of one recipe were made by different versions of it or its data",
                where=where,
                found=f"fingerprint '{result.fingerprint}'",
                expected=f"'{earlier[0].fingerprint}', as of seed {earlier[0].seed}",
                fix="delete the older results and run those seeds again",
            )
        earlier.append(result)
    if not runs:
        raise EmptyInputError(
            "a comparison was asked of no results",
            where="compare",
            found="0 results",
            expected="one per recipe and seed",
            fix="run the recipes first",
        )
    return {name: tuple(sorted(of, key=lambda run: run.seed)) for name, of in runs.items()}


def _direction(metric: str) -> bool:
    """Returns whether higher is better."""
    name = metric.rsplit("/", 1)[-1]  # without the label
    if name in BETTER_HIGHER or name in BETTER_LOWER:
        return name in BETTER_HIGHER
    raise UnknownNameError(
        "a comparison needs to know in which direction a metric is better",
        where="compare, metric",
        found=f"'{metric}'",
        expected="one of: " + ", ".join(BETTER_HIGHER + BETTER_LOWER),
        fix="name one of these, or pass higher_is_better",
    )
