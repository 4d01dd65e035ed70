"""Tokens: from field embeddings [B, F, D_e] to tokens [B, N, D].

RankMixer, arXiv:2507.15551, section on feature tokenisation, and the ways to group that its
descendants compare. One token per field starves each of width; one token in all is a plain
network; the groupings lie between.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.config import require
from fullrank.errors import nearest
from fullrank.nn.mlp import MLP, linear
from fullrank.nn.token_ffn import PerTokenLinear

Grouping = Literal["chunk", "group", "field", "shared_proj", "random", "auto_split"]
Pool = Literal["mean", "flatten", "cls"]


class ChunkTokens(nn.Module):
    """Joins the fields, cuts them into N equal chunks, projects each by its own linear layer.

    Where N does not divide F * D_e, zeros are appended. With N = F every field is a token.

    Args:
        num_fields: F.
        field_dim: D_e.
        num_tokens: N.
        dim: D.
        shared_hidden: None for a projection per chunk; otherwise the hidden widths of one network
            that all chunks pass through, () for one linear layer.

    Raises:
        ConfigError: a chunk would hold nothing but padding.
    """

    def __init__(
        self,
        num_fields: int,
        field_dim: int,
        num_tokens: int,
        dim: int,
        *,
        shared_hidden: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        total = num_fields * field_dim
        width = -(-total // num_tokens)
        require(
            width * (num_tokens - 1) < total,
            where="num_tokens",
            found=f"{num_tokens} tokens for {num_fields} fields of width {field_dim}",
            expected=f"no chunk that is only padding: {-(-total // width)} tokens fill {total}",
            fix=f"set num_tokens to {-(-total // width)} or less, or widen the embeddings",
        )
        self.num_tokens, self.padding = num_tokens, width * num_tokens - total
        self.projection: nn.Module = (
            PerTokenLinear(num_tokens, width, dim)
            if shared_hidden is None
            else _network(width, shared_hidden, dim)
        )

    def forward(self, fields: Tensor) -> Tensor:
        """Returns [B, N, D] for [B, F, D_e]."""
        flat = F.pad(fields.flatten(1), (0, self.padding))
        out: Tensor = self.projection(flat.view(flat.shape[0], self.num_tokens, -1))  # [B, N, D]
        return out


class GroupTokens(nn.Module):
    """One token per group of fields, each group with its own network.

    Args:
        groups: the field numbers of each group.
        field_dim: D_e.
        dim: D.
        hidden: hidden widths of every group's network, () for a linear layer.
    """

    def __init__(
        self, groups: list[list[int]], field_dim: int, dim: int, *, hidden: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.groups = groups
        self.networks = nn.ModuleList(
            _network(len(group) * field_dim, hidden, dim) for group in groups
        )

    def forward(self, fields: Tensor) -> Tensor:
        """Returns [B, N, D] for [B, F, D_e]."""
        pairs = zip(self.networks, self.groups, strict=True)
        return torch.stack([net(fields[:, group].flatten(1)) for net, group in pairs], dim=1)


class RandomTokens(nn.Module):
    """Fields in a random order, cut into N groups of nearly equal size, one projection per group.

    RankUp, arXiv:2604.17878, randomized permutation splitting. The order is drawn once, from a
    generator of its own, and saved with the weights: a per-token network needs tokens that keep
    their meaning.

    Args:
        num_fields: F.
        field_dim: D_e.
        num_tokens: N, at most F. The first F mod N groups have one field more.
        dim: D.
        seed: of the order; None keeps the fields in theirs.
        resample: draw another order for every training batch, as a negative control. Evaluation
            keeps the first. The number of draws is saved, so a resumed run draws on.

    Raises:
        ConfigError: there are fewer fields than tokens.
    """

    order: Tensor
    draws: Tensor

    def __init__(
        self,
        num_fields: int,
        field_dim: int,
        num_tokens: int,
        dim: int,
        *,
        seed: int | None = 0,
        resample: bool = False,
    ) -> None:
        super().__init__()
        require(
            num_tokens <= num_fields,
            where="tokens out of fields",
            found=f"{num_tokens} tokens for {num_fields} fields",
            expected="at least one whole field per token",
            fix=f"set num_tokens, or sparse_tokens, to {num_fields} or less",
        )
        assert seed is not None or not resample, "an order that is never drawn has no other"
        self.seed, self.resample = seed, resample
        order = torch.arange(num_fields) if seed is None else _permutation(num_fields, seed)
        self.register_buffer("order", order)  # [F]
        if resample:
            self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        size, larger = divmod(num_fields, num_tokens)
        self.counts, self.in_larger = (larger, num_tokens - larger), larger * (size + 1)
        self.projections = nn.ModuleList(
            PerTokenLinear(count, fields * field_dim, dim) if count else nn.Identity()
            for count, fields in zip(self.counts, (size + 1, size), strict=True)
        )

    def forward(self, fields: Tensor) -> Tensor:
        """Returns [B, N, D] for [B, F, D_e]."""
        ordered = fields[:, self._order()]  # [B, F, D_e]
        parts = ordered[:, : self.in_larger], ordered[:, self.in_larger :]
        tokens = [
            projection(part.reshape(part.shape[0], count, -1))
            for projection, part, count in zip(self.projections, parts, self.counts, strict=True)
            if count
        ]
        return torch.cat(tokens, dim=1)  # [B, N, D]

    def _order(self) -> Tensor:
        if not (self.resample and self.training):
            return self.order
        self.draws += 1
        own = 1_000_003 * (self.seed or 0) + int(self.draws)
        return _permutation(self.order.shape[0], own).to(self.order.device)


class AutoSplitTokens(nn.Module):
    """One network from all fields joined to all tokens joined.

    Args:
        num_fields: F.
        field_dim: D_e.
        num_tokens: N.
        dim: D.
        hidden: hidden widths, () for a linear layer.
    """

    def __init__(
        self,
        num_fields: int,
        field_dim: int,
        num_tokens: int,
        dim: int,
        *,
        hidden: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.network = _network(num_fields * field_dim, hidden, num_tokens * dim)

    def forward(self, fields: Tensor) -> Tensor:
        """Returns [B, N, D] for [B, F, D_e]."""
        out: Tensor = self.network(fields.flatten(1))  # [B, N * D]
        return out.view(out.shape[0], self.num_tokens, -1)


def grouping(
    kind: Grouping,
    names: tuple[str, ...],
    field_dim: int,
    num_tokens: int,
    dim: int,
    *,
    groups: tuple[tuple[str, ...], ...] = (),
    hidden: tuple[int, ...] = (),
    seed: int = 0,
) -> nn.Module:
    """Builds a grouping by name.

    Args:
        kind: which; "field" is "chunk" with one token per field.
        names: of the F fields.
        field_dim: D_e.
        num_tokens: N.
        dim: D.
        groups: field names per token, for "group".
        hidden: of the networks of "shared_proj", "group" and "auto_split".
        seed: of the order of "random".

    Raises:
        ConfigError: the fields do not yield that many tokens.
    """
    require(
        num_tokens >= 1,
        where="num_tokens",
        found=f"{num_tokens} tokens from fields",
        expected="1 or more, beside the learned one of pool 'cls'",
        fix="set num_tokens to 2, or take another pool",
    )
    sizes = len(names), field_dim, num_tokens, dim
    match kind:
        case "chunk":
            return ChunkTokens(*sizes)
        case "shared_proj":
            return ChunkTokens(*sizes, shared_hidden=hidden)
        case "random":
            return RandomTokens(*sizes, seed=seed)
        case "auto_split":
            return AutoSplitTokens(*sizes, hidden=hidden)
        case "field":
            _require_tokens(num_tokens, len(names), "fields")
            return ChunkTokens(*sizes)
        case "group":
            _require_tokens(num_tokens, len(groups), "groups")
            return GroupTokens(_numbers(groups, names), field_dim, dim, hidden=hidden)


def pool_tokens(x: Tensor, pool: Pool) -> Tensor:
    """Returns [B, D] for [B, N, D]: the mean, or token 0 ("cls"); or [B, N * D] ("flatten")."""
    match pool:
        case "mean":
            return x.mean(1)
        case "cls":
            return x[:, 0]
        case "flatten":
            return x.flatten(1)


def _require_tokens(num_tokens: int, there_are: int, what: str) -> None:
    require(
        num_tokens == there_are,
        where="num_tokens",
        found=num_tokens,
        expected=f"{there_are}, one token for each of the {what}",
        fix=f"set num_tokens to {there_are} (with pool 'cls' to {there_are + 1})",
    )


def _numbers(groups: tuple[tuple[str, ...], ...], names: tuple[str, ...]) -> list[list[int]]:
    """Returns the field numbers of each group, refusing all but a partition of the fields."""
    listed = [name for group in groups for name in group]
    for name in listed:
        require(
            name in names,
            where="groups",
            found=f"'{name}'",
            expected="the name of a field",
            fix=nearest(name, names),
        )
    odd = [name for name in names if listed.count(name) != 1]
    require(
        not odd and all(groups),
        where="groups",
        found=f"{', '.join(odd) or 'an empty group'}, absent or named twice",
        expected="every field in exactly one group, and no empty group",
        fix="name each field once",
    )
    return [[names.index(name) for name in group] for group in groups]


def _permutation(length: int, seed: int) -> Tensor:
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))


def _network(in_dim: int, hidden: tuple[int, ...], out_dim: int) -> nn.Module:
    body = MLP(in_dim, hidden, activation="relu")
    return nn.Sequential(body, linear(body.out_dim, out_dim))
