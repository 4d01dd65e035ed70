"""DCN-V2: explicit feature crosses of bounded degree, next to or below a deep network.

Wang et al., WWW 2021, arXiv:2008.13535. Equation numbers are the paper's.
Deviations: one embedding width for all fields; batch norm and dropout in the deep part, as in the
BARS benchmark.
A field-only model: the sequences of a schema are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import require, require_between, require_positive
from fullrank.embedding import Embeddings
from fullrank.losses.binary import binary_losses
from fullrank.model import NO_ASSETS, Assets
from fullrank.nn.crosses import Cross, LowRankCross
from fullrank.nn.head import num_labels, split_labels
from fullrank.nn.mlp import MLP, Activation, linear
from fullrank.nn.operand import LayerOutput, Operand
from fullrank.schema import Schema
from fullrank.tap import Tap


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """A mixture of low-rank experts instead of a full matrix.

    Args:
        rank: width of an expert.
        experts: how many; one expert has no gate.
    """

    rank: int = 32
    experts: int = 4

    def __post_init__(self) -> None:
        require_positive(self, "rank", "experts")


@dataclass(frozen=True, kw_only=True)
class DCNv2Config:
    """Settings; the defaults are those of BARS on Frappe, but for its embedding penalty.

    Args:
        dim: D, width of a field embedding.
        embedding_std: standard deviation of the initial embedding rows.
        num_cross: cross layers; the highest degree of a cross is one more.
        low_rank: None for full matrices.
        structure: "parallel": crosses and deep network read the fields and are joined for the
            head; "stacked": the deep network reads the crosses.
        hidden: widths of the deep part; () with "stacked" is the cross network alone.
        activation: of the deep part.
        batch_norm: of the deep part; it changes results.
        dropout: of the deep part.
    """

    dim: int = 10
    embedding_std: float = 0.01
    num_cross: int = 4
    low_rank: LowRank | None = None
    structure: Literal["parallel", "stacked"] = "parallel"
    hidden: tuple[int, ...] = (400, 400, 400)
    activation: Activation = "relu"
    batch_norm: bool = True
    dropout: float = 0.4

    def __post_init__(self) -> None:
        require_positive(self, "dim", "embedding_std", "num_cross", "hidden")
        require_between(self, 0.0, 0.95, "dropout")
        require(
            self.structure == "stacked" or len(self.hidden) > 0,
            where="DCNv2Config.hidden",
            found=self.hidden,
            expected="at least one layer in the parallel structure",
            fix="for the cross network alone say structure='stacked', hidden=()",
        )

    @classmethod
    def tiny(cls) -> DCNv2Config:
        """Returns the smallest config that visits every branch."""
        low_rank = LowRank(rank=2, experts=2)
        return cls(
            dim=4, embedding_std=0.1, num_cross=2, low_rank=low_rank, hidden=(8,), dropout=0.1
        )


class CrossBlock(nn.Module):
    """One cross layer with its residual, and taps on both.

    Args:
        dim: width of the stacked fields, F*D.
        low_rank: None for a full matrix.
    """

    def __init__(self, dim: int, low_rank: LowRank | None) -> None:
        super().__init__()
        self.cross: nn.Module = (
            Cross(dim)
            if low_rank is None
            else LowRankCross(dim, rank=low_rank.rank, experts=low_rank.experts)
        )
        self.mix_branch, self.out = Tap("B D"), LayerOutput()
        self.mix = Tap("B D")

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """Returns the next x, [B, F*D], for two times [B, F*D]."""
        out: Tensor = self.mix(self.out(self.mix_branch(self.cross(x0, x)) + x))  # eq. 1
        return out


class DCNv2(nn.Module):
    """Cross layers, a deep network, and a linear head on both.

    Args:
        schema: fields of all kinds; at least one label.
        config: settings.
        assets: not read.
    """

    Config = DCNv2Config

    def __init__(self, schema: Schema, config: DCNv2Config, assets: Assets = NO_ASSETS) -> None:
        super().__init__()
        self.schema, self.stacked = schema, config.structure == "stacked"
        self.dim = config.dim
        self.embeddings = Embeddings(schema, config.dim, std=config.embedding_std)
        self.embed = Tap("B F D")
        fields = len(schema.fields)
        dim = fields * config.dim
        self.operands = nn.ModuleList(
            Operand(fields, config.dim, layered=True) for _ in range(config.num_cross)
        )
        self.left, self.right = Tap("B F D"), Tap("B F D")
        for layer in range(config.num_cross):
            self.add_module(f"block{layer}", CrossBlock(dim, config.low_rank))
        self.deep = MLP(
            dim,
            config.hidden,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
        )
        self.head_in = Tap("B D")
        width = self.deep.out_dim if self.stacked else dim + self.deep.out_dim
        self.head = linear(width, num_labels(schema))

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        x0 = self.embed(self.embeddings.fields(batch)).flatten(1)  # [B, F*D]
        x = x0
        for layer, operand in enumerate(self.operands):
            left = operand(x0, x)  # x0, [B, F*D]
            if layer == 0:
                self.left(left.view(left.shape[0], -1, self.dim))
                self.right(x0.view(x0.shape[0], -1, self.dim))
            x = self.get_submodule(f"block{layer}")(left, x)  # [B, F*D]
        h = self.deep(x) if self.stacked else torch.cat([x, self.deep(x0)], dim=1)
        return split_labels(self.head(self.head_in(h)), self.schema)  # label -> [B]

    def pair_projection(self, i: int, j: int) -> Tensor | None:
        """Returns W [D, D] with which field i, as e_i W, meets field j in the first layer.

        None for a mixture of low-rank experts, whose cross is not linear.
        """
        cross = self.get_submodule("block0.cross")
        if not isinstance(cross, Cross):
            return None
        D = self.dim
        return cross.linear.weight[j * D : (j + 1) * D, i * D : (i + 1) * D].T  # [D, D]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-loss of each label."""
        return binary_losses(self.score(batch), batch)


MODEL = DCNv2
