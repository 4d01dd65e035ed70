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
from fullrank.evaluate.compare import compare
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
