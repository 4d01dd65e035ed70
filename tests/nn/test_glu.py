"""Gated per-token networks against the naive formulas, and what the gate does to the rank."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from fullrank.nn.glu import GLUStage, PerTokenRMSNorm, SharedTokens, glu_ffn
from fullrank.ops.spectrum import erank, singular_values, stable_rank
from tests.reference.mixing_twin import gelu, relu

B, T, D = 4, 3, 4


def naive(stage, u, gate, inner, outer):
    """The stage by loops: row by row, token by token, unit by unit."""
    parts = {n: (m.weight, m.bias) for n, m in stage.named_children()}

    def times(name, t, x):
        weight, bias = parts[name]
        weight = weight[t].detach().numpy()
        added = np.zeros(weight.shape[1]) if bias is None else bias[t].detach().numpy()
        return [
            sum(x[i] * weight[i, j] for i in range(len(x))) + added[j] for j in range(len(added))
        ]

    act, out = relu if gate == "relu" else gelu, np.empty(u.shape)
    for b, t in product(range(u.shape[0]), range(u.shape[1])):
        x = u[b, t].tolist()
        y = [act(v) for v in times("w1", t, x)]
        if gate == "glu":
            if inner:
                skip = times("s1" if "w3" not in parts else "s2", t, x)
                y = [a + s for a, s in zip(y, skip, strict=True)]
            y = [a * v for a, v in zip(y, times("w2", t, x), strict=True)]
        if "w3" in parts:
            y = times("w3", t, y)
        if outer:
            y = [a + s for a, s in zip(y, times("s1", t, x), strict=True)]
        out[b, t] = y
    return out


@pytest.mark.parametrize("gate", ["glu", "gelu", "relu"])
@pytest.mark.parametrize("hidden", [None, 6])
def test_u4_a_stage_equals_the_naive_formula(gate, hidden):
    torch.manual_seed(0)
    x = torch.randn(B, T, D, dtype=torch.float64)
    for inner, outer, bias in product((True, False), repeat=3):
        stage = GLUStage(T, D, hidden, gate=gate, skips=(inner, outer), bias=bias).double()
        for parameter in stage.parameters():
            nn.init.normal_(parameter)
        expected = naive(stage, x, gate, inner, outer)
        np.testing.assert_allclose(stage(x).detach().numpy(), expected, rtol=1e-10, atol=1e-10)
        for name, parameter in stage.named_parameters():  # no matrix that does nothing
            (grad,) = torch.autograd.grad(stage(x).sum(), parameter)
            assert grad.abs().sum() > 0, name


def test_u4_the_papers_form_without_w3_is_its_linear_residual():
    (stage, _) = glu_ffn(T, D, 3.0, (), skips=(False, True))
    x = torch.randn(B, T, D)
    before = stage(x)
    nn.init.zeros_(stage.w3.weight)
    expected = torch.einsum("btd,tde->bte", x, stage.s1.weight)
    torch.testing.assert_close(stage(x), expected)
    assert not torch.allclose(before, expected)
    assert all(p.ndim == 3 for p in stage.parameters())  # no biases


def test_the_codes_form_chains_norm_stage_and_reduction():
    torch.manual_seed(0)
    network = glu_ffn(T, D, 1.5, (6, 6))
    norm, stage, reduction, _, norm2, stage2, _, last = network
    nn.init.normal_(norm.weight)
    x = torch.randn(B, T, D)
    u = x / x.square().mean(2, keepdim=True).sqrt() * norm.weight
    h = reduction(stage(u))
    u2 = h / h.square().mean(2, keepdim=True).sqrt()
    torch.testing.assert_close(network(x), last(stage2(u2)))
    assert h.shape == (B, T, 6)
    assert norm2.weight.shape == (T, 6)
    assert stage2.w1.weight.shape == (T, 6, 9)  # floor(1.5 * 6)


@pytest.mark.parametrize(("a", "h", "r"), [(4, 4, 2.0), (4, 6, 1.5), (5, 3, 2.3)])
def test_u3_parameters_of_a_stage_of_the_code(a, h, r):
    network = glu_ffn(T, a, r, (h,))
    wide = int(r * a)
    stage = 4 * a * wide + a**2 + 3 * wide + 2 * a + a + (a * h + h if h != a else 0)
    assert sum(p.numel() for p in network.parameters()) == T * (stage + h * a + a)


def test_u3_parameters_of_the_paper_and_of_r_one():
    r = 3
    paper = glu_ffn(T, D, r, (), skips=(False, True))
    assert sum(p.numel() for p in paper.parameters()) == T * (3 * r + 1) * D**2
    one = glu_ffn(T, D, 1, (D,))  # W1, W2, S1, the gain, and the layer behind the stage
    assert sum(p.numel() for p in one.parameters()) == T * (3 * (D**2 + D) + D + D**2 + D)
    shared = glu_ffn(T, D, r, (), skips=(False, True), shared=True)
    assert sum(p.numel() for p in shared.parameters()) == (3 * r + 1) * D**2


def test_a_gelu_network_of_five_d_is_as_large_as_the_papers_gate_of_three_d():
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    gated = glu_ffn(T, D, 3.0, (), skips=(False, True))
    assert count(gated) < count(glu_ffn(T, D, 5.0, (), gate="gelu")) < 1.2 * count(gated)
    assert count(glu_ffn(T, D, 4.5, (), gate="gelu")) == count(gated)


def test_a_shared_network_treats_all_tokens_alike_and_tokens_own_networks_do_not():
    x = torch.randn(B, 1, D).expand(B, T, D)
    for units in ((), (6,)):
        out = glu_ffn(T, D, 2.0, units, shared=True)(x)
        torch.testing.assert_close(out, out[:, :1].expand_as(out))
        own = glu_ffn(T, D, 2.0, units)(x)
        assert not torch.allclose(own, own[:, :1].expand_as(own))


def test_a_token_sees_its_own_row_and_weights_alone():
    network = glu_ffn(T, D, 2.0, (6,))
    x = torch.randn(1, T, D)
    jacobian = torch.autograd.functional.jacobian(network, x).view(T, D, T, D)
    assert torch.equal(jacobian.abs().amax((1, 3)) > 0, torch.eye(T).bool())
    shared = SharedTokens(GLUStage(1, D, 6))
    jacobian = torch.autograd.functional.jacobian(shared, x).view(T, D, T, D)
    assert torch.equal(jacobian.abs().amax((1, 3)) > 0, torch.eye(T).bool())


def test_the_norm_is_blind_to_the_scale_of_its_input_down_to_initial_embeddings():
    norm, x = PerTokenRMSNorm(T, D), torch.randn(B, T, D)
    torch.testing.assert_close(norm(1e-4 * x), norm(x), rtol=1e-3, atol=0)
    assert bool(norm(torch.zeros(B, T, D)).eq(0).all())


def test_u6_the_gate_keeps_more_directions_than_activations_do():
    """Isotropic rows, one random branch of hidden width 3 D, uncentred, mean of draws."""
    torch.manual_seed(0)
    rows, dim, draws = 2048, 32, 3
    found = {}
    for gate in ("relu", "gelu", "glu"):
        total = torch.zeros(2)
        for _ in range(draws):
            branch = GLUStage(1, dim, 3 * dim, gate=gate, skips=(False, False), bias=False)
            with torch.no_grad():
                out = branch(torch.randn(rows, 1, dim)).squeeze(1)
            s = singular_values(out, center=False)
            total += torch.stack([stable_rank(s), erank(s)]).float() / draws
        found[gate] = total.tolist()
    assert found["relu"][0] < 0.7 * found["gelu"][0] < 0.5 * found["glu"][0]
    assert found["gelu"][1] < found["glu"][1]
    assert math.isfinite(sum(found["glu"]))
