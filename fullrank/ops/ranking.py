"""The area under the ROC curve of scores in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def area_under_curve(score: Tensor, positive: Tensor, negative: Tensor) -> float:
    """Returns the weighted share of (positive, negative) pairs in order, ties counting half.

    Args:
        score: [n], finite, higher for more likely.
        positive: [n] float64, weight of the row as a positive, 0 where its label is 0.
        negative: [n] the same as a negative.

    Returns:
        A share; NaN where there is no pair.
    """
    score, order = torch.sort(score)
    _, run = torch.unique_consecutive(score, return_inverse=True)  # [n] numbers runs of ties
    bins = torch.zeros(2, int(run.max()) + 1 if len(run) else 0, dtype=torch.float64)
    bins.index_add_(1, run, torch.stack([positive, negative])[:, order])
    return area_of_bins(bins[0], bins[1])


def area_of_bins(positive: Tensor, negative: Tensor) -> float:
    """Returns the same of bins in rising order of score; a bin is a tie."""
    below = negative.cumsum(0) - negative
    pairs = positive.sum() * negative.sum()
    return float((positive * (below + 0.5 * negative)).sum() / pairs)
