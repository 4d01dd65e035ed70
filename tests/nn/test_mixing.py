"""Token mixing against its definition, and the algebra that the paper relies on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.errors import ConfigError
from fullrank.nn.mixing import (
    AttentionMixing,
    ConcatMixing,
    MultiheadMixing,
    SharedMixing,
    mix_tokens,
    mixing,
)
from tests.reference import mixing_twin as twin


def matrix_of(module, tokens, dim):
    """The T*D x T*D matrix of a linear map of tokens, rows are outputs."""
    basis = torch.eye(tokens * dim, dtype=torch.float64).view(-1, tokens, dim)
    return module(basis).flatten(1).T


def test_u1_worked_example():
    x = torch.tensor([[[1, 2, 3, 4], [5, 6, 7, 8]]])
    assert mix_tokens(x, 2).tolist() == [[[1, 2, 5, 6], [3, 4, 7, 8]]]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3), st.integers(1, 5), st.integers(1, 4))
def test_u1_index_formula_and_naive_loop(rows, tokens, width):
    x = torch.randn(rows, tokens, tokens * width, dtype=torch.float64)
    out = MultiheadMixing(tokens, tokens * width)(x)
    np.testing.assert_array_equal(out.numpy(), twin.mix(x.numpy()).reshape(out.shape))
    for b, t, h, c in np.ndindex(rows, tokens, tokens, width):
        assert out[b, h, t * width + c] == x[b, t, h * width + c]


@pytest.mark.parametrize(("tokens", "dim"), [(2, 4), (3, 3), (4, 12)])
def test_u1_matrix_is_a_symmetric_involution_of_kronecker_form(tokens, dim):
    P = matrix_of(MultiheadMixing(tokens, dim), tokens, dim)
    eye = torch.eye(tokens * dim, dtype=torch.float64)
    assert torch.equal(P, P.T)
    assert torch.equal(P @ P, eye)
    assert torch.equal(P @ P.T, eye)
    swap = torch.zeros(tokens**2, tokens**2, dtype=torch.float64)
    for t in range(tokens):
        for h in range(tokens):
            swap[h * tokens + t, t * tokens + h] = 1.0
    assert torch.equal(P, torch.kron(swap, torch.eye(dim // tokens, dtype=torch.float64)))
    assert not torch.equal(P, eye)  # it does mix


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(2, 5), st.integers(2, 17))
def test_u1_padding_is_dropped_again(rows, tokens, dim):
    x = torch.randn(rows, tokens, dim, dtype=torch.float64)
    out = MultiheadMixing(tokens, dim, pad=True)(x)
    expected = twin.mix(x.numpy()) if dim % tokens == 0 else twin.mix_padded(x.numpy())
    np.testing.assert_array_equal(out.numpy(), expected)


@pytest.mark.parametrize(("tokens", "dim"), [(4, 8), (4, 10), (5, 7)])
def test_u2_norm_and_multiset_are_kept_and_the_gradient_is_the_adjoint(tokens, dim):
    module = MultiheadMixing(tokens, dim, pad=True)
    x = torch.randn(3, tokens, dim, dtype=torch.float64, requires_grad=True)
    out = module(x)
    assert torch.equal(out.flatten(1).sort().values, x.flatten(1).sort().values)
    torch.testing.assert_close(out.norm(), x.norm(), rtol=1e-14, atol=0)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected = grad.flatten(1) @ matrix_of(module, tokens, dim)  # P^T g
    assert torch.equal(x.grad.flatten(1), expected)
    if dim % tokens == 0:
        assert torch.equal(x.grad, module(grad))  # symmetric: the gradient is mixed itself


def test_u3_mixing_has_no_parameters_and_the_alternatives_have_theirs():
    T, D, H = 4, 8, 12
    assert not list(MultiheadMixing(T, D).parameters())
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(ConcatMixing(T, D, H)) == 2 * T * D * H + H + T * D
    assert count(SharedMixing(T, D)) == T * D * D + D
    assert count(AttentionMixing(T, D)) == 4 * D * D + 4 * D


def test_the_pad_free_mixing_refuses_a_width_that_tokens_do_not_divide():
    with pytest.raises(ConfigError) as refused:
        MultiheadMixing(4, 10)
    assert "8 or 12" in refused.value.fix
    assert "2, 5" in refused.value.fix
    assert "4 tokens of width 10" in refused.value.found
    MultiheadMixing(4, 8), MultiheadMixing(4, 12), MultiheadMixing(5, 10)  # what it suggests works


@pytest.mark.parametrize("mix", ["all_concat_mlp", "all_share", "self_attention"])
def test_alternatives_move_information_between_all_tokens(mix):
    torch.manual_seed(0)
    module = mixing(mix, 3, 6, hidden=9).double()
    x = torch.randn(1, 3, 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(module, x).view(3, 6, 3, 6)
    assert jacobian.abs().amax((1, 3)).min() > 1e-6  # [out token, in token]
    assert mixing("none", 3, 6, hidden=9) is None


def test_all_share_gives_every_slot_the_same_vector():
    out = SharedMixing(3, 6)(torch.randn(2, 3, 6))
    assert torch.equal(out[:, :1].expand_as(out), out)


def test_self_attention_equals_its_formula():
    """softmax(q k^T / sqrt(width)) v per head, written out."""
    torch.manual_seed(0)
    T, D = 3, 6
    module = AttentionMixing(T, D).double()
    x = torch.randn(2, T, D, dtype=torch.float64)
    weight, bias = module.query_key_value.weight, module.query_key_value.bias
    q, k, v = (x @ weight[i * D : (i + 1) * D].T + bias[i * D : (i + 1) * D] for i in range(3))
    heads = []
    for h in range(T):
        part = slice(h * D // T, (h + 1) * D // T)
        share = (q[..., part] @ k[..., part].transpose(1, 2) / (D / T) ** 0.5).softmax(-1)
        heads.append(share @ v[..., part])
    expected = module.output(torch.cat(heads, dim=2))
    torch.testing.assert_close(module(x), expected)


def test_self_attention_refuses_a_width_without_heads():
    with pytest.raises(ConfigError, match="impossible"):
        AttentionMixing(5, 6)
