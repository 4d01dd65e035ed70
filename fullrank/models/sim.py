"""SIM: search a long history for what concerns the target, then look closely at what was found.

Pi et al., CIKM 2020, arXiv:2006.05639. Equation numbers are the paper's.
Deviations: the short history is read by the same kind of attention as what was found, as in the
FuxiCTR zoo, and not by DIEN; gaps of time are counted from the newest event, because the time of
the request is no feature. What the user did with an item, where a history says so, is part of the
event; the search compares items alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fullrank.batch import Batch, Jagged
from fullrank.config import refuse_idle, require, require_between, require_positive
from fullrank.embedding import Embeddings
from fullrank.errors import nearest
from fullrank.losses.binary import binary_losses
from fullrank.model import NO_ASSETS, Assets
from fullrank.nn.head import num_labels, split_labels
from fullrank.nn.mlp import MLP, linear
from fullrank.nn.target_attention import MultiHeadTargetAttention, row_sum
from fullrank.schema import Schema
from fullrank.tap import Tap
from fullrank.target import Events, TargetHistory

# Longer than 250 lines, because both searches and the gaps of time are switches of one paper.
_ONLY_WITH = (
    ("search", ("soft",), ("relevance_dim", "search_hidden", "search_weight")),
    ("search", ("hard",), ("category",)),
)
_GAPS = 32  # powers of two of the unit of time; the last one holds whatever is longer


@dataclass(frozen=True, kw_only=True)
class SIMConfig:
    """Settings. One that another leaves without effect is refused.

    Args:
        dim: D, width of a field embedding.
        embedding_std: standard deviation of the initial embedding rows.
        history: name of the sequence; "" for the only one.
        length: newest events that are searched; None for all that the data keeps.
        feedback: read the columns that say what the user did, where there are any.
        search: "soft" finds the events of highest relevance, which a network of its own learns;
            "hard" the newest ones of the target's category.
        category: for "hard": the field that holds it, one of those that the history describes.
        top_k: most events that are found; a shorter history is found whole.
        short_length: newest events that are read whatever they are.
        relevance_dim: width of the vectors whose product is the relevance.
        search_hidden: widths of the network that teaches the relevance.
        search_weight: alpha, of its loss; beta, that of the label's, is 1.
        attention_dim: width of what each attention gives.
        heads: of each attention.
        time: raw column of the history whose distance from the newest event is embedded and
            joined to what was found; "" for none.
        time_dim: width of that embedding.
        hidden: widths of the deep part.
        batch_norm: of the deep part.
        dropout: of the deep part.
    """

    dim: int = 16
    embedding_std: float = 0.01
    history: str = ""
    length: int | None = None
    feedback: bool = True
    search: Literal["soft", "hard"] = "soft"
    category: str = ""
    top_k: int = 50
    short_length: int = 50
    relevance_dim: int = 32
    search_hidden: tuple[int, ...] = (64,)
    search_weight: float = 1.0
    attention_dim: int = 64
    heads: int = 2
    time: str = ""
    time_dim: int = 8
    hidden: tuple[int, ...] = (512, 256, 128)
    batch_norm: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "dim", "embedding_std", "top_k", "short_length", "relevance_dim")
        require_positive(self, "search_hidden", "search_weight", "attention_dim", "heads")
        require_positive(self, "time_dim", "hidden")
        require_between(self, 0.0, 0.95, "dropout")
        refuse_idle(self, _ONLY_WITH)
        require(
            bool(self.time) or self.time_dim == type(self).time_dim,
            where="SIMConfig.time_dim",
            found=f"{self.time_dim} without a column of times",
            expected=f"{type(self).time_dim}: it is read only with time",
            fix="leave time_dim out, or name the column: time='...'",
        )
        up = -(-self.attention_dim // self.heads) * self.heads
        require(
            self.attention_dim == up,
            where="SIMConfig.attention_dim",
            found=f"{self.attention_dim} for {self.heads} heads",
            expected="a multiple of the heads",
            fix=f"set attention_dim to {up}",
        )

    @classmethod
    def tiny(cls) -> SIMConfig:
        """Returns the smallest config that visits every branch of the soft search."""
        return cls(
            dim=4, embedding_std=0.1, top_k=2, short_length=2, relevance_dim=3, search_hidden=(5,),
            attention_dim=4, heads=2, hidden=(8,), dropout=0.1,
        )  # fmt: skip


class SoftSearch(nn.Module):
    """The relevance of events to the target, (W_a t) . (W_b h), and the network that teaches it.

    Args:
        dim: width of a target and of an event.
        width: of the vectors that are multiplied.
        hidden: widths of the network on [t; sum of relevance * h].
        labels: Y.
    """

    def __init__(self, dim: int, width: int, hidden: tuple[int, ...], labels: int) -> None:
        super().__init__()
        self.target, self.event = linear(dim, width, bias=False), linear(dim, width, bias=False)
        self.deep = MLP(2 * dim, hidden)
        self.head = linear(self.deep.out_dim, labels)

    def forward(self, t: Tensor, events: Events) -> Tensor:
        """Returns the relevance [S] of each event, for targets [B, dim]; eq. 2."""
        looked_for: Tensor = self.target(t) @ self.event.weight  # [B, dim]: no event is projected
        looked_at: Tensor = looked_for.index_select(0, events.row) * events.x  # [S, dim]
        return looked_at.sum(dim=1)

    def teach(self, t: Tensor, events: Events, relevance: Tensor) -> Tensor:
        """Returns the logits [B, Y] of the search alone; events beyond the window weigh zero."""
        found = row_sum(relevance * events.within, events.x, events.row, t.shape[0])
        logits: Tensor = self.head(self.deep(torch.cat([t, found], dim=1)))
        return logits


class SIM(nn.Module):
    """Finds a few events of a long history, attends to them and to the newest ones.

    Taps: `embed`, `found` [B, K, ...] with `found_valid`, `interest`, `head_in`.

    Args:
        schema: a history with a column that shares a table with a field; at least one label.
        config: settings.
        assets: not read.

    Raises:
        ConfigError: the history does not describe the category, or has no such column of times.
    """

    Config = SIMConfig

    def __init__(self, schema: Schema, config: SIMConfig, assets: Assets = NO_ASSETS) -> None:
        super().__init__()
        self.schema, self.config = schema, config
        read = TargetHistory(schema, config.history).reads(schema, feedback=config.feedback)
        self.history = TargetHistory(read, config.history, config.length)
        self._require_columns(schema)
        self.embeddings = Embeddings(
            read, config.dim, sequences=(self.history.name,), std=config.embedding_std
        )
        self.embed, self.interest, self.head_in = Tap("B F D"), Tap("B D"), Tap("B D")
        self.found_valid, self.found = Tap("B T"), Tap("B T D")
        labels, target = num_labels(schema), len(self.history.fields) * config.dim
        event = target + len(self.history.feedback) * config.dim
        if config.search == "soft":
            self.search = SoftSearch(target, config.relevance_dim, config.search_hidden, labels)
        if config.time:
            self.gaps = nn.Embedding(_GAPS, config.time_dim)
        found = event + (config.time_dim if config.time else 0)
        dim, heads = config.attention_dim, config.heads
        self.long = MultiHeadTargetAttention(target, found, dim, heads)
        self.short = MultiHeadTargetAttention(target, event, dim, heads)
        self.deep = MLP(
            len(schema.fields) * config.dim + 2 * dim,
            config.hidden,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
        )
        self.head = linear(self.deep.out_dim, labels)

    def _require_columns(self, schema: Schema) -> None:
        c, described = self.config, self.history.fields
        require(
            c.search == "soft" or c.category in described,
            where="SIMConfig.category",
            found=f"'{c.category}'",
            expected="a field that the history describes: " + ", ".join(described),
            fix=nearest(c.category, described),
        )
        raw = [name for name, table in schema.sequence(self.history.name).columns if table is None]
        require(
            not c.time or c.time in raw,
            where="SIMConfig.time",
            found=f"'{c.time}'",
            expected="a raw column of the history: " + (", ".join(raw) or "it has none"),
            fix=nearest(c.time, raw) if raw else "leave time out",
        )

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        return self._run(batch)[0]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-loss of each label, and that of a soft search over all labels."""
        scores, t, events, relevance = self._run(batch)
        losses = binary_losses(scores, batch)
        if relevance is not None:
            taught = split_labels(self.search.teach(t, events, relevance), self.schema)
            own = torch.stack(list(binary_losses(taught, batch).values())).sum()
            losses["soft_search"] = self.config.search_weight * own
        return losses

    def _run(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Events, Tensor | None]:
        block = self.embed(self.embeddings.fields(batch))  # [B, F, D]
        t = self.history.target(block)  # [B, P*D]
        events = self.history.events(self.embeddings, batch)
        relevance = self.search(t, events) if self.config.search == "soft" else None  # [S]
        x = torch.cat(
            [self.history.others(block), t, self._interest(t, events, relevance, batch)], 1
        )
        scores = split_labels(self.head(self.head_in(self.deep(x))), self.schema)
        return scores, t, events, relevance

    def _interest(
        self, t: Tensor, events: Events, relevance: Tensor | None, batch: Batch
    ) -> Tensor:
        """Returns [B, 2 * attention_dim]: of what was found, and of the newest events."""
        each = torch.arange(events.x.shape[0], device=t.device)
        past = Jagged({"at": each}, events.offsets)
        at, valid = past.padded("at", self.history.length, "left")  # [B, T] twice
        preference = self._preference(events, relevance, batch).masked_fill(~valid, -torch.inf)
        best, place = preference.topk(min(self.config.top_k, at.shape[1]), dim=1)  # [B, K] twice
        seen = self.found_valid(best > -torch.inf)
        x = torch.cat([events.x, events.feedback], dim=1)  # [S, E]
        found = _taken(x, at.gather(1, place))  # [B, K, E]
        if self.config.time:
            found = torch.cat([found, self._gap(place, batch)], dim=2)
        newest = slice(-min(self.config.short_length, at.shape[1]), None)
        long = self.long(t, self.found(found), seen)
        short = self.short(t, _taken(x, at[:, newest]), valid[:, newest])
        return self.interest(torch.cat([long, short], dim=1))  # type: ignore[no-any-return]

    def _preference(self, events: Events, relevance: Tensor | None, batch: Batch) -> Tensor:
        """Returns [B, T]: which events to take first, -inf for never; carries no gradient."""
        T = self.history.length
        if relevance is not None:
            past = Jagged({"relevance": relevance.detach()}, events.offsets)
            return past.padded("relevance", T, "left")[0]
        column = self.history.columns[self.history.fields.index(self.config.category)]
        theirs, _ = batch.sequences[self.history.name].padded(column, T, "left")  # [B, T]
        own = batch.categorical[self.config.category].unsqueeze(1)  # [B, 1]
        age = torch.arange(T, dtype=torch.float32, device=own.device)
        # An unknown category says nothing about another unknown one.
        return torch.where((theirs == own) & (own > 0), age, -torch.inf)

    def _gap(self, place: Tensor, batch: Batch) -> Tensor:
        """Returns [B, K, time_dim] for how long before the newest event an event was."""
        past = batch.sequences[self.history.name]
        time, _ = past.padded(self.config.time, self.history.length, "left")  # [B, T]
        gap = (time[:, -1:] - time.gather(1, place)).clamp(min=0)  # [B, K]
        out: Tensor = self.gaps((gap + 1).double().log2().long().clamp(max=_GAPS - 1))
        return out


def _taken(x: Tensor, at: Tensor) -> Tensor:
    """Returns events [B, K, E] of flat ones [S, E] by number [B, K]; zeros where there is none."""
    if x.shape[0] == 0:
        return x.new_zeros(*at.shape, x.shape[1])
    return x.index_select(0, at.flatten()).view(*at.shape, x.shape[1])


MODEL = SIM
