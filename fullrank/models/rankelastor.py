"""RankElastor: parameterised full mixing and a gated feed-forward network per token.

arXiv:2605.23191, "Expand More, Shrink Less". The equations of the text and the authors' code
differ: `RankElastorConfig.paper()` is the one, `.official()` the other; defaults are the code's
form at a small size. Its baseline is `RankMixerConfig.rankelastor_baseline()`.
Deviations: LN of the paper's eq. (full mixing) is taken per token, as in RankMixer; weights per
token start Xavier-uniform, of equal spread; the code's optional norm and dropout inside the
grouping are left out; with several labels every label has a head.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import gcd
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import refuse_idle, require, require_between, require_positive
from fullrank.embedding import Embeddings
from fullrank.losses.binary import binary_losses
from fullrank.model import NO_ASSETS, Assets
from fullrank.nn.full_mixing import FullMix, FullMixerBlock, FullNorm, MixInit, full_mixing
from fullrank.nn.glu import Gate, glu_ffn
from fullrank.nn.head import LabelSum, num_labels, split_labels
from fullrank.nn.mlp import MLP, linear
from fullrank.nn.tokens import Grouping, grouping
from fullrank.schema import Schema
from fullrank.tap import Tap

_KINDS: dict[str, Grouping] = {"matrix": "shared_proj", "vector": "auto_split", "chunk": "chunk"}
_DENSE = ("full", "kron", "kron_official")
# Settings that are read only while another one has certain values.
_ONLY_WITH: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("grouping", ("matrix", "vector"), ("token_hidden",)),
    ("mix", (*_DENSE, "full_lowrank"), ("mix_bias",)),
    ("mix", (*_DENSE, "full_lowrank", "block_transpose"), ("mix_residual",)),
    ("mix", _DENSE, ("mix_init",)),
    ("mix", ("kron", "kron_official"), ("kron_dim",)),
    ("mix", ("full_lowrank",), ("mix_rank",)),
    ("ffn", ("glu",), ("ffn_inner_skip",)),
)


@dataclass(frozen=True, kw_only=True)
class RankElastorConfig:
    """Settings; one that another one leaves without effect is refused.

    Args:
        embedding_dim, embedding_std: width and initial spread of a field embedding.
        grouping: fields to tokens. "matrix": the joined fields cut into T equal parts, one network
            for all; "vector": one network from all fields to all tokens; "none": cut only, needs
            F * embedding_dim = T * D; "chunk": a linear layer per part, as in RankMixer.
        token_hidden: hidden widths of the network of "matrix" and "vector", with ReLU; () is one
            linear layer.
        token_norm: RMS norm over all fields joined, before the grouping.
        num_tokens: T; divides F * embedding_dim, except with "vector".
        token_dim: D.
        num_blocks: L.
        mix: "full", W over all T * D coordinates; "kron", W kron I; "kron_official", I kron W, the
            transposed structure that the authors' code has; "full_lowrank", W = U V, a control;
            "block_transpose", RankMixer's, T divides D; "identity", none.
        mix_residual: add the tokens to their mixture.
        mix_norm: "rms" of the code, "layer" of the paper, or "none"; see `FullMixerBlock`.
        mix_bias: of W.
        mix_init: of W; see `FullMixing`. "block_transpose" is for "full" alone.
        kron_dim: d*, divides T * D.
        mix_rank: of "full_lowrank".
        ffn: "glu", or the ablations "gelu" and "relu", which have no gate.
        ffn_inner_skip: S2, a linear skip inside the gate.
        ffn_linear_res: W_r of the paper, S1 of the code.
        ffn_identity_res: add the tokens to the output of their network.
        ffn_shared: one network for all tokens.
        expansion: r; the gate of a stage of width a has floor(r a) units.
        hidden_units: widths of the stages of the code; () is the single stage of the paper, without
            norms and biases.
        head: "mlp", one hidden layer of 2 T D; "flatten", linear; "noparam_mean", the mean of all
            coordinates (of two labels and more: a weighted sum each).
        dropout: behind every stage of the feed-forward network.
    """

    embedding_dim: int = 16
    embedding_std: float = 0.01
    grouping: Literal["matrix", "vector", "none", "chunk"] = "matrix"
    token_hidden: tuple[int, ...] = ()
    token_norm: bool = True
    num_tokens: int = 8
    token_dim: int = 32
    num_blocks: int = 2
    mix: FullMix = "full"
    mix_residual: bool = True
    mix_norm: FullNorm = "rms"
    mix_bias: bool = True
    mix_init: MixInit = "xavier"
    kron_dim: int = 2
    mix_rank: int = 32
    ffn: Gate = "glu"
    ffn_inner_skip: bool = True
    ffn_linear_res: bool = True
    ffn_identity_res: bool = True
    ffn_shared: bool = False
    expansion: float = 2.0
    hidden_units: tuple[int, ...] = (32,)
    head: Literal["mlp", "flatten", "noparam_mean"] = "mlp"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "embedding_dim", "embedding_std", "token_hidden", "num_tokens")
        require_positive(self, "token_dim", "num_blocks", "kron_dim", "mix_rank", "expansion")
        require_positive(self, "hidden_units")
        require_between(self, 0.0, 0.95, "dropout")
        refuse_idle(self, _ONLY_WITH)

    @classmethod
    def tiny(cls) -> RankElastorConfig:
        """Returns the smallest config that visits every branch."""
        return cls(
            embedding_dim=4, embedding_std=0.1, token_hidden=(8,), num_tokens=2, token_dim=4,
            num_blocks=1, expansion=1.5, hidden_units=(6,), dropout=0.1,
        )  # fmt: skip

    @classmethod
    def paper(cls, **changes: Any) -> RankElastorConfig:
        """Returns the equations of the text, with its sizes for Criteo unless changed.

        What a changed switch leaves without effect is left out. For Avazu: 16 tokens of width 24,
        embedding_dim 16.
        """
        return cls._preset(
            changes, embedding_dim=20, grouping="chunk", token_norm=False, num_tokens=15,
            token_dim=26, mix_norm="layer", mix_bias=False, ffn_inner_skip=False,
            ffn_identity_res=False, expansion=3.0, hidden_units=(),
        )  # fmt: skip

    @classmethod
    def official(cls, **changes: Any) -> RankElastorConfig:
        """Returns what the authors' code executes, with its sizes for Criteo unless changed.

        What a changed switch leaves without effect is left out. For Avazu: 24 tokens of width 16,
        32 or 64, embedding_dim the same, 4, 3 or 5 blocks. `hidden_units` and `expansion` are from
        inside its ladder of sizes.
        """
        return cls._preset(
            changes, embedding_dim=20, embedding_std=1e-4, token_hidden=(500,), num_tokens=26,
            token_dim=30, num_blocks=1, hidden_units=(64,),
        )  # fmt: skip

    @classmethod
    def _preset(cls, changes: dict[str, Any], **preset: Any) -> RankElastorConfig:
        values = {f.name: f.default for f in fields(cls)} | preset | changes
        idle = {n for s, on, names in _ONLY_WITH for n in names if values[s] not in on}
        return cls(**({n: v for n, v in preset.items() if n not in idle} | changes))


class RankElastor(nn.Module):
    """Fields to tokens, L blocks, all tokens joined, one head per label.

    Taps: `embed`, `tokens`, `block{l}.mix`, `.mix_branch`, `.ffn` and `.ffn_branch` with l from 0,
    and `head_in`, [B, T * D].

    Args:
        schema: fields of all kinds; at least one label.
        config: settings.
        assets: not read.

    Raises:
        ConfigError: the sizes do not fit the fields or one another.
    """

    Config = RankElastorConfig

    def __init__(
        self, schema: Schema, config: RankElastorConfig, assets: Assets = NO_ASSETS
    ) -> None:
        super().__init__()
        self.schema, self.config, c = schema, config, config
        self.embeddings = Embeddings(schema, c.embedding_dim, std=c.embedding_std)
        F, d, labels = len(schema.fields), c.embedding_dim, num_labels(schema)
        self.token_norm = nn.RMSNorm((F, d), eps=1e-12) if c.token_norm else nn.Identity()
        self.grouping = _grouping(c, F)
        for layer in range(c.num_blocks):
            self.add_module(f"block{layer}", _block(c))
        TD = c.num_tokens * c.token_dim
        hidden = {"mlp": (2 * TD,), "flatten": ()}.get(c.head)
        bodies = [] if hidden is None else [MLP(TD, hidden) for _ in range(labels)]
        self.heads = nn.ModuleList(nn.Sequential(b, linear(b.out_dim, 1)) for b in bodies)
        self.mean = LabelSum(TD, labels) if hidden is None else None
        self.embed, self.tokens, self.head_in = Tap("B F D"), Tap("B N D"), Tap("B D")

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        x = self.embed(self.embeddings.fields(batch))  # [B, F, d]
        x = self.tokens(self.grouping(self.token_norm(x)))  # [B, T, D]
        for layer in range(self.config.num_blocks):
            x = self.get_submodule(f"block{layer}")(x)
        x = self.head_in(x.flatten(1))  # [B, T * D]
        if self.mean is not None:
            return split_labels(self.mean(x) / x.shape[1], self.schema)
        return split_labels(torch.cat([head(x) for head in self.heads], dim=1), self.schema)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-loss of each label."""
        return binary_losses(self.score(batch), batch)


