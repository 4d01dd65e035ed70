"""Log-loss over the known values of a table, for columns that are predicted."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def known_value_loss(logits: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """Returns the weighted mean of the softmax cross-entropy over known values.

    Row 0, unknown, is no value to predict and carries no loss, as little as rows past the trained
    size of a table that grew. Without any known value the loss is zero.

    Args:
        logits: [S, V - 1] of rows 1 to V - 1.
        rows: [S] row numbers.
        weight: [S].

    Returns:
        A scalar, natural logarithm.
    """
    value = rows.long() - 1
    weight = weight * ((value >= 0) & (value < logits.shape[1]))
    each = F.cross_entropy(logits, value.clamp(0, logits.shape[1] - 1), reduction="none")  # [S]
    return (weight * each).sum() / weight.sum().clamp(min=1e-12)
