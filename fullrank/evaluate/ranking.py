"""Ranking and log-loss metrics of binary labels: log-loss, normalised entropy and AUC.

Section 2.4 of the metric specification: AUC is the Mann-Whitney statistic with half credit for
ties; log-loss is the natural logarithm with probabilities clipped to [1e-7, 1 - 1e-7].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fullrank.batch import Batch
from fullrank.evaluate.metric import (
    Rows,
    RowStore,
    refuse_empty,
    refuse_one_class,
    refuse_unlike,
)
from fullrank.ops.ranking import area_of_bins, area_under_curve

CLIP = 1e-7
_LARGEST_LOGIT = math.log1p(-CLIP) - math.log(CLIP)  # the logit of 1 - CLIP, about 16.118
MAX_BINS = 65_536


def log_losses(score: Tensor, label: Tensor) -> Tensor:
    """Returns the log-loss of each row, computed from logits so that nothing overflows.

    Clipping the logit is clipping the probability to [1e-7, 1 - 1e-7].

    Args:
        score: [n] logits.
        label: [n] bool.

    Returns:
        [n] float64, natural logarithm, at most -ln 1e-7.
    """
    logit = score.double().clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
    return F.softplus(torch.where(label, -logit, logit))


def binary_entropy(rate: float) -> float:
    """Returns the entropy in nats of a label that is 1 at this rate; 0 at rates 0 and 1."""
    if rate <= 0.0 or rate >= 1.0:
        return 0.0
    return -(rate * math.log(rate) + (1.0 - rate) * math.log1p(-rate))


class LogLoss:
    """The weighted mean log-loss, natural logarithm. Keeps two sums.

    Args:
        label: which label.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._loss = self._weight = 0.0

    def update(self, prediction: Mapping[str, Tensor], batch: Batch) -> None:
        """Adds the observed rows of a batch. `prediction` holds label -> logits [B]."""
        rows = Rows.observed(prediction, batch, self.label)
        weight = rows.weight.double()
        self._loss += float(weight @ log_losses(rows.score, rows.label))
        self._weight += float(weight.sum())

    def merge(self, other: LogLoss) -> None:
        """Adds what another has seen."""
        refuse_unlike(self, other, "label")
        self._loss += other._loss
        self._weight += other._weight

    def compute(self) -> dict[str, float]:
        """Returns `logloss`.

        Raises:
            EmptyInputError: no observed row was seen.
        """
        refuse_empty(self._weight, f"log-loss of label '{self.label}'")
        return {"logloss": self._loss / self._weight}


class NormalizedEntropy:
    """Log-loss divided by the entropy of the base rate (He et al., ADKDD 2014). Three sums.

    1 is what a model without any input reaches; lower is better.

    Args:
        label: which label.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._loss = self._positive = self._negative = 0.0
        self._rows = 0

    def update(self, prediction: Mapping[str, Tensor], batch: Batch) -> None:
        """Adds the observed rows of a batch. `prediction` holds label -> logits [B]."""
        rows = Rows.observed(prediction, batch, self.label)
        positive, negative = rows.masses()
        self._loss += float((positive + negative) @ log_losses(rows.score, rows.label))
        self._positive += float(positive.sum())
        self._negative += float(negative.sum())
        self._rows += len(rows)

    def merge(self, other: NormalizedEntropy) -> None:
        """Adds what another has seen."""
        refuse_unlike(self, other, "label")
        self._loss += other._loss
        self._positive += other._positive
        self._negative += other._negative
        self._rows += other._rows

    def compute(self) -> dict[str, float]:
        """Returns `ne`.

        Raises:
            EmptyInputError: no observed row was seen.
            MetricUndefinedError: all labels are equal, so the base rate has no entropy.
        """
        where = f"label '{self.label}'"
        refuse_one_class(self._positive, self._negative, self._rows, where, "normalised entropy")
        weight = self._positive + self._negative
        return {"ne": self._loss / weight / binary_entropy(self._positive / weight)}


def exact_auc(scores: Any, labels: Any, weights: Any = None) -> float:
    """Computes the AUC exactly: the weighted share of (positive, negative) pairs in order.

    Pairs with equal scores count one half. One sort; O(n log n).

    Args:
        scores: [n] numbers, higher for more likely; probabilities or logits give the same value.
        labels: [n], each 0 or 1.
        weights: [n], or None.

    Raises:
        EmptyInputError: there are no rows.
        MetricUndefinedError: all labels are equal, or a score is NaN or infinite.

    Example:
        >>> exact_auc([0.1, 0.4, 0.4, 0.9], [0, 1, 0, 1])
        0.875
    """
    return rows_auc(Rows.of(scores, labels, weights), "exact_auc")


def rows_auc(rows: Rows, where: str) -> float:
    """Computes the AUC of checked rows exactly; see `exact_auc`."""
    positive, negative = rows.masses()
    refuse_one_class(float(positive.sum()), float(negative.sum()), len(rows), where)
    return area_under_curve(rows.score, positive, negative)


class ExactAUC:
    """The exact AUC of files: keeps every score. See `exact_auc`.

    Args:
        label: which label.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._store = RowStore()

    def update(self, prediction: Mapping[str, Tensor], batch: Batch) -> None:
        """Adds the observed rows of a batch. `prediction` holds label -> logits [B]."""
        rows = Rows.observed(prediction, batch, self.label)
        self._store.add(Rows(rows.score, rows.label, rows.weight))

    def merge(self, other: ExactAUC) -> None:
        """Adds what another has seen."""
        refuse_unlike(self, other, "label")
        self._store.merge(other._store)

    def compute(self) -> dict[str, float]:
        """Returns `auc`.

        Raises:
            EmptyInputError: no observed row was seen.
            MetricUndefinedError: all labels are equal.
        """
        where = f"AUC of label '{self.label}'"
        return {"auc": rows_auc(self._store.rows(where), where)}


