"""Calibration: do predicted probabilities agree with what happened?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fullrank.batch import Batch
from fullrank.config import require
from fullrank.errors import MetricUndefinedError
from fullrank.evaluate.metric import Rows, RowStore, refuse_empty, refuse_unlike


@dataclass(frozen=True, slots=True, eq=False)
class ReliabilityTable:
    """The buckets of a reliability plot; buckets without weight are left out.

    Args:
        predicted: [K] float64, mean predicted probability of a bucket.
        observed: [K] float64, share of positive rows in it.
        weight: [K] float64, summed row weight in it.
    """

    predicted: Tensor
    observed: Tensor
    weight: Tensor

    def error(self) -> float:
        """Returns the expected calibration error: the mean gap, weighted by the buckets."""
        gap = (self.predicted - self.observed).abs()
        return float(gap @ self.weight / self.weight.sum())

    @classmethod
    def of(cls, rows: Rows, bucket: Tensor, buckets: int) -> ReliabilityTable:
        """Makes the table of rows whose bucket numbers, [n] int64, are known."""
        return cls.of_sums(_sums(rows, bucket, buckets))

    @classmethod
    def of_sums(cls, sums: Tensor) -> ReliabilityTable:
        """Makes the table from [3, buckets]: summed weight, probability and label."""
        weight, probability, label = sums[:, sums[0] > 0]
        return cls(probability / weight, label / weight, weight)


class ExpectedCalibrationError:
    """The mean gap between predicted and observed rates in buckets of equal width.

    Naeini et al., AAAI 2015. Keeps three sums per bucket. Click rates of a few per cent all fall
    into the first buckets; use EqualMassCalibrationError for them.

    Args:
        label: which label.
        buckets: how many equal parts [0, 1] is cut into.
    """

    def __init__(self, label: str, buckets: int = 20) -> None:
        _require_buckets(buckets)
        self.label, self.buckets = label, buckets
        self._sums = torch.zeros(3, buckets, dtype=torch.float64)

    def update(self, prediction: Mapping[str, Tensor], batch: Batch) -> None:
        """Adds the observed rows of a batch. `prediction` holds label -> logits [B]."""
        rows = Rows.observed(prediction, batch, self.label)
        self._sums = self._sums + _sums(rows, equal_width(rows, self.buckets), self.buckets)

    def merge(self, other: ExpectedCalibrationError) -> None:
        """Adds what another has seen."""
        refuse_unlike(self, other, "label", "buckets")
        self._sums = self._sums + other._sums

    def table(self) -> ReliabilityTable:
        """Returns the reliability table.

        Raises:
            EmptyInputError: no observed row was seen.
        """
        refuse_empty(float(self._sums[0].sum()), f"calibration of label '{self.label}'")
        return ReliabilityTable.of_sums(self._sums)

    def compute(self) -> dict[str, float]:
        """Returns `ece`.

        Raises:
            EmptyInputError: no observed row was seen.
        """
        return {"ece": self.table().error()}


class EqualMassCalibrationError:
    """The mean gap between predicted and observed rates in buckets of equal weight.

    Nguyen & O'Connor, EMNLP 2015. Keeps every row.

    Args:
        label: which label.
        buckets: how many.
    """

    def __init__(self, label: str, buckets: int = 20) -> None:
        _require_buckets(buckets)
        self.label, self.buckets = label, buckets
        self._store = RowStore()

    def update(self, prediction: Mapping[str, Tensor], batch: Batch) -> None:
        """Adds the observed rows of a batch. `prediction` holds label -> logits [B]."""
        rows = Rows.observed(prediction, batch, self.label)
        self._store.add(Rows(rows.score, rows.label, rows.weight))

    def merge(self, other: EqualMassCalibrationError) -> None:
        """Adds what another has seen."""
        refuse_unlike(self, other, "label", "buckets")
        self._store.merge(other._store)

    def table(self) -> ReliabilityTable:
        """Returns the reliability table.

        Raises:
            EmptyInputError: no observed row was seen.
        """
        where = f"calibration of label '{self.label}'"
        rows = self._store.rows(where)
        refuse_empty(float(rows.weight.sum()), where)
        return ReliabilityTable.of(rows, equal_mass(rows, self.buckets), self.buckets)

    def compute(self) -> dict[str, float]:
        """Returns `ece_mass`.

        Raises:
            EmptyInputError: no observed row was seen.
        """
        return {"ece_mass": self.table().error()}


class CalibrationRatio:
    """Mean predicted probability over the observed rate: above 1 the model promises too much.

    Args:
        label: which label.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._predicted = self._observed = self._weight = 0.0
        self._rows = 0

    def update(self, prediction: Mapping[str, Tensor], batch: Batch) -> None:
        """Adds the observed rows of a batch. `prediction` holds label -> logits [B]."""
        rows = Rows.observed(prediction, batch, self.label)
        weight = rows.weight.double()
        self._predicted += float(weight @ probabilities(rows))
        self._observed += float(weight @ rows.label.double())
        self._weight += float(weight.sum())
        self._rows += len(rows)

    def merge(self, other: CalibrationRatio) -> None:
        """Adds what another has seen."""
        refuse_unlike(self, other, "label")
        self._predicted += other._predicted
        self._observed += other._observed
        self._weight += other._weight
        self._rows += other._rows

    def compute(self) -> dict[str, float]:
        """Returns `calibration`.

        Raises:
            EmptyInputError: no observed row was seen.
            MetricUndefinedError: no row is positive.
        """
        where = f"label '{self.label}'"
        refuse_empty(self._weight, f"calibration of {where}")
        if self._observed <= 0:
            raise MetricUndefinedError(
                "the calibration ratio is undefined because no row is positive",
                where=where,
                found=f"{self._rows:,} rows, all with label 0",
                expected="at least one row with label 1",
                fix="evaluate more rows, or another split or label",
            )
        return {"calibration": self._predicted / self._observed}


def probabilities(rows: Rows) -> Tensor:
    """Returns [n] float64, the logistic function of the scores."""
    return torch.sigmoid(rows.score.double())


def equal_width(rows: Rows, buckets: int) -> Tensor:
    """Returns bucket numbers, [n] int64: bucket k holds probabilities in [k, k + 1) / buckets."""
    return (probabilities(rows) * buckets).long().clamp(max=buckets - 1)


def equal_mass(rows: Rows, buckets: int) -> Tensor:
    """Returns bucket numbers, [n] int64, by the weighted mid-rank of the score.

    Rows with equal scores share a bucket, so the order of rows does not matter.
    """
    score, order = torch.sort(rows.score)
    _, run = torch.unique_consecutive(score, return_inverse=True)  # [n] numbers runs of ties
    mass = torch.zeros(int(run[-1]) + 1, dtype=torch.float64)
    mass.index_add_(0, run, rows.weight.double()[order])
    upper = mass.cumsum(0)
    middle = (upper - 0.5 * mass) / upper[-1]  # [runs] in (0, 1)
    bucket = (middle * buckets).long().clamp(max=buckets - 1)
    return torch.empty_like(order).scatter_(0, order, bucket[run])


def _sums(rows: Rows, bucket: Tensor, buckets: int) -> Tensor:
    """Returns [3, buckets]: summed weight, probability and label of each bucket."""
    weight = rows.weight.double()
    parts = torch.stack([weight, weight * probabilities(rows), weight * rows.label])
    return torch.zeros(3, buckets, dtype=torch.float64).index_add_(1, bucket, parts)


def _require_buckets(buckets: int) -> None:
    require(
        buckets >= 1,
        where="calibration.buckets",
        found=buckets,
        expected="1 or more",
        fix="raise it",
    )
