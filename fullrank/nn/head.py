"""Heads: from the last representation to one logit per label."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from fullrank.errors import SchemaError
from fullrank.schema import Schema

M = TypeVar("M", bound=nn.Module)


def num_labels(schema: Schema) -> int:
    """Returns Y, the number of labels of a schema.

    Raises:
        SchemaError: there is no label; a ranker has nothing to learn.
    """
    if not schema.labels:
        raise SchemaError(
            "there is no label to predict",
            where="Schema.labels",
            found="none",
            expected="at least one",
            fix="name the target column as a label of the spec",
        )
    return len(schema.labels)


def split_labels(logits: Tensor, schema: Schema) -> dict[str, Tensor]:
    """Returns label -> logits [B] for logits [B, Y], columns in the schema's order of labels."""
    return {label.name: logits[:, i] for i, label in enumerate(schema.labels)}


def zeroed(module: M) -> M:
    """Returns the module with every parameter at zero, for first-order terms.

    They are a convex problem on their own, and random ones would only add noise to the first
    scores.
    """
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class LabelSum(nn.Module):
    """Sums D products into one logit per label.

    One label: the plain sum of the papers. Several labels share the products, and each weighs
    them with D weights of its own that start at one.

    Args:
        dim: D.
        labels: Y.
    """

    def __init__(self, dim: int, labels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(labels, dim)) if labels > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, Y] for [B, D]."""
        if self.weight is None:
            return x.sum(dim=1, keepdim=True)  # [B, 1]
        return x @ self.weight.T  # [B, Y]
