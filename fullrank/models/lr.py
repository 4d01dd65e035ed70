"""LR: logistic regression on all fields, the floor below every other model.

Richardson et al., WWW 2007. Every known value has one weight per label.
A field-only model: the sequences of a schema are not read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.embedding import Embeddings
from fullrank.losses.binary import binary_losses
from fullrank.model import NO_ASSETS, Assets
from fullrank.nn.head import num_labels, split_labels, zeroed
from fullrank.schema import Schema
from fullrank.tap import Tap


@dataclass(frozen=True, kw_only=True)
class LRConfig:
    """There is nothing to set: weights start at zero, and the optimiser does the rest."""

    @classmethod
    def tiny(cls) -> LRConfig:
        """Returns the smallest config that visits every branch."""
        return cls()


class LR(nn.Module):
    """A weight per value, and a bias, for each label.

    Args:
        schema: fields of all kinds; at least one label.
        config: empty.
        assets: not read.
    """

    Config = LRConfig

    def __init__(self, schema: Schema, config: LRConfig, assets: Assets = NO_ASSETS) -> None:
        super().__init__()
        self.schema = schema
        self.embeddings = zeroed(Embeddings(schema, num_labels(schema)))
        self.embed = Tap("B F D")
        self.bias = nn.Parameter(torch.zeros(num_labels(schema)))

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        w = self.embed(self.embeddings.fields(batch))  # [B, F, Y]
        return split_labels(w.sum(dim=1) + self.bias, self.schema)  # label -> [B]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-loss of each label."""
        return binary_losses(self.score(batch), batch)


MODEL = LR
