"""Full mixing against its matrices, and what it does to the rank of a sample."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fullrank.errors import ConfigError
from fullrank.nn.full_mixing import (
    FullMixerBlock,
    FullMixing,
    KronMixing,
    KronOfficialMixing,
    LowRankMixing,
    block_transpose,
    full_mixing,
)
from fullrank.nn.mixing import MultiheadMixing
from fullrank.ops.spectrum import erank, singular_values, stable_rank


def matrix_of(module, tokens, dim):
    """The N*D x N*D Jacobian of a map of tokens, by automatic differentiation."""
    x = torch.randn(1, tokens, dim, dtype=torch.float64)
    size = tokens * dim
    return torch.autograd.functional.jacobian(module.double(), x).view(size, size)


def crossing(matrix, tokens, dim):
    """Whether token i takes anything from token j: [tokens, tokens]."""
    return matrix.view(tokens, dim, tokens, dim).abs().amax((1, 3)) > 1e-9


class Zero(nn.Module):
    """A feed-forward network that adds nothing."""

    def forward(self, x):
        return torch.zeros_like(x)


def test_u1_the_permutation_as_a_weight_is_rankmixers_mixing_and_its_residual():
    T, D, x = 3, 6, torch.randn(5, 3, 6)
    full = FullMixing(T, D, init="block_transpose")
    block = FullMixerBlock((T, D), full, Zero(), norm="none", residuals=(True, True))
    assert torch.equal(block(x), MultiheadMixing(T, D)(x) + x)
    by_loop = torch.zeros(T * D, T * D)
    for h in range(T):
        for t in range(T):
            for c in range(D // T):
                by_loop[h * D + t * (D // T) + c, t * D + h * (D // T) + c] = 1.0
    assert torch.equal(block_transpose(T, D), by_loop)
    nn.init.zeros_(full.weight)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
def test_the_block_is_its_formula(norm):
    torch.manual_seed(0)
    T, D = 3, 4
    x, ffn = torch.randn(5, T, D).double(), nn.Linear(D, D)
    for residuals in ((True, False), (False, True)):
        mixing = FullMixing(T, D)
        nn.init.normal_(mixing.bias)
        block = FullMixerBlock((T, D), mixing, ffn, norm=norm, residuals=residuals).double()
        flat = x.reshape(5, T * D)
        if norm == "rms":
            flat = flat / flat.square().mean(1, keepdim=True).sqrt()
        m = (flat @ mixing.weight.T + mixing.bias).view(5, T, D) + residuals[0] * x
        if norm == "layer":
            m = (m - m.mean(2, keepdim=True)) / (m.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        if norm == "rms":
            m = m / m.square().mean(2, keepdim=True).sqrt()
        torch.testing.assert_close(block(x), ffn(m) + residuals[1] * m)


def test_u2_the_jacobian_of_full_mixing_is_dense():
    module = FullMixing(3, 4)
    assert torch.equal(matrix_of(module, 3, 4), module.weight)
    assert module.weight.abs().min() > 0


@pytest.mark.parametrize("block", [1, 2, 3, 4, 12])
def test_u2_the_jacobians_of_the_kronecker_forms_are_those_of_their_names(block):
    ours, theirs = KronMixing(3, 4, block), KronOfficialMixing(3, 4, block)
    eye = torch.eye(block, dtype=torch.float64)
    torch.testing.assert_close(matrix_of(ours, 3, 4), torch.kron(ours.weight, eye))
    torch.testing.assert_close(matrix_of(theirs, 3, 4), torch.kron(eye, theirs.weight))
    if block not in (1, 12):  # where there is one block, or one coordinate, both are the same
        theirs.load_state_dict(ours.state_dict())
        assert not torch.allclose(matrix_of(ours, 3, 4), matrix_of(theirs, 3, 4))


def test_u2_the_codes_kronecker_form_mixes_no_tokens_with_its_sizes_for_criteo():
    T, D = 26, 30
    x = torch.randn(1, T, D, requires_grad=True)
    for module, sees in ((KronOfficialMixing(T, D, 26), 1), (KronMixing(T, D, 30), T)):
        (grad,) = torch.autograd.grad(module(x)[0, 3].sum(), x)
        assert int((grad[0].abs().amax(1) > 0).sum()) == sees
    small = crossing(matrix_of(KronOfficialMixing(4, 6, 4), 4, 6), 4, 6)
    assert torch.equal(small, torch.eye(4).bool())
    halves = crossing(matrix_of(KronOfficialMixing(4, 6, 2), 4, 6), 4, 6)  # as with Avazu
    assert torch.equal(halves, torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).bool())
    assert bool(crossing(matrix_of(KronMixing(4, 6, 6), 4, 6), 4, 6).all())


@pytest.mark.parametrize("kind", [KronMixing, KronOfficialMixing])
def test_the_bias_of_the_kronecker_forms_is_one_per_coordinate(kind):
    module, x = kind(3, 4, 2, bias=True), torch.randn(2, 3, 4)
    before = module(x)
    with torch.no_grad():
        module.bias.copy_(torch.arange(12.0))
    torch.testing.assert_close(module(x) - before, torch.arange(12.0).view(3, 4).expand(2, 3, 4))


def test_low_rank_mixing_has_the_rank_and_the_weights_it_says():
    module = LowRankMixing(3, 4, 2)
    assert torch.linalg.matrix_rank(matrix_of(module, 3, 4)) == 2
    assert sum(p.numel() for p in module.parameters()) == 2 * 2 * 12 + 12


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [((15, 26), 152_100), ((16, 24), 147_456), ((26, 30), 608_400), ((24, 64), 2_359_296)],
)
def test_u3_full_mixing_has_the_published_number_of_weights(sizes, weights):
    size = sizes[0] * sizes[1]
    with torch.device("meta"):
        plain, biased = (FullMixing(*sizes, bias=bias) for bias in (False, True))
    assert sum(p.numel() for p in plain.parameters()) == weights
    assert sum(p.numel() for p in biased.parameters()) == weights + size


def test_starts_are_as_strong_as_they_say():
    T, D = 8, 32
    for init, factor in (("xavier", 1.0), ("small", 0.02)):
        found = FullMixing(T, D, init=init).weight.std().item() * math.sqrt(T * D)
        assert found == pytest.approx(factor, rel=0.02)


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_u7_full_mixing_spreads_samples_of_low_rank_and_the_permutation_cannot(k):
    torch.manual_seed(0)
    T, D = 16, 64
    x = torch.randn(16, T, k) @ torch.randn(16, k, D)  # every sample has rank k
    found, bare = {}, {}
    for kind in ("full", "block_transpose"):
        mixing = full_mixing(kind, T, D)
        with torch.no_grad():
            block = FullMixerBlock((T, D), mixing, Zero(), residuals=(True, True))
            found[kind] = erank(singular_values(block(x), center=False)).mean()
            bare[kind] = stable_rank(singular_values(mixing(x) + x, center=False))
    assert found["full"] > found["block_transpose"]
    assert k > 2 or found["full"] > 1.5 * found["block_transpose"]
    own = (stable_rank(singular_values(y, center=False)) for y in (x, MultiheadMixing(T, D)(x)))
    assert bool((bare["block_transpose"] <= 2 * sum(own)).all())


@pytest.mark.parametrize(
    ("build", "found", "suggestions"),
    [
        (lambda: KronMixing(3, 4, 5), "blocks of 5", ("4 or 6",)),
        (lambda: KronOfficialMixing(3, 4, 5), "blocks of 5", ("4 or 6",)),
        (lambda: KronMixing(3, 4, 2, init="block_transpose"), "transposition", ("mix=full",)),
        (lambda: full_mixing("block_transpose", 4, 10), "4 tokens", ("8 or 12", "[2, 5]")),
        (lambda: FullMixing(4, 10, init="block_transpose"), "4 tokens", ("8 or 12", "[2, 5]")),
    ],
)
def test_impossible_sizes_are_refused_with_the_nearest_possible_ones(build, found, suggestions):
    with pytest.raises(ConfigError) as refused:
        build()
    assert found in refused.value.found
    assert all(text in refused.value.fix for text in suggestions)
