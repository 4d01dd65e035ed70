"""FwFM: factorisation machine whose pairs of fields have a weight each.

Pan et al., WWW 2018, section 4. The weight r of a pair says how strongly its two fields interact.
Deviations: r starts at one, where the model is an FM; a numeric field x stands for the vector
x * w + b. With several labels all share the vectors, and each has its own r.
A field-only model: the sequences of a schema are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import require_positive
from fullrank.embedding import Embeddings
from fullrank.errors import SchemaError
from fullrank.losses.binary import binary_losses
from fullrank.model import NO_ASSETS, Assets
from fullrank.nn.crosses import PairDots
from fullrank.nn.head import num_labels, split_labels, zeroed
from fullrank.nn.operand import PairOperands
from fullrank.schema import Schema
from fullrank.tap import Tap


@dataclass(frozen=True, kw_only=True)
class FwFMConfig:
    """Settings.

    Args:
        dim: D, width of a field embedding.
        embedding_std: standard deviation of the initial embedding rows.
        first_order: the paper's three kinds of linear terms. "value" (LW): a weight per value;
            "field" (FiLV): the inner product of a value's vector with a vector of its field;
            "value_vector" (FeLV): the inner product with a second vector of the value.
    """

    dim: int = 10
    embedding_std: float = 0.01
    first_order: Literal["value", "field", "value_vector"] = "value"

    def __post_init__(self) -> None:
        require_positive(self, "dim", "embedding_std")

    @classmethod
    def tiny(cls) -> FwFMConfig:
        """Returns the smallest config that visits every branch."""
        return cls(dim=4, embedding_std=0.1)


class FwFM(nn.Module):
    """First-order terms plus the weighted inner products of all pairs of fields.

    Args:
        schema: at least two fields, of any kind; at least one label.
        config: settings.
        assets: not read.

    Raises:
        SchemaError: there is no pair of fields.
    """

    Config = FwFMConfig

    def __init__(self, schema: Schema, config: FwFMConfig, assets: Assets = NO_ASSETS) -> None:
        super().__init__()
        if len(schema.fields) < 2:
            raise SchemaError(
                "there is no pair of fields to weigh",
                where="fwfm",
                found=f"{len(schema.fields)} field",
                expected="at least 2",
                fix="add a field, or use 'lr'",
            )
        self.schema, self.first_order = schema, config.first_order
        labels, fields, dim = num_labels(schema), len(schema.fields), config.dim
        self.embeddings = Embeddings(schema, dim, std=config.embedding_std)
        self.embed = Tap("B F D")
        if config.first_order == "value":
            self.linear = zeroed(Embeddings(schema, labels))
        elif config.first_order == "field":
            self.field_vectors = nn.Parameter(torch.zeros(fields * dim, labels))
        else:
            self.linear = zeroed(Embeddings(schema, dim * labels))
        self.bias = nn.Parameter(torch.zeros(labels))
        self.pairs = PairDots(fields)
        self.operands = PairOperands(fields, dim)
        self.left, self.right, self.head_in = Tap("B F D"), Tap("B F D"), Tap("B D")
        self.r = nn.Parameter(torch.ones(self.pairs.num_pairs, labels))

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        v = self.embed(self.embeddings.fields(batch))  # [B, F, D]
        left, right = self.operands(v)  # v and v
        pairs = self.pairs(self.left(left), self.right(right), both_ways=self.operands.both_ways)
        second = self.head_in(pairs) @ self.r  # [B, P] @ [P, Y] to [B, Y]
        return split_labels(self.bias + self._first(v, batch) + second, self.schema)

    def _first(self, v: Tensor, batch: Batch) -> Tensor:
        if self.first_order == "field":
            return v.flatten(1) @ self.field_vectors  # [B, Y]
        w = self.linear.fields(batch)  # [B, F, Y] or [B, F, Y*D]
        if self.first_order == "value":
            return w.sum(dim=1)  # [B, Y]
        w = w.reshape(*v.shape[:2], -1, v.shape[2])  # [B, F, Y, D]
        return (v.unsqueeze(2) * w).sum(dim=(1, 3))  # [B, Y]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-loss of each label."""
        return binary_losses(self.score(batch), batch)


MODEL = FwFM
