from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fullrank.errors import (
    ConfigError,
    EmptyInputError,
    IncomparableError,
    UnknownNameError,
)
from fullrank.evaluate.compare import Promise, compare, frontier
from fullrank.evaluate.results import RunResult


def test_a_small_gain_is_seen_through_the_noise_of_seeds() -> None:
    """Seeds differ by 0.01, the gain is 0.002: only pairing can see it."""
    noise = np.random.default_rng(0).normal(0, 0.01, 6)
    base, gained = 0.8 + noise, 0.802 + noise + np.array([1, -1, 2, -2, 1, -1]) * 1e-4
    found = compare([*_runs("a", base), *_runs("b", gained)], "auc", baseline="a")
    (difference,) = found.differences
    assert difference.verdict == "holds"
    assert difference.gain == pytest.approx(0.002)
    assert difference.flip == 2 / 2**6
    assert difference.t == pytest.approx(stats.ttest_rel(gained, base).pvalue)
    values = [found.value(recipe, "auc") for recipe in "ab"]
    assert values[0].high > values[1].low  # unpaired they overlap


@pytest.mark.parametrize(
    ("gains", "margin", "verdict"),
    [
        ([0.010, 0.011, 0.012], 0.0, "holds"),
        ([0.010, 0.011, 0.012], 0.005, "holds"),
        ([0.010, 0.011, 0.012], 0.011, "undecided"),
        ([0.010, 0.011, 0.012], 0.02, "does not hold"),
        ([-0.010, -0.011, -0.012], 0.0, "does not hold"),
        ([0.010, -0.011, 0.012], 0.0, "undecided"),
        ([0.0, 0.0, 0.0], 0.0, "does not hold"),
        ([0.010], 0.0, "undecided"),
    ],
)
@pytest.mark.parametrize(("metric", "sign"), [("auc", 1), ("click/logloss", -1)])
def test_verdicts(gains: list[float], margin: float, verdict: str, metric: str, sign: int) -> None:
    base = np.linspace(0.4, 0.5, len(gains))
    results = [
        *_runs("base", base, metric),
        *_runs("new", base + sign * np.array(gains), metric),
    ]
    (difference,) = compare(results, metric, baseline="base", margin=margin).differences
    assert difference.verdict == verdict
    assert difference.gains == pytest.approx(gains, abs=1e-12)


