"""Target attention: how much each past event says about the item being judged.

Two forms. `ActivationUnit` (DIN, arXiv:1706.06978) weighs events that lie one after the other,
without padding, by a small network. `MultiHeadTargetAttention` (SIM, arXiv:2006.05639) is scaled
dot-product attention of one query per row to a rectangle of retrieved events.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.nn.dice import Dice
from fullrank.nn.mlp import linear
from fullrank.ops.blocks import BLOCK_ROWS


class ActivationUnit(nn.Module):
    """Weighs events by a network on [t; h; t - h; t * h; e], DIN's local activation unit.

    The joined vector is never built. With W1 to W5 the parts of the first layer, its product is
    t (W1 + W3), once per row, and h (W2 - W3) + (t * h) W4 + e W5 per event.

    Args:
        dim: width of a target t and of an event h.
        hidden: widths of the layers, at least one; each is followed by Dice.
        feedback_dim: width of e, what the user did; 0 is the paper's.

    Attributes:
        first: the first layer, on the joined vector.
    """

    def __init__(self, dim: int, hidden: tuple[int, ...], *, feedback_dim: int = 0) -> None:
        super().__init__()
        self.dim = dim
        self.first = linear(4 * dim + feedback_dim, hidden[0])
        layers: list[nn.Module] = [Dice(hidden[0])]
        for width, out in pairwise(hidden):
            layers += [linear(width, out), Dice(out)]
        self.rest = nn.Sequential(*layers, linear(hidden[-1], 1))

    def forward(self, t: Tensor, h: Tensor, e: Tensor, row: Tensor) -> Tensor:
        """Returns one weight per event, of any sign and size.

        Args:
            t: [B, dim] targets.
            h: [S, dim] events.
            e: [S, feedback_dim].
            row: [S] int64, the row of each event.

        Returns:
            [S].
        """
        events = row.shape[0]
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            # The last events of a list would go through another kernel than the rest, and a score
            # would depend in its last bits on which rows of a batch come after it.
            h, e = (F.pad(x, (0, 0, 0, -events % BLOCK_ROWS)) for x in (h, e))
            row = F.pad(row, (0, -events % BLOCK_ROWS))
        w1, w2, w3, w4 = self.first.weight[:, : 4 * self.dim].chunk(4, dim=1)
        per_row = F.linear(t, w1 + w3, self.first.bias)  # [B, H]
        z = per_row.index_select(0, row)  # [S, H]; the products are added in place
        z.addmm_(h, (w2 - w3).T).addmm_(t.index_select(0, row) * h, w4.T)
        if e.shape[1]:
            z.addmm_(e, self.first.weight[:, 4 * self.dim :].T)
        out: Tensor = self.rest(z)
        return out.squeeze(1)[:events]


def row_sum(weight: Tensor, x: Tensor, row: Tensor, rows: int) -> Tensor:
    """Returns [B, D], the weighted sum of the events of each row; zero where there is none.

    Args:
        weight: [S].
        x: [S, D].
        row: [S] int64.
        rows: B.
    """
    return x.new_zeros(rows, x.shape[1]).index_add(0, row, weight.unsqueeze(1) * x)


def row_softmax(logit: Tensor, row: Tensor, within: Tensor, rows: int) -> Tensor:
    """Returns [S] weights that add up to one in each row that has an event.

    Args:
        logit: [S].
        row: [S] int64.
        within: [S] bool; events that are False get weight zero.
        rows: B.
    """
    logit = logit.masked_fill(~within, -torch.inf)
    # Subtracting the largest keeps exponentials finite; it cancels, and so has no gradient.
    largest = logit.new_full((rows,), -torch.inf)
    largest = largest.scatter_reduce(0, row, logit.detach(), "amax").index_select(0, row)
    share = (logit - largest.clamp(min=torch.finfo(logit.dtype).min)).exp()  # [S]
    total = logit.new_zeros(rows).index_add(0, row, share)  # [B], 1 or more where there is an event
    return share / total.clamp(min=1.0).index_select(0, row)


class MultiHeadTargetAttention(nn.Module):
    """Scaled dot-product attention of one query per row; no event is ever projected.

    A head's logit is (Q t) . (K x_j) = (K' Q t) . x_j, and its output V sum_j a_j x_j, so keys and
    values cost two small products per row instead of two per event. Biases of keys cancel in the
    softmax; an output projection would meet the next linear layer, so there is none.

    Args:
        target_dim: width of a target.
        event_dim: E, width of an event.
        dim: width of the output, a multiple of `heads`.
        heads: how many.
    """

    def __init__(self, target_dim: int, event_dim: int, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.event_dim = heads, event_dim
        self.query = linear(target_dim, dim, bias=False)
        self.key = linear(event_dim, dim, bias=False)
        self.value = linear(event_dim, dim, bias=False)

    def forward(self, t: Tensor, x: Tensor, valid: Tensor) -> Tensor:
        """Returns [B, dim], zero for a row without a valid event.

        Args:
            t: [B, target_dim].
            x: [B, K, E].
            valid: [B, K] bool.
        """
        B, H = x.shape[0], self.heads
        query = self.query(t).view(B, H, -1)  # [B, H, A]
        key, value = (layer.weight.view(H, -1, self.event_dim) for layer in (self.key, self.value))
        looked_for = torch.einsum("bha,hae->bhe", query, key) * query.shape[2] ** -0.5
        logit = looked_for @ x.transpose(1, 2)  # [B, H, K]
        seen = valid.unsqueeze(1)  # [B, 1, K]
        # A finite floor, and zero afterwards: a row of padding must not become NaN.
        weight = logit.masked_fill(~seen, torch.finfo(logit.dtype).min).softmax(dim=2) * seen
        return torch.einsum("bhe,hae->bha", weight @ x, value).reshape(B, -1)
