"""The best possible scores on rows whose true probabilities are known.

No model can be expected to have a lower log-loss or a higher AUC than the truth. On finitely many
labels the truth itself scores by luck a little more or less: "realised" is what these labels
give, "expected" what labels drawn again for these rows give on average (for weighted means and
AUC the ratio of the two expected sums, which differs from the mean by the order of 1 / rows).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def best_scores(
    probability: NDArray[np.floating],
    label: NDArray[np.generic],
    *,
    negatives_dropped: float = 0.0,
) -> dict[str, float | None]:
    """Scores the true probabilities.

    Negatives that were dropped are made up for by weight 1 / (1 - share) on those that were kept,
    so the scores are those of the whole traffic.

    Args:
        probability: [n] true probability of label 1, before negatives were dropped.
        label: [n] in {0, 1}.
        negatives_dropped: share of the rows with label 0 that were left out before.

    Returns:
        Rows, the rate, then AUC and log-loss (natural logarithm): realised, expected, and the
        difference realised - expected. None where a score has no value, such as the AUC of equal
        labels.
    """
    p = np.asarray(probability, dtype=np.float64)
    y = np.asarray(label, dtype=np.float64)
    weight = 1.0 / (1.0 - negatives_dropped)
    # Given that a row was kept, it is a click with probability p / (p + (1 - p) / weight).
    kept = p / np.maximum(p + (1.0 - p) / weight, 1e-300)
    realised, expected = (y, (1.0 - y) * weight), (kept, (1.0 - kept) * weight)
    scores: dict[str, float | None] = {"rows": len(p)}
    scores["rate"] = _ratio(y.sum(), (realised[0] + realised[1]).sum())
    for name, score in (("auc", weighted_auc), ("log_loss", weighted_log_loss)):
        values = score(p, *realised), score(p, *expected)
        scores[f"{name}_realised"], scores[f"{name}_expected"] = values
        known = values[0] is not None and values[1] is not None
        scores[f"{name}_difference"] = values[0] - values[1] if known else None  # type: ignore[operator]
    return scores


def weighted_auc(score: Floats, positive: Floats, negative: Floats) -> float | None:
    """Returns the share of pairs (positive, negative) in order, ties counting half.

    Args:
        score: [n].
        positive: [n] weight, or expected weight, of the row as a positive.
        negative: [n] the same as a negative.

    Returns:
        A share, or None where there is no pair of two different rows.
    """
    if len(score) == 0:
        return None
    order = np.argsort(score, kind="stable")
    first = np.flatnonzero(np.diff(score[order], prepend=-np.inf))  # where a tie begins
    above = np.add.reduceat(positive[order], first)
    below = np.add.reduceat(negative[order], first)
    in_order = (above * (np.cumsum(below) - 0.5 * below)).sum()
    with_itself = (positive * negative).sum()  # one row is never both
    pairs = positive.sum() * negative.sum() - with_itself
    return _ratio(in_order - 0.5 * with_itself, pairs)


def weighted_log_loss(probability: Floats, positive: Floats, negative: Floats) -> float | None:
    """Returns the mean of -log of the probability that the truth gave to what happened."""
    loss = _times_log(positive, probability) + _times_log(negative, 1.0 - probability)
    return _ratio(-loss.sum(), (positive + negative).sum())


def _times_log(weight: Floats, p: Floats) -> Floats:
    """Returns weight * log(p), 0 where the weight is 0 whatever p is."""
    return np.asarray(weight * np.log(np.where(weight > 0, p, 1.0)))


def _ratio(above: float, below: float) -> float | None:
    return float(above / below) if below > 0 else None
