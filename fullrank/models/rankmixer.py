"""RankMixer: parameter-free token mixing and a feed-forward network per token.

ByteDance, arXiv:2507.15551. Equations are those of its section on the RankMixer block.
Deviations: k, dropout and the towers are not published, ours are 4, 0 and an MLP 128-64-1 per
label; sequences are not read, the paper pools them in a module of their own.
Baseline of its descendants: `RankMixerConfig.rankelastor_baseline()`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import refuse_idle, require_between, require_positive
from fullrank.embedding import Embeddings
from fullrank.losses.binary import binary_losses
from fullrank.model import NO_ASSETS, Assets
from fullrank.nn.experts import Router, Routing, SparseExperts
from fullrank.nn.head import num_labels, split_labels
from fullrank.nn.mixer import MixerBlock, NormPlacement
from fullrank.nn.mixing import Mix, mixing
from fullrank.nn.mlp import MLP, Activation, linear
from fullrank.nn.token_ffn import PerTokenFFN, shared_ffn
from fullrank.nn.tokens import Grouping, Pool, grouping, pool_tokens
from fullrank.schema import Schema
from fullrank.tap import Tap

# Longer than 250 lines, because every switch of the ablations has its line in the config.
# Settings that are read only while another one has certain values.
_ONLY_WITH: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("grouping", ("group",), ("groups",)),
    ("grouping", ("random",), ("split_seed",)),
    ("grouping", ("shared_proj", "group", "auto_split"), ("token_hidden",)),
    ("mix", ("multihead",), ("mix_pad",)),
    ("mix", ("multihead", "all_concat_mlp", "all_share", "self_attention"), ("residual_mix",)),
    ("moe", ("off",), ("ffn", "ffn_hidden", "act")),
    ("moe", get_args(Routing), ("num_experts", "rho_target", "expert_scale")),
    ("moe", ("relu_dtsi",), ("dtsi_mode",)),
)


@dataclass(frozen=True, kw_only=True)
class RankMixerConfig:
    """Settings: the switches of the paper's ablations, its own values first.

    A setting that another one leaves without effect is refused, except `expansion` beside
    `ffn_hidden`, and `mix_pad` where the tokens divide their width.

    Args:
        embedding_dim, embedding_std: width and initial spread of a field embedding.
        grouping: fields to tokens: "chunk" cuts the joined fields into equal chunks with a
            projection each, "shared_proj" with one for all; "field" makes every field a token;
            "group" follows `groups`; "random" draws groups of whole fields; "auto_split" is one
            network from all fields to all tokens.
        groups: field names per token; every field once.
        split_seed: of the order of "random".
        token_hidden: hidden widths of the network behind the grouping; () is one linear layer.
        token_norm: RMS norm over all fields joined, before the grouping.
        num_tokens: T; the learned token of pool "cls" counts as one of them.
        token_dim: D, a multiple of T.
        num_blocks: L.
        mix: how tokens exchange information; "none": not at all.
        mix_pad: pad the tokens where T does not divide D.
        residual_mix, residual_ffn: add the input of the sub-layer to its output.
        norm: "post" is the paper's; see `MixerBlock`.
        ffn: "per_token"; "shared", one for all tokens; "shared_wide", one with as many weights as
            the per-token ones, at T times the cost.
        expansion: k; a hidden layer has k D units.
        ffn_hidden: widths of the hidden layers; () for one of k D.
        act: activation of the feed-forward networks; experts are always GELU.
        moe: "off", or the routing of a mixture of experts in place of the feed-forward network.
        num_experts: N_e, per token.
        rho_target: share of active experts to hold; "topk_softmax" keeps exactly that many.
        expert_scale: c; an expert has c k D / N_e hidden units, so 1 costs as much as no experts.
        dtsi_mode: how both routers learn: "dual_forward" runs the blocks twice, with half the loss
            each; "mixed_gate" once, with the mean of the gates; "alternate" draws one per step,
            from torch's generator.
        pool: "mean" of the tokens, "flatten", or "cls", a learned token.
        head_hidden: widths of each label's tower.
        dropout: on the output of each feed-forward network.
    """

    embedding_dim: int = 16
    embedding_std: float = 0.01
    grouping: Grouping = "chunk"
    groups: tuple[tuple[str, ...], ...] = ()
    split_seed: int = 0
    token_hidden: tuple[int, ...] = ()
    token_norm: bool = False
    num_tokens: int = 8
    token_dim: int = 64
    num_blocks: int = 2
    mix: Mix = "multihead"
    mix_pad: bool = False
    residual_mix: bool = True
    residual_ffn: bool = True
    norm: NormPlacement = "post"
    ffn: Literal["per_token", "shared", "shared_wide"] = "per_token"
    expansion: float = 4.0
    ffn_hidden: tuple[int, ...] = ()
    act: Activation = "gelu"
    moe: Literal["off"] | Routing = "off"
    num_experts: int = 4
    rho_target: float = 0.25
    expert_scale: float = 1.0
    dtsi_mode: Literal["dual_forward", "mixed_gate", "alternate"] = "dual_forward"
    pool: Pool = "mean"
    head_hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "embedding_dim", "embedding_std", "token_hidden", "num_tokens")
        require_positive(self, "token_dim", "num_blocks", "expansion", "ffn_hidden", "head_hidden")
        require_positive(self, "num_experts", "expert_scale")
        require_between(self, 0.0, 0.95, "dropout")
        require_between(self, 1e-3, 1.0, "rho_target")
        refuse_idle(self, _ONLY_WITH)

    @property
    def hidden(self) -> tuple[int, ...]:
        """Returns the hidden widths of one feed-forward network."""
        return self.ffn_hidden or (max(1, round(self.expansion * self.token_dim)),)

    @classmethod
    def tiny(cls) -> RankMixerConfig:
        """Returns the smallest config that visits every branch."""
        return cls(
            embedding_dim=4, embedding_std=0.1, num_tokens=2, token_dim=4, moe="relu_dtsi",
            num_experts=2, head_hidden=(8,), dropout=0.1,
        )  # fmt: skip

    @classmethod
    def rankelastor_baseline(
        cls, num_tokens: int = 26, token_dim: int = 26, ffn_hidden: tuple[int, ...] = (200, 200)
    ) -> RankMixerConfig:
        """Returns what the authors of RankElastor, arXiv:2605.23191, publish as RankMixer.

        The defaults are theirs for Criteo (head width 1); 24, 48 and (400, 400) are for Avazu.
        """
        return cls(
            embedding_dim=10, embedding_std=1e-4, grouping="shared_proj", token_hidden=(500,),
            token_norm=True, num_tokens=num_tokens, token_dim=token_dim, norm="hybrid",
            ffn_hidden=ffn_hidden, pool="flatten", head_hidden=(2 * num_tokens * token_dim,),
        )  # fmt: skip


class RankMixer(nn.Module):
    """Fields to tokens, L blocks, one pooled vector, one tower per label.

    Taps: `embed`, `tokens`, those of `MixerBlock` under `block{l}` with l from 0, and `head_in`.

    Args:
        schema: fields of all kinds; at least one label.
        config: settings.
        assets: not read.
    """

    Config = RankMixerConfig

    def __init__(self, schema: Schema, config: RankMixerConfig, assets: Assets = NO_ASSETS) -> None:
        super().__init__()
        self.schema, self.config = schema, config
        self.embeddings = Embeddings(schema, config.embedding_dim, std=config.embedding_std)
        names = tuple(f.name for f in schema.fields)
        width = len(names) * config.embedding_dim
        self.token_norm = nn.RMSNorm(width) if config.token_norm else nn.Identity()
        self.grouping = grouping(
            config.grouping, names, config.embedding_dim,
            config.num_tokens - (config.pool == "cls"), config.token_dim,
            groups=config.groups, hidden=config.token_hidden, seed=config.split_seed,
        )  # fmt: skip
        if config.pool == "cls":
            self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, config.token_dim))
        for layer in range(config.num_blocks):
            self.add_module(f"block{layer}", _block(config))
        D = config.token_dim * (config.num_tokens if config.pool == "flatten" else 1)
        towers = (MLP(D, config.head_hidden) for _ in range(num_labels(schema)))
        self.towers = nn.ModuleList(nn.Sequential(t, linear(t.out_dim, 1)) for t in towers)
        self.embed, self.tokens, self.head_in = Tap("B F D"), Tap("B N D"), Tap("B D")

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B], with the serving router."""
        return self._run(self._tokens(batch), "h_infer")[0]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-loss of each label, and with experts "moe_penalty".

        A training call also moves the L1 weight of the experts, which is part of the state.
        """
        tokens, mode = self._tokens(batch), self.config.dtsi_mode
        two_routers = self.training and self.config.moe == "relu_dtsi"
        router: Router = "h_infer"
        if two_routers and mode == "mixed_gate":
            router = "mean"
        if two_routers and mode == "alternate" and bool(torch.rand(()) < 0.5):
            router = "h_train"
        scores, gates = self._run(tokens, router)
        losses = binary_losses(scores, batch)
        if two_routers and mode == "dual_forward":
            other = binary_losses(self._run(tokens, "h_train")[0], batch)
            losses = {label: 0.5 * (loss + other[label]) for label, loss in losses.items()}
        if self.config.moe != "off":
            terms = [block.penalty(g) for block, g in zip(self.blocks(), gates, strict=True)]
            losses["moe_penalty"] = torch.stack(terms).sum()
        return losses

    def _tokens(self, batch: Batch) -> Tensor:
        """Returns X_0, [B, T, D]."""
        fields_ = self.embed(self.embeddings.fields(batch))  # [B, F, embedding_dim]
        x = self.grouping(self.token_norm(fields_.flatten(1)).view_as(fields_))
        if self.config.pool == "cls":
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        out: Tensor = self.tokens(x)
        return out

    def _run(self, x: Tensor, router: Router) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Returns label -> logits [B], and the gates [B, T, E] of each block with experts."""
        gates = []
        for block in self.blocks():
            x, judged = block(x, router)  # [B, T, D]
            gates += [] if judged is None else [judged]
        x = self.head_in(pool_tokens(x, self.config.pool))  # [B, D]; "flatten": [B, T * D]
        return split_labels(torch.cat([t(x) for t in self.towers], dim=1), self.schema), gates

    def blocks(self) -> list[MixerBlock]:
        """Returns the L blocks, first one first."""
        found = (self.get_submodule(f"block{layer}") for layer in range(self.config.num_blocks))
        return [block for block in found if isinstance(block, MixerBlock)]


def _block(c: RankMixerConfig) -> MixerBlock:
    T, D, hidden = c.num_tokens, c.token_dim, c.hidden
    feed_forward: nn.Module
    if c.moe != "off":
        width = max(1, round(c.expert_scale * hidden[0] / c.num_experts))
        feed_forward = SparseExperts(
            T, D, width, c.num_experts, routing=c.moe, target_share=c.rho_target
        )
    elif c.ffn == "per_token":
        feed_forward = PerTokenFFN(T, D, hidden, c.act)
    else:
        wide = tuple(T * width for width in hidden)
        feed_forward = shared_ffn(D, wide if c.ffn == "shared_wide" else hidden, c.act)
    return MixerBlock(
        D, mixing(c.mix, T, D, hidden=hidden[0], pad=c.mix_pad), feed_forward,
        norm=c.norm, residuals=(c.residual_mix, c.residual_ffn), dropout=c.dropout,
    )  # fmt: skip


MODEL = RankMixer
