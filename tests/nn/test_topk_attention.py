"""Attention to the best k keys."""

from __future__ import annotations

import math

import pytest
import torch

from fullrank.nn.topk_attention import TopKAttention

B, S, D = 4, 6, 3


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(B, D, generator=g), torch.randn(B, S, D, generator=g)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6, None])
def test_k_weights_are_above_zero_and_sum_to_one(k: int | None) -> None:
    query, keys = drawn()
    weights = TopKAttention(k).weights(query, keys)
    torch.testing.assert_close(weights.sum(1), torch.ones(B))
    assert (weights > 0).sum(1).tolist() == [k or S] * B
    for b in range(B):
        products = sorted(((query[b] @ keys[b, s]).item() / math.sqrt(D), s) for s in range(S))
        best = products[-(k or S) :]
        total = sum(math.exp(p) for p, _ in best)
        for p, s in best:
            assert float(weights[b, s]) == pytest.approx(math.exp(p) / total, rel=1e-5)


def test_as_many_as_there_are_keys_is_plain_attention() -> None:
    query, keys = drawn()
    plain = torch.softmax((keys @ query[:, :, None]).squeeze(2) / math.sqrt(D), 1)
    expected = (plain[:, :, None] * keys).sum(1)
    for k in (S, S + 1, None):
        torch.testing.assert_close(TopKAttention(k)(query, keys), expected)


def test_exactly_k_of_equal_keys_take_part() -> None:
    weights = TopKAttention(2).weights(torch.ones(1, D), torch.ones(1, S, D))
    assert sorted(weights[0].tolist()) == [0.0] * (S - 2) + [0.5, 0.5]
