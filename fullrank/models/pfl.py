"""PFL: projected interactions, field pooling, layer weights.

arXiv:2411.12441. With e [F, D] the embeddings of a row:

    t_1 = e
    t_{l+1, i} = e_i * sum_j W^l_ij t_{l, j}     l = 1 .. L-1, W^l of F*D x F*D, without a bias
    v = sum_l alpha_l t_l                        one number per layer, from one
    logit = classifier(v)

Each layer holds one degree only and the weights mix degrees: a DCN-V2 of as many matrices adds the
layers up on the way instead, and holds lower degrees several times.
Not public, our reading: what the letters stand for, where W stands, no bias and no residual, L, the
classifier. Other choices are switches of `models/ipa.py`, whose `IPAConfig.pfl()` is this model.
A field-only model: the sequences of a schema are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import refuse_idle, require_between, require_positive
from fullrank.embedding import Embeddings
from fullrank.losses.binary import binary_losses
from fullrank.model import NO_ASSETS, Assets
from fullrank.nn.head import num_labels, split_labels, zeroed
from fullrank.nn.mlp import MLP, Activation, linear
from fullrank.schema import Schema
from fullrank.tap import Tap


@dataclass(frozen=True, kw_only=True)
class PFLConfig:
    """Settings.

    Args:
        dim: D, width of a field embedding.
        embedding_std: standard deviation s of the initial embedding rows. trap: layer l starts at
            the order of s^l, so that with 1e-4 all layers but the first are dead.
        num_layers: L, the raw fields counted; the highest degree of a cross.
        classifier: "mlp" on v, "linear" on v, or "parallel_mlp", linear on v beside a network on e.
        hidden: widths of the network.
        activation: of the network.
        batch_norm: of the network; it changes results.
        dropout: of the network.
        first_order: adds a weight per value to the logit.
    """

    dim: int = 10
    embedding_std: float = 0.1
    num_layers: int = 4
    classifier: Literal["mlp", "linear", "parallel_mlp"] = "mlp"
    hidden: tuple[int, ...] = (400, 400)
    activation: Activation = "relu"
    batch_norm: bool = False
    dropout: float = 0.0
    first_order: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "dim", "embedding_std", "hidden")
        require_between(self, 2, 100, "num_layers")
        require_between(self, 0.0, 0.95, "dropout")
        network = ("hidden", "activation", "batch_norm", "dropout")
        refuse_idle(self, [("classifier", ("mlp", "parallel_mlp"), network)])

    @classmethod
    def tiny(cls) -> PFLConfig:
        """Returns the smallest config that visits every branch."""
        return cls(
            dim=4, embedding_std=0.5, num_layers=3, classifier="parallel_mlp", hidden=(8,),
            dropout=0.1, first_order=True,
        )  # fmt: skip


class Product(nn.Module):
    """The next layer: e times a mixture of the last layer, with taps.

    Args:
        num_fields: F.
        dim: D.
        tapped: whether this is the first, whose operands have the taps `left` and `right`.
    """

    def __init__(self, num_fields: int, dim: int, *, tapped: bool) -> None:
        super().__init__()
        self.linear = linear(num_fields * dim, num_fields * dim, bias=False)  # W^l
        self.left = Tap("B F D") if tapped else nn.Identity()
        self.right = Tap("B F D") if tapped else nn.Identity()
        self.mix = Tap("B F D")

    def forward(self, e: Tensor, t: Tensor) -> Tensor:
        """Returns t_{l+1}, [B, F, D], for two times [B, F, D]."""
        mixed = self.linear(t.flatten(1)).view_as(e)  # sum_j W_ij t_j, [B, F, D]
        out: Tensor = self.mix(self.left(e) * self.right(mixed))
        return out


class PFL(nn.Module):
    """Products of rising degree, their weighted sum, and a classifier.

    Args:
        schema: fields of all kinds; at least one label.
        config: settings.
        assets: not read.
    """

    Config = PFLConfig

    def __init__(self, schema: Schema, config: PFLConfig, assets: Assets = NO_ASSETS) -> None:
        super().__init__()
        self.schema, self.config = schema, config
        self.embeddings = Embeddings(schema, config.dim, std=config.embedding_std)
        self.embed = Tap("B F D")
        fields, labels = len(schema.fields), num_labels(schema)
        for layer in range(config.num_layers - 1):
            block = Product(fields, config.dim, tapped=layer == 0)
            self.add_module(f"block{layer}", block)
        self.alpha = nn.Parameter(torch.ones(config.num_layers))
        width = fields * config.dim
        self.deep = MLP(
            width,
            () if config.classifier == "linear" else config.hidden,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
        )
        self.head_in = Tap("B D")
        beside = width if config.classifier == "parallel_mlp" else 0
        self.head = linear(beside + self.deep.out_dim, labels)
        self.linear = zeroed(Embeddings(schema, labels)) if config.first_order else None

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        e: Tensor = self.embed(self.embeddings.fields(batch))  # [B, F, D]
        t, v = e, self.alpha[0] * e
        for layer in range(self.config.num_layers - 1):
            t = self.get_submodule(f"block{layer}")(e, t)  # [B, F, D]
            v = v + self.alpha[layer + 1] * t
        if self.config.classifier == "parallel_mlp":
            h = torch.cat([v.flatten(1), self.deep(e.flatten(1))], dim=1)
        else:
            h = self.deep(v.flatten(1))
        logits: Tensor = self.head(self.head_in(h))  # [B, Y]
        if self.linear is not None:
            logits = logits + self.linear.fields(batch).sum(dim=1)
        return split_labels(logits, self.schema)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-loss of each label."""
        return binary_losses(self.score(batch), batch)

    def pair_projection(self, i: int, j: int) -> Tensor:
        """Returns the matrix through which row vectors of field i first meet field j, [D, D]."""
        D, W = self.config.dim, self.get_parameter("block0.linear.weight")
        return W[j * D : (j + 1) * D, i * D : (i + 1) * D].T  # W_ji, transposed


MODEL = PFL
