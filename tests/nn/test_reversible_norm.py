"""Reversible normalisation against loops: what it measures, and that it comes back."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from fullrank.nn.reversible_norm import ReversibleNorm

B, T, D = 3, 5, 2


def world() -> tuple[ReversibleNorm, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    norm = ReversibleNorm(D).double()
    norm.weight.data = 1 + torch.rand(D, generator=g, dtype=torch.float64)
    norm.bias.data = torch.randn(D, generator=g, dtype=torch.float64)
    x = torch.randn(B, T, D, generator=g, dtype=torch.float64)
    t = 3 + torch.randn(B, D, generator=g, dtype=torch.float64)
    valid = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    return norm, x, t, valid


@pytest.mark.parametrize("with_target", [True, False])
@pytest.mark.parametrize("only_valid", [True, False])
def test_moments_are_those_of_each_row_and_channel(only_valid: bool, with_target: bool) -> None:
    norm, x, t, valid = world()
    target = t if with_target else None
    mean, deviation = norm.moments(x, valid if only_valid else None, target)
    for b, d in product(range(B), range(D)):
        steps = [float(x[b, j, d]) for j in range(T) if not only_valid or valid[b, j]]
        steps += [float(t[b, d])] if with_target else []
        expected = sum(steps) / len(steps) if steps else 0.0
        variance = sum((s - expected) ** 2 for s in steps) / len(steps) if steps else 0.0
        assert float(mean[b, 0, d]) == pytest.approx(expected, abs=1e-12)
        assert float(deviation[b, 0, d]) == pytest.approx(math.sqrt(variance + 1e-5))


def test_what_is_normalised_comes_back() -> None:
    norm, x, t, valid = world()
    for dtype, atol in ((torch.float64, 1e-8), (torch.float32, 1e-5)):
        module, steps = norm.to(dtype), x.to(dtype)
        moments = module.moments(steps, valid, t.to(dtype))
        z = module.normalise(steps, moments)
        torch.testing.assert_close(module.restore(z, moments), steps, rtol=0, atol=atol)


def test_normalised_steps_have_mean_bias_and_deviation_weight() -> None:
    norm, x, t, valid = world()
    z = norm.normalise(torch.cat([x, t[:, None]], 1), norm.moments(x, None, t))
    torch.testing.assert_close(z.mean(1), norm.bias.expand(B, D))
    spread = z.std(1, correction=0)  # a little less, because of what is added to the variance
    torch.testing.assert_close(spread, norm.weight.expand(B, D), rtol=1e-3, atol=0)
    assert bool((spread < norm.weight).all())
    assert valid.any()


def test_no_gradient_flows_into_the_statistics() -> None:
    norm, x, t, valid = world()
    x.requires_grad_()
    t.requires_grad_()
    moments = norm.moments(x, valid, t)
    assert not moments.mean.requires_grad
    assert not moments.deviation.requires_grad
    (grad,) = torch.autograd.grad(norm.normalise(x, moments).sum(), x)
    torch.testing.assert_close(grad, (norm.weight / moments.deviation).expand(B, T, D))


def test_padding_moves_the_moments_only_where_it_is_counted() -> None:
    norm, x, t, valid = world()
    filled = torch.where(valid[..., None], x, torch.full_like(x, 1e9))
    for kept in (True, False):
        mask = valid if kept else None
        same = torch.equal(norm.moments(x, mask, t).mean, norm.moments(filled, mask, t).mean)
        assert same == kept
