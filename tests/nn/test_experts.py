"""Experts: both evaluations, both routers, and the controller of the L1 weight."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fullrank.errors import ConfigError
from fullrank.nn import experts
from fullrank.nn.experts import SparseExperts
from tests.reference import mixing_twin as twin

B, T, D, H, E = 6, 3, 4, 5, 4


def build(routing="relu_dtsi", *, double=True, **settings):
    torch.manual_seed(0)
    module = SparseExperts(T, D, H, E, routing=routing, **settings)
    for parameter in (module.b1, module.b2):
        nn.init.normal_(parameter)
    return module.double() if double else module


def varied(module):
    """Routers far from their start, so that gates differ between rows and many are closed."""
    for router in module.routers.values():
        nn.init.normal_(router.weight)
        nn.init.normal_(router.bias)
    return module


def loops(module, x, gates):
    w1, w2 = module.w1.detach().numpy(), module.w2.detach().numpy()
    b1, b2 = module.b1.detach().numpy(), module.b2.detach().numpy()
    part = [slice(j * H, (j + 1) * H) for j in range(E)]
    weights = [
        [(w1[t][:, p], b1[t][p], w2[t][p], b2[t, j]) for j, p in enumerate(part)] for t in range(T)
    ]
    return twin.experts(x.numpy(), gates.detach().numpy(), weights)


def test_u6_dense_and_sparse_equal_the_loops():
    module, x = varied(build()), torch.randn(B, T, D, dtype=torch.float64)
    _, gates = module(x)
    assert 0 < (gates > 0).double().mean() < 1  # some open, some closed
    expected = loops(module, x, gates)
    np.testing.assert_allclose(module.dense(x, gates).detach().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(module.sparse(x, gates).detach().numpy(), expected, atol=1e-12)


def test_u6_with_all_gates_open_the_sparse_gather_equals_the_dense_sum():
    module, x = build(double=False), torch.randn(50, T, D)
    gates = torch.rand(50, T, E) + 0.1
    sparse, dense = module.sparse(x, gates), module.dense(x, gates)
    torch.testing.assert_close(sparse, dense, rtol=1e-6, atol=1e-6)
    closed = gates * (torch.rand(50, T, E) > 0.5)  # control: gates matter
    assert not torch.allclose(module.sparse(x, closed), dense, atol=1e-2)


def test_all_experts_start_active_near_a_gate_of_one_over_e():
    module = SparseExperts(T, 64, H, E)
    _, gates = module(nn.functional.layer_norm(torch.randn(200, T, 64), (64,)))
    assert bool((gates > 0).all())
    assert gates.mean().item() == pytest.approx(1 / E, rel=0.05)


def test_serving_computes_what_training_does_for_every_routing():
    for routing in ("relu_dtsi", "relu_single", "topk_softmax"):
        module, x = varied(build(routing)), torch.randn(B, T, D, dtype=torch.float64)
        torch.testing.assert_close(module.eval()(x)[0], module.train()(x)[0])


def test_active_experts_differ_by_row_and_token_with_relu_and_do_not_with_top_k():
    x = torch.randn(40, T, D, dtype=torch.float64)
    relu, fixed = varied(build()), varied(build("topk_softmax", target_share=0.5))
    assert len({int(n) for n in (relu(x)[1] > 0).sum(2).flatten()}) > 2
    seen = []
    fixed.sparse = lambda x, gates: seen.append(gates) or x
    fixed.eval()(x)
    assert {int(n) for n in (seen[0] > 0).sum(2).flatten()} == {2}
    kept = torch.where(seen[0] > 0, seen[0], torch.inf).amin(2)
    dropped = torch.where(seen[0] > 0, 0.0, fixed(x)[1]).amax(2)
    assert bool((kept >= dropped).all())  # the largest are kept


def test_u6_serving_ignores_the_training_router():
    module, x = varied(build()).eval(), torch.randn(B, T, D, dtype=torch.float64)
    before = module(x)[0]
    nn.init.normal_(module.routers["h_train"].weight)
    assert torch.equal(module(x)[0], before)
    nn.init.normal_(module.routers["h_infer"].weight)  # control
    assert not torch.equal(module(x)[0], before)


def test_u6_the_l1_term_reaches_the_serving_router_alone():
    module, x = build(), torch.randn(B, T, D, dtype=torch.float64)
    _, gates = module(x, "h_train")
    module.penalty(gates).backward()
    assert module.routers["h_train"].weight.grad is None
    assert module.w1.grad is None
    assert module.routers["h_infer"].weight.grad.abs().sum() > 0


def test_the_l1_term_is_the_batch_mean_of_the_sum_of_gates():
    module, x = varied(build()), torch.randn(B, T, D, dtype=torch.float64)
    module.l1_weight.fill_(0.03)
    _, gates = module(x)
    total = sum(float(g) for g in gates.detach().flatten())
    assert module.penalty(gates).item() == pytest.approx(0.03 * total / B)


def test_mean_gates_are_the_mean_of_both_and_need_both():
    module, x = varied(build()), torch.randn(B, T, D, dtype=torch.float64)
    gates = 0.5 * (module._gates(x, "h_infer") + module._gates(x, "h_train"))
    torch.testing.assert_close(module(x, "mean")[0], module.dense(x, gates))


def held_share(optimizer, rate, target):
    """A stationary stream and a task that wants all experts: only the L1 term closes gates.

    Returns the first active share, and the mean over the last 200 of 1,000 steps.
    """
    torch.manual_seed(1)
    module = SparseExperts(2, 8, 4, 8, target_share=target, routing="relu_single")
    teacher, shares = torch.randn(8, 8), []
    optimizer = optimizer(module.parameters(), lr=rate)
    for _ in range(1000):
        x = torch.randn(64, 2, 8)
        out, gates = module(x)
        loss = 0.1 * (out - torch.tanh(x @ teacher)).square().mean() + module.penalty(gates)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shares.append(module.active_share.mean().item())
    return shares[0], np.mean(shares[-200:])


@pytest.mark.parametrize(
    ("optimizer", "rate", "target"),
    [
        (torch.optim.Adam, 0.001, 0.125),
        (torch.optim.Adam, 0.01, 0.125),
        (torch.optim.Adam, 0.01, 0.5),
        (torch.optim.SGD, 0.1, 0.25),
    ],
)
def test_u6_the_controller_holds_the_share_within_a_tenth_of_its_budget(optimizer, rate, target):
    first, held = held_share(optimizer, rate, target)
    assert first > 0.95  # far from the budget at first
    assert held == pytest.approx(target, rel=0.1)


def test_without_the_change_of_the_error_the_controller_overshoots_and_experts_die(monkeypatch):
    monkeypatch.setattr(experts, "_BRAKE", 0.0)
    _, held = held_share(torch.optim.Adam, 0.001, 0.125)
    assert held < 0.8 * 0.125


def test_the_controller_follows_its_equation_and_stays_in_bounds():
    module, rng = build(target_share=0.5), np.random.default_rng(0)
    weight, before = module.l1_weight.item(), math.log(1 / 0.5)
    for share in [1.0, 0.75, 0.75, 0.5, 0.25, 0.0, 0.5, *rng.integers(0, 5, 30) / 4]:
        gates = torch.zeros(B, T, E)
        gates[:, :, : int(share * E)] = 1.0
        module.penalty(gates)
        now = math.log(max(share / 0.5, 0.1))
        weight *= math.exp(min(max(0.05 * now, -0.1), 0.1) + 5 * (now - before))
        weight, before = min(max(weight, 1e-12), 10.0), now
        assert module.l1_weight.item() == pytest.approx(weight)
        assert module.active_share.tolist() == [share] * T
    for gates, bound in ((torch.ones(B, T, E), 10.0), (torch.zeros(B, T, E), 1e-12)):
        for _ in range(700):
            module.penalty(gates)
        assert module.l1_weight.item() == pytest.approx(bound)


def test_the_controller_is_state_and_rests_outside_training():
    module = build()
    module.penalty(torch.ones(B, T, E))
    other = build()
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.l1_weight, module.l1_weight)
    before = module.l1_weight.clone()
    module.eval().penalty(torch.ones(B, T, E))
    assert torch.equal(module.l1_weight, before)


def test_the_balance_term_is_least_for_an_even_load():
    module = build("topk_softmax", target_share=0.25)
    even = torch.eye(E, dtype=torch.float64).repeat(T, 1, 1).transpose(0, 1) * 8
    skewed = torch.zeros(E, T, E, dtype=torch.float64)
    skewed[:, :, 0] = 8
    values = [module.penalty(logits.softmax(2)).item() for logits in (even, skewed)]
    assert values[0] == pytest.approx(1e-2 * T, rel=1e-6)  # 1 per token, its minimum
    assert values[1] > 3 * values[0]


def test_expert_means_are_ungated_and_averaged_over_tokens():
    module, x = build(), torch.randn(B, T, D, dtype=torch.float64)
    means = module.expert_means(x)
    assert means.shape == (B, E, D)
    for j in range(E):
        alone = torch.zeros(B, T, E, dtype=torch.float64)
        alone[:, :, j] = 1.0
        torch.testing.assert_close(means[:, j], module.dense(x, alone).mean(1))


def test_a_top_k_of_none_is_refused_with_the_nearest_share():
    with pytest.raises(ConfigError) as refused:
        SparseExperts(T, D, H, 4, routing="topk_softmax", target_share=0.1)
    assert "0.25" in refused.value.fix
    assert "10" in refused.value.fix
    SparseExperts(T, D, H, 4, routing="topk_softmax", target_share=0.25)
    SparseExperts(T, D, H, 10, routing="topk_softmax", target_share=0.1)
