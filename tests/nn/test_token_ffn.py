"""Per-token networks against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import functional_call

from fullrank.nn.token_ffn import PerTokenFFN, shared_ffn, xavier_slices
from tests.reference import mixing_twin as twin

B, T, D, H = 5, 3, 4, 6


def weights(seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = (T, D, H), (T, H), (T, H, D), (T, D)
    return [torch.randn(*s, generator=draw, dtype=torch.float64) for s in shapes]


def per_token_ffn(x, w1, b1, w2, b2, act):
    """Runs the layer with given weights."""
    net = PerTokenFFN(x.shape[1], x.shape[2], (w1.shape[2],), act)
    names = ("layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias")
    return functional_call(net, dict(zip(names, (w1, b1, w2, b2), strict=True)), (x,))


@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_equals_the_loops(act):
    x = torch.randn(B, T, D, dtype=torch.float64)
    out = per_token_ffn(x, *weights(), act)
    expected = twin.per_token_ffn(x.numpy(), *(w.numpy() for w in weights()), getattr(twin, act))
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-12, atol=1e-12)
    assert out.shape == (B, T, D)


@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_gradients_equal_finite_differences(act):
    torch.manual_seed(1)
    inputs = [torch.randn(B, T, D, dtype=torch.float64), *weights()]
    inputs = [x.requires_grad_() for x in inputs]
    torch.autograd.gradcheck(lambda *a: per_token_ffn(*a, act), inputs)


def test_a_strided_input_and_a_strided_gradient_are_read_rightly():
    """Mixed tokens, expanded means and sliced tokens arrive without being copied."""
    wide = torch.randn(B, D, T, dtype=torch.float64, requires_grad=True)
    out = per_token_ffn(wide.transpose(1, 2), *weights(), "gelu")
    out.mean((1, 2)).sum().backward()  # its gradient is expanded, strides of zero
    copy = wide.detach().transpose(1, 2).contiguous().requires_grad_()
    per_token_ffn(copy, *weights(), "gelu").mul(1 / (T * D)).sum().backward()
    torch.testing.assert_close(wide.grad.transpose(1, 2), copy.grad)


def test_u3_parameter_count():
    for k in (1, 2, 4):
        count = sum(p.numel() for p in PerTokenFFN(T, D, (k * D,)).parameters())
        assert count == T * (2 * k * D**2 + k * D + D)


def test_u4_a_token_depends_on_its_own_weights_alone():
    module, x = PerTokenFFN(T, D, (H,)), torch.randn(B, T, D)
    before = module(x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter[1] = 0.0
    after = module(x)
    assert torch.equal(after[:, 1], torch.zeros(B, D))
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])
    assert not torch.equal(after[:, 1], before[:, 1])


def test_u4_permuting_tokens_and_weights_together_commutes():
    order = torch.tensor([2, 0, 1])
    x, own = torch.randn(B, T, D, dtype=torch.float64), weights()
    moved = per_token_ffn(x[:, order], *(w[order] for w in own), "gelu")
    torch.testing.assert_close(moved, per_token_ffn(x, *own, "gelu")[:, order])
    unmoved = per_token_ffn(x[:, order], *own, "gelu")  # control: weights stay behind
    assert not torch.allclose(unmoved, moved)


def test_several_hidden_layers_equal_the_chain_of_single_ones():
    module, x = PerTokenFFN(T, D, (H, 5), "relu").double(), torch.randn(B, T, D).double()
    out = module(x)
    for t in range(T):
        h = x[:, t]
        for i, layer in enumerate(module.layers):
            h = h @ layer.weight[t] + layer.bias[t]
            h = h.relu() if i < 2 else h
        torch.testing.assert_close(out[:, t], h)


def test_xavier_fans_are_those_of_a_slice():
    values = xavier_slices(50, 20, 80).detach()
    bound = (6 / (20 + 80)) ** 0.5
    assert values.abs().max() <= bound
    assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_a_shared_network_treats_all_tokens_alike():
    module, x = shared_ffn(D, (H,)), torch.randn(B, 1, D).expand(B, T, D)
    out = module(x)
    assert torch.equal(out, out[:, :1].expand_as(out))
    distinct = PerTokenFFN(T, D, (H,))(x)
    assert not torch.allclose(distinct, distinct[:, :1].expand_as(distinct))
