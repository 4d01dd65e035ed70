"""Dice: an activation whose rectifying point follows the data.

DIN, arXiv:1706.06978, section 5.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_CHUNK = 1024  # rows whose temporaries stay in the cache; 512 to 2,048 measured alike


class Dice(nn.Module):
    """Returns p x + (1 - p) alpha x, with p = sigmoid of x normalised over the batch.

    The normalisation is a batch norm without scale and offset: by the mean and variance of the
    rows while training, by their running values at evaluation. Rows are events, so padding must
    not be among them. One row has no variance: it is normalised by the running values, which it
    does not change.

    cost: written with PyTorch's parts it is half of DIN's step on a CPU, ten passes over a tensor
    far larger than the cache. There, training steps take `_CachedDice`; other devices, evaluation
    and compiled programs take the parts.

    Args:
        dim: D, number of units; each learns its alpha, from 0.
        eps: added to the variance.
        momentum: share of the running values that a training step replaces.
    """

    running_mean: Tensor  # [D]
    running_var: Tensor  # [D]

    def __init__(self, dim: int, *, eps: float = 1e-9, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.alpha = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Returns [S, D] for [S, D], any S."""
        learning = self.training and x.shape[0] > 1
        if learning and x.device.type == "cpu" and not torch.compiler.is_compiling():
            mean, var = self._moments(x.detach())
            scale = (var + self.eps).rsqrt()
            out: Tensor = _CachedDice.apply(x, self.alpha, mean, scale)  # type: ignore[no-untyped-call]
            return out
        mean, var = self.running_mean, self.running_var
        p = F.batch_norm(x, mean, var, None, None, learning, self.momentum, self.eps).sigmoid()
        return x * (self.alpha + (1 - self.alpha) * p)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and variance [D], and moves the running values."""
        rows = x.shape[0]
        # cost: torch.var_mean over the first dimension is 20 times slower on a CPU.
        mean = (x.new_ones(1, rows) @ x)[0] / rows
        parts = [(part - mean).square_().sum(0) for part in torch.split(x, _CHUNK)]
        var = torch.stack(parts).sum(0)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var / (rows - 1), self.momentum)  # unbiased, as in torch
        return mean, var / rows

    def extra_repr(self) -> str:
        """Returns the size for `print(model)`."""
        return str(self.alpha.shape[0])


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(torch.split(x, _CHUNK) for x in tensors), strict=True)


class _CachedDice(torch.autograd.Function):
    """Dice of a training step, a chunk of rows at a time: y = x - (1 - alpha) x q.

    n = (x - mean) scale is x normalised, and q = 1 - p = sigmoid(-n).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        q, y = torch.empty_like(x), torch.empty_like(x)
        for xi, qi, yi in _chunks(x, q, y):
            torch.sub(mean, xi, out=qi).mul_(scale).sigmoid_()
            torch.mul(xi, qi, out=yi).mul_(alpha - 1).add_(xi)
        ctx.save_for_backward(x, q, alpha, mean, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Adds the direct path to the one through q, whose mean and variance move with x.

        With w = g x q (1 - q), n has gradient (1 - alpha) w, and so, by batch norm, x has
        (1 - alpha) scale (w - mean[w] - n mean[w n]).
        """
        x, q, alpha, mean, scale = ctx.saved_tensors
        grad, w, ones = torch.empty_like(x), torch.empty_like(x), x.new_ones(1, _CHUNK)
        to_alpha, sum_w, sum_wc = x.new_zeros(3, 1, x.shape[1])
        for xi, qi, wi, gi, out in _chunks(x, q, w, g, grad):
            one = ones[:, : xi.shape[0]]  # sums over rows as products: 3 times faster
            gq = gi * qi
            torch.addcmul(gi, gq, alpha - 1, out=out)
            to_alpha += one @ gq.mul_(xi)
            torch.addcmul(gq, gq, qi, value=-1, out=wi)
            sum_w += one @ wi
            sum_wc += one @ torch.sub(xi, mean, out=gq).mul_(wi)
        mean_w = sum_w / x.shape[0]  # [1, D]
        by_centred = scale.square() * sum_wc / x.shape[0]  # [1, D], scale mean[w n]
        for xi, wi, out in _chunks(x, w, grad):
            # Centred before it is scaled: a unit that hardly varies has a huge scale.
            wi.sub_(torch.addcmul(mean_w, xi - mean, by_centred))
            out.addcmul_(wi, (1 - alpha) * scale)
        return grad, to_alpha[0], None, None
