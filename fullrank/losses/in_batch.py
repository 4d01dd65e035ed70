"""In-batch softmax: the items of a batch stand in for the whole catalogue."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def in_batch_softmax(logits: Tensor, own: Tensor, weight: Tensor, log_share: Tensor) -> Tensor:
    """Returns the weighted mean cross-entropy of picking a row's own item among those of a batch.

    Yi et al., RecSys 2019, eqs. 3 to 5. An item is in a batch as often as it is in the log, so a
    plain softmax would hold its popularity against it. Without the logarithm of its share the sum
    over the batch stands for the sum over the catalogue; an item that occurs twice is no mistake.

    Args:
        logits: [P, B] of P rows that liked their item, against the items of all B rows.
        own: [P] int64, which of the B items is the row's own.
        weight: [P].
        log_share: [B] natural logarithm of each item's share of rows, up to a constant; zeros for
            the plain softmax.

    Returns:
        A scalar, natural logarithm; zero without any row.
    """
    each = F.cross_entropy(logits - log_share, own, reduction="none")  # [P]
    return (weight * each).sum() / weight.sum().clamp(min=1e-12)
