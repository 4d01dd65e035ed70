"""DIEN: interests are states that evolve, and the judged item decides which of them move on.

Zhou et al., AAAI 2019, arXiv:1809.03672. Equation numbers are the paper's.
Deviations: the reset gate acts behind the recurrent product (see nn/recurrent.py); the deep network
has ReLU; what the user did with an item, where a history says so, is part of the input of the
extractor. The paper draws items that were not clicked from the catalogue; here they are events of
other rows of the batch, so that frequent items are frequent among them, and nothing is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import refuse_idle, require_between, require_positive
from fullrank.embedding import Embeddings
from fullrank.losses.binary import binary_losses
from fullrank.model import NO_ASSETS, Assets
from fullrank.nn.head import num_labels, split_labels
from fullrank.nn.mlp import MLP, linear
from fullrank.nn.recurrent import GatedRecurrence, Steps, steps_of
from fullrank.schema import Schema
from fullrank.tap import Tap
from fullrank.target import Events, TargetHistory

AUXILIARY = "next_event"  # name of the auxiliary loss


@dataclass(frozen=True, kw_only=True)
class DIENConfig:
    """Settings.

    Args:
        dim: D, width of a field embedding.
        embedding_std: standard deviation of the initial embedding rows.
        history: name of the sequence; "" for the only one.
        length: newest events that are read; None for all that the data keeps.
        feedback: let the extractor read what the user did, where columns say so. Attention and the
            auxiliary loss compare items and never read it.
        state_dim: G, width of an interest.
        gru_type: how attention meets the evolution of interests: "AUGRU" scales the update gate,
            "AGRU" replaces it, "AIGRU" scales the input, "GRU" has no attention at all.
        aux: ask every state of the extractor which event comes next.
        aux_weight: of that loss.
        aux_hidden: widths of the network that judges a state and an event, by default those of the
            authors, which cost as much as all the rest of a step; (32,) a quarter; () for the inner
            product of the event and the projected state.
        hidden: widths of the deep part.
        batch_norm: of the deep part.
        dropout: of the deep part.
    """

    dim: int = 16
    embedding_std: float = 0.01
    history: str = ""
    length: int | None = None
    feedback: bool = True
    state_dim: int = 32
    gru_type: Literal["AUGRU", "AGRU", "AIGRU", "GRU"] = "AUGRU"
    aux: bool = True
    aux_weight: float = 1.0
    aux_hidden: tuple[int, ...] = (100, 50)
    hidden: tuple[int, ...] = (200, 80)
    batch_norm: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "dim", "embedding_std", "state_dim", "aux_weight")
        require_positive(self, "aux_hidden", "hidden")
        require_between(self, 0.0, 0.95, "dropout")
        refuse_idle(self, (("aux", (True,), ("aux_weight", "aux_hidden")),))

    @classmethod
    def tiny(cls) -> DIENConfig:
        """Returns the smallest config that visits every branch."""
        return cls(
            dim=4, embedding_std=0.1, state_dim=6, aux_weight=0.5, aux_hidden=(6, 5), hidden=(8,),
            dropout=0.1,
        )  # fmt: skip


class NextEvent(nn.Module):
    """Tells the event that follows a state from one that does not: f(g, h) of eqs. 6 and 7.

    Args:
        state_dim: G.
        event_dim: I.
        hidden: widths of a network on [g; h]; () for the inner product of h and the projected g.
    """

    def __init__(self, state_dim: int, event_dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        width = hidden[0] if hidden else event_dim
        self.of_state = linear(state_dim, width, bias=bool(hidden))
        # One layer on [g; h] is one on g plus one on h, and an h is judged twice: by the state
        # before it, and by one that it does not follow.
        self.of_event = linear(event_dim, width, bias=False) if hidden else nn.Identity()
        self.rest = MLP(width, hidden[1:]) if hidden else None
        self.out = linear(self.rest.out_dim, 1) if self.rest is not None else None

    def forward(self, g: Tensor, h: Tensor, row: Tensor) -> Tensor:
        """Returns the loss, a scalar, the mean over M pairs of a state and the event after it.

        The event that does not follow is the one half a batch further on. Pairs where that one is
        of the same row, or the same in every column, are left out; with no pair the loss is zero.

        Args:
            g: [S, G] states after each event.
            h: [S, I] events.
            row: [S] int64, the row of each event.
        """
        other = h.shape[0] // 2
        valid = (row[1:] == row[:-1]) & (row[1:] != row.roll(other)[1:])
        valid &= (h.detach() != h.detach().roll(other, 0)).any(1)[1:]  # [S - 1]
        state, event = self.of_state(g)[:-1], self.of_event(h)
        follows = self._judge(state, event[1:])  # [S - 1]
        strange = self._judge(state, event.roll(other, 0)[1:])
        loss = (F.softplus(-follows) + F.softplus(strange)) * valid
        return loss.sum() / valid.sum().clamp(min=1)

    def _judge(self, state: Tensor, event: Tensor) -> Tensor:
        if self.rest is None or self.out is None:
            return (state * event).sum(1)
        x: Tensor = self.out(self.rest(torch.relu(state + event)))
        return x.squeeze(1)


class DIEN(nn.Module):
    """Interests g_j by a GRU over the past, their evolution towards the target by a second one.

    Taps: `embed`, `interests` and `interests_valid` (the states of the extractor, padding on the
    right; only while someone looks), `interest` (the last state of the evolution), `head_in`.

    Args:
        schema: a history with a column that shares a table with a field; at least one label.
        config: settings.
        assets: not read.
    """

    Config = DIENConfig

    def __init__(self, schema: Schema, config: DIENConfig, assets: Assets = NO_ASSETS) -> None:
        super().__init__()
        self.schema, self.config = schema, config
        read = TargetHistory(schema, config.history).reads(schema, feedback=config.feedback)
        self.history = TargetHistory(read, config.history, config.length)
        self.embeddings = Embeddings(
            read, config.dim, sequences=(self.history.name,), std=config.embedding_std
        )
        self.embed, self.interest, self.head_in = Tap("B F D"), Tap("B D"), Tap("B D")
        self.interests_valid, self.interests = Tap("B T"), Tap("B T D")
        event = len(self.history.columns) * config.dim
        told = len(self.history.feedback) * config.dim
        G, kind = config.state_dim, config.gru_type
        self.extractor = GatedRecurrence(event + told, G)
        self.attention = linear(event, G, bias=False) if kind != "GRU" else None  # W of eq. 8
        self.evolution = GatedRecurrence(G, G, "GRU" if kind == "AIGRU" else kind)
        self.next_event = NextEvent(G, event, config.aux_hidden) if config.aux else None
        self.deep = MLP(
            len(schema.fields) * config.dim + G,
            config.hidden,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
        )
        self.head = linear(self.deep.out_dim, num_labels(schema))

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        return self._run(batch)[0]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-loss of each label, and with `aux` "next_event", weighted."""
        scores, g, events, steps = self._run(batch)
        losses = binary_losses(scores, batch)
        if self.next_event is not None:
            loss = self.next_event(steps.collect(g), events.x, events.row)
            losses[AUXILIARY] = self.config.aux_weight * loss
        return losses

    def _run(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Events, Steps]:
        """Returns the scores, and the interests [N, G] with the events and their layout."""
        block = self.embed(self.embeddings.fields(batch))  # [B, F, D]
        t = self.history.target(block)  # [B, P * D]
        events = self.history.events(self.embeddings, batch)
        # An exported program has to know that both are B before anything has that size.
        torch._check(events.offsets.shape[0] == t.shape[0] + 1)  # type: ignore[no-untyped-call]
        steps = steps_of(events.offsets, self.history.length, events.x.shape[0])
        told = events.feedback
        h = torch.cat([events.x, told], 1) if told.shape[1] else events.x  # [S, I]
        g, last = self.extractor(steps.lay_out(h), steps)  # eqs. 2 to 5, [N, G]
        self._show(g, steps)
        if self.attention is not None:
            a = steps.softmax(steps.dots(g, self.attention(t)))  # eq. 8, [N]
            if self.config.gru_type == "AIGRU":
                last = self.evolution(g * a[:, None], steps)[1]  # eq. 9
            else:
                last = self.evolution(g, steps, a)[1]  # eqs. 14 to 16, [B, G]
        else:
            last = self.evolution(g, steps)[1]
        x = torch.cat([self.history.others(block), t, self.interest(last)], dim=1)
        return split_labels(self.head(self.head_in(self.deep(x))), self.schema), g, events, steps

    def _show(self, g: Tensor, steps: Steps) -> None:
        # cost: a rectangle of every state, which nothing but a probe reads.
        if self.interests._forward_hooks or self.interests_valid._forward_hooks:
            self.interests_valid(steps.rectangle(steps.real, self.history.length))  # [B, T]
            self.interests(steps.rectangle(g, self.history.length))  # [B, T, G]


MODEL = DIEN