def _block(c: RankElastorConfig) -> FullMixerBlock:
    T, D = c.num_tokens, c.token_dim
    mixing = full_mixing(
        c.mix, T, D, bias=c.mix_bias, init=c.mix_init, block=c.kron_dim, rank=c.mix_rank
    )
    feed_forward = glu_ffn(
        T, D, c.expansion, c.hidden_units, gate=c.ffn, shared=c.ffn_shared, dropout=c.dropout,
        skips=(c.ffn_inner_skip, c.ffn_linear_res),
    )  # fmt: skip
    return FullMixerBlock(
        (T, D), mixing, feed_forward, norm=c.mix_norm,
        residuals=(c.mix_residual, c.ffn_identity_res),
    )  # fmt: skip


def _grouping(c: RankElastorConfig, num_fields: int) -> nn.Module:
    """Returns [B, F, d] -> [B, T, D]."""
    T, D, d, total = c.num_tokens, c.token_dim, c.embedding_dim, num_fields * c.embedding_dim
    step = T // gcd(T, num_fields)  # the widths d that fit are its multiples
    counts = sorted((n for n in range(1, total + 1) if total % n == 0), key=lambda n: abs(n - T))
    require(
        c.grouping == "vector" or total % T == 0,
        where="RankElastorConfig.num_tokens",
        found=f"{T} tokens from {num_fields} fields of width {d}",
        expected=f"a number of tokens that divides {num_fields} * {d} = {total}",
        fix=f"set num_tokens to {' or '.join(map(str, sorted(counts[:2])))}, or embedding_dim to "
        f"{max(d // step, 1) * step} or {(d // step + 1) * step}, or grouping=vector",
    )
    require(
        c.grouping != "none" or total == T * D,
        where="RankElastorConfig.grouping",
        found=f"'none' with {T} tokens of width {D} from {num_fields} fields of width {d}",
        expected=f"T * D = {total}, so that the joined fields need only be cut",
        fix=f"set token_dim to {total // T}, or grouping=matrix",
    )
    if c.grouping == "none":
        return nn.Sequential(nn.Flatten(), nn.Unflatten(1, (T, D)))
    names = tuple(map(str, range(num_fields)))
    return grouping(_KINDS[c.grouping], names, d, T, D, hidden=c.token_hidden)


MODEL = RankElastor
