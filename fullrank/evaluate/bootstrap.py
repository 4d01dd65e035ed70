"""Confidence intervals of a metric on one test set, by resampling groups or rows.

Rows of one user or request are not independent, so whole groups are drawn with replacement
(Field & Welsh, 2007). Nothing is re-sorted: each resample only changes how often a group counts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fullrank.config import require
from fullrank.errors import IncomparableError, MetricUndefinedError, UnknownNameError, nearest
from fullrank.evaluate.grouped import group_aucs, refuse_undefined_groups
from fullrank.evaluate.interval import Interval, require_level
from fullrank.evaluate.metric import Rows, refuse_empty, refuse_one_class
from fullrank.evaluate.ranking import log_losses

CHUNK = 2_000_000  # cells of one block of resamples; 16 MB in float64

# [R, U] how often each unit was drawn -> [R] the metric, NaN where undefined
Statistic = Callable[[Tensor], Tensor]


def bootstrap(
    rows: Rows, metric: str, *, replicates: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Returns a metric on these rows with its percentile interval (Efron, 1979).

    Groups are drawn with replacement; single rows are drawn where rows have no groups. Draws in
    which the metric is undefined are left out; `samples` tells how many were used.

    Args:
        rows: of one label.
        metric: "auc", "logloss", "ne" or "gauc".
        replicates: how many resamples.
        level: confidence in (0, 1).
        seed: of the draws; the global random state is not touched.

    Raises:
        UnknownNameError: the metric is not one of the four.
        EmptyInputError: there are no rows.
        MetricUndefinedError: there is one group only, all labels are equal, or more than half of
            the resamples are undefined.

    Example:
        >>> rows = Rows.of([-1.0, 0.5, 0.2, 2.0], [0, 0, 1, 1])
        >>> bootstrap(rows, "auc").value
        0.75
    """
    return _interval([rows], metric, replicates, level, seed)


