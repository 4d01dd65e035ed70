"""Interaction experts: whole ways to cross the fields, [B, F, D] to [B, Q], by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from fullrank.errors import SchemaError
from fullrank.nn.crosses import CIN, Cross, PairDots
from fullrank.nn.mlp import MLP
from fullrank.nn.token_ffn import xavier_slices

Interaction = Literal["cross", "cin", "dnn", "ipnn", "fwfm", "fmfm", "flatten"]


class CrossNetwork(nn.Module):
    """The cross network of DCN-V2 with full matrices: Wang et al., WWW 2021, equation 1.

    Args:
        dim: F * D, width of the stacked fields.
        num_layers: L; the highest degree is L + 1.
    """

    def __init__(self, dim: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Cross(dim) for _ in range(num_layers))

    def forward(self, v: Tensor) -> Tensor:
        """Returns [B, F * D] for [B, F, D]."""
        x = x0 = v.flatten(1)
        for layer in self.layers:
            x = layer(x0, x) + x  # eq. 1
        return x


class ProductNetwork(nn.Module):
    """The product layer of IPNN: the fields as they are, beside the inner products of all pairs.

    Qu et al., ICDM 2016, arXiv:1611.00144, with all products kept.

    Args:
        num_fields: F.
    """

    def __init__(self, num_fields: int) -> None:
        super().__init__()
        self.pairs = PairDots(num_fields)

    def forward(self, v: Tensor) -> Tensor:
        """Returns [B, F * D + P] for [B, F, D]."""
        return torch.cat([v.flatten(1), self.pairs(v)], dim=1)


class FieldMatrixPairs(nn.Module):
    """The pairs of FmFM, not summed up: v_i W_ij . v_j for i < j, a matrix per pair.

    Sun et al., WWW 2021, arXiv:2102.12994.

    Args:
        num_fields: F.
        dim: D.
    """

    first: Tensor
    second: Tensor

    def __init__(self, num_fields: int, dim: int) -> None:
        super().__init__()
        first, second = torch.triu_indices(num_fields, num_fields, offset=1)
        self.register_buffer("first", first, persistent=False)  # [P]
        self.register_buffer("second", second, persistent=False)  # [P]
        self.weight = xavier_slices(first.shape[0], dim, dim)  # [P, D, D]

    def forward(self, v: Tensor) -> Tensor:
        """Returns [B, P] for [B, F, D]."""
        left = torch.einsum("bpd,pde->bpe", v[:, self.first], self.weight)  # [B, P, D]
        return (left * v[:, self.second]).sum(dim=2)  # [B, P]


def interaction(
    kind: Interaction,
    num_fields: int,
    dim: int,
    *,
    num_cross: int,
    cin_maps: tuple[int, ...],
    deep: Callable[[int], MLP],
) -> tuple[nn.Module, int]:
    """Builds an interaction by name.

    Args:
        kind: "cross", "cin", "dnn", "ipnn", "fwfm", "fmfm", or "flatten" for no interaction.
        num_fields: F.
        dim: D.
        num_cross: layers of "cross".
        cin_maps: feature maps of each layer of "cin".
        deep: builds the network of "dnn" for an input width.

    Returns:
        The module, [B, F, D] to [B, Q], and Q.

    Raises:
        SchemaError: the expert crosses pairs, and there is one field only.
    """
    flat, pairs = num_fields * dim, num_fields * (num_fields - 1) // 2
    if pairs == 0 and kind in ("ipnn", "fwfm", "fmfm"):
        raise SchemaError(
            "there is no pair of fields to cross",
            where=f"expert '{kind}'",
            found=f"{num_fields} field",
            expected="at least 2",
            fix="add a field, or take experts 'cross', 'cin', 'dnn' or 'flatten'",
        )
    match kind:
        case "cross":
            return CrossNetwork(flat, num_cross), flat
        case "cin":
            return CIN(num_fields, cin_maps), sum(cin_maps)
        case "dnn":
            body = deep(flat)
            return nn.Sequential(nn.Flatten(1), body), body.out_dim
        case "ipnn":
            return ProductNetwork(num_fields), flat + pairs
        case "fwfm":  # the weights of its pairs are in the linear layer that reads them
            return PairDots(num_fields), pairs
        case "fmfm":
            return FieldMatrixPairs(num_fields, dim), pairs
        case "flatten":
            return nn.Flatten(1), flat
