"""A ReLU network on very many rows, computed a few rows at a time.

The network of FEDIN, arXiv:2605.01726, sees one row per channel of a window, 64 to 128 times the
rows of the batch. PyTorch's parts pass over such a tensor, far larger than the cache, once for each
of bias, activation, draw, mask and product. On a CPU the layers here take a chunk of rows through
all of them before the next one; the results are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fullrank.nn.dropout import keep_scale, kept, kept_into

CHUNK = 1024  # rows of 256 units whose temporaries stay in the cache


def relu_layers(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    dropout: float = 0.0,
    parts: int = 1,
) -> Tensor:
    """Takes rows through linear layers with ReLU and dropout between them.

    Args:
        x: [M, K] rows.
        weights: of each layer, [K_in, K_out].
        biases: of each layer, [K_out].
        dropout: probability of zeroing a hidden unit; 0 at evaluation.
        parts: hidden units are zeroed together across so many equal parts of a layer: 2 for
            complex numbers.

    Returns:
        [M, K_out] of the last layer, which has no activation.
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        scale = keep_scale(dropout)
        scaled = [weights[0], *(w * scale for w in weights[1:])]
        out: Tensor = _CachedLayers.apply(x, dropout, parts, *scaled, *biases)  # type: ignore[no-untyped-call]
        return out
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if i > 0:
            x = _masked(x.relu(), dropout, parts)
        x = F.linear(x, weight.T, bias)
    return x


def _masked(h: Tensor, p: float, parts: int) -> Tensor:
    if p == 0.0:
        return h
    split = h.view(h.shape[0], parts, -1)
    one = split[:, 0]
    mask = kept(one, p) if h.device.type == "cpu" else F.dropout(torch.ones_like(one), p)
    return (split * mask.unsqueeze(1)).flatten(1)


class _CachedLayers(torch.autograd.Function):
    """The layers a chunk of rows at a time; the scale of dropout lies in the weights.

    A hidden unit h = keep relu(z), keep 0 or 1, is above zero just where its gradient passes: so
    neither z nor the mask is kept for the way back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, parts: int, *layers: Tensor) -> Tensor:
        """Layers: all weights, then all biases."""
        n = len(layers) // 2
        outputs = [x.new_empty(x.shape[0], bias.shape[0]) for bias in layers[n:]]
        widest = max(bias.shape[0] for bias in layers[n:])
        buffer, mask = x.new_empty(2, CHUNK * widest)
        for chunk in zip(*(torch.split(o, CHUNK) for o in (x, *outputs)), strict=True):
            for i, out in enumerate(chunk[1:]):
                # cost: what is kept is written once; until then the chunk lies in the cache.
                z = buffer[: out.numel()].view(out.shape)
                torch.addmm(layers[n + i], chunk[i], layers[i], out=z)
                if i + 1 == n:
                    out.copy_(z)
                elif p == 0.0:
                    torch.clamp_min(z, 0.0, out=out)
                else:
                    split = z.relu_().view(out.shape[0], parts, -1)
                    keep = mask[: out.numel() // parts].view(out.shape[0], 1, -1)
                    torch.mul(split, kept_into(keep, p), out=out.view(split.shape))
        ctx.save_for_backward(x, *outputs[:-1], *layers[:n])
        return outputs[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Passes the gradient where a unit was above zero, chunk by chunk."""
        n = len(ctx.saved_tensors) // 2
        inputs, weights = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        to_weights = [torch.zeros_like(w) for w in weights]
        to_biases = [w.new_zeros(1, w.shape[1]) for w in weights]
        to_x = torch.empty_like(inputs[0]) if ctx.needs_input_grad[0] else None
        ones = g.new_ones(1, CHUNK)
        buffers = [w.new_empty(CHUNK, w.shape[0]) for w in weights]
        for start in range(0, g.shape[0], CHUNK):
            dz = g[start : start + CHUNK]
            rows = dz.shape[0]
            for i in reversed(range(n)):
                h = inputs[i][start : start + CHUNK]
                to_biases[i].addmm_(ones[:, :rows], dz)  # sums over rows as products
                to_weights[i].addmm_(h.T, dz)
                if i > 0:
                    dh = torch.mm(dz, weights[i].T, out=buffers[i][:rows])
                    dz = torch.ops.aten.threshold_backward.grad_input(dh, h, 0, grad_input=dh)
                elif to_x is not None:
                    torch.mm(dz, weights[0].T, out=to_x[start : start + CHUNK])
        return to_x, None, None, *to_weights, *(b[0] for b in to_biases)
