"""Tokens that see a row: against loops written from their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fullrank.errors import ConfigError
from fullrank.nn.global_token import GlobalToken, ProductToken
from fullrank.nn.stream import Place, TokenStream
from fullrank.nn.swiglu import PerTokenSwiGLU

ROWS, FIELDS, WIDTH, DIM = 3, 5, 4, 6


def test_u4_the_global_fm_token_is_the_naive_double_loop():
    torch.manual_seed(0)
    token, x = GlobalToken("fm", FIELDS, WIDTH, DIM), torch.randn(ROWS, FIELDS, WIDTH)
    products = torch.zeros(ROWS, WIDTH, dtype=torch.float64)
    for i in range(FIELDS):
        for j in range(i + 1, FIELDS):
            products += x[:, i].double() * x[:, j].double()
    weight, bias = token.projection.weight.double(), token.projection.bias.double()
    torch.testing.assert_close(token(x).double(), products @ weight.T + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "concat"])
def test_the_global_mlp_token_sees_the_mean_or_every_field(pool):
    torch.manual_seed(0)
    token, x = GlobalToken("mlp", FIELDS, WIDTH, DIM, pool=pool), torch.randn(ROWS, FIELDS, WIDTH)
    turned = x[:, [1, 0, 2, 3, 4]]
    assert torch.allclose(token(x), token(turned), atol=1e-6) == (pool == "mean")
    assert token.projection[0].layers[0].weight.shape[0] == 2 * DIM


def test_the_global_dcnv2_token_is_two_cross_layers_written_out():
    torch.manual_seed(0)
    token = GlobalToken("dcnv2", FIELDS, WIDTH, DIM, rank=3)
    x0 = torch.randn(ROWS, FIELDS, WIDTH).flatten(1)
    x = x0
    for layer in token.crosses:
        h = torch.tanh(torch.tanh(x @ layer.down.weight.T) @ layer.inner[0].T)
        x = x0 * (h @ layer.up.weight.T + layer.up.bias) + x
    expected = x @ token.projection.weight.T + token.projection.bias
    torch.testing.assert_close(token(x0.view(ROWS, FIELDS, WIDTH)), expected)


def test_u4_the_cross_token_is_product_then_linear_and_no_vector_leaves_the_bias():
    torch.manual_seed(0)
    plain, scaled = ProductToken(WIDTH, WIDTH, DIM), ProductToken(WIDTH, WIDTH, DIM, normalise=True)
    for token in (plain, scaled):
        torch.nn.init.normal_(token.projection.bias)
    user, item = torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)
    for row in range(ROWS):
        expected = plain.projection.bias.clone()
        for j in range(WIDTH):
            expected = expected + user[row, j] * item[row, j] * plain.projection.weight[:, j]
        torch.testing.assert_close(plain(user, item)[row], expected)
    torch.testing.assert_close(scaled(3 * user, item), scaled(user, 0.2 * item))
    assert not torch.allclose(plain(3 * user, item), plain(user, item))
    for token in (plain, scaled):
        assert torch.equal(token(0 * user, item), token.projection.bias.expand(ROWS, DIM))


def test_products_of_vectors_of_different_width_are_refused():
    with pytest.raises(ConfigError) as refused:
        ProductToken(4, 6, DIM)
    assert refused.value.found == "widths 4 and 6"
    assert "width 4" in refused.value.fix


def test_u6_swiglu_is_the_formula_per_token_and_has_three_matrices():
    torch.manual_seed(0)
    N, D, H = 3, 4, 5
    ffn, x = PerTokenSwiGLU(N, D, H), torch.randn(ROWS, N, D)
    assert sum(p.numel() for p in ffn.parameters()) == 3 * N * D * H
    for t in range(N):
        w1, w2 = ffn.weight_in[t, :, :H], ffn.weight_in[t, :, H:]
        gate = x[:, t] @ w1
        expected = (gate * torch.sigmoid(gate) * (x[:, t] @ w2)) @ ffn.weight_out[t]
        torch.testing.assert_close(ffn(x)[:, t], expected)


def test_swiglu_starts_at_the_xavier_spread_of_a_slice():
    torch.manual_seed(0)
    ffn = PerTokenSwiGLU(8, 30, 60)
    bound = (6 / 90) ** 0.5
    for weight in (ffn.weight_in, ffn.weight_out):
        assert 0.98 * bound < weight.abs().max() <= bound


def test_a_stream_keeps_its_order_and_its_constants_are_equal_in_all_rows():
    torch.manual_seed(0)
    places = (Place("a", 2), Place("task:x", learned=True), Place("b"), Place("dummy", 2, True))
    stream = TokenStream(places, DIM)
    a, b = torch.randn(ROWS, 2, DIM), torch.randn(ROWS, DIM)
    out = stream({"b": b, "a": a}, ROWS)
    assert stream.names == ("a0", "a1", "task:x", "b", "dummy0", "dummy1")
    assert torch.equal(out[:, :2], a)
    assert torch.equal(out[:, 3], b)
    assert torch.equal(out[:, 2], stream.constants[0].expand(ROWS, DIM))
    assert torch.equal(out[:, 4:], stream.constants[1:].expand(ROWS, 2, DIM))
    assert "constants" not in TokenStream((Place("a"),), DIM).state_dict()
    assert F.cosine_similarity(out[0, 4], out[0, 5], dim=0) < 0.99
