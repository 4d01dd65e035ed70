"""DIN: a user's interest depends on the item being judged.

Zhou et al., KDD 2018, arXiv:1706.06978. Equation numbers are the paper's.
Deviations: the deep network has ReLU, as in the BARS benchmark; its defaults are theirs. What the
user did with an item, where a history says so, is part of the event; the paper's logs hold clicks
alone, and without such columns the model is the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import require, require_between, require_positive
from fullrank.embedding import Embeddings
from fullrank.losses.binary import binary_losses
from fullrank.model import NO_ASSETS, Assets
from fullrank.nn.head import num_labels, split_labels
from fullrank.nn.mlp import MLP, linear
from fullrank.nn.target_attention import ActivationUnit, row_softmax, row_sum
from fullrank.schema import Schema
from fullrank.tap import Tap
from fullrank.target import TargetHistory


@dataclass(frozen=True, kw_only=True)
class DINConfig:
    """Settings; the defaults are those of BARS. The paper has attention (80, 40), hidden (200, 80).

    The paper's mini-batch aware regularisation is `TrainConfig.table_l2` with a lazy table
    optimiser, which adds lambda w to the gradient of the rows that the batch read and of no other.
    The paper also divides by how often a value occurs in the log; here a frequent row is
    regularised as often as it is read.

    Args:
        dim: D, width of a field embedding.
        embedding_std: standard deviation of the initial embedding rows.
        history: name of the sequence; "" for the only one.
        length: newest events that are read; None for all that the data keeps.
        feedback: read the columns that say what the user did, where there are any.
        attention: widths of the activation unit; with Dice.
        softmax: let the weights of a row add up to one; the paper keeps their intensity.
        hidden: widths of the deep part.
        batch_norm: of the deep part.
        dropout: of the deep part.
    """

    dim: int = 16
    embedding_std: float = 0.01
    history: str = ""
    length: int | None = None
    feedback: bool = True
    attention: tuple[int, ...] = (64,)
    softmax: bool = False
    hidden: tuple[int, ...] = (512, 256, 128)
    batch_norm: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "dim", "embedding_std", "attention", "hidden")
        require_between(self, 0.0, 0.95, "dropout")
        require(
            len(self.attention) > 0,
            where="DINConfig.attention",
            found="no layer",
            expected="at least one: it is where target and event meet",
            fix="set attention=(64,)",
        )

    @classmethod
    def tiny(cls) -> DINConfig:
        """Returns the smallest config that visits every branch."""
        return cls(dim=4, embedding_std=0.1, attention=(6, 5), hidden=(8,), dropout=0.1)


class DIN(nn.Module):
    """Weighs each past event by the target, sums them up, and reads the sum beside the fields.

    Taps: `embed`, `interest`, `head_in`.

    Args:
        schema: a history with a column that shares a table with a field; at least one label.
        config: settings.
        assets: not read.
    """

    Config = DINConfig

    def __init__(self, schema: Schema, config: DINConfig, assets: Assets = NO_ASSETS) -> None:
        super().__init__()
        self.schema, self.config = schema, config
        read = TargetHistory(schema, config.history).reads(schema, feedback=config.feedback)
        self.history = TargetHistory(read, config.history, config.length)
        self.embeddings = Embeddings(
            read, config.dim, sequences=(self.history.name,), std=config.embedding_std
        )
        self.embed, self.interest, self.head_in = Tap("B F D"), Tap("B D"), Tap("B D")
        target = len(self.history.fields) * config.dim
        told = len(self.history.feedback) * config.dim
        self.attention = ActivationUnit(target, config.attention, feedback_dim=told)
        self.deep = MLP(
            len(schema.fields) * config.dim + target + told,
            config.hidden,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
        )
        self.head = linear(self.deep.out_dim, num_labels(schema))

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        block = self.embed(self.embeddings.fields(batch))  # [B, F, D]
        t = self.history.target(block)  # [B, P*D]
        interest = self.interest(self._interest(t, batch))  # [B, (P+E)*D]
        x = torch.cat([self.history.others(block), t, interest], dim=1)
        return split_labels(self.head(self.head_in(self.deep(x))), self.schema)

    def _interest(self, t: Tensor, batch: Batch) -> Tensor:
        events = self.history.events(self.embeddings, batch)
        rows = t.shape[0]
        a = self.attention(t, events.x, events.feedback, events.row)  # [S]
        if self.config.softmax:
            a = row_softmax(a, events.row, events.within, rows)
        else:
            a = a * events.within
        h = torch.cat([events.x, events.feedback], dim=1)  # [S, (P+E)*D]
        return row_sum(a, h, events.row, rows)  # eq. 3

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-loss of each label."""
        return binary_losses(self.score(batch), batch)


MODEL = DIN
