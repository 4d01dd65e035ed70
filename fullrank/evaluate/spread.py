"""How far apart scores lie: a model that gives everybody one score has collapsed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fullrank.batch import Batch
from fullrank.evaluate.metric import Rows, refuse_empty, refuse_unlike
from fullrank.evaluate.ranking import ordered_keys

SKETCH = 65_536


class ScoreSpread:
    """Mean and standard deviation of the logits, and the share of distinct float32 scores.

    Row weights play no part: this describes the network, not the traffic. Moments merge by Chan,
    Golub & LeVeque (1979). Distinct scores are counted exactly up to 65,536; above that they are
    estimated from the 65,536 smallest of their hashes (Bar-Yossef et al., 2002), with a relative
    error near 0.4 %. Memory is constant.

    Args:
        label: which label.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._rows = 0
        self._mean = self._squares = 0.0  # squares: summed squared distance from the mean
        self._hashes = np.empty(0, dtype=np.uint64)  # rising, at most SKETCH
        self._pending: list[NDArray[np.uint64]] = []

    def update(self, prediction: Mapping[str, Tensor], batch: Batch) -> None:
        """Adds the observed rows of a batch. `prediction` holds label -> logits [B]."""
        rows = Rows.observed(prediction, batch, self.label)
        if not len(rows):
            return
        score = rows.score.double()
        mean = float(score.mean())
        self._add_moments(len(rows), mean, float(((score - mean) ** 2).sum()))
        self._add_hashes(_hashes(ordered_keys(rows.score).numpy()))

    def merge(self, other: ScoreSpread) -> None:
        """Adds what another has seen."""
        refuse_unlike(self, other, "label")
        other._settle()
        self._add_moments(other._rows, other._mean, other._squares)
        self._add_hashes(other._hashes)

    def compute(self) -> dict[str, float]:
        """Returns `score_mean`, `score_std` (of the population) and `score_distinct` in (0, 1].

        Raises:
            EmptyInputError: no observed row was seen.
        """
        refuse_empty(float(self._rows), f"score spread of label '{self.label}'")
        return {
            "score_mean": self._mean,
            "score_std": math.sqrt(self._squares / self._rows),
            "score_distinct": min(1.0, self.distinct() / self._rows),
        }

    def distinct(self) -> float:
        """Returns the number of distinct scores, estimated when above 65,536."""
        self._settle()
        if len(self._hashes) < SKETCH:
            return float(len(self._hashes))
        return (SKETCH - 1) * 2.0**64 / (float(self._hashes[-1]) + 1.0)

    def _add_moments(self, rows: int, mean: float, squares: float) -> None:
        total = self._rows + rows
        if not total:
            return
        gap = mean - self._mean
        self._mean += gap * rows / total
        self._squares += squares + gap * gap * self._rows * rows / total
        self._rows = total

    def _add_hashes(self, hashes: NDArray[np.uint64]) -> None:
        if len(self._hashes) == SKETCH:  # a larger hash can no longer be among the smallest
            hashes = hashes[hashes < self._hashes[-1]]
        self._pending.append(hashes)
        if sum(map(len, self._pending)) >= SKETCH:  # sorting seldom makes it cheap
            self._settle()

    def _settle(self) -> None:
        if self._pending:
            self._hashes = np.unique(np.concatenate([self._hashes, *self._pending]))[:SKETCH]
            self._pending = []


def _hashes(keys: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Returns [n] well-mixed numbers, one per distinct key (SplitMix64, Steele et al., 2014)."""
    x = keys.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed
