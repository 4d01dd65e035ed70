"""RankUp: a RankMixer backbone whose inputs and read-outs have a higher rank.

Tencent, arXiv:2604.17878: random splitting, several embedding tables per field, a global token, a
crossed token of pre-trained vectors, and a token per task. Section names are the paper's.
Deviations, all where nothing is published: widths, layer norm (an RMS norm takes 4 to 9 times as
long on a CPU), biases, the pooled set (all but the task tokens), the towers, and the predefined
interactions, which are products of named pairs.
cross="internal" crosses this model's own embeddings; call its results "RankUp-inspired".
A field-only model: sequences are not read. Baseline: models/rankmixer.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import refuse_idle, require, require_between, require_positive
from fullrank.embedding import Embeddings, FieldViews
from fullrank.lookup import FieldVectors
from fullrank.losses.binary import binary_losses
from fullrank.model import NO_ASSETS, Assets
from fullrank.nn.global_token import GlobalKind, GlobalPool, GlobalToken, ProductToken
from fullrank.nn.mixer import MixerBlock
from fullrank.nn.mixing import MultiheadMixing
from fullrank.nn.mlp import linear
from fullrank.nn.stream import Place, TokenStream
from fullrank.nn.swiglu import PerTokenSwiGLU
from fullrank.nn.task_tokens import TaskTowers, task_labels
from fullrank.nn.token_ffn import PerTokenFFN
from fullrank.nn.tokens import RandomTokens, grouping
from fullrank.schema import Schema
from fullrank.tap import Tap

# Longer than 250 lines, because every switch of the ablations has its line in the config.
# Settings that are read only while another one has certain values.
_ONLY_WITH = (
    ("split_mode", ("random",), ("split_seed", "split_resample")),
    ("split_mode", ("random", "sequential"), ("sparse_tokens",)),
    ("split_mode", ("semantic",), ("groups",)),
    ("global_token", ("mlp", "fm", "dcnv2"), ("anchors",)),
    ("global_token", ("mlp",), ("global_pool",)),
    ("cross", ("pretrained", "internal"), ("cross_norm",)),
    ("task_tokens", (True,), ("tasks",)),
)


@dataclass(frozen=True, kw_only=True)
class RankUpConfig:
    """Settings: the switches of the paper's ablations, the full model without assets first.

    A setting that another one leaves without effect is refused, except `mix_pad` where the tokens
    divide their width.

    Args:
        embedding_dim, embedding_std: d, width of a row of one table set, and its initial spread.
        split_mode: fields to sparse tokens: "random" order drawn once, "sequential" order of the
            schema, "semantic" `groups`. Whole fields always.
        split_seed: of the random order.
        split_resample: "per_batch" draws another order for every training batch: the negative
            control. A model knows no epochs, so there is no "per_epoch".
        sparse_tokens: T_s; None is 8, or the number of fields if less.
        groups: field names per sparse token; every field once.
        multi_embedding: "on": the global token, the sparse tokens and the crosses read table sets
            of their own; "off": all one set; "single_wide": all their slices of one wider table.
            "single_wide" is "on" stored differently, unless `anchors` or `crosses` name fewer
            fields; "off" with a multiple of `embedding_dim` is a control that is not.
        global_token, global_pool: see `GlobalToken`.
        anchors: fields that the global token sees; () is all.
        crosses: pairs of fields; the products of each pair, joined and projected, are one token.
        cross: "pretrained": the product of assets "user_vectors" and "item_vectors", projected, is
            one token; "internal": that of the mean embeddings of user and item fields.
        cross_norm: scale both vectors to length one first.
        dense_token: one token from both pre-trained vectors as they are.
        task_tokens: a learned token per task, which its tower reads beside the pooled others.
        tasks: labels with a token; () is all.
        token_pad: "dummy": a learned constant holds the place of every component that is off, so
            that the number of tokens is equal in every ablation.
        token_dim: D, a multiple of the number of tokens T; None is the first one from 64 on.
        mix_pad: pad the tokens where T does not divide D.
        num_blocks: L.
        norm: layer norm before each part with one more before the towers, or after each residual.
        ffn: "swiglu"; "gelu" has two matrices instead of three and as many weights.
        expansion: r; a hidden layer has r D units ("gelu": 1.5 r D).
        head_hidden: widths of each tower; None is (D,).
        dropout: on the output of each feed-forward network.
    """

    embedding_dim: int = 16
    embedding_std: float = 0.01
    split_mode: Literal["random", "semantic", "sequential"] = "random"
    split_seed: int = 0
    split_resample: Literal["never", "per_batch"] = "never"
    sparse_tokens: int | None = None
    groups: tuple[tuple[str, ...], ...] = ()
    multi_embedding: Literal["on", "off", "single_wide"] = "on"
    global_token: Literal["none"] | GlobalKind = "mlp"
    global_pool: GlobalPool = "mean"
    anchors: tuple[str, ...] = ()
    crosses: tuple[tuple[str, str], ...] = ()
    cross: Literal["off", "pretrained", "internal"] = "off"
    cross_norm: bool = True
    dense_token: bool = False
    task_tokens: bool = True
    tasks: tuple[str, ...] = ()
    token_pad: Literal["off", "dummy"] = "off"
    token_dim: int | None = None
    mix_pad: bool = False
    num_blocks: int = 2
    norm: Literal["pre", "post"] = "pre"
    ffn: Literal["swiglu", "gelu"] = "swiglu"
    expansion: float = 2.0
    head_hidden: tuple[int, ...] | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "embedding_dim", "embedding_std", "num_blocks", "expansion")
        for name in ("sparse_tokens", "token_dim", "head_hidden"):
            if getattr(self, name) is not None:
                require_positive(self, name)
        require_between(self, 0.0, 0.95, "dropout")
        refuse_idle(self, _ONLY_WITH)
        require(
            self.split_mode != "semantic" or len(self.groups) > 0,
            where="RankUpConfig.groups",
            found="no groups with split_mode='semantic'",
            expected="the field names of each group",
            fix="name every field once, or set split_mode=sequential",
        )
        require(
            self.multi_embedding == "off" or self.global_token != "none" or len(self.crosses) > 0,
            where="RankUpConfig.multi_embedding",
            found=f"'{self.multi_embedding}' without a global token and without crosses",
            expected="'off': the sparse tokens alone read one table set",
            fix="set multi_embedding=off, or a global token or crosses",
        )

    @classmethod
    def tiny(cls) -> RankUpConfig:
        """Returns the smallest config; branches that need names or assets are not in it."""
        return cls(
            embedding_dim=4, embedding_std=0.1, sparse_tokens=2, token_pad="dummy", token_dim=8,
            mix_pad=True, num_blocks=2, head_hidden=(8,), dropout=0.1,
        )  # fmt: skip


class RankUp(nn.Module):
    """The stream [global | sparse | crosses | dense | cross | tasks], L blocks, a tower per label.

    Taps: `embed` (what the sparse tokens read), `tokens`, those of `MixerBlock` under `block{l}`
    with l from 0, and `head_in`: [pooled | state of each task token].

    Args:
        schema: fields of all kinds; at least one label.
        config: settings.
        assets: "user_vectors" and "item_vectors", keyed by tables of categorical fields, for
            cross="pretrained" and `dense_token`.

    Attributes:
        token_names: T names in the order of the stream, such as "global", "sparse0", "task:click"
            and "dummy:cross".
    """

    Config = RankUpConfig

    def __init__(self, schema: Schema, config: RankUpConfig, assets: Assets = NO_ASSETS) -> None:
        super().__init__()
        self.schema, self.config = schema, config
        names = tuple(f.name for f in schema.fields)
        readers = {"global_token": config.anchors or names} if config.global_token != "none" else {}
        if config.crosses:
            readers["crosses"] = tuple(name for pair in config.crosses for name in pair)
        multi, d, std = config.multi_embedding, config.embedding_dim, config.embedding_std
        self.views = FieldViews(schema, d, readers, multi=multi, std=std)
        self.embeddings = Embeddings(schema, self.views.width, std=std)
        tasks = task_labels(schema, config.tasks)
        self.tasks = tasks if config.task_tokens else ()
        self.num_sparse = len(config.groups) or config.sparse_tokens or min(8, len(names))
        places = _places(config, self.num_sparse, tasks)
        T = sum(place.tokens for place in places)
        D = config.token_dim or -(-64 // T) * T
        self._place_tokens(D, assets)
        self.stream = TokenStream(places, D)
        self.token_names = self.stream.names
        for layer in range(config.num_blocks):
            self.add_module(f"block{layer}", _block(config, T, D))
        self.final_norm = nn.LayerNorm(D) if config.norm == "pre" else nn.Identity()
        self.towers = TaskTowers(schema, self.tasks, D, config.head_hidden or (D,))
        self.embed, self.tokens, self.head_in = Tap("B F D"), Tap("B N D"), Tap("B D")

    def _place_tokens(self, D: int, assets: Assets) -> None:
        c, F, d, T_s = self.config, self.schema.fields, self.config.embedding_dim, self.num_sparse
        if c.split_mode == "semantic":
            names = tuple(f.name for f in F)
            self.split = grouping("group", names, d, T_s, D, groups=c.groups)
        else:
            seed = c.split_seed if c.split_mode == "random" else None
            resample = c.split_resample == "per_batch"
            self.split = RandomTokens(len(F), d, T_s, D, seed=seed, resample=resample)
        if c.global_token != "none":
            seen = len(self.views.seen["global_token"])
            self.global_token = GlobalToken(c.global_token, seen, d, D, pool=c.global_pool)
        if c.crosses:
            at = {F[i].name: place for place, i in enumerate(self.views.seen["crosses"])}
            self.left, self.right = ([at[pair[side]] for pair in c.crosses] for side in (0, 1))
            self.crosses = ProductToken(len(c.crosses) * d, len(c.crosses) * d, D)
        widths = d, d
        if c.cross == "pretrained" or c.dense_token:
            self.user = FieldVectors(self.schema, assets, "user_vectors")
            self.item = FieldVectors(self.schema, assets, "item_vectors")
            if c.dense_token:
                self.dense = linear(self.user.dim + self.item.dim, D)
        if c.cross == "pretrained":
            widths = self.user.dim, self.item.dim
        elif c.cross == "internal":
            self.sides = _sides(self.schema)
        if c.cross != "off":
            self.cross = ProductToken(*widths, D, normalise=c.cross_norm)

    def _stream(self, batch: Batch) -> Tensor:
        """Returns H_0, [B, T, D]."""
        c = self.config
        fields, views = self.views(self.embeddings, batch)
        fields = self.embed(fields)  # [B, F, d]
        parts = {"sparse": self.split(fields)}  # [B, T_s, D], all others [B, D]
        if c.global_token != "none":
            parts["global"] = self.global_token(views["global_token"])
        if c.crosses:
            left, right = (views["crosses"][:, side] for side in (self.left, self.right))
            parts["crosses"] = self.crosses(left.flatten(1), right.flatten(1))
        if c.cross == "pretrained":
            parts["cross"] = self.cross(self.user(batch), self.item(batch))
        elif c.cross == "internal":
            user, item = (fields[:, side].mean(1) for side in self.sides)  # [B, d]
            parts["cross"] = self.cross(user, item)
        if c.dense_token:
            parts["dense"] = self.dense(torch.cat([self.user(batch), self.item(batch)], dim=1))
        out: Tensor = self.tokens(self.stream(parts, fields.shape[0]))
        return out

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        x = self._stream(batch)  # [B, T, D]
        for layer in range(self.config.num_blocks):
            x, _ = self.get_submodule(f"block{layer}")(x)
        x = self.final_norm(x)
        shared = x.shape[1] - len(self.tasks)  # task tokens are the last
        states = torch.cat(
            [x[:, :shared].mean(1, keepdim=True), x[:, shared:]], dim=1
        )  # [B, 1 + K, D]
        out: dict[str, Tensor] = self.towers(self.head_in(states.flatten(1)))  # [B, (1 + K) D]
        return out

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-loss of each label."""
        return binary_losses(self.score(batch), batch)


