"""Interaction function: the first of the three parts of the IPA form (arXiv:2411.12441).

    p_ij = t_i * (W_ij e_j)        term i of a layer, t [B, N, D], meets field j, e [B, F, D]
    t'   = pool(p)                 the next layer; the first terms are the fields themselves
    v    = aggregate(t, t', ...)   what the classifier reads

Layer pooling and layer aggregator are in `nn/aggregate.py`. Public are the names of the parts and
four kinds of W: naive, weighted, diagonal, projected. The tensors and the other kinds are ours.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.config import require

Product = Literal[
    "naive", "weighted", "diagonal", "projected", "projected_shared", "projected_lowrank",
    "rank_one", "field_block",
]  # fmt: skip
InitScope = Literal["pair", "layer", "stack", "yahoo", "identity"]


class Pairs(nn.Module):
    """Which term i meets which partner j in a layer: P of the N x M possible pairs.

    Args:
        chosen: [N, M] bool, on the CPU.
    """

    left: Tensor  # [P], i
    right: Tensor  # [P], j
    mask: Tensor  # [N, M], 1 where there is a pair

    def __init__(self, chosen: Tensor) -> None:
        super().__init__()
        left, right = chosen.nonzero(as_tuple=True)
        # Chosen on the CPU, kept where models are being built: which pairs there are is a size.
        device = torch.get_default_device()
        self.register_buffer("left", left.to(device), persistent=False)
        self.register_buffer("right", right.to(device), persistent=False)
        self.register_buffer("mask", chosen.float().to(device), persistent=False)
        self.shape, self.count = (chosen.shape[0], chosen.shape[1]), left.shape[0]
        self.full = self.count == chosen.numel()

    @classmethod
    def upper(cls, num_fields: int) -> Pairs:
        """Returns all pairs of fields i < j, in the order (0, 1), (0, 2), ..., (1, 2), ..."""
        return cls(torch.ones(num_fields, num_fields, device="cpu").triu(1).bool())

    @classmethod
    def every(cls, terms: int, partners: int, *, self_pairs: bool = True) -> Pairs:
        """Returns all N x M pairs; those with i = j are left out when `self_pairs` is False."""
        chosen = torch.ones(terms, partners, dtype=torch.bool, device="cpu")
        alike = torch.eye(terms, partners, dtype=torch.bool, device="cpu")
        return cls(chosen if self_pairs else chosen & ~alike)

    def grid(self, values: Tensor) -> Tensor:
        """Returns [N, M, ...] for one value per pair [P, ...]; zero where there is no pair."""
        if self.full:
            return values.view(*self.shape, *values.shape[1:])
        n, m = self.shape
        flat = values.new_zeros(n * m, *values.shape[1:])
        return flat.index_copy(0, self.left * m + self.right, values).view(n, m, *values.shape[1:])

    def times(self, a: Tensor, p: Tensor) -> Tensor:
        """Returns a_i * p_ij of every pair, [B, P, D], for [B, N, D] and [B, P, D]."""
        if self.full:
            return (a.unsqueeze(2) * p.view(p.shape[0], *self.shape, p.shape[2])).flatten(1, 2)
        return a.index_select(1, self.left) * p

    def partners(self, b: Tensor) -> Tensor:
        """Returns b_j of every pair, [B, P, D], for [B, M, D]."""
        if self.full:
            return b.unsqueeze(1).expand(-1, self.shape[0], -1, -1).flatten(1, 2)
        return b.index_select(1, self.right)

    def total(self, b: Tensor) -> Tensor:
        """Returns the sum of the partners of each term, [B, N, D], for [B, M, D]."""
        if self.full:
            return b.sum(dim=1, keepdim=True).expand(-1, self.shape[0], -1)
        return self.mask @ b


class Interaction(nn.Module):
    """The matrices W_ij of a layer. Subclasses say what they are made of.

    Args:
        pairs: where there is a matrix.
    """

    def __init__(self, pairs: Pairs) -> None:
        super().__init__()
        self.pairs = pairs

    def project(self, b: Tensor) -> Tensor:
        """Returns W_ij b_j of every pair, [B, P, D], for [B, M, D]."""
        raise NotImplementedError

    def mix(self, b: Tensor) -> Tensor:
        """Returns sum_j W_ij b_j over the partners of each term, [B, N, D], for [B, M, D]."""
        raise NotImplementedError

    def matrix(self, pair: int) -> Tensor | None:
        """Returns W of one pair, [D, D]; None where W can at most scale."""
        raise NotImplementedError

    def projection(self, i: int, j: int) -> Tensor | None:
        """Returns the matrix through which row vectors of field i meet field j, [D, D].

        Where i is the right operand of the pair, this is the transpose of W_ji; where there is only
        W_ij with i on the left, as in FmFM, it is W_ij: <e_i, W_ij e_j> = <e_i W_ij, e_j>.
        """
        for left, right, turned in ((j, i, True), (i, j, False)):
            found = ((self.pairs.left == left) & (self.pairs.right == right)).nonzero()
            if found.shape[0]:
                w = self.matrix(int(found[0, 0]))
                return w.T if w is not None and turned else w
        return None


class Scalar(Interaction):
    """W_ij = w_ij I, with w_ij = 1 for "naive" (FM, NFM, CIN), learned for "weighted" (FwFM)."""

    def __init__(self, pairs: Pairs, *, learned: bool) -> None:
        super().__init__(pairs)
        self.weight = nn.Parameter(torch.ones(pairs.count)) if learned else None  # [P]

    def project(self, b: Tensor) -> Tensor:
        """Returns w_ij b_j, [B, P, D]."""
        partners = self.pairs.partners(b)
        return partners if self.weight is None else partners * self.weight.unsqueeze(1)

    def mix(self, b: Tensor) -> Tensor:
        """Returns sum_j w_ij b_j, [B, N, D]."""
        return self.pairs.total(b) if self.weight is None else self.pairs.grid(self.weight) @ b

    def matrix(self, pair: int) -> Tensor | None:
        """Returns None: a scalar moves no spectrum."""
        return None


class Diagonal(Interaction):
    """W_ij = diag(w_ij): FvFM."""

    def __init__(self, pairs: Pairs, dim: int) -> None:
        super().__init__(pairs)
        self.weight = nn.Parameter(torch.ones(pairs.count, dim))  # [P, D]

    def project(self, b: Tensor) -> Tensor:
        """Returns w_ij * b_j, [B, P, D]."""
        return self.pairs.partners(b) * self.weight

    def mix(self, b: Tensor) -> Tensor:
        """Returns sum_j w_ij * b_j, [B, N, D]."""
        return torch.einsum("nmd,bmd->bnd", self.pairs.grid(self.weight), b)

    def matrix(self, pair: int) -> Tensor | None:
        """Returns diag(w), [D, D]."""
        return torch.diag(self.weight[pair])


class Projected(Interaction):
    """W_ij full: FmFM, FiBiNET, DCN-V2, PFL."""

    def __init__(self, pairs: Pairs, dim: int, scope: InitScope) -> None:
        super().__init__(pairs)
        self.weight = nn.Parameter(torch.empty(pairs.count, dim, dim))  # [P, D, D]
        _start(self.weight, pairs, dim, scope)

    def project(self, b: Tensor) -> Tensor:
        """Returns W_ij b_j, [B, P, D]."""
        return torch.einsum("bpk,pdk->bpd", self.pairs.partners(b), self.weight)

    def mix(self, b: Tensor) -> Tensor:
        """Returns sum_j W_ij b_j, [B, N, D], as one product with a matrix of N*D x M*D."""
        n, d = self.pairs.shape[0], b.shape[2]
        blocks = self.pairs.grid(self.weight).transpose(1, 2).reshape(n * d, -1)  # [N*D, M*D]
        return F.linear(b.flatten(1), blocks).view(b.shape[0], n, d)

    def matrix(self, pair: int) -> Tensor | None:
        """Returns W, [D, D]."""
        return self.weight[pair]


class Shared(Interaction):
    """W_ij = W, one matrix for all pairs: FiBiNET "all"."""

    def __init__(self, pairs: Pairs, dim: int, scope: InitScope) -> None:
        super().__init__(pairs)
        self.weight = nn.Parameter(torch.empty(dim, dim))
        _start(self.weight, pairs, dim, scope)

    def project(self, b: Tensor) -> Tensor:
        """Returns W b_j, [B, P, D]."""
        return self.pairs.partners(F.linear(b, self.weight))

    def mix(self, b: Tensor) -> Tensor:
        """Returns W sum_j b_j, [B, N, D]."""
        return self.pairs.total(F.linear(b, self.weight))

    def matrix(self, pair: int) -> Tensor | None:
        """Returns W, [D, D]."""
        return self.weight


class LowRank(Interaction):
    """W_ij = U_i V_j^T with r columns, so that the matrix of the whole layer has rank r.

    DCN-V2's mixture of gated low-rank experts is not linear in b and lives in `nn/crosses.py`.
    """

    def __init__(self, pairs: Pairs, dim: int, scope: InitScope, rank: int) -> None:
        super().__init__(pairs)
        std = math.sqrt(_std(pairs, dim, scope) / math.sqrt(rank))  # W then has that of the scope
        self.left = nn.Parameter(torch.randn(pairs.shape[0], dim, rank) * std)  # U, [N, D, r]
        self.right = nn.Parameter(torch.randn(pairs.shape[1], dim, rank) * std)  # V, [M, D, r]

    def project(self, b: Tensor) -> Tensor:
        """Returns U_i V_j^T b_j, [B, P, D]."""
        narrow = self.pairs.partners(torch.einsum("bmd,mdr->bmr", b, self.right))  # [B, P, r]
        return torch.einsum("bpr,pdr->bpd", narrow, self.left.index_select(0, self.pairs.left))

    def mix(self, b: Tensor) -> Tensor:
        """Returns U_i sum_j V_j^T b_j, [B, N, D]."""
        narrow = self.pairs.total(torch.einsum("bmd,mdr->bmr", b, self.right))  # [B, N, r]
        return torch.einsum("bnr,ndr->bnd", narrow, self.left)

    def matrix(self, pair: int) -> Tensor | None:
        """Returns U_i V_j^T, [D, D]."""
        return self.left[self.pairs.left[pair]] @ self.right[self.pairs.right[pair]].T


class RankOne(Interaction):
    """W_ij = 1 w_j^T, the same for every i: DCN, whose cross is x_0 times one number."""

    def __init__(self, pairs: Pairs, dim: int, scope: InitScope) -> None:
        super().__init__(pairs)
        self.weight = nn.Parameter(torch.randn(pairs.shape[1], dim) * _std(pairs, dim, scope))

    def project(self, b: Tensor) -> Tensor:
        """Returns <w_j, b_j> in every direction, [B, P, D]."""
        return self.pairs.partners(self._numbers(b)).expand(-1, -1, b.shape[2])

    def mix(self, b: Tensor) -> Tensor:
        """Returns sum_j <w_j, b_j> in every direction, [B, N, D]."""
        return self.pairs.total(self._numbers(b)).expand(-1, -1, b.shape[2])

    def _numbers(self, b: Tensor) -> Tensor:
        return (b * self.weight).sum(dim=2, keepdim=True)  # [B, M, 1]

    def matrix(self, pair: int) -> Tensor | None:
        """Returns 1 w_j^T, [D, D]."""
        w = self.weight[self.pairs.right[pair]]
        return w.expand(w.shape[0], -1)


class FieldBlock(Interaction):
    """W_ij puts block i of b_j onto block j: FFM, where a row is F vectors, one per partner."""

    def __init__(self, pairs: Pairs, dim: int) -> None:
        super().__init__(pairs)
        self.dim = dim
        terms, fields = pairs.shape
        require(
            terms == fields,
            where="interaction",
            found=f"'field_block' between {terms} terms and {fields} fields",
            expected="a layer whose terms are fields",
            fix="num_layers=2, or pooling='field'",
        )
        require(
            dim % fields == 0,
            where="dim",
            found=f"{dim}, with {fields} fields",
            expected="a multiple of the number of fields: one vector per partner",
            fix=f"set dim={max(1, dim // fields) * fields} or {(dim // fields + 1) * fields}",
        )

    def project(self, b: Tensor) -> Tensor:
        """Returns block i of b_j on block j and zeros elsewhere, [B, P, D]."""
        place = F.one_hot(self.pairs.right, self.pairs.shape[1]).unsqueeze(2)  # [P, F, 1]
        block = self._blocks(b)[:, self.pairs.right, self.pairs.left].unsqueeze(2)  # [B, P, 1, k]
        return (block * place).flatten(2)

    def mix(self, b: Tensor) -> Tensor:
        """Returns block i of every partner j on block j, [B, F, D]."""
        return (self._blocks(b).transpose(1, 2) * self.pairs.mask.unsqueeze(2)).flatten(2)

    def _blocks(self, b: Tensor) -> Tensor:
        return b.reshape(*b.shape[:2], self.pairs.shape[1], -1)  # [B, F, F, k]

    def matrix(self, pair: int) -> Tensor | None:
        """Returns the selection of block i for place j, [D, D]."""
        width = self.dim // self.pairs.shape[1]
        i, j = int(self.pairs.left[pair]), int(self.pairs.right[pair])
        inside = torch.arange(self.dim) // width == j
        return torch.eye(self.dim).roll((i - j) * width, dims=1) * inside.unsqueeze(1)


def product(
    kind: Product, pairs: Pairs, dim: int, *, scope: InitScope = "pair", rank: int = 4
) -> Interaction:
    """Returns the interaction function of a name.

    Args:
        kind: what W_ij is; see the classes.
        pairs: where there is a W_ij.
        dim: D.
        scope: how matrices start, see `_std`; scalars and diagonals start at one.
        rank: r, of "projected_lowrank".
    """
    if kind in ("naive", "weighted"):
        return Scalar(pairs, learned=kind == "weighted")
    if kind == "diagonal":
        return Diagonal(pairs, dim)
    if kind == "projected":
        return Projected(pairs, dim, scope)
    if kind == "projected_shared":
        return Shared(pairs, dim, scope)
    if kind == "projected_lowrank":
        return LowRank(pairs, dim, scope, rank)
    return RankOne(pairs, dim, scope) if kind == "rank_one" else FieldBlock(pairs, dim)


def _std(pairs: Pairs, dim: int, scope: InitScope) -> float:
    """Standard deviation of the entries of W: 20-fold apart at F=39, D=10.

    "pair": Xavier on each D x D block. "layer": Xavier on the N*D x M*D matrix. "stack": what
    Xavier makes of a [P, D, D] tensor, as in FuxiCTR's FmFM. "yahoo": 0.01, as its authors' code.
    """
    if scope == "pair":
        return 1 / math.sqrt(dim)
    if scope == "layer":
        return math.sqrt(2 / (sum(pairs.shape) * dim))
    return math.sqrt(2 / (dim * dim + pairs.count * dim)) if scope == "stack" else 0.01


def _start(weight: nn.Parameter, pairs: Pairs, dim: int, scope: InitScope) -> None:
    with torch.no_grad():
        if scope == "identity":
            weight.copy_(torch.eye(dim).expand_as(weight))
        else:
            weight.normal_(std=_std(pairs, dim, scope))
