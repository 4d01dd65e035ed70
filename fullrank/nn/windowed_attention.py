"""Causal attention over the whole past, and over a window at a cost linear in the length.

Places that are not `valid` are padding, wherever they lie: no query sees them, and their own rows
of the answer are zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fullrank.nn.attention_mask import Visibility


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor, *, visible: Tensor | None = None
) -> Tensor:
    """Attends to the whole past, or to what a matrix lets through.

    Args:
        q: [B, H, N, d] queries.
        k: [B, H, N, d] keys.
        v: [B, H, N, d] values.
        valid: [B, N] bool, True where a token is real.
        visible: [N, N] bool, True where the query of a row sees the key of a column, and True on
            the diagonal; None is causal.

    Returns:
        [B, H, N, d], zeros where a query is not valid.
    """
    if visible is None:
        visible = Visibility(num_static=0).matrix(q.shape[2], q.device)
    return _masked(q, k, v, valid, visible)


def sliding_attention(q: Tensor, k: Tensor, v: Tensor, valid: Tensor, window: int) -> Tensor:
    """Attends to a token and the `window` - 1 places before it.

    Args:
        q: [B, H, N, d] queries.
        k: [B, H, N, d] keys.
        v: [B, H, N, d] values.
        valid: [B, N] bool, True where a token is real. Padding takes up places in a window.
        window: w, at least 1.

    Returns:
        [B, H, N, d], zeros where a query is not valid.
    """
    visible = Visibility(num_static=0, window=window).matrix(q.shape[2], q.device)
    return _masked(q, k, v, valid, visible)


def _masked(q: Tensor, k: Tensor, v: Tensor, valid: Tensor, visible: Tensor) -> Tensor:
    # A token sees itself even as padding: a softmax over nothing is not a number.
    itself = torch.eye(q.shape[2], dtype=torch.bool, device=q.device)
    mask = visible & (valid[:, None, None, :] | itself)  # [B, 1, N, N]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.masked_fill(~valid[:, None, :, None], 0.0)
