"""Streaming estimators for two variables: cross-correlation and joint counts."""

from __future__ import annotations

import torch
from torch import Tensor

from fullrank.diagnose.accumulate import deviations, require_rows


class CrossMoments:
    """A5: Pearson correlation of every column of A with every column of B, by Chan's update.

    Args:
        left: columns of A.
        right: columns of B.
    """

    name = "A5"
    floor = 0.0

    def __init__(self, left: int, right: int) -> None:
        self.n = 0
        self.mean = torch.zeros(left, dtype=torch.float64), torch.zeros(right, dtype=torch.float64)
        self.square = tuple(torch.zeros_like(m) for m in self.mean)
        self.cross = torch.zeros(left, right, dtype=torch.float64)

    def update(self, a: Tensor, b: Tensor) -> None:
        """Adds aligned rows [n, left] and [n, right]."""
        if a.shape[0] == 0:
            return
        pair = [x.detach().to("cpu", torch.float64) for x in (a, b)]
        mean = [x.mean(0) for x in pair]
        pair = [x - m for x, m in zip(pair, mean, strict=True)]
        square = [x.square().sum(0) for x in pair]
        self._add(a.shape[0], mean, square, pair[0].T @ pair[1])

    def merge(self, other: CrossMoments) -> None:
        """Adds everything that another accumulator has seen."""
        if other.n:
            self._add(other.n, list(other.mean), list(other.square), other.cross)

    def _add(self, n: int, mean: list[Tensor], square: list[Tensor], cross: Tensor) -> None:
        total = self.n + n
        weight = self.n * n / total
        delta = [new - old for new, old in zip(mean, self.mean, strict=True)]
        self.cross += cross + torch.outer(delta[0], delta[1]) * weight
        for i in range(2):
            self.square[i].add_(square[i] + delta[i].square() * weight)
            self.mean[i].add_(delta[i] * (n / total))
        self.n = total

    def correlation(self) -> Tensor:
        """Returns [left, right] in [-1, 1]; NaN in the row or column of a constant one."""
        require_rows(self.n, "CrossMoments")
        left, right = (
            deviations(s, m, self.n) for s, m in zip(self.square, self.mean, strict=True)
        )
        return (self.cross / (left[:, None] * right[None, :])).clamp(-1.0, 1.0)


class JointCounts:
    """A6: how often cluster a of one variable meets cluster b of another.

    Args:
        left: K_a clusters.
        right: K_b clusters.
    """

    name = "A6"
    floor = 0.0

    def __init__(self, left: int, right: int) -> None:
        self.counts = torch.zeros(left, right, dtype=torch.int64)

    def update(self, a: Tensor, b: Tensor) -> None:
        """Adds aligned cluster numbers [n]."""
        k = self.counts.shape[1]
        flat = torch.bincount(a.cpu().long() * k + b.cpu().long(), minlength=self.counts.numel())
        self.counts += flat.reshape_as(self.counts)

    def merge(self, other: JointCounts) -> None:
        """Adds everything that another accumulator has seen."""
        self.counts += other.counts
