"""Operands of an interaction: the slots through which they pass, and generators to put there.

A ranker that multiplies fields passes the left operand of every interaction through a slot, which
as shipped hands it on as it is. SFG (arXiv:2512.14041) replaces each slot by a generator: one
operand is then computed from all fields instead of being looked up.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fullrank.config import require
from fullrank.nn.mlp import linear
from fullrank.schema import Bag, Categorical, Schema

FieldKind = Literal["all", "own", "raw"]
Pairing = Literal["upper", "symmetric", "all"]
Source = Literal["all", "all_for_high_card", "all_for_low_card"]
Target = Literal["all", "random_k", "masked_k", "field_masked_k", "hard_masked_k"]
Encoder = Literal["field_wise", "field_shared", "stacked_2", "self_attention", "own"]
Phi = Literal["relu", "silu", "tanh", "sigmoid", "linear"]

_PHI: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "linear": nn.Identity,
}


class Operand(nn.Module):
    """Slot of the left operand of one interaction layer. It hands its input on.

    Args:
        num_fields: F.
        dim: D.
        layered: the slot is also given the state of its layer, one vector per field.
    """

    def __init__(self, num_fields: int, dim: int, *, layered: bool = False) -> None:
        super().__init__()
        self.num_fields, self.dim, self.layered = num_fields, dim, layered

    def forward(self, raw: Tensor, state: Tensor | None = None) -> Tensor:
        """Returns the fields [B, F, D] unchanged; `state`, of this shape, is for a replacement.

        A layer that works on joined fields may give [B, F*D] instead.
        """
        return raw

    def generated(self, generator: Generator, pairing: Pairing, mask: nn.Module) -> nn.Module:
        """Returns what SFG puts here; `pairing` is for pairs, and `mask` for predicted fields."""
        generator.mask = mask  # nothing of a field is predicted where its left vector is zero
        return generator


class PairOperands(nn.Module):
    """Slot of both operands of an interaction over pairs of fields. It hands its input on twice.

    Args:
        num_fields: F.
        dim: D.

    Attributes:
        both_ways: the pairs are all ordered ones, i != j, instead of i < j.
    """

    both_ways = False

    def __init__(self, num_fields: int, dim: int) -> None:
        super().__init__()
        self.num_fields, self.dim = num_fields, dim

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Returns left and right operand, the same [B, F, D] here."""
        return v, v

    def generated(self, generator: Generator, pairing: Pairing, mask: nn.Module) -> nn.Module:
        """Returns what SFG puts here."""
        return PairGenerator(generator, pairing, mask)


class LayerOutput(nn.Identity):
    """Slot of what a layer with a residual passes on, where a dropout may be put."""


