"""DeepFM: a factorisation machine and a deep network on the same embeddings.

Guo et al., IJCAI 2017, arXiv:1703.04247. Equation numbers are the paper's.
Deviations: batch norm in the deep part, as in the BARS benchmark; several labels share the FM
products, and each weighs them (`LabelSum`).
A field-only model: the sequences of a schema are not read.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import require_between, require_positive
from fullrank.embedding import Embeddings
from fullrank.losses.binary import binary_losses
from fullrank.model import NO_ASSETS, Assets
from fullrank.nn.crosses import pair_sum
from fullrank.nn.head import LabelSum, num_labels, split_labels, zeroed
from fullrank.nn.mlp import MLP, Activation, linear
from fullrank.nn.operand import PairOperands
from fullrank.schema import Schema
from fullrank.tap import Tap


@dataclass(frozen=True, kw_only=True)
class DeepFMConfig:
    """Settings; the defaults are those of BARS on Frappe, but for its embedding penalty.

    Args:
        dim: D, width of a field embedding.
        embedding_std: standard deviation of the initial embedding rows.
        hidden: widths of the deep part.
        activation: of the deep part.
        batch_norm: of the deep part; it changes results.
        dropout: of the deep part.
    """

    dim: int = 10
    embedding_std: float = 0.01
    hidden: tuple[int, ...] = (400, 400, 400)
    activation: Activation = "relu"
    batch_norm: bool = True
    dropout: float = 0.2

    def __post_init__(self) -> None:
        require_positive(self, "dim", "embedding_std", "hidden")
        require_between(self, 0.0, 0.95, "dropout")

    @classmethod
    def tiny(cls) -> DeepFMConfig:
        """Returns the smallest config that visits every branch."""
        return cls(dim=4, embedding_std=0.1, hidden=(8,), dropout=0.1)


class DeepFM(nn.Module):
    """The sum of a factorisation machine's logit and a deep network's.

    Args:
        schema: fields of all kinds; at least one label.
        config: settings.
        assets: not read.
    """

    Config = DeepFMConfig

    def __init__(self, schema: Schema, config: DeepFMConfig, assets: Assets = NO_ASSETS) -> None:
        super().__init__()
        self.schema = schema
        labels = num_labels(schema)
        self.embeddings = Embeddings(schema, config.dim, std=config.embedding_std)
        self.embed = Tap("B F D")
        self.linear = zeroed(Embeddings(schema, labels))
        self.pair_head = LabelSum(config.dim, labels)
        self.deep = MLP(
            len(schema.fields) * config.dim,
            config.hidden,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
        )
        self.operands = PairOperands(len(schema.fields), config.dim)
        self.left, self.right, self.head_in = Tap("B F D"), Tap("B F D"), Tap("B D")
        self.head = linear(self.deep.out_dim, labels)

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        v = self.embed(self.embeddings.fields(batch))  # [B, F, D]
        first = self.linear.fields(batch).sum(dim=1)  # [B, Y]
        left, right = self.operands(v)  # v and v
        pairs = pair_sum(self.left(left), self.right(right), both_ways=self.operands.both_ways)
        fm = first + self.pair_head(pairs)  # eq. 2, [B, Y]
        deep = self.head(self.head_in(self.deep(v.flatten(1))))  # eqs. 3 and 4, [B, Y]
        return split_labels(fm + deep, self.schema)  # eq. 1, label -> [B]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-loss of each label."""
        return binary_losses(self.score(batch), batch)


MODEL = DeepFM
