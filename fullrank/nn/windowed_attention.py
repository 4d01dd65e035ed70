"""Causal attention over the whole past, and over a window at a cost linear in the length.

Places that are not `valid` are padding, wherever they lie: no query sees them, and their own rows
of the answer are zero. What padding holds must be finite.

Which way each function goes was measured on one CPU thread, forward and backward, 4 heads of width
16: bench/attention.py repeats it. `fullrank.nn.packed_attention` has the same two without padding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fullrank.nn.attention_mask import Visibility

# The library's kernel takes twice as long for a number of keys that is no multiple of a vector.
LANE = 16
_CHUNK = 32  # queries that share a block of keys; of 16 to 128 the fastest for all windows to 64
_COMPACT_FROM = 256  # tokens; see full_attention


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor, *, visible: Tensor | None = None
) -> Tensor:
    """Attends to the whole past, or to what a matrix lets through.

    Without a matrix, padding behind everything real costs nothing, because nobody looks ahead.
    Other padding is masked in short streams and moved behind everything real in long ones: for as
    many tokens the mask takes 0.9 times as long as the move at N = 200, 1.2 times at 512 and twice
    at 1,024, and memory that grows with N^2.

    Args:
        q: [B, H, N, d] queries.
        k: [B, H, N, d] keys.
        v: [B, H, N, d] values.
        valid: [B, N] bool, True where a token is real.
        visible: [N, N] bool, or one per row [B, 1, N, N], True where the query of a row sees the
            key of a column; padding need not be considered. None is causal.

    Returns:
        [B, H, N, d], zeros where a query is not valid.
    """
    if visible is not None:
        return _masked(q, k, v, valid, visible)
    if _only_behind(valid):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.masked_fill(~valid[:, None, :, None], 0.0)
    if q.shape[2] < _COMPACT_FROM:
        return _masked(q, k, v, valid, Visibility(num_static=0).matrix(q.shape[2], q.device))
    return _compacted(q, k, v, valid)


def sliding_attention(q: Tensor, k: Tensor, v: Tensor, valid: Tensor, window: int) -> Tensor:
    """Attends to a token and the `window` - 1 places before it.

    Time and memory grow with N. Streams that a few windows fill are masked instead, which is faster
    there and not much slower at the border: the two cost the same near N = 2.5 w + 40.

    Args:
        q: [B, H, N, d] queries.
        k: [B, H, N, d] keys.
        v: [B, H, N, d] values.
        valid: [B, N] bool, True where a token is real. Padding takes up places in a window.
        window: w, at least 1.

    Returns:
        [B, H, N, d], zeros where a query is not valid.
    """
    B, H, N, d = q.shape
    if window > (N - 40) / 2.5:
        visible = Visibility(num_static=0, window=window).matrix(N, q.device)
        return _masked(q, k, v, valid, visible)
    row = torch.arange(B, device=q.device).unsqueeze(1)  # [B, 1]
    row = torch.where(valid, row, -1)  # [B, N]: padding sees padding alone
    # A program for any B wants chunks that end where the rows do.
    spare = -N % _sizes(window)[0] if torch.compiler.is_compiling() else 0

    def flat(x: Tensor) -> Tensor:  # a view, as a rule
        x = x.transpose(1, 2)  # [B, N, H, d]
        return (F.pad(x, (0, 0, 0, 0, 0, spare)) if spare else x).flatten(0, 1)

    row = F.pad(row, (0, spare), value=-1).flatten()
    out = banded_attention(flat(q), flat(k), flat(v), row, window)
    out = out.view(B, -1, H, d)[:, :N].transpose(1, 2)
    return out.masked_fill(~valid[:, None, :, None], 0.0)


def banded_attention(q: Tensor, k: Tensor, v: Tensor, row: Tensor, window: int) -> Tensor:
    """Attends to a token and the `window` - 1 before it, where these are of the same row.

    Chunks of c queries meet c + b keys: their own and the b >= w - 1 before them.

    Args:
        q: [S, H, d] queries, rows one after the other.
        k: [S, H, d] keys.
        v: [S, H, d] values.
        row: [S] int64, at least 0; -1 is padding, which sees nothing real and is not seen.
        window: w, at least 1.

    Returns:
        [S, H, d].
    """
    S, H, d = q.shape
    size, back = _sizes(window)
    spare = -S % size

    def fit(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, 0, spare)) if spare else x
        return x.reshape(-1, size, H, d)  # [chunks, c, H, d]

    def with_earlier(x: Tensor) -> Tensor:  # [chunks, c, ...] -> [chunks, b + c, ...]
        earlier = torch.cat([torch.zeros_like(x[:1]), x[:-1]])[:, size - back :]
        return torch.cat([earlier, x], dim=1)

    rows = F.pad(row + 1, (0, spare)).view(-1, size)  # [chunks, c]; 0 is nobody's
    i = torch.arange(back, back + size, device=q.device)[:, None]
    j = torch.arange(back + size, device=q.device)[None, :]
    near = (j <= i) & (i - j < window)  # [c, b + c]
    mask = near & (rows[:, :, None] == with_earlier(rows)[:, None, :])
    out = F.scaled_dot_product_attention(
        fit(q).transpose(1, 2),  # [chunks, H, c, d]
        with_earlier(fit(k)).transpose(1, 2),  # [chunks, H, b + c, d]
        with_earlier(fit(v)).transpose(1, 2),
        attn_mask=mask.unsqueeze(1),
    )
    return out.transpose(1, 2).reshape(-1, H, d)[:S]


def _sizes(window: int) -> tuple[int, int]:
    """Returns how many queries share their keys, and how many keys before their own."""
    back = -(-(window - 1) // LANE) * LANE
    return max(_CHUNK, back), back


def _masked(q: Tensor, k: Tensor, v: Tensor, valid: Tensor, visible: Tensor) -> Tensor:
    # A token sees itself even as padding: a softmax over nothing is not a number.
    itself = torch.eye(q.shape[2], dtype=torch.bool, device=q.device)
    if torch.compiler.is_compiling() or not bool(valid.all()):
        visible = visible & valid[:, None, None, :]  # [B, 1, N, N]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible | itself)
    return out.masked_fill(~valid[:, None, :, None], 0.0)


def _only_behind(valid: Tensor) -> bool:
    """Whether no padding comes before a real token; an exported program cannot ask."""
    if torch.compiler.is_compiling():
        return False
    return not bool((valid[:, 1:] & ~valid[:, :-1]).any())


def _compacted(q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
    """Moves padding behind everything real, attends, and moves it back."""
    B, H, N, d = q.shape
    order = torch.sort((~valid).byte(), dim=1, stable=True).indices  # [B, N]
    first = N * torch.arange(B, device=q.device).unsqueeze(1)
    place = (first + order).flatten()  # [B * N]
    back = (first + torch.argsort(order, dim=1)).flatten()

    def moved(x: Tensor) -> Tensor:
        flat = x.transpose(1, 2).reshape(B * N, H * d).index_select(0, place)
        return flat.view(B, N, H, d).transpose(1, 2)

    out = F.scaled_dot_product_attention(moved(q), moved(k), moved(v), is_causal=True)
    out = out.transpose(1, 2).reshape(B * N, H * d).index_select(0, back)
    return out.view(B, N, H, d).transpose(1, 2).masked_fill(~valid[:, None, :, None], 0.0)
