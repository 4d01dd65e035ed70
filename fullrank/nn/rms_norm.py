"""RMS norm with one fused kernel in its backward pass.

Zhang & Sennrich, arXiv:1910.07467. PyTorch has no fused RMS norm on a CPU: `F.rms_norm` is a chain
of element-wise operations there. For [256, 77, 64] float32 on one thread, forward and backward
took 22.8 ms so, 21.6 ms written by hand with a dot product, and 7.9 ms as below.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # [..., 1]
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain, scale)
        out: Tensor = (x * scale).mul_(gain)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gain, scale = ctx.saved_tensors
        grad = grads[0].contiguous()
        # The kernel of layer norm with a mean of zero. It also subtracts the mean of grad * gain,
        # which only a subtracted mean gives rise to: that is added again.
        backward = torch.ops.aten.native_layer_norm_backward
        shape, zero, wanted = [x.shape[-1]], torch.zeros_like(scale), [True, True, False]
        dx, dgain, _ = backward(grad, x.contiguous(), shape, zero, scale, gain, None, wanted)
        mean = (grad @ gain).div_(x.shape[-1]).unsqueeze(-1)  # [..., 1]
        return dx.addcmul_(scale, mean), dgain, None


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * gain, over the last axis. A zero vector stays zero.

    Args:
        dim: D.
        eps: keeps the division finite.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Returns [..., D] for [..., D]."""
        if torch.compiler.is_compiling() or x.device.type != "cpu":
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        out: Tensor = _Normalise.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return out

    def extra_repr(self) -> str:
        """Returns the width for `print(model)`."""
        return f"dim={self.weight.shape[0]}, eps={self.eps}"
