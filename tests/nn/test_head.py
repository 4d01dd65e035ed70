from __future__ import annotations

import pytest
import torch
from torch import nn

from fullrank.errors import SchemaError
from fullrank.nn.head import LabelSum, num_labels, split_labels, zeroed
from fullrank.schema import Label, Schema

TWO = Schema(labels=(Label("click"), Label("buy", "click")))


def test_logits_go_to_labels_in_schema_order() -> None:
    scores = split_labels(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), TWO)
    assert {k: v.tolist() for k, v in scores.items()} == {"click": [1.0, 3.0], "buy": [2.0, 4.0]}
    assert num_labels(TWO) == 2


def test_a_schema_without_labels_is_refused() -> None:
    with pytest.raises(SchemaError, match="no label"):
        num_labels(Schema())


def test_one_label_takes_the_plain_sum_and_has_no_weight() -> None:
    head, x = LabelSum(3, 1), torch.tensor([[1.0, 2.0, 4.0]])
    assert head(x).tolist() == [[7.0]]
    assert not list(head.parameters())


def test_several_labels_start_at_the_sum_and_weigh_apart() -> None:
    head, x = LabelSum(3, 2), torch.tensor([[1.0, 2.0, 4.0]])
    assert head(x).tolist() == [[7.0, 7.0]]
    with torch.no_grad():
        head.weight[1] = torch.tensor([1.0, 0.0, -1.0])
    assert head(x).tolist() == [[7.0, -3.0]]


def test_zeroed_clears_every_parameter() -> None:
    assert not any(p.any() for p in zeroed(nn.Linear(3, 2)).parameters())
