"""Mixing: how tokens exchange information. [B, N, D] -> [B, N, D].

RankMixer, arXiv:2507.15551: multi-head token mixing, which has no parameters, and the three
alternatives of its routing ablation. The paper gives no shapes for those; ours are stated below.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.config import require
from fullrank.nn.mlp import MLP, linear

Mix = Literal["multihead", "none", "all_concat_mlp", "all_share", "self_attention"]


def mix_tokens(x: Tensor, heads: int) -> Tensor:
    """Cuts every token into heads and joins head h of all tokens into output token h.

    out[b, h, n * D/H + c] = in[b, n, h * D/H + c]. With H = N it is its own inverse.

    Args:
        x: [B, N, D]; H divides D.
        heads: H.

    Returns:
        [B, H, N * D/H].

    Example:
        >>> mix_tokens(torch.tensor([[[1, 2, 3, 4], [5, 6, 7, 8]]]), heads=2).tolist()
        [[[1, 2, 5, 6], [3, 4, 7, 8]]]
    """
    rows, tokens, dim = x.shape
    parts = x.reshape(rows, tokens, heads, dim // heads)  # [B, N, H, D/H]
    return parts.transpose(1, 2).reshape(rows, heads, tokens * dim // heads)


class MultiheadMixing(nn.Module):
    """Multi-head token mixing with as many heads as tokens, so that the shape is kept.

    Args:
        num_tokens: N.
        dim: D.
        pad: where N does not divide D, pad each token with zeros to the next multiple, mix, and
            drop the coordinates that came from the padding: what is left, N*D of them, is cut into
            N tokens again. A permutation still, but no longer its own inverse.

    Raises:
        ConfigError: N does not divide D and `pad` is off.
    """

    def __init__(self, num_tokens: int, dim: int, *, pad: bool = False) -> None:
        super().__init__()
        missing = -dim % num_tokens
        below = max(dim - dim % num_tokens, num_tokens)
        require(
            missing == 0 or pad,
            where="multi-head token mixing",
            found=f"{num_tokens} tokens of width {dim}",
            expected="a number of tokens that divides their width: every token gives a head to all",
            fix=f"set the width to {below} or {dim + missing}, the tokens to one of "
            f"{_divisors_around(dim, num_tokens)}, or mix_pad=true",
        )
        self.num_tokens = num_tokens
        self.order: Tensor | None
        self.register_buffer("order", None, persistent=False)
        if missing:
            source = torch.arange(num_tokens * dim).view(1, num_tokens, dim)
            mixed = mix_tokens(F.pad(source, (0, missing), value=-1), num_tokens).flatten()
            self.order = mixed[mixed >= 0]  # [N * D], a permutation

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, N, D] for [B, N, D]."""
        if self.order is None:
            return mix_tokens(x, self.num_tokens)
        return x.flatten(1).index_select(1, self.order).view_as(x)


class ConcatMixing(nn.Module):
    """Ablation: one MLP on all tokens joined, cut into tokens again.

    Its hidden width equals that of one per-token FFN, so both have 2 N D H weights.

    Args:
        num_tokens: N.
        dim: D.
        hidden: H.
    """

    def __init__(self, num_tokens: int, dim: int, hidden: int) -> None:
        super().__init__()
        width = num_tokens * dim
        self.layers = nn.Sequential(MLP(width, (hidden,), activation="gelu"), linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, N, D] for [B, N, D]."""
        out: Tensor = self.layers(x.flatten(1))  # [B, N * D]
        return out.view_as(x)


class SharedMixing(nn.Module):
    """Ablation: every slot receives the same vector, a linear map of all tokens joined.

    Args:
        num_tokens: N.
        dim: D.
    """

    def __init__(self, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.projection = linear(num_tokens * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, N, D] for [B, N, D]."""
        shared: Tensor = self.projection(x.flatten(1))  # [B, D]
        return shared.unsqueeze(1).expand_as(x)


class AttentionMixing(nn.Module):
    """Ablation: multi-head self-attention over the tokens, without a mask or positions.

    Args:
        num_tokens: N; the number of heads where it divides D, else 4.
        dim: D.

    Raises:
        ConfigError: neither N nor 4 divides D.
    """

    def __init__(self, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.heads = num_tokens if dim % num_tokens == 0 else 4
        require(
            dim % self.heads == 0,
            where="self-attention mixing",
            found=f"{num_tokens} tokens of width {dim}",
            expected="a width that the number of tokens, or 4, divides",
            fix=f"set the width to {max(dim - dim % 4, 4)} or {dim + -dim % 4}",
        )
        self.query_key_value = linear(dim, 3 * dim)
        self.output = linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, N, D] for [B, N, D]."""
        rows, tokens, dim = x.shape
        parts = self.query_key_value(x).view(rows, tokens, 3, self.heads, dim // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each [B, H, N, D/H]
        seen = F.scaled_dot_product_attention(query, key, value)  # [B, H, N, D/H]
        out: Tensor = self.output(seen.transpose(1, 2).reshape(rows, tokens, dim))
        return out


def mixing(
    mix: Mix, num_tokens: int, dim: int, *, hidden: int, pad: bool = False
) -> nn.Module | None:
    """Builds a mixing by name; None for "none".

    Args:
        mix: which.
        num_tokens: N.
        dim: D.
        hidden: of the MLP of "all_concat_mlp".
        pad: of "multihead".

    Raises:
        ConfigError: the number of tokens does not fit their width.
    """
    match mix:
        case "multihead":
            return MultiheadMixing(num_tokens, dim, pad=pad)
        case "all_concat_mlp":
            return ConcatMixing(num_tokens, dim, hidden)
        case "all_share":
            return SharedMixing(num_tokens, dim)
        case "self_attention":
            return AttentionMixing(num_tokens, dim)
        case "none":
            return None


def _divisors_around(dim: int, near: int) -> str:
    divisors = sorted((n for n in range(1, dim + 1) if dim % n == 0), key=lambda n: abs(n - near))
    return ", ".join(str(n) for n in sorted(divisors[:3]))
