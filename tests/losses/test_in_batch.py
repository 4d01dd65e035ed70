"""In-batch softmax against loops, and against the softmax over the whole catalogue."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fullrank.losses.in_batch import in_batch_softmax


def twin(logits: Tensor, own: Tensor, weight: Tensor, log_share: Tensor) -> float:
    total = norm = 0.0
    for row, mine, w in zip(logits.tolist(), own.tolist(), weight.tolist(), strict=True):
        shifted = [x - s for x, s in zip(row, log_share.tolist(), strict=True)]
        total += w * (math.log(math.fsum(math.exp(x) for x in shifted)) - shifted[mine])
        norm += w
    return total / norm if norm else 0.0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 5), st.integers(1, 7), st.integers(0, 2**31))
def test_loss_is_that_of_the_loops(rows: int, items: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, items, generator=g, dtype=torch.float64) * 3
    own = torch.randint(0, items, (rows,), generator=g)
    weight = torch.rand(rows, generator=g, dtype=torch.float64) + 0.1
    share = torch.randn(items, generator=g, dtype=torch.float64)
    found = float(in_batch_softmax(logits, own, weight, share))
    assert found == pytest.approx(twin(logits, own, weight, share), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("corrected", [True, False])
def test_corrected_it_stands_for_the_whole_catalogue(corrected: bool) -> None:
    """Differences of the loss between two sets of logits, in a large batch of a skewed log."""
    g = torch.Generator().manual_seed(0)
    share = torch.tensor([0.6, 0.3, 0.08, 0.02], dtype=torch.float64)
    batch = torch.multinomial(share, 50_000, replacement=True, generator=g)
    own = torch.tensor([(batch == i).nonzero()[0, 0] for i in range(4)])
    one = torch.ones(4, dtype=torch.float64)
    told = share.log()[batch] if corrected else torch.zeros(len(batch), dtype=torch.float64)

    def both(scores: Tensor) -> tuple[float, float]:
        whole = torch.nn.functional.cross_entropy(scores, torch.arange(4))
        return float(in_batch_softmax(scores[:, batch], own, one, told)), float(whole)

    a = both(torch.randn(4, 4, generator=g, dtype=torch.float64))
    b = both(torch.randn(4, 4, generator=g, dtype=torch.float64))
    gap = abs((a[0] - b[0]) - (a[1] - b[1]))
    assert (gap < 0.02) == corrected, gap
