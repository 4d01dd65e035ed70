"""Feature interactions: FM pairs, field-weighted pairs, CIN, and the cross layers of DCN-V2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.nn.mlp import linear
from fullrank.tap import Tap


def pair_sum(v: Tensor, right: Tensor | None = None, *, both_ways: bool = False) -> Tensor:
    """Sums the elementwise products of all pairs of fields in linear time.

    Rendle, ICDM 2010, lemma 3.1, before its sum over the width. A right operand of its own makes
    it the sum of v_i * right_j, by running sums.

    Args:
        v: [B, F, D], the left operand.
        right: [B, F, D]; None for v itself.
        both_ways: all i != j instead of i < j.

    Returns:
        [B, D]; its sum over D is the sum of the inner products of all pairs i < j.

    Example:
        >>> pair_sum(torch.tensor([[[1.0], [2.0], [3.0]]])).item()  # 1*2 + 1*3 + 2*3
        11.0
    """
    right = v if right is None else right
    if both_ways:
        return v.sum(dim=1) * right.sum(dim=1) - (v * right).sum(dim=1)  # [B, D]
    if right is v:
        return 0.5 * (v.sum(dim=1).square() - v.square().sum(dim=1))  # [B, D]
    return (v.cumsum(dim=1)[:, :-1] * right[:, 1:]).sum(dim=1)  # [B, D]


class PairDots(nn.Module):
    """Inner products of all pairs of fields, i < j, in the order (0, 1), (0, 2), ..., (1, 2), ...

    Args:
        num_fields: F, at least 2 for there to be a pair.

    Attributes:
        num_pairs: P = F (F - 1) / 2.
    """

    flat: Tensor

    def __init__(self, num_fields: int) -> None:
        super().__init__()
        i, j = torch.triu_indices(num_fields, num_fields, offset=1)
        self.register_buffer("flat", i * num_fields + j, persistent=False)  # [P]
        self.num_pairs = num_fields * (num_fields - 1) // 2

    def forward(self, v: Tensor, right: Tensor | None = None, *, both_ways: bool = False) -> Tensor:
        """Returns <v_i, right_j>, [B, P], for [B, F, D].

        Args:
            v: the left operand.
            right: [B, F, D]; None for v itself.
            both_ways: add <v_j, right_i> to every pair.
        """
        gram = torch.bmm(v, (v if right is None else right).transpose(1, 2))  # [B, F, F]
        if both_ways:
            gram = gram + gram.transpose(1, 2)
        return gram.flatten(1).index_select(1, self.flat)  # [B, P]


class CIN(nn.Module):
    """Compressed interaction network: crosses of whole vectors, one degree more per layer.

    Lian et al., KDD 2018, equations 6 and 8, with the identity as activation, as the paper found
    best. All maps of a layer go both to the next layer and to the pool.

    Args:
        num_fields: F.
        maps: number of feature maps H_k of each layer.

    Attributes:
        out_dim: the sum of `maps`.
    """

    def __init__(self, num_fields: int, maps: tuple[int, ...]) -> None:
        super().__init__()
        widths = [num_fields, *maps[:-1]]
        self.weights = nn.ParameterList(
            nn.init.xavier_normal_(torch.empty(out, width * num_fields))  # [H_k, H_{k-1} * F]
            for width, out in zip(widths, maps, strict=True)
        )
        self.out_dim = sum(maps)

    def forward(self, v: Tensor, left: Sequence[Tensor] | None = None) -> Tensor:
        """Returns [B, out_dim] for [B, F, D].

        Args:
            v: X_0.
            left: what meets the maps of each layer, [B, F, D] each; None for X_0 in all.
        """
        # Width before fields, so that each layer is one product of two matrices.
        x0 = v.transpose(1, 2).contiguous()  # [B, D, F]
        lefts = [x0 if w is v else w.transpose(1, 2) for w in left or [v] * len(self.weights)]
        x, pooled = x0, []
        for weight, other in zip(self.weights, lefts, strict=True):
            z = (x.unsqueeze(3) * other.unsqueeze(2)).flatten(2)  # [B, D, H_{k-1} * F]
            x = F.linear(z, weight)  # eq. 6, [B, D, H_k]
            pooled.append(x.sum(dim=1))  # eq. 8, [B, H_k]
        return torch.cat(pooled, dim=1)  # [B, sum of H_k]


class Cross(nn.Module):
    """One cross layer of DCN-V2 with a full matrix, without the residual.

    Wang et al., WWW 2021, equation 1: x_{l+1} = x_0 * (W x_l + b) + x_l. The caller adds x_l.

    Args:
        dim: D, width of the stacked fields.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = linear(dim, dim)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """Returns x_0 * (W x + b), [B, D], for two times [B, D]."""
        product: Tensor = self.linear(x)  # [B, D]
        return x0 * product  # eq. 1, [B, D]


class LowRankCross(nn.Module):
    """One cross layer of DCN-V2 as a mixture of low-rank experts, without the residual.

    Wang et al., WWW 2021, equations 3 and 4, with g = tanh and a softmax gate. The experts of a
    layer share its bias, which the gate, adding up to one, leaves as it is. A single expert has
    no gate.

    Args:
        dim: D.
        rank: r, width of an expert.
        experts: K.
    """

    def __init__(self, dim: int, rank: int, experts: int) -> None:
        super().__init__()
        self.shape = (experts, rank)
        self.down = linear(dim, experts * rank, bias=False)  # V of all experts
        self.inner = nn.Parameter(torch.empty(experts, rank, rank))  # C
        for matrix in self.inner:
            nn.init.xavier_normal_(matrix)
        self.up = linear(experts * rank, dim)  # U of all experts, and b
        self.gate = linear(dim, experts) if experts > 1 else None  # G
        self.experts = Tap("B E D")

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """Returns the gated sum of the experts, [B, D], for two times [B, D]."""
        h = torch.tanh(self.down(x)).view(-1, *self.shape)  # [B, K, r]
        h = torch.tanh(torch.einsum("bkr,ksr->bks", h, self.inner))  # eq. 4, [B, K, r]
        h = self.experts(h)
        if self.gate is not None:
            h = h * torch.softmax(self.gate(x), dim=1).unsqueeze(2)  # [B, K, r]
        # U is linear, so gating before it and adding the experts up in it is equation 3.
        mixed: Tensor = self.up(h.flatten(1))  # [B, D]
        return x0 * mixed  # eq. 3, [B, D]