def _places(c: RankUpConfig, num_sparse: int, tasks: tuple[str, ...]) -> tuple[Place, ...]:
    """Returns the stream; with token_pad="dummy", learned constants for what is off."""
    parts = {
        "global": c.global_token != "none",
        "sparse": True,
        "crosses": len(c.crosses) > 0,
        "dense": c.dense_token,
        "cross": c.cross != "off",
        **{f"task:{task}": c.task_tokens for task in tasks},
    }
    return tuple(
        Place(name, num_sparse if name == "sparse" else 1, learned=name.startswith("task:"))
        if on
        else Place(f"dummy:{name}", learned=True)
        for name, on in parts.items()
        if on or c.token_pad == "dummy"
    )


def _block(c: RankUpConfig, T: int, D: int) -> MixerBlock:
    feed_forward: nn.Module
    if c.ffn == "swiglu":
        feed_forward = PerTokenSwiGLU(T, D, max(1, round(c.expansion * D)))
    else:
        feed_forward = PerTokenFFN(T, D, (max(1, round(1.5 * c.expansion * D)),))
    mixing = MultiheadMixing(T, D, pad=c.mix_pad)
    return MixerBlock(D, mixing, feed_forward, norm=c.norm, dropout=c.dropout)


def _sides(schema: Schema) -> tuple[list[int], list[int]]:
    """Returns the numbers of the user fields and of the item fields."""
    sides = [f.side for f in schema.fields]
    require(
        "user" in sides and "item" in sides,
        where="RankUpConfig.cross",
        found=f"'internal' with fields of the sides {', '.join(sorted(set(sides)))}",
        expected="at least one field of side 'user' and one of side 'item'",
        fix="set the sides of the fields in the spec, or cross=off",
    )
    user, item = ([i for i, s in enumerate(sides) if s == side] for side in ("user", "item"))
    return user, item


MODEL = RankUp