class FieldMask(nn.Module):
    """Keeps the vectors of k fields and zeroes the others.

    A fresh mask is drawn by `draw`, holds while training, and scales what it keeps by F / k so
    that evaluation, which keeps every field, sees the same mean. A fixed mask always holds.

    Args:
        num_fields: F.
        kept: rows of the fields to keep, or None for fresh masks.
        k: how many a fresh mask keeps.
    """

    keep: Tensor

    def __init__(self, num_fields: int, kept: list[int] | None, k: int) -> None:
        super().__init__()
        self.fresh, self.k = kept is None, k
        keep = torch.ones(num_fields)
        if kept is not None:
            keep = torch.zeros(num_fields).index_fill(0, torch.tensor(kept), 1.0)
        self.register_buffer("keep", keep, persistent=False)  # [F]

    def draw(self) -> None:
        """Draws a fresh mask from torch's generator; leaves a fixed one as it is."""
        if self.fresh:
            fields = self.keep.shape[0]
            chosen = torch.randperm(fields, device=self.keep.device)[: self.k]
            self.keep = torch.zeros_like(self.keep).index_fill(0, chosen, fields / self.k)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, F, D] for [B, F, D]."""
        return x if self.fresh and not self.training else x * self.keep[:, None].to(x.dtype)


class Generator(nn.Module):
    """Computes the operand g = gamma * phi(encoder(source)) of an interaction.

    arXiv:2512.14041. Every field is of one of three kinds: "all" is encoded from all fields,
    "own" is its own code, u_i = e_i, and "raw" stays the looked-up vector, g_i = e_i.

    Args:
        kinds: kind of each field.
        encoder: reads [B, F, D], returns the codes of the "all" fields; see `encoder`.
        phi: activation.
        gamma: scale of the output. A fixed number, no parameter, and not part of the state.
        residual: add the source to the output.
        from_state: the source is the state of the layer instead of the fields.
    """

    mask: nn.Module
    order: Tensor
    raw: Tensor

    def __init__(
        self,
        kinds: tuple[FieldKind, ...],
        encoder: nn.Module,
        phi: Phi,
        gamma: float,
        residual: bool = False,
        from_state: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.phi, self.gamma = encoder, _PHI[phi](), gamma
        self.residual, self.from_state = residual, from_state
        self.mask = nn.Identity()
        self.mixed, self.some_raw = set(kinds) != {"all"}, "raw" in kinds
        encoded = [i for i, kind in enumerate(kinds) if kind == "all"]
        # Where code i lies behind the encoded fields and the source joined to them.
        order = [
            encoded.index(i) if kind == "all" else len(encoded) + i for i, kind in enumerate(kinds)
        ]
        self.register_buffer("order", torch.tensor(order), persistent=False)  # [F]
        raw = torch.tensor([kind == "raw" for kind in kinds])[:, None]
        self.register_buffer("raw", raw, persistent=False)  # [F, 1]

    def forward(self, raw: Tensor, state: Tensor | None = None) -> Tensor:
        """Returns the generated operand, for inputs of its shape: [B, F, D] or [B, F*D]."""
        shape = raw.shape
        raw = raw.reshape(shape[0], self.order.shape[0], -1)  # [B, F, D]
        source = state.view_as(raw) if self.from_state and state is not None else raw
        u: Tensor = self.encoder(source)  # [B, A, D], A fields of kind "all"
        if self.mixed:
            u = torch.cat([u, source], dim=1).index_select(1, self.order)  # [B, F, D]
        g = self.gamma * self.phi(u)
        if self.residual:
            g = source + g
        if self.some_raw:
            g = torch.where(self.raw, raw, g)
        out: Tensor = self.mask(g)
        return out.reshape(shape)


class PairGenerator(nn.Module):
    """Both operands of an interaction over pairs of fields, one or both of them generated.

    Args:
        generator: of the left operand.
        pairing: "upper": <g_i, e_j> for i < j; "symmetric": <g_i, g_j> for i < j; "all":
            <g_i, e_j> for all i != j.
        mask: which fields j may be predicted; applied to the right operand.
    """

    def __init__(
        self,
        generator: Generator,
        pairing: Pairing,
        mask: nn.Module,
    ) -> None:
        super().__init__()
        self.generator, self.mask = generator, mask
        self.symmetric, self.both_ways = pairing == "symmetric", pairing == "all"

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Returns left and right operand, two times [B, F, D]."""
        g: Tensor = self.generator(v)
        return g, self.mask(g if self.symmetric else v)


class FieldWise(nn.Module):
    """One linear encoder per field, all fields to that field's code, as one matrix.

    Args:
        num_fields: F.
        dim: D.
        outputs: A, fields that get a code.
        rank: of the matrix; None for a full one.
    """

    def __init__(self, num_fields: int, dim: int, outputs: int, rank: int | None = None) -> None:
        super().__init__()
        wide, self.dim = num_fields * dim, dim
        self.linear: nn.Module = (
            linear(wide, outputs * dim)
            if rank is None
            else nn.Sequential(linear(wide, rank, bias=False), linear(rank, outputs * dim))
        )

    def forward(self, source: Tensor) -> Tensor:
        """Returns [B, A, D] for [B, F, D]."""
        out: Tensor = self.linear(source.flatten(1))  # [B, A*D]
        return out.view(source.shape[0], -1, self.dim)  # [B, A, D]


