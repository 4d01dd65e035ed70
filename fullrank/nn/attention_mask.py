"""Which token may look at which: full attention below, shrinking windows above.

TokenFormer, arXiv:2604.13737 (BFTS). The stream is M field tokens, a separator, the behaviours, a
separator and the targets. With i the place of the query and j that of the key, both from 0:

    full     j <= i
    sliding  j <= i  and  i - j < w  and not (i >= M and j < M)

Padding is no matter of these rules: see `fullrank.nn.windowed_attention`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fullrank.config import require


@dataclass(frozen=True, kw_only=True)
class Visibility:
    """What one layer lets its tokens see.

    Args:
        num_static: M, the field tokens that lead the stream.
        window: w, a token and its w - 1 predecessors; None is the whole past.
        discard_static: whether tokens behind the field tokens are blind to them.
        discard_separator: whether they are blind to the token that follows the field tokens, too.
        static_bidirectional: whether field tokens also see the field tokens after them.

    Raises:
        ConfigError: M is negative, the window is empty, or the separator goes where the field
            tokens stay.
    """

    num_static: int
    window: int | None = None
    discard_static: bool = False
    discard_separator: bool = False
    static_bidirectional: bool = False

    def __post_init__(self) -> None:
        require(
            self.num_static >= 0,
            where="Visibility.num_static",
            found=self.num_static,
            expected="0 or more field tokens",
            fix="use 0",
        )
        require(
            self.window is None or self.window >= 1,
            where="Visibility.window",
            found=self.window,
            expected="at least 1, because a token sees itself",
            fix="use 1, or None for the whole past",
        )
        require(
            self.discard_static or not self.discard_separator,
            where="Visibility.discard_separator",
            found="discard_separator without discard_static",
            expected="the separator to go only together with the field tokens",
            fix="set discard_static, or leave discard_separator out",
        )

    @property
    def discarded(self) -> int:
        """M', how many leading tokens the tokens behind them do not see."""
        return self.num_static + int(self.discard_separator) if self.discard_static else 0

    def matrix(self, length: int, device: torch.device | None = None) -> Tensor:
        """Returns [N, N] bool, True where the query of a row sees the key of a column.

        Args:
            length: N, tokens in the stream.
            device: where the matrix will be.
        """
        place = torch.arange(length, device=device)
        i, j = place[:, None], place[None, :]
        seen = j <= i
        if self.static_bidirectional:
            seen = seen | (torch.maximum(i, j) < self.num_static)
        if self.window is not None:
            seen = seen & ((i - j).abs() < self.window)
        return seen & ~((i >= self.discarded) & (j < self.discarded))


def visible_pairs(length: int, window: int | None = None) -> int:
    """Counts the (query, key) pairs of one causal layer.

    Args:
        length: N, tokens in the stream.
        window: w, or None for the whole past.
    """
    w = length if window is None else min(window, length)
    return w * (w + 1) // 2 + (length - w) * w


def attention_flops(length: int, window: int | None, dim: int) -> int:
    """Counts what the scores of one layer cost, for one row and the forward pass.

    Only what a mask lets through is counted, a multiplication and an addition as two: the scores
    q . k and the weighted sum of the values cost 2 D per pair each.

    Args:
        length: N, tokens in the stream.
        window: w, or None for the whole past.
        dim: D, all heads together.
    """
    return 4 * dim * visible_pairs(length, window)
