"""Two towers: a vector of the user and one of the item, known without each other.

DSSM (Huang et al., CIKM 2013) with fields and a past in place of words, and the sampling-bias
corrected softmax of Yi et al. (RecSys 2019). Equation numbers are those of Yi et al.
Deviations: the default loss is the log-loss of impressions, whose scores can be calibrated. The
past is the mean of its events (Covington et al., RecSys 2016). The share of an item is counted
since training began; Yi et al. estimate the steps between two sightings, which cannot tell apart
the items that every batch holds. Item towers with several labels are shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import refuse_idle, require_between, require_positive
from fullrank.embedding import Embeddings
from fullrank.errors import SchemaError
from fullrank.losses.binary import binary_losses
from fullrank.losses.in_batch import in_batch_softmax
from fullrank.model import NO_ASSETS, Assets
from fullrank.nn.head import num_labels, split_labels
from fullrank.nn.mlp import MLP, Activation, linear
from fullrank.schema import Categorical, Schema
from fullrank.tap import Tap


@dataclass(frozen=True, kw_only=True)
class TwoTowerConfig:
    """Settings; the defaults are our choice.

    Args:
        dim: D, width of the two vectors.
        embedding_dim: width of a field embedding.
        embedding_std: standard deviation of the initial embedding rows. Two vectors near zero pull
            at neither of them: with 0.05 one run in five on Amazon Beauty never left that point.
        hidden: widths of each tower.
        activation: of the towers.
        dropout: of the towers.
        similarity: "product" of the vectors, or their "cosine" over the temperature.
        temperature: tau of "cosine".
        loss: "binary": log-loss of every row; "in_batch": softmax of rows with label 1 over the
            items of the batch, whose scores order items and are not probabilities.
        corrected: of "in_batch": take the logarithm of an item's share off its logit.
    """

    dim: int = 32
    embedding_dim: int = 16
    embedding_std: float = 0.3
    hidden: tuple[int, ...] = (128, 64)
    activation: Activation = "relu"
    dropout: float = 0.0
    similarity: Literal["product", "cosine"] = "product"
    temperature: float = 0.05
    loss: Literal["binary", "in_batch"] = "binary"
    corrected: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "dim", "embedding_dim", "embedding_std", "hidden", "temperature")
        require_between(self, 0.0, 0.95, "dropout")
        refuse_idle(
            self,
            (
                ("similarity", ("cosine",), ("temperature",)),
                ("loss", ("in_batch",), ("corrected",)),
            ),
        )

    @classmethod
    def tiny(cls) -> TwoTowerConfig:
        """Returns the smallest config that visits every branch of the default loss."""
        return cls(dim=4, embedding_dim=4, embedding_std=0.1, hidden=(16,), dropout=0.1)


class TwoTower(nn.Module):
    """Scores a row as the product of its user's vector and its item's.

    The item tower reads the fields of side "item" and the judged item; the user tower reads all
    other fields and the means of the columns of every history. A tower without any input is a
    learned constant. Taps: `embed`, `user`, `item`, `head_in`.

    Args:
        schema: fields of all kinds; at least one label; a judged item where `corrected` is read.
        config: settings.
        assets: not read.

    Attributes:
        item_fields: names of the fields that an item's vector depends on.
    """

    Config = TwoTowerConfig
    counts: Tensor  # [V] float64: rows of training with each item, where `corrected` is read

    def __init__(self, schema: Schema, config: TwoTowerConfig, assets: Assets = NO_ASSETS) -> None:
        super().__init__()
        self.schema, self.config, self.labels = schema, config, num_labels(schema)
        names = [f.name for f in schema.fields]
        self.item_fields = tuple(
            f.name for f in schema.fields if f.side == "item" or f.name == schema.item
        )
        self._item = [i for i, name in enumerate(names) if name in self.item_fields]
        self._user = [i for i, name in enumerate(names) if name not in self.item_fields]
        self._past = [(s.name, c) for s in schema.sequences for c, table in s.columns if table]
        self.embeddings = Embeddings(
            schema,
            config.embedding_dim,
            sequences=[s.name for s in schema.sequences],
            std=config.embedding_std,
        )
        width = config.embedding_dim
        self.user_tower = Tower(
            (len(self._user) + len(self._past)) * width, self.labels * config.dim, config
        )
        self.item_tower = Tower(len(self._item) * width, config.dim, config)
        self.embed, self.user, self.item = Tap("B F D"), Tap("B D"), Tap("B D")
        self.head_in = Tap("B D")
        if config.loss == "binary":
            self.bias = nn.Parameter(torch.zeros(self.labels))
        else:  # the same for all items, so that a choice among them cannot teach it
            self.register_buffer("bias", torch.zeros(self.labels))
            if config.corrected:
                self.register_buffer("counts", torch.zeros(_items(schema), dtype=torch.float64))

    def encode_user(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> [B, D]; reads no field of `item_fields`."""
        return self._encode_user(self.embed(self.embeddings.fields(batch)), batch)

    def encode_item(self, batch: Batch) -> Tensor:
        """Returns [B, D]; reads no field but `item_fields`."""
        return self._encode_item(self.embed(self.embeddings.fields(batch)))

    def match(self, user: Mapping[str, Tensor], item: Tensor) -> dict[str, Tensor]:
        """Returns label -> logits [B] for label -> [B, D], or [1, D], and [B, D]."""
        products = torch.cat([u * item for u in user.values()], dim=1)  # [B, Y*D]
        each = self.head_in(products).view(-1, self.labels, self.config.dim)  # [B, Y, D]
        return split_labels(each.sum(dim=2) + self.bias, self.schema)

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        block = self.embed(self.embeddings.fields(batch))  # [B, F, D]
        return self.match(self._encode_user(block, batch), self._encode_item(block))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-loss, or the softmax loss, of each label."""
        if self.config.loss == "binary":
            return binary_losses(self.score(batch), batch)
        block = self.embed(self.embeddings.fields(batch))  # [B, F, D]
        item, log_share = self._encode_item(block), self._log_share(batch)
        losses = {}
        for label, user in self._encode_user(block, batch).items():
            liked = (batch.observed[label] & (batch.labels[label] > 0)).nonzero()[:, 0]  # [P]
            logits = user[liked] @ item.T  # [P, B]
            losses[label] = in_batch_softmax(logits, liked, batch.weight[liked], log_share)
        return losses

    def _encode_user(self, block: Tensor, batch: Batch) -> dict[str, Tensor]:
        means = [self._mean(batch, name, column) for name, column in self._past]
        fields = block[:, self._user].flatten(1)  # [B, U*D]
        x = self.user(self.user_tower(torch.cat([fields, *means], dim=1)))  # [B, Y*D]
        each = self._scaled(x.view(-1, self.labels, self.config.dim))  # [B, Y, D]
        if self.config.similarity == "cosine":
            each = each / self.config.temperature
        return {label.name: each[:, i] for i, label in enumerate(self.schema.labels)}

    def _encode_item(self, block: Tensor) -> Tensor:
        return self._scaled(self.item(self.item_tower(block[:, self._item].flatten(1))))  # [B, D]

    def _scaled(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.config.similarity == "cosine" else x

    def _mean(self, batch: Batch, name: str, column: str) -> Tensor:
        """Returns the mean of the embedded events, [B, D]; zero for an empty past."""
        x, valid = self.embeddings.sequence(batch, name, column)  # [B, T, D], zeros at padding
        return x.sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp(min=1)

    @torch.no_grad()
    def _log_share(self, batch: Batch) -> Tensor:
        """Returns [B], the logarithm of how often training saw each item, up to a constant."""
        if not self.config.corrected:
            return torch.zeros_like(batch.weight)
        assert self.schema.item is not None
        ids = batch.categorical[self.schema.item].long()  # [B]
        ids = torch.where(ids < len(self.counts), ids, 0)
        if self.training:
            self.counts += ids.bincount(minlength=len(self.counts))
        return self.counts.clamp(min=1.0).log().to(batch.weight.dtype)[ids]


class Tower(nn.Module):
    """An MLP with a linear output, or a learned constant where there is no input."""

    def __init__(self, in_dim: int, out_dim: int, config: TwoTowerConfig) -> None:
        super().__init__()
        if in_dim == 0:
            self.constant = nn.Parameter(torch.ones(out_dim))
            return
        body = MLP(in_dim, config.hidden, activation=config.activation, dropout=config.dropout)
        self.layers = nn.Sequential(body, linear(body.out_dim, out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, out_dim] for [B, in_dim]."""
        if x.shape[1] == 0:
            return self.constant.expand(x.shape[0], -1)
        out: Tensor = self.layers(x)
        return out


def _items(schema: Schema) -> int:
    """Returns how many rows the table of the judged item has."""
    field = schema.field(schema.item) if schema.item else None
    if not isinstance(field, Categorical):
        raise SchemaError(
            "there is no judged item whose share of rows could be counted",
            where="Schema.item",
            found=schema.item or "none",
            expected="the name of a categorical field",
            fix="name the item in the spec, or set corrected=False or loss='binary'",
        )
    return schema.table(field.table).size


MODEL = TwoTower
