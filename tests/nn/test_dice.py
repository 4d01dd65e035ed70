"""Dice, against its definition written row by row in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.nn import dice
from fullrank.nn.dice import Dice


def made(dim: int) -> Dice:
    layer = Dice(dim).double()
    torch.nn.init.normal_(layer.alpha)
    return layer


def twin(x, alpha, eps=1e-9):
    """The paper's: x where p, alpha x where not, with p over the rows of the batch."""
    rows = x.shape[0]
    mean = sum(x[r] for r in range(rows)) / rows
    var = sum((x[r] - mean) ** 2 for r in range(rows)) / rows
    p = 1 / (1 + torch.exp(-(x - mean) / (var + eps) ** 0.5))
    return p * x + (1 - p) * alpha * x


@settings(deadline=None, max_examples=8)
@given(rows=st.integers(2, 6), dim=st.integers(1, 2), seed=st.integers(0, 99))
def test_value_and_gradients_equal_the_definition(rows, dim, seed) -> None:
    torch.manual_seed(seed)
    layer, x = made(dim), torch.randn(rows, dim, dtype=torch.float64, requires_grad=True)
    weigh = torch.randn(rows, dim, dtype=torch.float64)
    other, alpha = (v.detach().clone().requires_grad_() for v in (x, layer.alpha))
    mine, theirs = layer(x), twin(other, alpha)
    torch.testing.assert_close(mine, theirs)
    (mine * weigh).sum().backward()
    (theirs * weigh).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(layer.alpha.grad, alpha.grad)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_the_size_of_a_chunk_changes_nothing(chunk, monkeypatch) -> None:
    torch.manual_seed(0)
    x, weigh = torch.randn(2, 7, 3, dtype=torch.float64)
    seen = []
    for size in (chunk, 1024):
        monkeypatch.setattr(dice, "_CHUNK", size)
        torch.manual_seed(1)
        layer, at = made(3), x.clone().requires_grad_()
        (layer(at) * weigh).sum().backward()
        seen.append((at.grad, layer.alpha.grad, layer.running_mean, layer.running_var))
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b)


def test_running_values_are_those_of_torch_and_serve_at_evaluation() -> None:
    torch.manual_seed(0)
    layer, norm = made(3), torch.nn.BatchNorm1d(3, eps=1e-9, affine=False).double()
    for _ in range(3):
        x = torch.randn(5, 3, dtype=torch.float64) * 2 + 1
        layer(x)
        norm(x)
    torch.testing.assert_close(layer.running_mean, norm.running_mean)
    torch.testing.assert_close(layer.running_var, norm.running_var)
    layer.eval(), norm.eval()
    p = norm(x).sigmoid()
    torch.testing.assert_close(layer(x), p * x + (1 - p) * layer.alpha * x)


def test_a_constant_unit_far_from_zero_stays_finite() -> None:
    layer, x = Dice(2), torch.full((4, 2), 1e4, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(layer(x), x / 2)  # p is one half, and alpha starts at 0
    torch.testing.assert_close(x.grad, torch.full((4, 2), 0.5))


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_for_a_variance_use_the_running_values_and_keep_them(rows) -> None:
    layer = made(3)
    layer(torch.randn(6, 3, dtype=torch.float64))
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(rows, 3, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    torch.testing.assert_close(out, copy.deepcopy(layer).eval()(x))
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
