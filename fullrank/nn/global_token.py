"""Tokens that see a whole row: the global token, and products of two vectors.

RankUp, arXiv:2604.17878. It names the functions of the global token and gives no widths; those
below are ours.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.config import require
from fullrank.nn.crosses import LowRankCross, pair_sum
from fullrank.nn.mlp import MLP, linear

GlobalKind = Literal["mlp", "fm", "dcnv2"]
GlobalPool = Literal["mean", "concat"]


class GlobalToken(nn.Module):
    """One token from all fields: it exists before the first block and takes part in its mixing.

    "mlp": the mean of the fields, or all of them joined, through one hidden layer of 2D units with
    GELU. "fm": the sum of the products of all pairs, projected. "dcnv2": the fields joined, two
    low-rank cross layers with residuals, projected.

    Args:
        kind: which.
        num_fields: F.
        field_dim: D_e.
        dim: D.
        pool: of "mlp".
        rank: of the cross layers; D_e F where that is less.

    Raises:
        ConfigError: "fm" of a single field, which has no pair.
    """

    def __init__(
        self,
        kind: GlobalKind,
        num_fields: int,
        field_dim: int,
        dim: int,
        *,
        pool: GlobalPool = "mean",
        rank: int = 32,
    ) -> None:
        super().__init__()
        require(
            kind != "fm" or num_fields > 1,
            where="the global token 'fm'",
            found="one field",
            expected="at least one pair",
            fix="let it see two fields or more, or take 'mlp'",
        )
        self.kind, self.pool = kind, pool
        flat = num_fields * field_dim
        if kind == "mlp":
            body = MLP(flat if pool == "concat" else field_dim, (2 * dim,), activation="gelu")
            self.projection: nn.Module = nn.Sequential(body, linear(2 * dim, dim))
        elif kind == "fm":
            self.projection = linear(field_dim, dim)
        else:
            layers = (LowRankCross(flat, rank=min(rank, flat), experts=1) for _ in range(2))
            self.crosses = nn.ModuleList(layers)
            self.projection = linear(flat, dim)

    def forward(self, fields: Tensor) -> Tensor:
        """Returns [B, D] for [B, F, D_e]."""
        if self.kind == "fm":
            x = pair_sum(fields)  # [B, D_e]
        elif self.kind == "mlp" and self.pool == "mean":
            x = fields.mean(1)  # [B, D_e]
        else:
            x = fields.flatten(1)  # [B, F * D_e]
        if self.kind == "dcnv2":
            x0 = x
            for cross in self.crosses:
                x = cross(x0, x) + x
        out: Tensor = self.projection(x)  # [B, D]
        return out


class ProductToken(nn.Module):
    """(a * b) W + c: one token from the elementwise product of two vectors.

    Args:
        a_dim, b_dim: P, the same for both.
        dim: D.
        normalise: scale both vectors to length one first. A vector of zeros stays zero, so that
            the token is the bias.

    Raises:
        ConfigError: the widths differ.
    """

    def __init__(self, a_dim: int, b_dim: int, dim: int, *, normalise: bool = False) -> None:
        super().__init__()
        require(
            a_dim == b_dim,
            where="a product of two vectors",
            found=f"widths {a_dim} and {b_dim}",
            expected="equal widths: the product is taken element by element",
            fix=f"bring both to width {min(a_dim, b_dim)}, or leave the product out",
        )
        self.normalise, self.projection = normalise, linear(a_dim, dim)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Returns [B, D] for two times [B, P]."""
        if self.normalise:
            a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
        out: Tensor = self.projection(a * b)  # [B, D]
        return out
