"""Parameterised mixing: every coordinate of every token may reach every other.

RankElastor, arXiv:2605.23191. With x the tokens behind one another, [N * D], RankMixer's mixing is
a fixed permutation P x; here it is a learned W x, dense or of a Kronecker form, or of low rank as
a control of equal cost. All map [B, N, D] -> [B, N, D] and leave the residual to their caller.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.config import require
from fullrank.nn.mixing import MultiheadMixing
from fullrank.tap import Tap

FullMix = Literal["full", "block_transpose", "identity", "kron", "kron_official", "full_lowrank"]
MixInit = Literal["xavier", "small", "block_transpose"]
FullNorm = Literal["rms", "layer", "none"]


class FullMixing(nn.Module):
    """W x + b with W dense: (N D)^2 weights. Entry [i, j] is what coordinate i takes from j.

    Args:
        num_tokens: N.
        dim: D.
        bias: whether there is a b.
        init: of W: "xavier" normal, deviation 1 / sqrt(N D), as strong as a residual beside it;
            "small", a fiftieth of that; "block_transpose", RankMixer's permutation.

    Raises:
        ConfigError: "block_transpose", and N does not divide D.
    """

    def __init__(
        self, num_tokens: int, dim: int, *, bias: bool = True, init: MixInit = "xavier"
    ) -> None:
        super().__init__()
        size = num_tokens * dim
        self.weight = _square(size, init)  # [N * D, N * D]
        if init == "block_transpose":
            self.weight = nn.Parameter(block_transpose(num_tokens, dim))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, N, D] for [B, N, D]."""
        return F.linear(x.flatten(1), self.weight, self.bias).view_as(x)


class KronMixing(nn.Module):
    """(W kron I) x: blocks of d neighbouring coordinates are mixed as wholes.

    One coefficient for all d coordinates of a block; with d = D these are mixtures of tokens, and
    d = 1 is `FullMixing`.

    Args:
        num_tokens: N.
        dim: D.
        block: d, divides N * D.
        bias: whether a vector [N * D] is added.
        init: of W, "xavier" or "small".

    Raises:
        ConfigError: d does not divide N * D, or `init` is a permutation that no W kron I is.
    """

    def __init__(
        self,
        num_tokens: int,
        dim: int,
        block: int,
        *,
        bias: bool = False,
        init: MixInit = "xavier",
    ) -> None:
        super().__init__()
        size = num_tokens * dim
        near = sorted(
            (n for n in range(1, size + 1) if size % n == 0), key=lambda n: abs(n - block)
        )
        require(
            size % block == 0,
            where="Kronecker mixing",
            found=f"blocks of {block} for {num_tokens} tokens of width {dim}",
            expected=f"a block size that divides {num_tokens} * {dim} = {size}",
            fix=f"set the block to {' or '.join(str(n) for n in sorted(near[:2]))}",
        )
        require(
            init != "block_transpose",
            where="Kronecker mixing",
            found="a start at the block transposition",
            expected="'xavier' or 'small': only a dense W can be that permutation",
            fix="set mix_init=xavier, or mix=full",
        )
        self.block = block
        self.weight = _square(size // block, init)  # [N * D / d, N * D / d]
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, N, D] for [B, N, D]."""
        parts = x.reshape(x.shape[0], -1, self.block)  # [B, N * D / d, d]
        mixed = F.linear(parts.transpose(1, 2), self.weight).transpose(1, 2)
        return self._shifted(mixed.reshape(x.shape))

    def _shifted(self, x: Tensor) -> Tensor:
        return x if self.bias is None else x + self.bias.view(x.shape[1:])


class KronOfficialMixing(KronMixing):
    """(I kron W) x, as the authors' code has it: the transposed structure of `KronMixing`.

    trap: x is cut into d blocks, and each is mixed within itself by one and the same W. With
    d = N, as the code is configured for Criteo, a block is a token and tokens do not meet at all.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, N, D] for [B, N, D]."""
        parts = x.reshape(x.shape[0], self.block, -1)  # [B, d, N * D / d]
        return self._shifted(F.linear(parts, self.weight).reshape(x.shape))


class LowRankMixing(nn.Module):
    """U V x + b: dense mixing of rank at most r, with 2 r N D weights. Our control.

    Args:
        num_tokens: N.
        dim: D.
        rank: r.
        bias: whether there is a b.
    """

    def __init__(self, num_tokens: int, dim: int, rank: int, *, bias: bool = True) -> None:
        super().__init__()
        size = num_tokens * dim
        self.down = nn.Parameter(nn.init.xavier_normal_(torch.empty(rank, size)))  # V
        self.up = nn.Parameter(nn.init.xavier_normal_(torch.empty(size, rank)))  # U
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, N, D] for [B, N, D]."""
        return F.linear(F.linear(x.flatten(1), self.down), self.up, self.bias).view_as(x)


