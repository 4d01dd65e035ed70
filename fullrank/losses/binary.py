"""Log-loss of binary labels, with row weights and labels that are not known yet."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fullrank.batch import Batch


def binary_losses(scores: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Returns the weighted mean log-loss per label.

    Rows whose label is not observed (a conversion still inside its waiting window, a label whose
    condition did not happen) carry no loss. With no observed row the loss is zero.

    Args:
        scores: label -> logits [B].
        batch: the rows that were scored.

    Returns:
        label -> scalar, natural logarithm.
    """
    losses = {}
    for label, logit in scores.items():
        weight = batch.weight * batch.observed[label]  # [B]
        loss = F.binary_cross_entropy_with_logits(
            logit, batch.labels[label], weight=weight, reduction="sum"
        )
        losses[label] = loss / weight.sum().clamp(min=1e-12)
    return losses
