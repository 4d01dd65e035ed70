"""Reversible instance normalisation (RevIN, Kim et al., ICLR 2022) of a history and its target.

As in FEDIN, arXiv:2605.01726. Deviation: statistics are returned instead of kept on the module, so
that one call cannot read those of another.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

_EPS = 1e-5  # added to the variance
_TINY = 1e-10  # added to the weight on the way back


class Moments(NamedTuple):
    """What a normalisation took away; no gradient flows into it.

    Args:
        mean: [B, 1, D].
        deviation: [B, 1, D], above zero.
    """

    mean: Tensor
    deviation: Tensor


class ReversibleNorm(nn.Module):
    """Takes mean and deviation of each row and channel away, and gives them back.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    @staticmethod
    def moments(x: Tensor, valid: Tensor | None = None, target: Tensor | None = None) -> Moments:
        """Measures each row and channel over its steps; the variance is the biased one.

        Args:
            x: [B, T, D].
            valid: [B, T] bool, True where a step counts; None counts all.
            target: [B, D], one more step.

        Returns:
            Mean 0 and the smallest deviation where nothing counts.
        """
        x = x.detach()
        counts = torch.ones_like(x[:, :, :1]) if valid is None else valid.unsqueeze(2).to(x.dtype)
        n = counts.sum(dim=1, keepdim=True)  # [B, 1, 1]
        total = counts.mT @ x  # [B, 1, D]; finite padding of weight 0 adds exactly 0
        if target is not None:
            target = target.detach().unsqueeze(1)
            total, n = total + target, n + 1.0
        n = n.clamp(min=1.0)
        mean = total / n
        squares = counts.mT @ (x - mean).square_()
        if target is not None:
            squares = squares + (target - mean).square()
        return Moments(mean, (squares / n + _EPS).sqrt())

    def normalise(self, x: Tensor, moments: Moments) -> Tensor:
        """Returns (x - mean) / deviation * weight + bias, [B, T, D] for [B, T, D]."""
        scale = self.weight / moments.deviation  # [B, 1, D]
        return torch.addcmul(self.bias - moments.mean * scale, x, scale)

    def restore(self, z: Tensor, moments: Moments) -> Tensor:
        """Returns what `normalise` made z of, [B, S, D] for [B, S, D]."""
        scale = moments.deviation / (self.weight + _TINY)
        return (z - self.bias) * scale + moments.mean
