"""Layer pooling and layer aggregator: the other two parts of the IPA form (arXiv:2411.12441).

A pooling turns the terms t [B, N, D] of a layer and the fields e [B, F, D] into the terms of the
next layer, so that their number stays bounded; an aggregator joins the layers for the classifier.

    pooling     terms of the next layer           examples
    Keep        one per pair                      FM, FwFM, FmFM, FvFM, FFM, IPNN, FiBiNET
    Global      one: the sum of all pairs         NFM
    Field       F: one per field                  DCN, DCN-V2, PFL
    Filter      H: weighted sums of all pairs     CIN (xDeepFM)
    Attention   one: softmax-weighted sum         AFM
    Attentive   F: no product at all              AutoInt

HOFM is not a point of this grid: it sums over distinct fields, with one table per order and the
ANOVA recursion instead of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.config import require
from fullrank.nn.interaction import Interaction
from fullrank.nn.mlp import linear
from fullrank.tap import Tap

Pooling = Literal["keep", "global", "field", "filter", "attention"]
Orientation = Literal["keep_raw", "keep_prev"]
Bias = Literal["none", "inside", "outside"]
Aggregation = Literal[
    "last", "sum", "concat", "layer_weight", "field_weight", "element_weight", "sumpool_concat"
]
RMS_EPS = 1e-12  # a layer of zeros keeps a finite gradient; one below 1e-6 stays small


class Keep(nn.Module):
    """Every pair is a term: t_i * W_ij e_j.

    Args:
        interaction: W; its left side are the terms, its right side the fields.
        tapped: whether this is the first interaction, whose operands have the taps `left` and
            `right`: the fields on either side of W.
        squeeze: the pairs of `SqueezeExcitation` fields follow, with the same W, as in FiBiNET;
            only where the terms are the fields.

    Attributes:
        num_terms: of the next layer.
    """

    def __init__(
        self, interaction: Interaction, *, tapped: bool = False, squeeze: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.interaction, self.squeeze = interaction, squeeze
        self.left, self.right = _taps(tapped)
        self.num_terms = interaction.pairs.count * (1 if squeeze is None else 2)

    def forward(self, e: Tensor, t: Tensor) -> Tensor:
        """Returns [B, num_terms, D] for fields [B, F, D] and terms [B, N, D]."""
        kept = self._products(self.right(e), self.left(t))  # [B, P, D]
        if self.squeeze is None:
            return kept
        scaled = self.squeeze(e)  # [B, F, D]
        return torch.cat([kept, self._products(scaled, scaled)], dim=1)  # [B, 2 P, D]

    def _products(self, e: Tensor, t: Tensor) -> Tensor:
        return self.interaction.pairs.times(t, self.interaction.project(e))  # [B, P, D]


class Global(nn.Module):
    """The sum of all pairs is the only term.

    Args:
        interaction: W; its left side are the terms, its right side the fields.
        tapped: as in `Field`.
    """

    num_terms = 1

    def __init__(self, interaction: Interaction, *, tapped: bool = False) -> None:
        super().__init__()
        self.interaction = interaction
        self.left, self.right = _taps(tapped)

    def forward(self, e: Tensor, t: Tensor) -> Tensor:
        """Returns [B, 1, D] for fields [B, F, D] and terms [B, N, D]."""
        mixed: Tensor = self.right(self.interaction.mix(e))  # [B, N, D]
        out: Tensor = (self.left(t) * mixed).sum(dim=1, keepdim=True)
        return out


class Field(nn.Module):
    """One term per field: e_i * sum_j W_ij t_j.

    Args:
        interaction: W of F x F pairs.
        orientation: "keep_raw" as above; "keep_prev": t_i * sum_j W_ij e_j. They differ from the
            third layer on.
        residual: adds t_i, as in DCN and DCN-V2.
        bias: "inside" is b_i beside the sum, as in DCN-V2; "outside" is b_i beside the product,
            as in DCN.
        tapped: whether this is the first interaction, whose operands have the taps `left`, e_i,
            and `right`, the mixed partners.
    """

    def __init__(
        self,
        interaction: Interaction,
        dim: int,
        *,
        orientation: Orientation = "keep_raw",
        residual: bool = False,
        bias: Bias = "none",
        tapped: bool = False,
    ) -> None:
        super().__init__()
        self.interaction, self.orientation = interaction, orientation
        self.residual, self.inside, self.num_terms = (
            residual,
            bias == "inside",
            interaction.pairs.shape[0],
        )
        self.bias = None if bias == "none" else nn.Parameter(torch.zeros(self.num_terms, dim))
        self.left, self.right = _taps(tapped)

    def forward(self, e: Tensor, t: Tensor) -> Tensor:
        """Returns [B, F, D] for fields and terms [B, F, D]."""
        kept, partners = (e, t) if self.orientation == "keep_raw" else (t, e)
        mixed = self.interaction.mix(partners)  # [B, F, D]
        if self.bias is not None and self.inside:
            mixed = mixed + self.bias
        out: Tensor = self.left(kept) * self.right(mixed)
        if self.bias is not None and not self.inside:
            out = out + self.bias
        return out + t if self.residual else out


class Filter(Keep):
    """H weighted sums of all pairs: the feature maps of CIN, Lian et al., arXiv:1803.05170, eq. 6.

    Args:
        interaction: W of N x F pairs.
        maps: H.
        tapped: as in `Keep`.
    """

    def __init__(self, interaction: Interaction, maps: int, *, tapped: bool = False) -> None:
        super().__init__(interaction, tapped=tapped)
        weight = torch.empty(maps, interaction.pairs.count)  # [H, P]
        self.weight = nn.Parameter(nn.init.xavier_normal_(weight))
        self.num_terms = maps

    def forward(self, e: Tensor, t: Tensor) -> Tensor:
        """Returns [B, H, D] for fields [B, F, D] and terms [B, N, D]."""
        return self.weight @ super().forward(e, t)


class Attention(Keep):
    """A sum of all pairs whose softmax weights depend on the row: AFM, Xiao et al., IJCAI 2017.

    Args:
        interaction: W.
        dim: D.
        hidden: width of the attention network, h^T relu(A p_ij + b).
        tapped: as in `Keep`.
    """

    def __init__(
        self, interaction: Interaction, dim: int, hidden: int, *, tapped: bool = False
    ) -> None:
        super().__init__(interaction, tapped=tapped)
        self.hidden, self.vote = linear(dim, hidden), linear(hidden, 1, bias=False)
        self.num_terms = 1

    def forward(self, e: Tensor, t: Tensor) -> Tensor:
        """Returns [B, 1, D] for fields [B, F, D] and terms [B, N, D]."""
        p = super().forward(e, t)  # [B, P, D]
        share = torch.softmax(self.vote(torch.relu(self.hidden(p))), dim=1)  # [B, P, 1]
        return (share * p).sum(dim=1, keepdim=True)


class Attentive(nn.Module):
    """The interacting layer of AutoInt, Song et al., arXiv:1810.11921, equations 5 to 8.

    It stands beside the products and is none of them. A product term is e_i * (W_ij e_j): bilinear
    in the two fields, W depending on the pair and not on the row. Here a term is
    relu(sum_j a_ij(row) V t_j + R t_i): values are added with softmax weights that the row decides,
    V is the same for all pairs, and the degree in the embeddings is not bounded by the layer.

    Args:
        dim: D, shared among the heads; the paper lets it change from layer to layer.
        heads: divides D.
        num_fields: F.
        residual: adds R t_i before the activation.
    """

    def __init__(self, dim: int, heads: int, num_fields: int, *, residual: bool) -> None:
        super().__init__()
        self.heads, self.num_terms = heads, num_fields
        self.query, self.key, self.value = (linear(dim, dim, bias=False) for _ in range(3))
        self.keep = linear(dim, dim, bias=False) if residual else None  # R

    def forward(self, e: Tensor, t: Tensor) -> Tensor:
        """Returns [B, F, D] for terms [B, F, D]; the fields e are not read again."""
        q, k, v = (self._split(part(t)) for part in (self.query, self.key, self.value))
        share = torch.softmax(q @ k.transpose(2, 3), dim=3)  # eq. 5, not scaled, [B, H, F, F]
        out = (share @ v).transpose(1, 2).flatten(2)  # eq. 6 and 7, [B, F, D]
        if self.keep is not None:
            out = out + self.keep(t)
        return torch.relu(out)  # eq. 8

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # [B, H, F, D / H]


class SqueezeExcitation(nn.Module):
    """A scale per field, from the means of all: SENet of FiBiNET, Huang et al., arXiv:1905.09433.

    Args:
        num_fields: F.
        reduction: the hidden layer has F / reduction units, at least one; 3 in the paper.
    """

    def __init__(self, num_fields: int, reduction: int = 3) -> None:
        super().__init__()
        hidden = max(1, num_fields // reduction)
        self.down = linear(num_fields, hidden, bias=False)
        self.up = linear(hidden, num_fields, bias=False)

    def forward(self, e: Tensor) -> Tensor:
        """Returns [B, F, D], scaled, for [B, F, D]."""
        scale = torch.relu(self.up(torch.relu(self.down(e.mean(dim=2)))))  # [B, F]
        return e * scale.unsqueeze(2)


class Aggregator(nn.Module):
    """Joins the terms of all layers, raw fields first, into one vector per row.

    Under a linear classifier "concat", "element_weight", "field_weight" and "layer_weight" are one
    class of functions with ever more sharing; they differ below a network.

    Args:
        kind: "last" layer alone; "sum" of layers; "concat"; sums with a weight per layer, per layer
            and field, or per layer and element, all from one; "sumpool_concat", the sum over D of
            every term but the raw ones.
        terms: number of terms of each layer.
        dim: D.
        softmax: the weights of the layers add up to one.
        rms: divide every layer by its root mean square first; layers are then no longer
            homogeneous in the embeddings.

    Attributes:
        out_dim: width of the vector.

    Raises:
        ConfigError: layers with unequal numbers of terms are to be added.
    """

    def __init__(
        self,
        kind: Aggregation,
        terms: Sequence[int],
        dim: int,
        *,
        softmax: bool = False,
        rms: bool = False,
    ) -> None:
        super().__init__()
        self.kind, self.softmax, self.rms = kind, softmax, rms
        joined = kind in ("last", "concat", "sumpool_concat")
        require(
            joined or len(set(terms)) == 1,
            where="aggregator",
            found=f"'{kind}' of layers with {', '.join(map(str, terms))} terms",
            expected="layers with equally many terms",
            fix=f"aggregator='concat', pooling='field', or 'filter' with maps=({terms[0]},)",
        )
        widths = {
            "layer_weight": (len(terms), 1, 1),
            "field_weight": (len(terms), terms[0], 1),
            "element_weight": (len(terms), terms[0], dim),
        }
        self.alpha = nn.Parameter(torch.ones(widths[kind])) if kind in widths else None
        last = terms[-1] * dim
        self.out_dim = {"concat": sum(terms) * dim, "sumpool_concat": sum(terms[1:])}.get(
            kind, last
        )

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """Returns [B, out_dim] for the terms of each layer, [B, N_l, D]."""
        if self.rms:
            layers = [F.rms_norm(t, t.shape[1:], eps=RMS_EPS) for t in layers]
        if self.kind == "last":
            return layers[-1].flatten(1)
        if self.kind == "concat":
            return torch.cat([t.flatten(1) for t in layers], dim=1)
        if self.kind == "sumpool_concat":
            return torch.cat([t.sum(dim=2) for t in layers[1:]], dim=1)
        stacked = torch.stack(list(layers), dim=1)  # [B, L, N, D]
        if self.alpha is not None:
            alpha = torch.softmax(self.alpha, dim=0) if self.softmax else self.alpha
            stacked = stacked * alpha
        return stacked.sum(dim=1).flatten(1)


def _taps(tapped: bool) -> tuple[nn.Module, nn.Module]:
    return (Tap("B F D"), Tap("B F D")) if tapped else (nn.Identity(), nn.Identity())