def test_noise_alone_seldom_holds() -> None:
    """Negative control: of 300 comparisons of equal models, few may claim a gain."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        results = [run for name in "abc" for run in _runs(name, rng.normal(0.8, 0.01, 5))]
        found = compare(results, "auc", baseline="a")
        held += any(d.verdict == "holds" for d in found.differences)
    assert held <= 19  # expected 7.5, one-sided, both recipes together


def test_intervals_widen_with_the_number_of_recipes() -> None:
    rng = np.random.default_rng(2)
    results = [run for name in "abcd" for run in _runs(name, rng.normal(0.8, 0.01, 5))]
    alone = compare(results[:10], "auc", baseline="a").differences[0].interval
    among = compare(results, "auc", baseline="a").differences[0].interval
    assert alone.level == pytest.approx(0.95)
    assert among.level == pytest.approx(1 - 0.05 / 3)
    assert among.low < alone.low
    assert among.high > alone.high


def test_only_common_seeds_are_paired() -> None:
    results = [*_runs("a", [0.1, 0.2, 0.3]), *_runs("b", [0.2, 0.31, 0.4, 0.9])]
    (difference,) = compare(reversed(results), "auc", baseline="a").differences
    assert difference.seeds == (0, 1, 2)
    assert difference.gains == pytest.approx([0.1, 0.11, 0.1])


def test_directions() -> None:
    results = [*_runs("a", [0.1, 0.2], "recall"), *_runs("b", [0.2, 0.3], "recall")]
    with pytest.raises(UnknownNameError, match="direction"):
        compare(results, "recall", baseline="a")
    found = compare(results, "recall", baseline="a", higher_is_better=False)
    assert found.differences[0].gain == pytest.approx(-0.1)


def test_no_baseline_makes_no_differences() -> None:
    found = compare(_runs("a", [0.5, 0.7]), "auc")
    assert found.differences == ()
    assert found.value("a", "auc").value == pytest.approx(0.6)
    assert found.value("a", "ne") is None


def test_gains_are_paired_and_their_intervals_hold_together() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.01, 5)
    results = [
        *_runs("base", 0.8 + noise),
        *_runs("wide", 0.8 + noise + rng.normal(0, 1e-4, 5)),
        *_runs("new", 0.802 + noise + rng.normal(0, 1e-4, 5)),
    ]
    promises = [
        Promise(recipe="new", over="base", paper=0.001, source="a paper"),
        Promise(recipe="new", over="wide"),
        Promise(recipe="wide", over="new"),
        Promise(recipe="new", over="elsewhere"),
        Promise(recipe="new", over="base", metric="logloss"),
    ]
    found = compare(results, "auc", promises=promises)
    assert [g.promise for g in found.gains] == promises
    verdicts = [g.difference.verdict for g in found.gains if g.difference]
    assert verdicts == ["holds", "holds", "does not hold"]
    mine, theirs = ([r.metrics["auc"] for r in results[i : i + 5]] for i in (10, 0))
    gains = np.subtract(mine, theirs)
    low, high = stats.t.interval(1 - 0.05 / 3, 4, gains.mean(), stats.sem(gains))
    interval = found.gains[0].difference.interval
    assert (interval.low, interval.high) == pytest.approx((low, high))
    assert [g.untested for g in found.gains[3:]] == [
        "elsewhere is not among the compared recipes",
        "no seed of both has logloss",
    ]
    assert found.differences == ()
    alone = compare(results, "auc", promises=promises[:1]).gains[0].difference.interval
    assert alone.level == pytest.approx(0.95)


def test_a_gain_in_a_loss_is_positive_where_the_loss_falls() -> None:
    results = [*_runs("a", [0.4, 0.5], "logloss"), *_runs("b", [0.3, 0.41], "logloss")]
    promise = Promise(recipe="b", over="a", metric="logloss")
    (gain,) = compare(results, "logloss", promises=[promise]).gains
    assert gain.difference.gains == pytest.approx([0.1, 0.09])
    with pytest.raises(UnknownNameError, match="direction"):
        Promise(recipe="b", over="a", metric="recall")


def test_the_leader_leads_those_it_beats_beyond_chance() -> None:
    noise = np.array([0.01, -0.01, 0.02, -0.02, 0.0])
    wobble = np.array([3e-3, -3e-3, 4e-3, -4e-3, 1e-3])
    results = [
        *_runs("far", 0.7 + noise),
        *_runs("best", 0.8 + noise),
        *_runs("close", 0.7995 + noise + wobble),
    ]
    best, leads = compare(results, "auc").lead()
    assert best == "best"
    assert [(d.baseline, d.verdict) for d in leads] == [("close", "undecided"), ("far", "holds")]
    assert leads[0].interval.level == pytest.approx(0.975)
    turned = compare(results, "auc", higher_is_better=False)
    assert turned.lead()[0] == "far"
    assert compare(_runs("a", [0.5]), "auc").lead() == ("a", ())


def test_the_truly_best_is_seldom_ruled_out() -> None:
    """Of 300 comparisons of four equal models, few may end with the first one ruled out."""
    rng = np.random.default_rng(4)
    lost = 0
    for _ in range(300):
        results = [run for name in "abcd" for run in _runs(name, rng.normal(0.8, 0.01, 5))]
        _, leads = compare(results, "auc").lead()
        lost += any(d.baseline == "a" and d.verdict == "holds" for d in leads)
    assert lost <= 26  # at most 15 expected, and three deviations more


def test_the_frontier_is_what_nothing_beats() -> None:
    costs = {"a": 1, "b": 2, "c": 3, "d": 3, "e": 4, "f": 1, "unknown": 0}
    values = {"a": 0.5, "b": 0.4, "c": 0.7, "d": 0.8, "e": 0.8, "f": 0.5}
    assert frontier(costs, values, higher_is_better=True) == ("a", "d")
    assert frontier(costs, values, higher_is_better=False) == ("a", "b")
    rng = np.random.default_rng(5)
    for _ in range(50):
        cost = {str(i): int(c) for i, c in enumerate(rng.integers(0, 6, 9))}
        value = {str(i): int(v) for i, v in enumerate(rng.integers(0, 6, 9))}
        kept = frontier(cost, value, higher_is_better=True)
        for name in cost:
            beaten = any(
                cost[o] <= cost[name]
                and value[o] >= value[name]
                and (cost[o], value[o]) != (cost[name], value[name])
                for o in cost
            )
            if name in kept:
                assert not beaten
            elif not beaten:  # an equal one stands for it
                assert any((cost[k], value[k]) == (cost[name], value[name]) for k in kept)
        assert [cost[k] for k in kept] == sorted(cost[k] for k in kept)


def test_refusals() -> None:
    results = _runs("a", [0.1, 0.2])
    with pytest.raises(EmptyInputError):
        compare([], "auc")
    with pytest.raises(UnknownNameError, match="baseline has no results"):
        compare(results, "auc", baseline="b")
    with pytest.raises(ConfigError):
        compare(results, "auc", margin=-0.1)
    with pytest.raises(ConfigError):
        compare(results, "auc", level=95)
    with pytest.raises(IncomparableError, match="no value of the metric") as caught:
        compare(results, "aux")
    assert "'auc'" in caught.value.fix
    with pytest.raises(IncomparableError, match="two results of one seed"):
        compare([*results, *results], "auc")
    other = RunResult(recipe="b", seed=7, metrics={"auc": 0.1})
    with pytest.raises(IncomparableError, match="share no seed"):
        compare([*results, other], "auc", baseline="a")
    newer = RunResult(recipe="a", seed=7, metrics={"auc": 0.1}, fingerprint="new")
    with pytest.raises(IncomparableError, match="different versions"):
        compare([*results, newer], "auc")


def _runs(recipe: str, values, metric: str = "auc") -> list[RunResult]:
    return [
        RunResult(recipe=recipe, seed=seed, metrics={metric: float(value)})
        for seed, value in enumerate(values)
    ]
