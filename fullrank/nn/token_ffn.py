"""Feed-forward networks over tokens: one set of weights per token, or one for all.

RankMixer, arXiv:2507.15551, per-token FFN. All tokens are one batched product per layer, which
reads and writes strided slices, so nothing is transposed.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.nn.mlp import MLP, Activation, linear


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
        bias: whether there is one.
    """

    def __init__(self, num_tokens: int, in_dim: int, out_dim: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = xavier_slices(num_tokens, in_dim, out_dim)  # [N, D, H]
        self.bias = nn.Parameter(torch.zeros(num_tokens, out_dim)) if bias else None  # [N, H]

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


def per_token_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns x_t W_t + b_t, [B, N, H], for [B, N, D], [N, D, H] and [N, H]."""
    rows = x.transpose(0, 1)  # [N, B, D]
    if bias is None:
        return torch.bmm(rows, weight).transpose(0, 1)
    return torch.baddbmm(bias.unsqueeze(1), rows, weight).transpose(0, 1)
