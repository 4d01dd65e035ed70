"""Target attention, against its definition on every row of its own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.nn.target_attention import (
    ActivationUnit,
    MultiHeadTargetAttention,
    row_softmax,
    row_sum,
)


def flat(lengths: list[int], dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    row = torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)], dtype=torch.int64)
    return torch.randn(len(row), dim, dtype=torch.float64), row


@settings(deadline=None, max_examples=12)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    told=st.integers(0, 2),
    training=st.booleans(),
    seed=st.integers(0, 9),
)
def test_the_split_product_equals_the_joined_vector(lengths, told, training, seed) -> None:
    torch.manual_seed(seed)
    unit = ActivationUnit(3, (5, 4), feedback_dim=told).double().train(training)
    for parameter in unit.parameters():
        torch.nn.init.normal_(parameter)
    h, row = flat(lengths, 3)
    e = torch.randn(len(row), told, dtype=torch.float64)
    t = torch.randn(len(lengths), 3, dtype=torch.float64)
    joined = [torch.cat([t[r], h[j], t[r] - h[j], t[r] * h[j], e[j]]) for j, r in enumerate(row)]
    z = torch.stack(joined) if joined else torch.zeros(0, 12 + told, dtype=torch.float64)
    expected = unit.rest(unit.first(z)).squeeze(1)
    torch.testing.assert_close(unit(t, h, e, row), expected)


@settings(deadline=None, max_examples=12)
@given(lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_sums_and_softmax_of_rows_equal_loops(lengths, seed) -> None:
    torch.manual_seed(seed)
    x, row = flat(lengths, 2)
    logit = torch.randn(len(row), dtype=torch.float64) * 400  # exponentials of these overflow
    within = torch.rand(len(row)) < 0.7
    weight = row_softmax(logit, row, within, len(lengths))
    total = row_sum(weight, x, row, len(lengths))
    for r in range(len(lengths)):
        events = [j for j in range(len(row)) if row[j] == r and within[j]]
        top = max((float(logit[j]) for j in events), default=0.0)
        parts = {j: math.exp(float(logit[j]) - top) for j in events}
        for j in range(len(row)):
            if row[j] == r:
                share = parts.get(j, 0.0) / sum(parts.values()) if parts else 0.0
                assert weight[j].item() == pytest.approx(share)
        expected = sum((weight[j] * x[j] for j in events), torch.zeros(2, dtype=torch.float64))
        torch.testing.assert_close(total[r], expected)


def test_the_softmax_has_the_gradient_of_torchs_own() -> None:
    torch.manual_seed(0)
    logit, pull = torch.randn(2, 5, dtype=torch.float64)
    grads = []
    for mine in (True, False):
        at = logit.clone().requires_grad_()
        every, row = torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.int64)
        weight = row_softmax(at, row, every, 1) if mine else at.softmax(0)
        (weight * pull).sum().backward()
        grads.append(at.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("heads", [1, 2])
def test_folded_keys_and_values_equal_attention_that_projects_every_event(heads) -> None:
    torch.manual_seed(0)
    layer = MultiHeadTargetAttention(3, 5, 4, heads).double()
    t, x = torch.randn(6, 3).double(), torch.randn(6, 7, 5).double()
    valid = torch.rand(6, 7) < 0.5
    valid[0], valid[1] = False, True
    out, width = layer(t, x, valid), 4 // heads
    q, k, v = layer.query(t), layer.key(x), layer.value(x)
    assert not out[0].any()
    for b in range(1, 6):
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            logits = (k[b, valid[b], part] @ q[b, part]) / width**0.5
            expected = logits.softmax(0) @ v[b, valid[b], part]
            torch.testing.assert_close(out[b, part], expected)


def test_a_row_of_padding_has_no_gradient_that_is_not_a_number() -> None:
    layer, x = MultiHeadTargetAttention(3, 5, 4, 2), torch.randn(2, 7, 5, requires_grad=True)
    layer(torch.randn(2, 3), x, torch.zeros(2, 7, dtype=torch.bool)).sum().backward()
    assert x.grad is not None
    assert not x.grad.any()
