"""Causal attention over rows of different lengths that lie one behind the other, without padding.

Whatever acts on one token at a time (norms, projections, feed-forward networks, gates) then works
on [1, S, D], S the number of real tokens. A window is exact there, because a token sees no other
row. The whole past is looked at in rectangles of rows of similar length.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fullrank.nn.windowed_attention import LANE, banded_attention


def length_buckets(lengths: Tensor, *, ratio: float = 1.25, lane: int = LANE) -> list[Tensor]:
    """Sorts rows into buckets of similar length.

    Args:
        lengths: [B] int64, at least 1.
        ratio: a bucket's longest row is less than this times its shortest, once both are rounded.
        lane: lengths are rounded up to a multiple of it, and so should rectangles be.

    Returns:
        Row numbers, one tensor per bucket; the longest rows first.
    """
    rounded = (lengths + lane - 1) // lane * lane
    ordered, rows = rounded.sort(descending=True, stable=True)
    steps = ((ordered[0] / ordered).log() / math.log(ratio) + 1e-6).floor()
    sizes: list[int] = torch.unique_consecutive(steps, return_counts=True)[1].tolist()
    return list(torch.split(rows, sizes))


class Packing:
    """The way from a rectangle of tokens to its real tokens and back.

    An exported program cannot follow S, a size that depends on data: keep the rectangle there.

    Args:
        valid: [B, N] bool, True where a token is real, at least one per row.

    Attributes:
        row: [S] int64, the row of each real token.

    Example:
        >>> packing = Packing(torch.tensor([[True, False, True], [True, True, True]]))
        >>> x = packing.pack(torch.randn(2, 3, 8))
        >>> x.shape, packing.unpack(x).shape
        (torch.Size([1, 5, 8]), torch.Size([2, 3, 8]))
    """

    def __init__(self, valid: Tensor) -> None:
        self.shape = valid.shape
        self.place = valid.flatten().nonzero().squeeze(1)  # [S]
        self.row = self.place // valid.shape[1]
        self.lengths = valid.sum(1)  # [B]
        self._rectangles: tuple[list[tuple[Tensor, int]], Tensor] | None = None

    def pack(self, x: Tensor) -> Tensor:
        """Returns the real tokens [1, S, ...] of [B, N, ...], in order."""
        return x.flatten(0, 1).index_select(0, self.place).unsqueeze(0)

    def unpack(self, x: Tensor) -> Tensor:
        """Returns [B, N, D] with zeros at padding for [1, S, D]."""
        out = x.new_zeros(self.shape[0] * self.shape[1], x.shape[2])
        return out.index_copy(0, self.place, x[0]).view(*self.shape, -1)

    def full(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends to the whole past of a row.

        Args:
            q: [1, H, S, d] queries.
            k: [1, H, S, d] keys.
            v: [1, H, S, d] values.

        Returns:
            [1, H, S, d].
        """
        if self._rectangles is None:  # layers share them
            self._rectangles = self._rows_of_similar_length()
        rectangles, back = self._rectangles
        _, H, S, d = q.shape
        flat = [x[0].transpose(0, 1).reshape(S, H * d) for x in (q, k, v)]
        outs = []
        for places, width in rectangles:
            q, k, v = (
                x.index_select(0, places).view(-1, width, H, d).transpose(1, 2) for x in flat
            )
            # Padding lies behind the real tokens here, so that causal attention never sees it.
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            outs.append(out.transpose(1, 2).reshape(-1, H * d))
        return torch.cat(outs).index_select(0, back).view(1, S, H, d).transpose(1, 2)

    def sliding(self, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        """Attends to a token and the `window` - 1 real tokens before it in its row.

        Args:
            q: [1, H, S, d] queries.
            k: [1, H, S, d] keys.
            v: [1, H, S, d] values.
            window: w, at least 1.

        Returns:
            [1, H, S, d].
        """
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # [S, H, d]
        window = min(window, int(self.lengths.max()))
        return banded_attention(q, k, v, self.row, window).transpose(0, 1).unsqueeze(0)

    def _rows_of_similar_length(self) -> tuple[list[tuple[Tensor, int]], Tensor]:
        """Returns (places in the stream, width) of each rectangle, and the way back [S]."""
        begin = self.lengths.cumsum(0) - self.lengths  # [B]
        rectangles, real = [], []
        for rows in length_buckets(self.lengths):
            longest = int(self.lengths[rows].max())
            width = -(-longest // LANE) * LANE
            step = torch.arange(width, device=rows.device)
            inside = step < self.lengths[rows, None]  # [rows, width]
            places = torch.where(inside, begin[rows, None] + step, 0)
            rectangles.append((places.flatten(), width))
            real.append(inside.flatten())
        kept = torch.cat(real).nonzero().squeeze(1)  # [S]
        source = torch.cat([places for places, _ in rectangles])[kept]
        return rectangles, torch.empty_like(kept).scatter_(0, source, kept)
