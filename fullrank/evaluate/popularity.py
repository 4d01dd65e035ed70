"""What popularity alone reaches: the floor under every model that judges items."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fullrank.errors import BatchError, MetricUndefinedError
from fullrank.evaluate.grouped import group_aucs, refuse_undefined_groups
from fullrank.evaluate.metric import Rows
from fullrank.evaluate.ranking import rows_auc

_WHERE = "popularity alone"


def positive_counts(item: Tensor, label: Tensor) -> Tensor:
    """Counts how often each item was a positive in training.

    Args:
        item: [n] rows of the item table, of training rows whose label is known.
        label: [n] in {0, 1}.

    Returns:
        [V'] float64, V' being one more than the highest row that occurs.

    Raises:
        BatchError: items and labels differ in number.
    """
    if item.shape != label.shape:
        raise BatchError(
            "items and labels differ in number",
            where=_WHERE,
            found=f"{item.numel():,} items and {label.numel():,} labels",
            expected="one of each for every training row",
            fix="pass both of the same rows",
        )
    return torch.bincount(item.long(), weights=label.double())


def popularity_scores(item: Tensor, counts: Tensor) -> Tensor:
    """Returns [n] float64: the logarithm of 1 + the positives of the item in training.

    Args:
        item: [n] rows of the item table; those that training never saw count zero.
        counts: what `positive_counts` returns.
    """
    item = item.long()
    known = counts[item.clamp(max=len(counts) - 1)] if len(counts) else counts.new_zeros(len(item))
    return torch.where(item < len(counts), known, 0.0).log1p()


def popularity_line(found: Mapping[str, float]) -> str:
    """Returns what `popularity_metrics` returns as a phrase; "" for nothing.

    Example:
        >>> popularity_line({"auc": 0.5, "gauc": 0.4875})
        'popularity alone: AUC 0.5000, GAUC 0.4875'
    """
    said = ", ".join(f"{name.upper()} {value:.4f}" for name, value in found.items())
    return f"popularity alone: {said}" if said else ""


def popularity_metrics(rows: Rows) -> dict[str, float]:
    """Measures scores of popularity as those of a model are measured.

    Args:
        rows: scored by `popularity_scores`.

    Returns:
        `auc`, and `gauc` where rows have groups; what is undefined on these rows is left out.

    Raises:
        EmptyInputError: there are no rows.
    """
    found: dict[str, float] = {}
    try:
        found["auc"] = rows_auc(rows, _WHERE)
        if rows.group is not None:
            groups = group_aucs(rows)
            refuse_undefined_groups(groups, _WHERE)
            found["gauc"] = groups.means()[0]
    except MetricUndefinedError:
        pass
    return found
