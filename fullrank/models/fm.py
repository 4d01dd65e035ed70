"""FM: factorisation machine of degree two.

Rendle, ICDM 2010. Equation numbers are the paper's.
Deviations: a numeric field x stands for the vector x * w + b, so that it has an offset of its
own; with several labels all share the vectors, and each weighs the D products (`LabelSum`).
A field-only model: the sequences of a schema are not read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import require_positive
from fullrank.embedding import Embeddings
from fullrank.losses.binary import binary_losses
from fullrank.model import NO_ASSETS, Assets
from fullrank.nn.crosses import pair_sum
from fullrank.nn.head import LabelSum, num_labels, split_labels, zeroed
from fullrank.nn.operand import PairOperands
from fullrank.schema import Schema
from fullrank.tap import Tap


@dataclass(frozen=True, kw_only=True)
class FMConfig:
    """Settings.

    Args:
        dim: D, width of a field embedding.
        embedding_std: standard deviation of the initial embedding rows.
    """

    dim: int = 10
    embedding_std: float = 0.01

    def __post_init__(self) -> None:
        require_positive(self, "dim", "embedding_std")

    @classmethod
    def tiny(cls) -> FMConfig:
        """Returns the smallest config that visits every branch."""
        return cls(dim=4, embedding_std=0.1)


class FM(nn.Module):
    """First-order weights plus the inner products of all pairs of fields.

    Args:
        schema: fields of all kinds; at least one label.
        config: settings.
        assets: not read.
    """

    Config = FMConfig

    def __init__(self, schema: Schema, config: FMConfig, assets: Assets = NO_ASSETS) -> None:
        super().__init__()
        self.schema = schema
        labels = num_labels(schema)
        self.embeddings = Embeddings(schema, config.dim, std=config.embedding_std)
        self.embed = Tap("B F D")
        self.linear = zeroed(Embeddings(schema, labels))
        self.bias = nn.Parameter(torch.zeros(labels))
        self.operands = PairOperands(len(schema.fields), config.dim)
        self.left, self.right, self.head_in = Tap("B F D"), Tap("B F D"), Tap("B D")
        self.head = LabelSum(config.dim, labels)

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        v = self.embed(self.embeddings.fields(batch))  # [B, F, D]
        first = self.linear.fields(batch).sum(dim=1)  # [B, Y]
        left, right = self.operands(v)  # v and v
        pairs = pair_sum(self.left(left), self.right(right), both_ways=self.operands.both_ways)
        second = self.head(self.head_in(pairs))  # [B, Y]
        return split_labels(self.bias + first + second, self.schema)  # eq. 1, label -> [B]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-loss of each label."""
        return binary_losses(self.score(batch), batch)


MODEL = FM
