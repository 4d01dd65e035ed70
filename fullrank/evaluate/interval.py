"""Intervals and tests over a handful of seeds: Student, paired t, and the exact sign flip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from fullrank.config import require
from fullrank.errors import EmptyInputError, MetricUndefinedError

MOST_FLIPPED = 20  # 2**20 sums fit into 8 MiB


@dataclass(frozen=True)
class Interval:
    """A value and where it lies with some confidence.

    Args:
        value: the estimate itself.
        low: lower end.
        high: upper end.
        level: confidence in (0, 1).
        samples: what the interval rests on: resamples of a bootstrap, or seeds.
    """

    value: float
    low: float
    high: float
    level: float
    samples: int

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def student_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Returns the mean of a few independent values with Student's interval.

    Args:
        values: such as one metric over seeds, at least two of them.
        level: confidence in (0, 1).

    Raises:
        EmptyInputError: there are no values.
        MetricUndefinedError: there is one value only, or one is not finite.
    """
    require_level(level)
    mean, error = _mean_and_error(values)
    reach = student_quantile(0.5 + level / 2, len(values) - 1) * error
    return Interval(mean, mean - reach, mean + reach, level, len(values))


def paired_t_test(differences: Sequence[float]) -> float:
    """Returns the two-sided p-value of "the mean difference is zero".

    Args:
        differences: one per seed, both sides run with that seed; at least two.

    Raises:
        EmptyInputError: there are no differences.
        MetricUndefinedError: there is one only, or one is not finite.
    """
    mean, error = _mean_and_error(differences)
    if error == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return student_tail(abs(mean / error), len(differences) - 1)


def sign_flip_test(differences: Sequence[float]) -> float:
    """Returns the exact two-sided p-value when each difference could as well have its sign turned.

    Fisher (1935). All 2**n sign patterns are counted; the share of patterns whose sum is at least
    as far from zero. It assumes no distribution, but it cannot fall below 2 / 2**n: with three
    seeds 0.25, with six 0.031.

    Args:
        differences: n of them, one per seed, at most 20.

    Raises:
        EmptyInputError: there are no differences.
        MetricUndefinedError: one is not finite.
        ConfigError: there are more than 20.
    """
    _refuse_values(differences)
    require(
        len(differences) <= MOST_FLIPPED,
        where="sign_flip_test",
        found=f"{len(differences)} differences",
        expected=f"at most {MOST_FLIPPED}, because every pattern of signs is counted",
        fix="use paired_t_test for many seeds",
    )
    sums = torch.zeros(1, dtype=torch.float64)
    for difference in differences:
        sums = torch.cat([sums + difference, sums - difference])
    # trap: equal sums differ in their last bit by the order of addition
    slack = 1e-12 * sum(abs(d) for d in differences)
    return float((sums.abs() >= abs(math.fsum(differences)) - slack).double().mean())


def student_tail(t: float, freedom: float) -> float:
    """Returns the probability that |T| exceeds t for Student's T.

    The regularised incomplete beta function I_x(freedom / 2, 1 / 2) at x = f / (f + t^2).
    """
    whole = freedom + t * t
    return _incomplete_beta(freedom / whole, t * t / whole, freedom / 2.0, 0.5)


@cache
def student_quantile(probability: float, freedom: float) -> float:
    """Returns t with P(T <= t) = probability, for a probability of one half or more."""
    tail = 2.0 * (1.0 - probability)
    low, high = 0.0, 1.0
    while student_tail(high, freedom) > tail:
        low, high = high, 2.0 * high
    for _ in range(200):  # bisection to the last bit
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if student_tail(middle, freedom) > tail else (low, middle)
    return 0.5 * (low + high)


def require_level(level: float) -> None:
    """Raises a ConfigError unless 0 < level < 1."""
    require(
        0.0 < level < 1.0,
        where="level",
        found=level,
        expected="between 0 and 1, such as 0.95",
        fix="write per cent as a fraction",
    )


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and its standard error."""
    _refuse_values(values)
    if len(values) < 2:
        raise _undefined(values)
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _refuse_values(values: Sequence[float]) -> None:
    if not len(values):
        raise EmptyInputError(
            "a test was asked of no values",
            where="values over seeds",
            found="0 values",
            expected="one per seed",
            fix="run the seeds first",
        )
    if not all(map(math.isfinite, values)):
        raise _undefined(values)


def _undefined(values: Sequence[float]) -> MetricUndefinedError:
    return MetricUndefinedError(
        "an interval or test over seeds is undefined",
        where="values over seeds",
        found=", ".join(map(str, values)),
        expected="finite values, two or more for an interval",
        fix="run more seeds, or find the run that diverged",
    )


def _incomplete_beta(x: float, y: float, a: float, b: float) -> float:
    """Returns I_x(a, b) by its continued fraction (Abramowitz & Stegun 26.5.8).

    y is 1 - x, given apart because the subtraction would cost the digits of a small y.
    """
    if x == 0.0 or y == 0.0:
        return float(y == 0.0)
    if x > (a + 1.0) / (a + b + 2.0):  # the fraction converges fast on the other side
        return 1.0 - _incomplete_beta(y, x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(y)
    )
    fraction = 1.0
    for m in range(200, 0, -1):  # from the inside out; term m of both parities
        odd = -(a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        fraction = 1.0 + odd / (1.0 + even / fraction)
    return front / (a * fraction)