def paired_bootstrap(
    first: Rows,
    second: Rows,
    metric: str,
    *,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Returns the metric of the second minus that of the first, with its interval.

    Both models are read on the same resamples, so what makes a test set easy or hard cancels.

    Args:
        first: rows scored by the model that is the yardstick.
        second: the same rows in the same order, scored by the other model.
        metric: "auc", "logloss", "ne" or "gauc".
        replicates: how many resamples.
        level: confidence in (0, 1).
        seed: of the draws; the global random state is not touched.

    Raises:
        IncomparableError: the labels, weights or groups of the two differ.
        UnknownNameError: the metric is not one of the four.
        EmptyInputError: there are no rows.
        MetricUndefinedError: as for `bootstrap`.
    """
    _refuse_other_rows(first, second)
    return _interval([first, second], metric, replicates, level, seed)


def _interval(sides: list[Rows], metric: str, replicates: int, level: float, seed: int) -> Interval:
    if metric not in _STATISTICS:
        raise UnknownNameError(
            "there is no bootstrap for this metric",
            where="metric name",
            found=f"'{metric}'",
            expected="one of: " + ", ".join(_STATISTICS),
            fix=nearest(metric, _STATISTICS),
        )
    require_level(level)
    require(
        replicates >= 2,
        where="bootstrap.replicates",
        found=replicates,
        expected="2 or more; 1000 for a 95 % interval",
        fix="raise it",
    )
    where = f"bootstrap of {metric}"
    refuse_empty(float(sides[0].weight.sum()), where)
    unit, units = _units(sides[0])
    _refuse_one_unit(units, where)
    statistics = [_STATISTICS[metric](rows, unit, units) for rows in sides]

    def measured(counts: Tensor) -> Tensor:
        values = [statistic(counts) for statistic in statistics]
        return values[0] if len(values) == 1 else values[1] - values[0]

    value = float(measured(torch.ones(1, units, dtype=torch.float64))[0])
    drawn = _resample(measured, units, len(unit), replicates, seed)
    defined = drawn[torch.isfinite(drawn)]
    if 2 * len(defined) < replicates:
        raise MetricUndefinedError(
            f"{metric} is undefined in most resamples",
            where=where,
            found=f"{replicates - len(defined):,} of {replicates:,} resamples with equal labels",
            expected="both labels in nearly every resample",
            fix="evaluate more groups; a handful of them allows no interval",
        )
    edges = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=torch.float64)
    low, high = torch.quantile(defined, edges).tolist()
    return Interval(value, low, high, level, len(defined))


def _resample(measured: Statistic, units: int, rows: int, replicates: int, seed: int) -> Tensor:
    """Returns [replicates] values of the metric on resamples of the units."""
    generator = torch.Generator().manual_seed(seed)
    step = max(1, CHUNK // rows)
    values = []
    for start in range(0, replicates, step):
        size = min(step, replicates - start)
        drawn = torch.randint(units, (size, units), generator=generator)
        counts = torch.zeros(size, units, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones(1, 1, dtype=torch.float64).expand(size, units))
        values.append(measured(counts))
    return torch.cat(values)


def _units(rows: Rows) -> tuple[Tensor, int]:
    """Returns [n] the number of the unit each row belongs to, and how many units there are."""
    if rows.group is None:
        return torch.arange(len(rows)), len(rows)
    groups, unit = torch.unique(rows.group, return_inverse=True)
    return unit, len(groups)


def _auc_statistic(rows: Rows, unit: Tensor, units: int) -> Statistic:
    """Every positive looks up the negatives below it, in running sums over sorted negatives."""
    positive, negative = rows.masses()
    refuse_one_class(float(positive.sum()), float(negative.sum()), len(rows), "bootstrap of auc")
    wanted = rows.label
    below_score, order = torch.sort(rows.score[~wanted])
    negative, negative_unit = negative[~wanted][order], unit[~wanted][order]
    positive, positive_unit, score = positive[wanted], unit[wanted], rows.score[wanted]
    low = torch.searchsorted(below_score, score, side="left")  # negatives below
    high = torch.searchsorted(below_score, score, side="right")  # ... and those that tie

    def statistic(counts: Tensor) -> Tensor:
        running = torch.zeros(len(counts), len(negative) + 1, dtype=torch.float64)
        torch.cumsum(counts[:, negative_unit] * negative, 1, out=running[:, 1:])
        mass = counts[:, positive_unit] * positive  # [R, positives]
        ordered = (mass * (running[:, low] + running[:, high])).sum(1) / 2
        pairs = mass.sum(1) * running[:, -1]
        return torch.where(pairs > 0, ordered / pairs, torch.nan)

    return statistic


def _loss_sums(rows: Rows, unit: Tensor, units: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns [U] each: summed loss, weight of positives, weight of negatives."""
    positive, negative = rows.masses()
    loss = (positive + negative) * log_losses(rows.score, rows.label)
    parts = torch.stack([loss, positive, negative])
    sums = torch.zeros(3, units, dtype=torch.float64).index_add_(1, unit, parts)
    return sums[0], sums[1], sums[2]


def _logloss_statistic(rows: Rows, unit: Tensor, units: int) -> Statistic:
    loss, positive, negative = _loss_sums(rows, unit, units)

    def statistic(counts: Tensor) -> Tensor:
        return (counts @ loss) / (counts @ (positive + negative))

    return statistic


def _ne_statistic(rows: Rows, unit: Tensor, units: int) -> Statistic:
    loss, positive, negative = _loss_sums(rows, unit, units)
    refuse_one_class(
        float(positive.sum()),
        float(negative.sum()),
        len(rows),
        "bootstrap of ne",
        "normalised entropy",
    )

    def statistic(counts: Tensor) -> Tensor:
        weight = counts @ (positive + negative)
        rate = (counts @ positive) / weight
        entropy = -(torch.xlogy(rate, rate) + torch.xlogy(1 - rate, 1 - rate))
        return torch.where(entropy > 0, (counts @ loss) / weight / entropy, torch.nan)

    return statistic


def _gauc_statistic(rows: Rows, unit: Tensor, units: int) -> Statistic:
    groups = group_aucs(rows)  # in rising order of group, as the units are
    refuse_undefined_groups(groups, "bootstrap of gauc")
    weight = groups.weight * groups.defined  # [U]

    def statistic(counts: Tensor) -> Tensor:
        return (counts @ (weight * groups.auc)) / (counts @ weight)

    return statistic


_STATISTICS: dict[str, Callable[[Rows, Tensor, int], Statistic]] = {
    "auc": _auc_statistic,
    "logloss": _logloss_statistic,
    "ne": _ne_statistic,
    "gauc": _gauc_statistic,
}


def _refuse_one_unit(units: int, where: str) -> None:
    if units < 2:
        raise MetricUndefinedError(
            "a bootstrap of one group has no spread",
            where=where,
            found=f"{units} group",
            expected="two or more",
            fix="drop the groups to resample rows, or evaluate more groups",
        )


def _refuse_other_rows(first: Rows, second: Rows) -> None:
    for name in ("label", "weight", "group"):
        mine, theirs = getattr(first, name), getattr(second, name)
        same = mine is theirs or (
            mine is not None and theirs is not None and torch.equal(mine, theirs)
        )
        if not same:
            raise IncomparableError(
                "two models were not scored on the same rows",
                where=f"paired bootstrap, {name}s",
                found=f"{len(first):,} and {len(second):,} rows with different {name}s",
                expected="the same rows in the same order",
                fix="score both models on the same batches, without shuffling",
            )
