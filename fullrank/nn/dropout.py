"""Dropout that draws sixteen bits per element instead of calling a Bernoulli sampler."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """Zeroes elements while training, each with probability p, and scales the others to keep means.

    cost: PyTorch's own mask took a quarter of a DCN-V2 step on a CPU; this one takes a twentieth of
    that, see bench/dropout.py. The probability of keeping is rounded to a multiple of 2^-16, and
    the scale is that of the rounded one. On other devices it is PyTorch's.
    """

    @property
    def now(self) -> float:
        """Probability of zeroing an element: p while training, 0 at evaluation."""
        return self.p if self.training else 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the shape of `x`."""
        if self.now == 0.0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return x * kept(x, self.p)


def keep_scale(p: float) -> float:
    """Returns what keeps the mean where each element is zero with probability p."""
    return _LEVELS / _level(p)


def kept(x: Tensor, p: float) -> Tensor:
    """Returns a mask like `x`: 0 with probability p, else what keeps the mean.

    Draws from torch's generator.
    """
    mask = torch.empty_like(x, memory_format=torch.contiguous_format)
    return kept_into(mask, p).mul_(keep_scale(p))


def kept_into(mask: Tensor, p: float) -> Tensor:
    """Fills a contiguous mask with 0 with probability p, else 1, and returns it."""
    return keep(draw(mask.numel()).view(mask.shape), p, mask)


def draw(size: int) -> Tensor:
    """Returns [size] fair draws, int16, from torch's generator."""
    # Four draws in each 64-bit number: the generator makes those fastest.
    words = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(1 << 63), None)
    return words.view(torch.int16)[:size]


def keep(draws: Tensor, p: float, mask: Tensor) -> Tensor:
    """Writes 1 into `mask` where a draw says to keep, else 0, and returns it."""
    # cost: written as numbers at once; a bool that becomes numbers later takes seven times as long.
    return torch.lt(draws, _level(p) - _LEVELS // 2, out=mask)


def _level(p: float) -> int:
    return max(1, round((1.0 - p) * _LEVELS))