class FieldShared(nn.Module):
    """One linear encoder for all fields, so that they share one code."""

    def __init__(self, num_fields: int, dim: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.outputs = linear(num_fields * dim, dim), outputs

    def forward(self, source: Tensor) -> Tensor:
        """Returns [B, A, D] for [B, F, D]."""
        code: Tensor = self.linear(source.flatten(1))  # [B, D]
        return code.unsqueeze(1).expand(-1, self.outputs, -1)  # [B, A, D]


class FieldAttention(nn.Module):
    """One head of self-attention over the fields, without bias.

    Args:
        dim: D.
        encoded: rows of the A fields that get a code.
    """

    encoded: Tensor

    def __init__(self, dim: int, encoded: list[int]) -> None:
        super().__init__()
        self.query = linear(dim, dim, bias=False)
        self.key_value = linear(dim, 2 * dim, bias=False)
        self.register_buffer("encoded", torch.tensor(encoded), persistent=False)  # [A]

    def forward(self, source: Tensor) -> Tensor:
        """Returns [B, A, D] for [B, F, D]."""
        query = self.query(source.index_select(1, self.encoded))  # [B, A, D]
        key, value = self.key_value(source).chunk(2, dim=2)  # [B, F, D] each
        weights = torch.softmax(query @ key.mT * source.shape[2] ** -0.5, dim=2)  # [B, A, F]
        out: Tensor = weights @ value
        return out  # [B, A, D]


class NoCodes(nn.Module):
    """The encoder of nothing: every field is its own code."""

    def forward(self, source: Tensor) -> Tensor:
        """Returns [B, 0, D] for [B, F, D]."""
        return source[:, :0]


def make_encoder(
    name: Encoder, kinds: tuple[FieldKind, ...], dim: int, phi: Phi, rank: int | None = None
) -> nn.Module:
    """Builds the encoder of a generator: [B, F, D] to the codes [B, A, D] of the "all" fields.

    Args:
        name: "field_wise": a linear map from all fields for every field; "field_shared": one for
            all of them (our reading of the name: one code without a field's index);
            "stacked_2": `phi` and a second map behind the first; "self_attention"; "own": none.
        kinds: kind of each field, see `Generator`.
        dim: D.
        phi: activation between the maps of "stacked_2".
        rank: of the matrix of "field_wise"; None for a full one.
    """
    fields = len(kinds)
    encoded = [i for i, kind in enumerate(kinds) if kind == "all"]
    match name:
        case "field_wise":
            return FieldWise(fields, dim, len(encoded), rank)
        case "field_shared":
            return FieldShared(fields, dim, len(encoded))
        case "stacked_2":
            first, second = FieldWise(fields, dim, fields), FieldWise(fields, dim, len(encoded))
            return nn.Sequential(first, _PHI[phi](), second)
        case "self_attention":
            return FieldAttention(dim, encoded)
        case "own":
            return NoCodes()


def by_vocabulary(schema: Schema) -> list[int]:
    """Returns the rows of the fields, smallest vocabulary first, ties in schema order.

    Numbers and vectors come first.
    """
    sizes = [
        schema.table(f.table).size if isinstance(f, Categorical | Bag) else 0 for f in schema.fields
    ]
    return sorted(range(len(sizes)), key=lambda i: sizes[i])


def field_kinds(
    schema: Schema, encoder: Encoder, source: Source, raw_fields: tuple[str, ...]
) -> tuple[FieldKind, ...]:
    """Returns the kind of each field; see `Generator`.

    Args:
        schema: its fields.
        encoder: with "own" no field sees the others.
        source: "all", or which half of the fields by vocabulary, the middle one included.
        raw_fields: names of fields to leave as they are.

    Raises:
        SchemaError: a name is no field.
        ConfigError: no field would be generated from all.
    """
    order, half = by_vocabulary(schema), (len(schema.fields) + 1) // 2
    seeing = {"all": order, "all_for_high_card": order[-half:], "all_for_low_card": order[:half]}
    wanted = set() if encoder == "own" else set(seeing[source])
    raw = {schema.fields.index(schema.field(name)) for name in raw_fields}
    require(
        not (wanted or set(order)) <= raw,
        where="raw_fields",
        found=", ".join(raw_fields),
        expected="at least one field left to be generated",
        fix="leave a name out, or take source 'all'",
    )
    return tuple("raw" if i in raw else "all" if i in wanted else "own" for i in range(len(order)))


def field_masks(schema: Schema, target: Target, k: int, seed: int, layers: int) -> list[nn.Module]:
    """Builds the masks of the fields that may be predicted, one per interaction layer.

    Evaluation keeps every field that is drawn afresh (our choice).

    Args:
        schema: its fields.
        target: "all": no mask; "random_k": fixed fields, drawn from `seed`; "masked_k": fresh
            ones for every training batch; "field_masked_k": also for every layer;
            "hard_masked_k": the largest vocabularies.
        k: how many to keep.
        seed: of "random_k".
        layers: how many layers.

    Raises:
        ConfigError: there are not more than k fields.
    """
    if target == "all":
        return [nn.Identity()] * layers
    fields = len(schema.fields)
    require(
        k < fields,
        where="target_k",
        found=k,
        expected=f"fewer than the {fields} fields",
        fix=f"take {fields - 1} or less, or target 'all'",
    )
    kept: list[int] | None = None
    if target == "random_k":
        generator = torch.Generator().manual_seed(seed)
        kept = torch.randperm(fields, generator=generator)[:k].tolist()
    elif target == "hard_masked_k":
        kept = by_vocabulary(schema)[-k:]
    if target == "field_masked_k":
        return [FieldMask(fields, kept, k) for _ in range(layers)]
    return [FieldMask(fields, kept, k)] * layers
