"""Comparing recipes over seeds: paired differences, and whether a claim holds.

A difference is taken within one seed, so what a seed does to both sides cancels. A verdict needs
the whole interval on one side of the claimed margin; tables and pictures are in `page.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


@dataclass(frozen=True, kw_only=True)
class Promise:
    """An advantage that one recipe should have over another.

    Args:
        recipe: the one that should be better.
        over: the one it is measured against: a baseline, or a control of as many parameters.
        metric: in which the advantage shows; one whose direction is known.
        paper: the published gain, positive where the recipe is better; None where there is none.
        source: where that stands.

    Raises:
        UnknownNameError: the direction of the metric is not known.
    """

    recipe: str
    over: str
    metric: str = "auc"
    paper: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        is_better_higher(self.metric)


@dataclass(frozen=True)
class Gain:
    """A promise put to the test.

    Args:
        promise: what should be.
        difference: what is; None where it was not measured.
        untested: why it was not measured, else empty.
    """

    promise: Promise
    difference: Difference | None
    untested: str = ""


@dataclass(frozen=True)
class Comparison:
    """Recipes over seeds, and their differences from one of them.

    Args:
        metric: the one that decides.
        higher_is_better: its direction.
        level: confidence of one interval of a value, and of all intervals of differences together.
        runs: recipe -> its results in order of seed; recipes in order of first appearance.
        differences: one per recipe that is not the baseline; none without a baseline.
        gains: one per promise; their intervals hold together, apart from those of `differences`.
    """

    metric: str
    higher_is_better: bool
    level: float
    runs: dict[str, tuple[RunResult, ...]]
    differences: tuple[Difference, ...]
    gains: tuple[Gain, ...] = ()

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

    def lead(self) -> tuple[str, tuple[Difference, ...]]:
        """Returns the recipe with the best mean, and by how much it leads each of the others.

        With k recipes, the best one is, with confidence `level`, the leader or one of those over
        which its lead does not hold: each lead has an interval at 1 - (1 - level) / (k - 1), and
        the leader would have to beat the truly best one by chance (multiple comparisons with the
        best, Hsu, 1984, with Bonferroni's bound).

        Returns:
            The leader, and a difference per other recipe, the closest first; recipes that share no
            seed with the leader have none.
        """
        values = {
            recipe: _signed(of, self.metric, self.higher_is_better)
            for recipe, of in self.runs.items()
        }
        best = max(values, key=lambda recipe: fmean(values[recipe].values()))
        others = [r for r in values if r != best and values[r].keys() & values[best].keys()]
        level = _each(self.level, len(values) - 1)
        leads = [_difference(best, r, values[best], values[r], 0.0, level) for r in others]
        return best, tuple(sorted(leads, key=lambda d: d.gain))


def compare(
    results: Iterable[RunResult],
    metric: str,
    *,
    baseline: str | None = None,
    margin: float = 0.0,
    level: float = 0.95,
    higher_is_better: bool | None = None,
    promises: Iterable[Promise] = (),
) -> Comparison:
    """Compares recipes by one metric, paired by seed.

    With k recipes beside the baseline, each difference gets an interval at 1 - (1 - level) / k,
    so that all of them hold together with confidence `level` (Bonferroni). The same is done for the
    promises that can be tested.

    Args:
        results: of finished runs, one per recipe and seed.
        metric: the one that decides, such as "auc" or "click/logloss".
        baseline: the recipe that the others should beat; None makes no differences.
        margin: the gain that is claimed, in the metric's unit; 0 asks for any gain.
        level: confidence in (0, 1).
        higher_is_better: the metric's direction; None looks it up among our own metrics.
        promises: advantages to test, each in its own metric. One that cannot be tested, such as
            over a recipe that is not here, says why.

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
    higher = is_better_higher(metric) if higher_is_better is None else higher_is_better
    gains = _gains(tuple(promises), runs, level)
    if baseline is None:
        return Comparison(metric, higher, level, runs, (), gains)
    if baseline not in runs:
        raise UnknownNameError(
            "the baseline has no results",
            where="compare, baseline",
            found=f"'{baseline}'",
            expected="one of: " + ", ".join(runs),
            fix=nearest(baseline, runs),
        )
    others = [recipe for recipe in runs if recipe != baseline]
    each = _each(level, len(others))
    values = {recipe: _signed(of, metric, higher) for recipe, of in runs.items()}
    differences = tuple(
        _difference(recipe, baseline, values[recipe], values[baseline], margin, each)
        for recipe in others
    )
    return Comparison(metric, higher, level, runs, differences, gains)


def frontier(
    costs: Mapping[str, float], values: Mapping[str, float], *, higher_is_better: bool
) -> tuple[str, ...]:
    """Returns the names that no other one beats in cost and in value, the cheapest first (Pareto).

    Of several with equal cost and value, the first one stands for all.

    Args:
        costs: name -> such as parameters; lower is better. Names without a value are left out.
        values: name -> such as AUC.
        higher_is_better: direction of the values.
    """
    sign = 1.0 if higher_is_better else -1.0
    best, found = float("-inf"), []
    known = [name for name in costs if name in values]
    for name in sorted(known, key=lambda n: (costs[n], -sign * values[n])):
        if sign * values[name] > best:
            best = sign * values[name]
            found.append(name)
    return tuple(found)


def _each(level: float, count: int) -> float:
    """Returns the confidence of each of several intervals that hold together (Bonferroni)."""
    return 1.0 - (1.0 - level) / max(1, count)


def _signed(
    runs: tuple[RunResult, ...], metric: str, higher: bool | None = None
) -> dict[int, float]:
    """Returns seed -> value, turned so that higher is better."""
    sign = 1.0 if (is_better_higher(metric) if higher is None else higher) else -1.0
    return {run.seed: sign * run.metrics[metric] for run in runs if metric in run.metrics}


def _gains(
    promises: tuple[Promise, ...], runs: dict[str, tuple[RunResult, ...]], level: float
) -> tuple[Gain, ...]:
    reasons = {promise: _untested(promise, runs) for promise in promises}
    each = _each(level, sum(not reason for reason in reasons.values()))
    gains = []
    for promise, reason in reasons.items():
        difference = None
        if not reason:
            mine, theirs = _both(promise, runs)
            difference = _difference(promise.recipe, promise.over, mine, theirs, 0.0, each)
        gains.append(Gain(promise, difference, reason))
    return tuple(gains)


def _both(
    promise: Promise, runs: dict[str, tuple[RunResult, ...]]
) -> tuple[dict[int, float], dict[int, float]]:
    mine, theirs = (runs.get(name, ()) for name in (promise.recipe, promise.over))
    return _signed(mine, promise.metric), _signed(theirs, promise.metric)


def _untested(promise: Promise, runs: dict[str, tuple[RunResult, ...]]) -> str:
    absent = [name for name in (promise.recipe, promise.over) if name not in runs]
    if absent:
        verb = "is" if len(absent) == 1 else "are"
        return f"{' and '.join(absent)} {verb} not among the compared recipes"
    mine, theirs = _both(promise, runs)
    return "" if mine.keys() & theirs.keys() else f"no seed of both has {promise.metric}"


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


def is_better_higher(metric: str) -> bool:
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
