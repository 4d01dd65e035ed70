"""The de-correlation loss against loops, its invariances, and the noise that it cannot go below."""

from __future__ import annotations

from itertools import combinations, product
from typing import get_args

import numpy as np
import pytest
import torch

from fullrank.errors import ConfigError
from fullrank.losses.decorrelation import (
    Decorrelation,
    DecorrelationLoss,
    Reduction,
    decorrelation,
)

REDUCTIONS = get_args(Reduction)
UNIT_FREE = ("abs_mean", "sq_mean", "diag_abs")  # do not see the scale of a unit


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(rows=64, experts=3, units=5):
    """Experts that share something, none of their units centred or of unit length."""
    common, own = gauss(rows, 1, units, seed=1), gauss(rows, experts, units, seed=2)
    return (common + own) * (1 + torch.arange(units)) + 3


def pearson(x, y):
    return np.corrcoef(x, y)[0, 1]


def slow(h, reduction, chosen):
    """The six reductions of `h` [B, E, D], unit by unit."""
    h = h.numpy()
    units, terms = range(h.shape[2]), []
    for p, q in chosen:
        x, y = h[:, p], h[:, q]
        if reduction == "abs_mean":
            terms.append(np.mean([abs(pearson(x[:, a], y[:, b])) for a in units for b in units]))
        elif reduction == "sq_mean":
            terms.append(np.mean([pearson(x[:, a], y[:, b]) ** 2 for a in units for b in units]))
        elif reduction == "diag_abs":
            terms.append(np.mean([abs(pearson(x[:, a], y[:, a])) for a in units]))
        elif reduction == "pooled":
            terms.append(abs(pearson(x.ravel(), y.ravel())))
        else:
            cov = [[np.cov(x[:, a], y[:, b], bias=True)[0, 1] for b in units] for a in units]
            if reduction == "cov_l1":
                terms.append(len(h) * np.mean(np.abs(cov)))
            else:
                own = [np.linalg.norm(np.cov(v.T, bias=True)) for v in (x, y)]
                terms.append(np.linalg.norm(cov) ** 2 / own[0] / own[1])
    return np.sum(terms) if reduction == "cov_l1" else np.mean(terms)


