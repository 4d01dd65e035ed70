"""What popularity alone reaches on prepared data, told beside what a model reaches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fullrank.data.prepare import Prepared, Split
from fullrank.evaluate.metric import Rows
from fullrank.evaluate.popularity import popularity_metrics, popularity_scores, positive_counts
from fullrank.schema import Categorical

_MEASURED = ("valid", "test")


def popularity_alone(data: Prepared) -> dict[str, dict[str, float]]:
    """Scores every held-out row by how often training saw its item as a positive of the main label.

    Reads single columns: on a million rows this is a matter of a second.

    Args:
        data: with an item that is a categorical field; without one there is nothing to count.

    Returns:
        "valid" and "test" -> `auc`, and `gauc` where rows have groups; empty without an item.
    """
    schema = data.schema
    if schema.item is None or not isinstance(schema.field(schema.item), Categorical):
        return {}
    item, label, _ = _known(data.splits["train"])
    counts = positive_counts(item, label)
    found = {}
    for name in _MEASURED:
        split = data.splits[name]
        item, label, known = _known(split)
        group = _block(split, "group", known) if schema.group is not None else None
        rows = Rows.of(
            popularity_scores(item, counts), label, _block(split, "weight", known), group,
            where=f"popularity of '{name}'",
        )  # fmt: skip
        found[name] = popularity_metrics(rows)
    return found


def _known(split: Split) -> tuple[Tensor, Tensor, np.ndarray]:
    """Returns items and main labels of the rows whose label is known, and which rows these are."""
    schema = split.schema
    place = [field.name for field in schema.categorical()].index(str(schema.item))
    known = np.ones(split.rows, dtype=np.bool_)
    if "observed" in split.blocks:
        known = np.asarray(split.blocks["observed"][:, 0])
    item = np.asarray(split.columns["categorical"][place]).astype(np.int64)
    label = np.asarray(split.blocks["labels"][:, 0])
    return torch.from_numpy(item[known]), torch.from_numpy(label[known]), known


def _block(split: Split, name: str, known: np.ndarray) -> Tensor | None:
    if name not in split.blocks:
        return None
    return torch.from_numpy(np.asarray(split.blocks[name])[known])
