from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fullrank.nn.dropout import Dropout, kept


def test_it_is_the_identity_in_evaluation_and_at_zero():
    x = torch.randn(3, 5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x


@pytest.mark.parametrize("p", [0.05, 0.4, 0.5, 0.95])
def test_the_share_of_zeros_is_that_of_a_fair_draw(p):
    torch.manual_seed(0)
    mask = kept(torch.empty(1000, 1000), p)
    zeros = float((mask == 0).double().mean())
    assert abs(zeros - p) < 2**-16 + 5 * math.sqrt(p * (1 - p) / mask.numel())
    (scale,) = mask[mask > 0].unique().tolist()
    assert scale == pytest.approx(1 / (1 - p), rel=2**-15 / (1 - p))


@pytest.mark.parametrize("apart", [1, 2, 3, 4, 5])
def test_neighbours_are_independent_also_within_one_random_word(apart):
    torch.manual_seed(0)
    drawn = (kept(torch.empty(1_000_000), 0.3) > 0).double()
    a, b = drawn[:-apart] - drawn.mean(), drawn[apart:] - drawn.mean()
    correlation = float((a * b).mean() / drawn.var())
    assert abs(correlation) < 5 / math.sqrt(len(a))


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3, 5), (0, 4), (7, 1)])
def test_every_shape_is_drawn_whole(shape):
    torch.manual_seed(0)
    out = Dropout(0.5)(torch.ones(shape, dtype=torch.float64))
    assert out.shape == shape
    assert out.dtype == torch.float64
    assert set(out.unique().tolist()) <= {0.0, 2.0}


def test_the_gradient_passes_where_the_value_did_with_the_same_scale():
    torch.manual_seed(0)
    x = torch.randn(50, 40, requires_grad=True)
    out = Dropout(0.25)(x)
    out.sum().backward()
    torch.testing.assert_close(out.detach(), x.detach() * x.grad)


def test_the_generator_decides_and_moves_on():
    torch.manual_seed(7)
    first, second = kept(torch.empty(100), 0.5), kept(torch.empty(100), 0.5)
    torch.manual_seed(7)
    assert torch.equal(first, kept(torch.empty(100), 0.5))
    assert not torch.equal(first, second)


def test_a_network_learns_with_it_as_with_pytorchs():
    """The same regression through either layer ends at the same loss, up to the draw."""
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(2000, 8, generator=g), torch.randn(8, 1, generator=g)
    ends = []
    for layer in (nn.Dropout(0.3), Dropout(0.3)):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), layer, nn.Linear(32, 1))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(150):
            optimizer.zero_grad()
            (net(x) - x @ w).square().mean().backward()
            optimizer.step()
        ends.append(float((net.eval()(x) - x @ w).detach().square().mean()))
    assert ends[1] < 0.2 * float((x @ w).var())
    assert 0.5 < ends[1] / ends[0] < 2.0
