"""One stream of tokens out of fields, behaviours and targets.

TokenFormer, arXiv:2604.13737:

    [ f_1 ... f_M | padding | SEP1 | behaviours | SEP2 | v_1 ... v_K | decision ]

The newest event is adjacent to SEP2. Padding lies in front of SEP1 (our choice): a window that
counts places backwards from a behaviour or a target then meets it behind everything real.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Stream(NamedTuple):
    """The tokens of a batch.

    Args:
        x: [B, N, D], zeros at padding.
        valid: [B, N] bool, True where a token is real.
        positions: [B, N] int64: 0 for fields and SEP1, t for what belongs to event t of the
            window, `end` for all that follows.
        separator: [B, N] bool, True at SEP1.
        events: [B, E * T] bool, True where a token of a behaviour is real.
    """

    x: Tensor
    valid: Tensor
    positions: Tensor
    separator: Tensor
    events: Tensor

    def without(self, leading: int, separator: bool) -> Stream:
        """Returns the stream behind its leading tokens.

        Args:
            leading: how many tokens to drop.
            separator: whether SEP1 becomes padding.
        """
        valid = self.valid & ~self.separator if separator else self.valid
        kept = torch.arange(leading, valid.shape[1], device=valid.device)
        # trap: slices are views whose strides say, to an export, that there are two rows or more.
        x, valid, positions, sep1 = (
            part.index_select(1, kept) for part in (self.x, valid, self.positions, self.separator)
        )
        return Stream(x, valid, positions, sep1, self.events)


class TokenSequence(nn.Module):
    """Lays tokens out. SEP1, SEP2 and the decision token are learned, from N(0, 0.02^2).

    Args:
        dim: D.
        num_targets: K.
        per_event: E, tokens per event: 1, or 2 for the item and what the user did.
        end: position of SEP2, the targets and the decision token.
        decision: whether a learned token follows the targets.
    """

    def __init__(
        self, dim: int, num_targets: int, per_event: int, end: int, decision: bool = False
    ) -> None:
        super().__init__()
        self.num_targets, self.per_event, self.end = num_targets, per_event, end
        self.constants = nn.Parameter(0.02 * torch.randn(3 if decision else 2, dim))
        self.tail = num_targets + len(self.constants) - 1  # SEP2, the targets, decision

    def span(self, length: int) -> slice:
        """Returns the places of the behaviours of `length` events, counted from the end."""
        return slice(-self.tail - self.per_event * length, -self.tail)

    @property
    def target_span(self) -> slice:
        """Returns the places of the targets, counted from the end."""
        return slice(1 - self.tail, 1 - self.tail + self.num_targets or None)

    def forward(
        self, static: Tensor, events: Tensor, offsets: Tensor, targets: Tensor, length: int
    ) -> Stream:
        """Joins the parts.

        Args:
            static: [B, M, D].
            events: [S, E, D], rows one after the other, oldest event first.
            offsets: [B + 1] int64, where each row's events begin.
            targets: [B, K, D].
            length: T, newest events of a row that get a place.

        Returns:
            N = M + E T + K + 2 tokens, one more with a decision token.
        """
        rows, fields = static.shape[0], static.shape[1]
        width = 1 + self.per_event * length  # of SEP1 and the behaviours
        ends = offsets[1:, None] * self.per_event  # [B, 1]
        count = (offsets[1:] - offsets[:-1]).clamp(max=length)[:, None] * self.per_event
        place = torch.arange(width, device=offsets.device)
        order = place - (width - count)  # [B, width]: -1 SEP1, from 0 on behaviours
        real = order >= 0
        source = torch.cat([events.flatten(0, 1), self.constants[:1]])  # [S * E + 1, D]
        taken = torch.where(real, ends - width + place, source.shape[0] - 1)
        middle = source.index_select(0, taken.flatten()).reshape(rows, width, source.shape[1])
        middle = middle * (order >= -1).unsqueeze(-1)
        last = self.constants[1:, None, None].expand(-1, rows, 1, -1)  # SEP2 and decision
        x = torch.cat([static, middle, last[0], targets, *last[1:]], dim=1)  # [B, N, D]

        after = torch.full_like(count, self.end).expand(-1, self.tail)
        front, ones = torch.zeros_like(count).expand(-1, fields), torch.ones_like(after)
        step = torch.where(real, 1 + order // self.per_event, 0)
        return Stream(
            x=x,
            valid=torch.cat([front == 0, order >= -1, ones == 1], dim=1),
            positions=torch.cat([front, step, after], dim=1),
            separator=torch.cat([front == 1, order == -1, ones == 0], dim=1),
            events=real[:, 1:],
        )


def between(rule: Tensor, valid: Tensor) -> Tensor:
    """Applies a rule about places to rows with padding.

    Args:
        rule: [N, N] bool, True where the query of a row sees the key of a column.
        valid: [B, N] bool.

    Returns:
        [B, 1, N, N] bool, padding included: see `fullrank.nn.windowed_attention`.
    """
    place = (valid.long().cumsum(1) - 1).clamp(min=0)  # [B, N], with padding left out
    return rule[place[:, :, None], place[:, None, :]].unsqueeze(1)