class FullMixerBlock(nn.Module):
    """M = LN(W x + x), Z = FFN(M), as the paper writes it, and the code's norms and residuals.

    Taps: those of `MixerBlock`, without an expert.

    Args:
        shape: N and D.
        mixing: [B, N, D] -> [B, N, D]; None for no exchange between tokens.
        feed_forward: [B, N, D] -> [B, N, D].
        norm: "layer" as above, per token; "rms": over all N * D coordinates before the mixing, and
            per token before the feed-forward network and its residual; or "none".
        residuals: whether the mixing, and whether the feed-forward network, has a residual.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        mixing: nn.Module | None,
        feed_forward: nn.Module,
        *,
        norm: FullNorm = "layer",
        residuals: tuple[bool, bool] = (True, False),
    ) -> None:
        super().__init__()
        self.mixing, self.feed_forward = mixing, feed_forward
        self.residual_mix, self.residual_ffn = residuals
        if mixing is not None:
            self.mix_norm_in = nn.RMSNorm(shape, eps=1e-12) if norm == "rms" else nn.Identity()
            self.mix_branch = Tap("B N D")
        self.mix_norm_out = nn.LayerNorm(shape[1]) if norm == "layer" else nn.Identity()
        self.ffn_norm = nn.RMSNorm(shape[1], eps=1e-12) if norm == "rms" else nn.Identity()
        self.mix, self.ffn_branch, self.ffn = Tap("B N D"), Tap("B N D"), Tap("B N D")

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, N, D] for [B, N, D]."""
        if self.mixing is not None:
            mixed = self.mix_branch(self.mixing(self.mix_norm_in(x)))
            x = x + mixed if self.residual_mix else mixed
        x = self.ffn_norm(self.mix(self.mix_norm_out(x)))
        out = self.ffn_branch(self.feed_forward(x))
        z: Tensor = self.ffn(x + out if self.residual_ffn else out)
        return z


def full_mixing(
    mix: FullMix,
    num_tokens: int,
    dim: int,
    *,
    bias: bool = True,
    init: MixInit = "xavier",
    block: int = 1,
    rank: int = 32,
) -> nn.Module | None:
    """Builds a mixing by name; None for "identity", where tokens do not meet.

    Args:
        mix: "block_transpose" is RankMixer's `MultiheadMixing`.
        num_tokens: N.
        dim: D.
        bias: of all that have weights.
        init: of W, except for "full_lowrank".
        block: d of the Kronecker forms.
        rank: of "full_lowrank".

    Raises:
        ConfigError: the sizes do not fit.
    """
    match mix:
        case "full":
            return FullMixing(num_tokens, dim, bias=bias, init=init)
        case "kron":
            return KronMixing(num_tokens, dim, block, bias=bias, init=init)
        case "kron_official":
            return KronOfficialMixing(num_tokens, dim, block, bias=bias, init=init)
        case "full_lowrank":
            return LowRankMixing(num_tokens, dim, rank, bias=bias)
        case "block_transpose":
            return _transposing(num_tokens, dim)
        case "identity":
            return None


def block_transpose(num_tokens: int, dim: int) -> Tensor:
    """Returns RankMixer's permutation P, [N * D, N * D], symmetric.

    Raises:
        ConfigError: N does not divide D.
    """
    size = num_tokens * dim
    basis = torch.eye(size).view(size, num_tokens, dim)
    out: Tensor = _transposing(num_tokens, dim)(basis).flatten(1)
    return out


def _transposing(num_tokens: int, dim: int) -> MultiheadMixing:
    width = max(dim - dim % num_tokens, num_tokens), dim + -dim % num_tokens
    counts = [n for n in range(1, dim + 1) if dim % n == 0]
    near = sorted(sorted(counts, key=lambda n: abs(n - num_tokens))[:2])
    require(
        dim % num_tokens == 0,
        where="block transposition",
        found=f"{num_tokens} tokens of width {dim}",
        expected="a number of tokens that divides their width: every token gives a block to all",
        fix=f"set the width to {width[0]} or {width[1]}, or the tokens to one of {near}",
    )
    return MultiheadMixing(num_tokens, dim)


def _square(size: int, init: MixInit) -> nn.Parameter:
    deviation = (0.02 if init == "small" else 1.0) / math.sqrt(size)  # Xavier's for a square matrix
    return nn.Parameter(torch.randn(size, size) * deviation)
