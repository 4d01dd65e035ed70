"""xDeepFM: explicit vector-wise crosses (CIN), a deep network and a linear part.

Lian et al., KDD 2018, arXiv:1803.05170. Equation numbers are the paper's.
Deviations: batch norm in the deep part, as in the BARS benchmark.
A field-only model: the sequences of a schema are not read.
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
from fullrank.nn.crosses import CIN
from fullrank.nn.head import num_labels, split_labels, zeroed
from fullrank.nn.mlp import MLP, Activation, linear
from fullrank.nn.operand import Operand
from fullrank.schema import Schema
from fullrank.tap import Tap


@dataclass(frozen=True, kw_only=True)
class XDeepFMConfig:
    """Settings; the defaults are those of BARS on Frappe, but for its embedding penalty.

    Args:
        dim: D, width of a field embedding.
        embedding_std: standard deviation of the initial embedding rows.
        maps: feature maps of each layer of the CIN; layer k makes crosses of degree k + 1.
        hidden: widths of the deep part.
        activation: of the deep part.
        batch_norm: of the deep part; it changes results.
        dropout: of the deep part.
    """

    dim: int = 10
    embedding_std: float = 0.01
    maps: tuple[int, ...] = (64,)
    hidden: tuple[int, ...] = (400, 400, 400)
    activation: Activation = "relu"
    batch_norm: bool = True
    dropout: float = 0.2

    def __post_init__(self) -> None:
        require_positive(self, "dim", "embedding_std", "maps", "hidden")
        require_between(self, 0.0, 0.95, "dropout")
        require(
            len(self.maps) > 0,
            where="XDeepFMConfig.maps",
            found=self.maps,
            expected="at least one layer",
            fix="name a width, such as 64, or use 'deepfm'",
        )

    @classmethod
    def tiny(cls) -> XDeepFMConfig:
        """Returns the smallest config that visits every branch."""
        return cls(dim=4, embedding_std=0.1, maps=(5, 3), hidden=(8,), dropout=0.1)


class XDeepFM(nn.Module):
    """The sum of a linear part, a CIN and a deep network.

    Args:
        schema: fields of all kinds; at least one label.
        config: settings.
        assets: not read.
    """

    Config = XDeepFMConfig

    def __init__(self, schema: Schema, config: XDeepFMConfig, assets: Assets = NO_ASSETS) -> None:
        super().__init__()
        self.schema = schema
        labels, fields = num_labels(schema), len(schema.fields)
        self.embeddings = Embeddings(schema, config.dim, std=config.embedding_std)
        self.embed = Tap("B F D")
        self.linear = zeroed(Embeddings(schema, labels))
        self.cin = CIN(fields, config.maps)
        self.deep = MLP(
            fields * config.dim,
            config.hidden,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
        )
        self.operands = nn.ModuleList(Operand(fields, config.dim) for _ in config.maps)
        self.left, self.right, self.head_in = Tap("B F D"), Tap("B F D"), Tap("B D")
        self.head = linear(self.cin.out_dim + self.deep.out_dim, labels)

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        v = self.embed(self.embeddings.fields(batch))  # [B, F, D]
        first = self.linear.fields(batch).sum(dim=1)  # [B, Y]
        left = [operand(v) for operand in self.operands]  # v in every layer
        left[0] = self.left(left[0])
        h = torch.cat([self.cin(self.right(v), left), self.deep(v.flatten(1))], dim=1)  # [B, D']
        return split_labels(first + self.head(self.head_in(h)), self.schema)  # eq. 10

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-loss of each label."""
        return binary_losses(self.score(batch), batch)


MODEL = XDeepFM
