"""TokenFormer: fields, behaviours and the target as one stream of tokens.

Tencent, arXiv:2604.13737. Attention is full in the bottom layers and slides over shrinking windows
above, where the field tokens are gone (BFTS); what it finds passes a gate (NLIR).
Deviations: widths, heads, read-out and initial values are not published, ours; dropout acts on what
attention adds, not on its probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import refuse_idle, require, require_between, require_positive
from fullrank.embedding import Embeddings
from fullrank.errors import nearest
from fullrank.losses.binary import binary_losses
from fullrank.losses.known import known_value_loss
from fullrank.model import NO_ASSETS, Assets
from fullrank.nn.attention_mask import Visibility
from fullrank.nn.bfts import BFTS, layers_of, spread
from fullrank.nn.head import num_labels, split_labels
from fullrank.nn.interaction_block import (
    NLIR,
    FeedForward,
    FeedForwardKind,
    GateAct,
    InteractionBlock,
    NormKind,
    SelfAttention,
    small_linear,
    token_norm,
)
from fullrank.nn.rotary import Rotary
from fullrank.nn.token_sequence import Stream, TokenSequence
from fullrank.schema import Bag, Schema
from fullrank.tap import Tap
from fullrank.target import TargetHistory

# Longer than 250 lines, because every switch of the ablations has its line in the config.
_ON = (True,)
_ONLY_WITH: tuple[tuple[str, tuple[Any, ...], tuple[str, ...]], ...] = (
    ("nlir", _ON, ("gate_source", "gate_input", "gate_act", "gate_bias", "gate_init")),
    ("gate_source", ("input",), ("gate_input",)),
    ("positions", ("rope",), ("target_pos",)),
    ("discard_static", _ON, ("discard_sep1",)),
    ("use_static", _ON, ("static_bidirectional",)),
)


@dataclass(frozen=True, kw_only=True)
class TokenFormerConfig:
    """Settings: the switches of the ablations, the paper's own values first.

    A setting that another one leaves without effect is refused. `variant` returns the paper's:

        A0 4F, no gate: a plain Transformer      A6 3F1S; with schedule="1F3S" the other split
        A1 4F                                    A7 2F2S with windows that grow
        A2 2F2S, no gate                         A8 2F2S without windows: fields are dropped only
        A3 2F2S: TokenFormer                     A9 A0 without field tokens
        A4 4S                                    A10 A0 with the parameters of A3
        A5 2S2F                                  A11 A3 with learned positions that are added

    Args:
        history, length: name of the sequence, "" the only one; newest events, None for all kept.
        regime: "impression": the loss is that of the labels; "user": besides, the value of every
            feedback column is predicted at every event from what came before it.
        stream: "plain": one token per event, with the feedback in it under regime "impression" and
            without under "user"; "action_aware": an item token and a feedback token per event.
        use_static: whether there are field tokens.
        dim, num_heads: D, H.
        embedding_dim: width of an embedding; None for D. Other widths are mapped to D linearly.
        embedding_std: initial spread of the embeddings.
        schedule: layers from the bottom, F full and S sliding, such as "2F2S" or "FFSS".
        windows: tokens that a sliding layer sees, the query included, one per sliding layer; 0 for
            all that come before.
        discard_static, discard_sep1: sliding layers do not see field tokens, nor SEP1.
        static_bidirectional: field tokens also see later field tokens.
        positions: "rope"; "learned": vectors that are added to the tokens.
        target_pos: position of SEP2 and the targets: one past the window, or past the stream.
        nlir: whether attention passes the gate.
        gate_source, gate_input: the gate reads the input of the layer, raw or normed, or attention.
        gate_act, gate_bias, gate_init: see `NLIR`.
        attn_out_proj: whether there is W_O.
        ffn, expansion: kind of feed-forward network; r, its hidden width in units of D.
        norm: "rms" or "layer".
        readout: what the head reads: the last target token, a learned token after it, or the mean
            of the targets.
        dropout: on what attention and the feed-forward network add.
    """

    history: str = ""
    length: int | None = None
    regime: Literal["impression", "user"] = "impression"
    stream: Literal["plain", "action_aware"] = "plain"
    use_static: bool = True
    dim: int = 64
    num_heads: int = 4
    embedding_dim: int | None = None
    embedding_std: float = 0.02
    schedule: str = "2F2S"
    windows: tuple[int, ...] = (32, 16)
    discard_static: bool = True
    discard_sep1: bool = False
    static_bidirectional: bool = False
    positions: Literal["rope", "learned"] = "rope"
    target_pos: Literal["tmax_plus_1", "stream_len_plus_1"] = "tmax_plus_1"
    nlir: bool = True
    gate_source: Literal["input", "attn_out"] = "input"
    gate_input: Literal["raw", "normed"] = "raw"
    gate_act: GateAct = "sigmoid"
    gate_bias: float | None = None
    gate_init: Literal["zero", "normal"] = "zero"
    attn_out_proj: bool = True
    ffn: FeedForwardKind = "swiglu"
    expansion: float = 2.0
    norm: NormKind = "rms"
    readout: Literal["last_target", "decision_token", "mean_targets"] = "last_target"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        require_positive(self, "dim", "num_heads", "embedding_std", "expansion")
        require_between(self, 0.0, 0.95, "dropout")
        if self.embedding_dim is not None:
            require_positive(self, "embedding_dim")
        sliding = self.layers.count("S")
        require(
            len(self.windows) == sliding and all(w >= 0 for w in self.windows),
            where="TokenFormerConfig.windows",
            found=f"{self.windows} with schedule '{self.schedule}'",
            expected=f"{sliding} numbers of 0 or more, one per sliding layer",
            fix=f"set windows to {spread(self.windows or (32, 16), sliding)}",
        )
        refuse_idle(self, _ONLY_WITH)
        for name, default, layer in (("discard_static", True, "S"), ("discard_sep1", False, "S"),
                                     ("static_bidirectional", False, "F")):  # fmt: skip
            require(
                getattr(self, name) == default or layer in self.layers,
                where=f"TokenFormerConfig.{name}",
                found=f"{not default} with schedule '{self.schedule}'",
                expected=f"a layer {layer}, without which it does nothing",
                fix=f"leave {name} out",
            )

    @property
    def layers(self) -> str:
        """Returns one letter per layer from the bottom, such as "FFSS"."""
        return layers_of(self.schedule)

    @property
    def label(self) -> str:
        """Returns a short name for pages and figures, such as "2F2S 32,16 + NLIR"."""
        windows = f" {','.join(str(w or 'all') for w in self.windows)}" if self.windows else ""
        fields = "" if self.use_static else ", no fields"
        learned = ", learned positions" if self.positions == "learned" else ""
        return f"{self.schedule}{windows}{' + NLIR' if self.nlir else ''}{fields}{learned}"

    @classmethod
    def tiny(cls) -> TokenFormerConfig:
        """Returns the smallest config that visits every branch."""
        return cls(
            dim=8, num_heads=2, embedding_dim=4, embedding_std=0.3, schedule="FS", windows=(9,),
            gate_bias=1.0, readout="decision_token", dropout=0.05,
        )  # fmt: skip

    @classmethod
    def variant(cls, name: str, **changes: Any) -> TokenFormerConfig:
        """Returns an ablation of the paper.

        Args:
            name: "A0" to "A11"; see the class.
            changes: further settings, such as dim, or schedule="1F3S" for A6. `windows` are those
                of A3: other numbers of sliding layers spread them from the first to the last, A7
                turns them around and A8 has none.

        Raises:
            ConfigError: there is no such variant.
        """
        require(
            name in _VARIANTS,
            where="TokenFormerConfig.variant",
            found=f"'{name}'",
            expected="one of: " + ", ".join(_VARIANTS),
            fix=nearest(name, _VARIANTS),
        )
        chosen = {**_VARIANTS[name], **changes}
        windows = chosen.get("windows", cls.windows)
        windows = spread(windows, layers_of(chosen.get("schedule", cls.schedule)).count("S"))
        if name == "A7":
            windows = windows[::-1]
        if name == "A8":
            windows = (0,) * len(windows)
        if name == "A10":  # D^2 more in a feed-forward network of 3 r D^2 stand for W_g
            chosen["expansion"] = chosen.get("expansion", cls.expansion) + 1 / 3
        return cls(**{**chosen, "windows": windows})


_VARIANTS: dict[str, dict[str, Any]] = {
    "A0": {"schedule": "4F", "nlir": False}, "A1": {"schedule": "4F"}, "A2": {"nlir": False},
    "A3": {}, "A4": {"schedule": "4S"}, "A5": {"schedule": "2S2F"}, "A6": {"schedule": "3F1S"},
    "A7": {}, "A8": {}, "A9": {"schedule": "4F", "nlir": False, "use_static": False},
    "A10": {"schedule": "4F", "nlir": False}, "A11": {"positions": "learned"},
}  # fmt: skip


class TokenFormer(nn.Module):
    """A stream of tokens, L layers, one tower.

    Candidate: fields that the history describes, too, and all others of side "item". They are the
    K target tokens, in the schema's order. All other fields are static tokens. A bag that is empty
    is a learned vector.

    Taps: `embed`, those of `InteractionBlock` under `block{l}` with l from 0, and `head_in`.

    Args:
        schema: fields of all kinds, a history that shares a table with one; at least one label.
        config: settings.
        assets: not read.

    Raises:
        SchemaError: no history can be compared with a field.
        ConfigError: a window does not reach from the target to any behaviour, or feedback is asked
            for and the history has none.
    """

    Config = TokenFormerConfig

    def __init__(
        self, schema: Schema, config: TokenFormerConfig, assets: Assets = NO_ASSETS
    ) -> None:
        super().__init__()
        c = config
        self.schema, self.config = schema, config
        self._build_inputs(TargetHistory(schema, c.history, c.length))
        M, K, T = len(self.static), len(self.targets), self.history.length
        per_event, decision = 1 + (c.stream == "action_aware"), c.readout == "decision_token"
        self.num_tokens = M + per_event * T + K + 2 + decision  # N of a full history
        end = T + 1 if c.target_pos == "tmax_plus_1" else self.num_tokens + 1
        self.tokens = TokenSequence(c.dim, K, per_event, end, decision)
        if c.positions == "learned":
            self.position_vectors = nn.Parameter(0.02 * torch.randn(T + 2, c.dim))
        rule = Visibility(
            num_static=M, discard_static=c.discard_static, discard_separator=c.discard_sep1,
            static_bidirectional=c.static_bidirectional,
        )  # fmt: skip
        rotary = Rotary(c.dim // c.num_heads) if c.positions == "rope" else None
        self.bfts = BFTS(c.layers, c.windows, rule, self.tokens, rotary)
        source = c.gate_input if c.gate_source == "input" else "attn_out"
        for layer in range(len(c.layers)):
            attention = SelfAttention(c.dim, c.num_heads, c.attn_out_proj)
            gate = NLIR(c.dim, source, c.gate_act, c.gate_bias, c.gate_init) if c.nlir else None
            feed_forward = FeedForward(c.dim, round(c.expansion * c.dim) or 1, c.ffn, c.dropout)
            block = InteractionBlock(attention, gate, feed_forward, c.norm, c.dropout)
            block.initialise(len(c.layers))
            self.add_module(f"block{layer}", block)
        self.final_norm = token_norm(c.dim, c.norm)
        out = small_linear(c.dim, num_labels(schema))
        self.head = nn.Sequential(small_linear(c.dim, c.dim), nn.SiLU(), out)
        self.embed, self.head_in = Tap("B F D"), Tap("B D")

    def _build_inputs(self, whole: TargetHistory) -> None:
        """Sorts the fields into static and target ones and builds what embeds them."""
        c, schema = self.config, self.schema
        aware, user = c.stream == "action_aware", c.regime == "user"
        require(
            bool(whole.feedback) or not (aware or user),
            where="TokenFormerConfig." + ("stream" if aware else "regime"),
            found=f"'{c.stream if aware else c.regime}' with history '{whole.name}'",
            expected="a column that says what the user did, of a table that no target field reads",
            fix="prepare histories with feedback, or use stream='plain' and regime='impression'",
        )
        # trap: under "user" a plain token must not tell the feedback that it is asked for.
        read = whole.reads(schema, feedback=aware or not user)
        candidate = {f.name for f in schema.fields if f.side == "item"} | set(whole.fields)
        names = [f.name for f in schema.fields if c.use_static or f.name in candidate]
        width = c.embedding_dim or c.dim
        past, std = (whole.name,), c.embedding_std
        self.embeddings = Embeddings(read, width, fields=names, sequences=past, std=std)
        self.history = TargetHistory(self.embeddings.schema, whole.name, c.length)
        self.static = tuple(n for n in names if n not in candidate)
        self.targets = tuple(n for n in names if n in candidate)
        self._static = [names.index(n) for n in self.static]
        self._target = [names.index(n) for n in self.targets]
        bags = [f.name for f in self.embeddings.schema.fields if isinstance(f, Bag)]
        self._bags = {name: names.index(name) for name in bags}
        if bags:
            self.empty_bags = nn.Parameter(std * torch.randn(len(bags), width))
        self.lift = nn.Identity() if width == c.dim else small_linear(width, c.dim, bias=False)
        item, told = (width * len(part) for part in (self.history.columns, self.history.feedback))
        self.item = small_linear(item + told * (not aware), c.dim)
        self.action = small_linear(told, c.dim) if aware else nn.Identity()
        tables = dict(schema.sequence(whole.name).columns)
        asked = whole.feedback if user else ()
        values = {n: schema.table(str(tables[n])).size - 1 for n in asked}
        self.feedback_heads = nn.ModuleDict({n: small_linear(c.dim, v) for n, v in values.items()})

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        stream = self.bfts(self.blocks(), self.stream(batch, self.history.length))
        return split_labels(self._judge(stream), self.schema)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-loss of each label; under "user" also "HISTORY.COLUMN", per feedback.

        That of feedback is the mean over events whose feedback is known, each with the weight of
        its row. Training works on real tokens alone, and taps of the blocks see nothing then.
        """
        pack = self.training and not torch.compiler.is_compiling()
        lengths = batch.sequences[self.history.name].lengths().clamp(max=self.history.length)
        longest = max(1, int(lengths.max())) if pack else self.history.length
        stream = self.bfts(self.blocks(), self.stream(batch, longest), pack=pack)
        losses = binary_losses(split_labels(self._judge(stream), self.schema), batch)
        if self.config.regime == "user":
            past = batch.sequences[self.history.name].newest(self.history.length)
            weight = torch.repeat_interleave(batch.weight, past.lengths())  # [S]
            states = self._before_feedback(stream)
            for column, head in self.feedback_heads.items():
                loss = known_value_loss(head(states), past.values[column], weight)
                losses[f"{self.history.name}.{column}"] = loss
        return losses

    def feedback_logits(self, batch: Batch) -> dict[str, Tensor]:
        """Returns column -> logits [S, V - 1] of the values 1 to V - 1 at the events of the window.

        Rows one after the other, oldest event first. Only regime "user" has any.
        """
        stream = self.bfts(self.blocks(), self.stream(batch, self.history.length))
        states = self._before_feedback(stream)
        return {column: head(states) for column, head in self.feedback_heads.items()}

    @torch.no_grad()
    def attention_to_static(self, batch: Batch) -> Tensor:
        """Returns [L]: the share of attention that behaviours and targets give static tokens.

        The mean over queries, heads and rows; 0 where static tokens are gone.
        """
        stream = self.stream(batch, self.history.length)
        return self.bfts.static_share(self.blocks(), stream)[1]

    def stream(self, batch: Batch, length: int) -> Stream:
        """Returns X_0, with places for the newest `length` events of a row."""
        block = self.embeddings.fields(batch)  # [B, F, embedding_dim]
        if self._bags:
            empty = torch.stack([batch.bags[name].lengths() == 0 for name in self._bags], dim=1)
            places = torch.tensor(list(self._bags.values()), device=block.device)
            block = block.index_add(1, places, empty.unsqueeze(-1) * self.empty_bags)
        block, events = self.lift(self.embed(block)), self.history.events(self.embeddings, batch)
        if self.config.stream == "action_aware":
            each = torch.stack([self.item(events.x), self.action(events.feedback)], dim=1)
        else:
            each = self.item(torch.cat([events.x, events.feedback], dim=1)).unsqueeze(1)
        static, targets = block[:, self._static], block[:, self._target]
        stream: Stream = self.tokens(static, each, events.offsets, targets, length)
        if self.config.positions == "learned":
            added = self.position_vectors[stream.positions] * stream.valid.unsqueeze(-1)
            stream = stream._replace(x=stream.x + added)
        return stream

    def _judge(self, stream: Stream) -> Tensor:
        """Returns logits [B, Y]."""
        mean = self.config.readout == "mean_targets"
        x = stream.x[:, self.tokens.target_span].mean(1) if mean else stream.x[:, -1]
        out: Tensor = self.head(self.head_in(self.final_norm(x)))
        return out

    def _before_feedback(self, stream: Stream) -> Tensor:
        """Returns what is known at every event before its feedback, [S, D]."""
        step = self.tokens.per_event
        x = stream.x[:, self.tokens.span(stream.events.shape[1] // step)]
        states: Tensor = self.final_norm(x[:, ::step][stream.events[:, ::step]])
        return states

    def blocks(self) -> list[InteractionBlock]:
        """Returns the L blocks, first one first."""
        found = (self.get_submodule(f"block{layer}") for layer in range(len(self.config.layers)))
        return [block for block in found if isinstance(block, InteractionBlock)]

    def extra_repr(self) -> str:
        """Returns the variant for `print(model)`."""
        return self.config.label


MODEL = TokenFormer