class AUC:
    """The AUC of streams, from a histogram of at most 65,536 bins. Memory is constant.

    A bin is a range of float32 logits that share their leading bits, so its width follows the
    size of the logit: tiny scores, extreme scores and scores collapsed into a narrow band are
    all resolved. Only bins that hold rows are kept. While there are at most 65,536 different
    scores a bin is one score and the result is exact; when there are more, every bin loses its
    last bit, until they fit. How many bits are lost depends only on the set of scores seen, so
    merged metrics equal unmerged ones, in whatever order rows come.

    Rows of one bin count as ties. The error is therefore at most `error_bound()`, the share of
    pairs inside a bin halved: near 1e-5 for a spread-out score. In practice it is far smaller
    (below 1e-6 on 200,000 rows in the tests), because within a bin labels are in no order.

    Args:
        label: which label.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._lost_bits = 0
        self._keys = torch.empty(0, dtype=torch.int64)  # [bins], rising
        self._masses = torch.empty(2, 0, dtype=torch.float64)  # [positive and negative, bins]
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._num_pending = self._rows = 0

    def update(self, prediction: Mapping[str, Tensor], batch: Batch) -> None:
        """Adds the observed rows of a batch. `prediction` holds label -> logits [B]."""
        rows = Rows.observed(prediction, batch, self.label)
        self._pending.append((ordered_keys(rows.score), torch.stack(rows.masses())))
        self._num_pending += len(rows)
        self._rows += len(rows)
        if self._num_pending >= MAX_BINS:  # sorting seldom makes it cheap
            self._settle()

    def merge(self, other: AUC) -> None:
        """Adds what another has seen."""
        refuse_unlike(self, other, "label")
        other._settle()
        self._settle()
        self._coarsen(max(self._lost_bits, other._lost_bits))
        shifted = other._keys << other._lost_bits  # the lowest key of each bin stands for it
        self._pending.append((shifted, other._masses))
        self._rows += other._rows
        self._settle()

    def compute(self) -> dict[str, float]:
        """Returns `auc`.

        Raises:
            EmptyInputError: no observed row was seen.
            MetricUndefinedError: all labels are equal.
        """
        self._settle()
        positive, negative = self._masses.sum(1).tolist()
        refuse_one_class(positive, negative, self._rows, f"AUC of label '{self.label}'")
        return {"auc": area_of_bins(self._masses[0], self._masses[1])}

    def error_bound(self) -> float:
        """Returns how far the AUC can be from the exact one of the float32 scores seen so far."""
        self._settle()
        if self._lost_bits == 0:
            return 0.0
        total = self._masses.sum(1).prod()
        return float(0.5 * (self._masses[0] * self._masses[1]).sum() / total)

    def _settle(self) -> None:
        """Sorts what is pending into the bins, and coarsens them until they fit."""
        if not self._pending:
            return
        keys = torch.cat([self._keys, *(key >> self._lost_bits for key, _ in self._pending)])
        masses = torch.cat([self._masses, *(mass for _, mass in self._pending)], dim=1)
        self._pending, self._num_pending = [], 0
        self._keys, inverse = torch.unique(keys, return_inverse=True)
        self._masses = torch.zeros(2, len(self._keys), dtype=torch.float64).index_add_(
            1, inverse, masses
        )
        lost = self._lost_bits
        while len(torch.unique_consecutive(self._keys >> (lost - self._lost_bits))) > MAX_BINS:
            lost += 1
        self._coarsen(lost)

    def _coarsen(self, lost_bits: int) -> None:
        """Widens every bin until it has lost this many bits."""
        if lost_bits == self._lost_bits:
            return
        self._keys, inverse = torch.unique_consecutive(
            self._keys >> (lost_bits - self._lost_bits), return_inverse=True
        )
        wider = torch.zeros(2, len(self._keys), dtype=torch.float64)
        self._masses = wider.index_add_(1, inverse, self._masses)
        self._lost_bits = lost_bits


def ordered_keys(score: Tensor) -> Tensor:
    """Maps scores to integers with the same order: the bits of float32, signs straightened.

    Args:
        score: [n] finite; values beyond float32 tie with infinity.

    Returns:
        [n] int64 between -2**31 and 2**31; equal where the float32 scores are equal.
    """
    bits = score.float().view(torch.int32).long()
    return torch.where(bits >= 0, bits, -(bits & 0x7FFF_FFFF))  # -0.0 becomes 0, as 0.0 does
