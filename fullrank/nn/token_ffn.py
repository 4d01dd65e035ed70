"""Feed-forward networks over tokens: one set of weights per token, or one for all.

RankMixer, arXiv:2507.15551, per-token FFN. Tokens stay [B, N, D] throughout: a product per token
reads and writes strided slices, which matrix-product libraries accept, so nothing is transposed.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fullrank.nn.mlp import MLP, Activation, linear

# Hidden values per token from which one product per token beats one batched product: below it the
# calls cost more than the memory traffic that they save (bench/rankmixer_utilisation.py).
_SPLIT_FROM = 65536


def xavier_slices(*shape: int) -> nn.Parameter:
    """Returns a Xavier-uniform parameter, fans taken from the last two axes.

    trap: `nn.init.xavier_uniform_` on [N, D, H] counts H as a receptive field and starts
    sqrt(H)-fold too small.
    """
    bound = math.sqrt(6.0 / (shape[-1] + shape[-2]))
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


class PerTokenLinear(nn.Module):
    """A linear layer with its own weights for every token.

    Args:
        num_tokens: N.
        in_dim: D.
        out_dim: H.
    """

    def __init__(self, num_tokens: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = xavier_slices(num_tokens, in_dim, out_dim)  # [N, D, H]
        self.bias = nn.Parameter(torch.zeros(num_tokens, out_dim))  # [N, H]

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, N, H] for [B, N, D]."""
        return per_token_linear(x, self.weight, self.bias)


class PerTokenFFN(nn.Module):
    """v_t = act(s_t W_t1 + b_t1) W_t2 + b_t2, independent weights per token.

    Parameters with one hidden layer of width kD: N (2 k D^2 + k D + D).

    Args:
        num_tokens: N.
        dim: D.
        hidden: widths of the hidden layers, at least one.
        activation: after each hidden layer; "gelu" is the exact one (erf).
    """

    def __init__(
        self, num_tokens: int, dim: int, hidden: tuple[int, ...], activation: Activation = "gelu"
    ) -> None:
        super().__init__()
        widths = (dim, *hidden, dim)
        self.activation: Activation = activation
        self.layers = nn.ModuleList(PerTokenLinear(num_tokens, i, o) for i, o in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, N, D] for [B, N, D]."""
        if len(self.layers) == 2:
            first, second = self.layers
            weights = first.weight, first.bias, second.weight, second.bias
            return per_token_ffn(x, *weights, self.activation)  # type: ignore[arg-type]
        *inner, last = self.layers
        for layer in inner:
            x = activate(layer(x), self.activation)  # [B, N, H]
        out: Tensor = last(x)  # [B, N, D]
        return out


def shared_ffn(dim: int, hidden: tuple[int, ...], activation: Activation = "gelu") -> nn.Module:
    """Returns the ablation of `PerTokenFFN`: one network that every token passes through."""
    return nn.Sequential(MLP(dim, hidden, activation=activation), linear(hidden[-1], dim))


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Returns relu(x) or the exact gelu(x)."""
    return F.relu(x) if activation == "relu" else F.gelu(x)


def per_token_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns x_t W_t + b_t, [B, N, H], for [B, N, D], [N, D, H] and [N, H]."""
    out = torch.baddbmm(bias.unsqueeze(1), x.transpose(0, 1), weight)  # [N, B, H]
    return out.transpose(0, 1)


def per_token_ffn(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: Activation
) -> Tensor:
    """Returns act(x_t W_t1 + b_t1) W_t2 + b_t2 for every token t.

    Training on a CPU takes one token after the other: the hidden layer of one token stays in the
    cache, where that of all tokens is read from memory by each of the eleven passes over it. The
    gradient then cannot be differentiated again. Everywhere else it is two batched products.

    Args:
        x: [B, N, D].
        w1: [N, D, H].
        b1: [N, H].
        w2: [N, H, D].
        b2: [N, D].
        activation: "relu" or "gelu".

    Returns:
        [B, N, D].
    """
    if _split_pays(x, b1.shape[1]):
        weights = (w.contiguous() for w in (w1, b1, w2, b2))
        out: Tensor = _TokenByToken.apply(x, *weights, activation)  # type: ignore[no-untyped-call]
        return out
    return per_token_linear(activate(per_token_linear(x, w1, b1), activation), w2, b2)


def _split_pays(x: Tensor, hidden: int) -> bool:
    return (
        torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.shape[0] * hidden >= _SPLIT_FROM
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


class _TokenByToken(torch.autograd.Function):
    """The per-token FFN, written so that a token's hidden layer is used while it is in the cache.

    Takes as many tokens at a time as there are threads, so that each thread has a product of its
    own. Kept for the gradient: the input and the hidden layer before its activation. The
    activation is computed again, which costs less than writing it out and reading it back.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: Activation
    ) -> Tensor:
        (rows, tokens, _), hidden = x.shape, b1.shape[1]
        out = torch.empty_like(x, memory_format=torch.contiguous_format)  # [B, N, D]
        inputs, outputs = x.transpose(0, 1), out.transpose(0, 1)  # [N, B, D], strided
        parts = _parts(tokens)
        # One tensor per part: blocks of this size are reused by the allocator, where one of
        # [N, B, H] is returned to the system and paid for again in page faults at every step.
        before = [x.new_empty(part.stop - part.start, rows, hidden) for part in parts]
        for part, pre in zip(parts, before, strict=True):  # pre and act: [P, B, H]
            torch.baddbmm(b1[part].unsqueeze(1), inputs[part], w1[part], out=pre)
            act = activate(pre, activation)
            torch.baddbmm(b2[part].unsqueeze(1), act, w2[part], out=outputs[part])
        ctx.save_for_backward(x, w1, w2, *before)
        ctx.activation = activation
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, w2, *before = ctx.saved_tensors
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)  # [B, N, D]
        grad_w1, grad_w2 = torch.empty_like(w1), torch.empty_like(w2)
        grad_b1 = w1.new_empty(w1.shape[0], w1.shape[2])
        inputs, grads_x, grads = (y.transpose(0, 1) for y in (x, grad_x, grad))  # [N, B, D]
        start = 0
        for pre in before:  # [P, B, H]
            part = slice(start, start + pre.shape[0])
            start = part.stop
            torch.bmm(activate(pre, ctx.activation).mT, grads[part], out=grad_w2[part])
            grad_act = torch.bmm(grads[part], w2[part].mT)  # [P, B, H]
            _activation_gradient(grad_act, pre, ctx.activation)
            torch.sum(grad_act, 1, out=grad_b1[part])  # [P, H]
            torch.bmm(inputs[part].mT, grad_act, out=grad_w1[part])  # [P, D, H]
            torch.bmm(grad_act, w1[part].mT, out=grads_x[part])  # [P, B, D]
        return grad_x, grad_w1, grad_b1, grad_w2, grad.sum(0), None


def _parts(tokens: int) -> list[slice]:
    size = max(1, min(tokens, torch.get_num_threads()))
    return [slice(i, min(i + size, tokens)) for i in range(0, tokens, size)]


def _activation_gradient(grad: Tensor, before: Tensor, activation: Activation) -> None:
    """Turns the gradient of the activation into that of its input, in place."""
    if activation == "relu":
        torch.ops.aten.threshold_backward.grad_input(grad, before, 0.0, grad_input=grad)
    else:
        torch.ops.aten.gelu_backward.grad_input(grad, before, grad_input=grad)