def test_u1_correlations_equal_a_double_loop_and_are_symmetric():
    h = related()
    left, right = h[:, 0], h[:, 1]
    for a, b in product(range(5), repeat=2):
        found = decorrelation(torch.stack([left[:, a], right[:, b]], 1)[..., None], eps=0.0)
        assert float(found) == pytest.approx(abs(pearson(left[:, a], right[:, b])), abs=1e-10)
    for reduction in REDUCTIONS:
        ahead, back = (decorrelation(x, reduction=reduction) for x in (h, h.flip(1)))
        assert float(ahead) == pytest.approx(float(back), rel=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_u1_every_reduction_equals_a_loop_over_either_choice_of_pairs(reduction):
    h = related()
    chosen = {"distinct": combinations(range(3), 2), "all": product(range(3), repeat=2)}
    for pairs, numbers in chosen.items():
        found = decorrelation(h, reduction=reduction, pairs=pairs, eps=0.0)
        assert float(found) == pytest.approx(slow(h, reduction, numbers), rel=1e-10)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_u2_units_may_be_scaled_turned_and_shifted(reduction):
    h = related()
    factors = torch.tensor([-3.0, 0.5, 1.0, -1.0, 20.0], dtype=torch.float64)
    before = decorrelation(h, reduction=reduction, eps=0.0)
    after = decorrelation(h * factors + gauss(3, 5), reduction=reduction, eps=0.0)
    assert torch.isclose(before, after, rtol=1e-9) == (reduction in UNIT_FREE)
    one_scale = decorrelation(7 * h + 2, reduction=reduction, eps=0.0)
    factor = 49.0 if reduction == "cov_l1" else 1.0
    assert float(one_scale) == pytest.approx(float(factor * before), rel=1e-5)


def test_u2_only_the_covariance_form_grows_with_the_batch():
    h = related()
    for reduction in REDUCTIONS:
        once, twice = (decorrelation(x, reduction=reduction) for x in (h, torch.cat([h, h])))
        factor = 2.0 if reduction == "cov_l1" else 1.0
        assert float(twice) == pytest.approx(factor * float(once), rel=1e-9)


def test_u3_a_copy_is_seen_and_a_permuted_copy_only_where_the_order_of_units_is_none():
    x = gauss(20_000, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + torch.arange(4)
    copy, permuted = torch.stack([x, x], 1), torch.stack([x, x[:, [1, 2, 3, 0]]], 1)
    assert float(decorrelation(copy, reduction="diag_abs")) == pytest.approx(1, abs=1e-5)
    assert float(decorrelation(copy)) >= 1 / 4
    for reduction in REDUCTIONS:
        a, b = (float(decorrelation(h, reduction=reduction)) for h in (copy, permuted))
        assert (abs(a - b) > 0.05 * a) == (reduction in ("diag_abs", "pooled")), reduction


@pytest.mark.parametrize("rows", [32, 128, 512, 4096])
def test_u4_independent_units_leave_the_noise_of_the_batch(rows):
    floor = (2 / (np.pi * rows)) ** 0.5
    assert float(decorrelation(gauss(rows, 2, 40))) == pytest.approx(floor, rel=0.08)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rows", [1, 50])
def test_u5_constant_units_have_a_finite_value_and_gradient(reduction, rows):
    h = torch.randn(rows, 3, 4, generator=torch.Generator().manual_seed(0))
    h[:, 0, 1] = 0.25
    h[:, 2] = 0.0  # a dead expert
    h.requires_grad_()
    value = decorrelation(h, reduction=reduction)
    value.backward()
    assert bool(value.isfinite())
    assert bool(h.grad.isfinite().all())


def test_the_gradient_separates_two_experts_and_can_spare_the_first():
    for stop in (False, True):
        h = related(rows=32, experts=2).requires_grad_()
        decorrelation(h, stop_gradient=stop).backward()
        assert (float(h.grad[:, 0].abs().max()) > 0) != stop
        assert float(h.grad[:, 1].abs().max()) > 0
    h = related(rows=256, experts=2).requires_grad_()
    optimizer, values = torch.optim.Adam([h], lr=0.05), []
    for _ in range(100):
        optimizer.zero_grad()
        value = decorrelation(h)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[0] > 0.1
    assert values[-1] < 0.3 * values[0]


def test_the_weight_rises_over_training_steps_only_and_is_state():
    h = related()
    loss = DecorrelationLoss(Decorrelation(weight=0.5, warmup_steps=4), {"cross": 5})
    full = 0.5 * float(decorrelation(h))
    shares = [float(loss(list(h.unbind(1)), h, h)) / full for _ in range(6)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    fresh = DecorrelationLoss(loss.config, {"cross": 5})
    assert float(fresh.eval()([], h, h)) == 0.0
    fresh.load_state_dict(loss.state_dict())
    assert float(fresh([], h, h)) == pytest.approx(full)
    cold = DecorrelationLoss(Decorrelation(weight=0.5, warmup_steps=0), {"cross": 5}).eval()
    assert float(cold([], h, h)) == pytest.approx(full)


def test_hook_and_rows_choose_what_is_compared():
    z, h, a = list(related().unbind(1)), related(units=2), gauss(64, 3, 2, seed=4).exp()
    for hook, x in (("z", torch.stack(z, 1)), ("h", h), ("ah", a * h)):
        for rows in (None, 32):
            loss = DecorrelationLoss(
                Decorrelation(hook=hook, rows=rows, weight=1.0, warmup_steps=0), {"cross": 5}
            )
            assert torch.equal(loss(z, h, a), decorrelation(x[:rows]))


def test_interactions_of_different_width_cannot_be_compared():
    with pytest.raises(ConfigError) as caught:
        DecorrelationLoss(Decorrelation(hook="z"), {"cross": 40, "cin": 32})
    assert caught.value.found == "'z' with cross 40 wide, cin 32 wide"
    assert "hook='h'" in caught.value.fix


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        ({"weight": 0.0}, "decorrelation=None"),
        ({"rows": 1}, "32"),
        ({"warmup_steps": -1}, "interval"),
        ({"pairs": "all", "stop_gradient": True}, "pairs='distinct'"),
    ],
)
def test_impossible_settings_are_refused_with_a_way_out(settings, fix):
    with pytest.raises(ConfigError) as caught:
        Decorrelation(**settings)
    assert fix in caught.value.fix
