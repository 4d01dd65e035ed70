"""Attention of one query to the k keys that match it best."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fullrank.nn.dropout import Dropout


class TopKAttention(nn.Module):
    """Softmax over the k largest scaled products; one head, no projections.

    FEDIN, arXiv:2605.01726, its aggregator.

    Args:
        k: keys that take part; None for all.
        dropout: on the weights.
    """

    def __init__(self, k: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.k, self.dropout = k, Dropout(dropout)

    def weights(self, query: Tensor, keys: Tensor) -> Tensor:
        """Returns [B, S], each row with sum 1 and k entries above zero."""
        scores = torch.einsum("bd,bsd->bs", query, keys) * query.shape[1] ** -0.5
        if self.k is not None and self.k < keys.shape[1]:
            best = scores.topk(self.k, dim=1)
            scores = torch.full_like(scores, -torch.inf).scatter(1, best.indices, best.values)
        return torch.softmax(scores, dim=1)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Returns [B, D].

        Args:
            query: [B, D].
            keys: [B, S, D], what is averaged too.
        """
        weights = self.dropout(self.weights(query, keys))
        return torch.einsum("bs,bsd->bd", weights, keys)
