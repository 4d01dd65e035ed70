from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fullrank.errors import ConfigError, EmptyInputError, MetricUndefinedError
from fullrank.evaluate.interval import (
    paired_t_test,
    sign_flip_test,
    student_interval,
    student_quantile,
    student_tail,
)
from tests.evaluate.small_logs import few

VALUES = st.lists(st.floats(-3, 3), min_size=2, max_size=8)


@few
@given(st.floats(0, 60), st.sampled_from([1, 2, 3, 4, 9, 30, 400]))
def test_tail_and_quantile_against_scipy(t: float, freedom: int) -> None:
    assert student_tail(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-9)
    probability = 0.5 + t / 121
    expected = stats.t.ppf(probability, freedom)
    assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-8, abs=1e-12)


@few
@given(VALUES, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_student_interval_against_scipy(values: list[float], level: float) -> None:
    error = stats.sem(values)
    found = student_interval(values, level)
    assert found.value == pytest.approx(np.mean(values), abs=1e-12)
    assert found.samples == len(values)
    if error > 1e-9:
        low, high = stats.t.interval(level, len(values) - 1, np.mean(values), error)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


def test_paired_t_test_against_scipy() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 12):
        a, b = rng.normal(size=(2, n))
        assert paired_t_test((a - b).tolist()) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert paired_t_test([0.0, 0.0]) == 1.0
    assert paired_t_test([0.5, 0.5]) == 0.0


@few
@given(st.lists(st.sampled_from([-0.3, -0.1, 0.0, 0.1, 0.2, 0.3]), min_size=1, max_size=7))
def test_sign_flips_equal_the_loop_over_patterns(differences: list[float]) -> None:
    tenths = [round(10 * d) for d in differences]  # whole numbers: no rounding in the twin
    patterns = list(itertools.product([-1, 1], repeat=len(tenths)))
    far = [
        abs(sum(s * d for s, d in zip(p, tenths, strict=True))) >= abs(sum(tenths))
        for p in patterns
    ]
    assert sign_flip_test(differences) == sum(far) / len(far)


def test_sign_flips_reach_their_floor() -> None:
    assert sign_flip_test([0.1, 0.2, 0.3]) == 0.25
    assert sign_flip_test([1.0] * 6) == 2 / 2**6
    assert sign_flip_test([1.0, -1.0]) == 1.0


def test_refusals() -> None:
    for test in (student_interval, paired_t_test, sign_flip_test):
        with pytest.raises(EmptyInputError):
            test([])
    for test in (student_interval, paired_t_test):
        with pytest.raises(MetricUndefinedError, match="over seeds is undefined"):
            test([0.5])
        with pytest.raises(MetricUndefinedError):
            test([0.5, float("nan")])
    with pytest.raises(MetricUndefinedError):
        sign_flip_test([float("nan")])
    with pytest.raises(ConfigError, match="impossible"):
        sign_flip_test([0.1] * 21)
    with pytest.raises(ConfigError, match="impossible"):
        student_interval([0.1, 0.2], 95)


def test_an_interval_reads_aloud() -> None:
    assert str(student_interval([0.5, 0.5, 0.5])) == "0.5000 [0.5000, 0.5000]"
