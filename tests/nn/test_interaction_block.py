"""The block against its equations, in float64 and token by token."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fullrank.errors import ConfigError
from fullrank.nn.interaction_block import (
    NLIR,
    FeedForward,
    InteractionBlock,
    SelfAttention,
    Sight,
)
from fullrank.nn.rms_norm import RMSNorm
from fullrank.nn.rotary import Rotary

D, H, N, B = 8, 2, 5, 2


def causal(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def sight_of(positions):
    angles = Rotary(D // H).angles(positions, torch.float64)
    return Sight(causal, angles, slice(1, 3), torch.ones(B, 2, dtype=torch.bool))


def block_of(gate=None, ffn="swiglu", norm="rms", out_proj=True):
    torch.manual_seed(0)
    attention = SelfAttention(D, H, out_proj)
    block = InteractionBlock(attention, gate, FeedForward(D, 2 * D, ffn), norm)
    block.initialise(4)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return block.double()


def normed(x, gain, kind):
    mean = sum(x) / len(x) if kind == "layer" else 0.0
    size = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + 1e-6)
    return [(v - mean) / size * g for v, g in zip(x, gain, strict=True)]


def times(x, weight):
    return [sum(a * w for a, w in zip(x, row, strict=True)) for row in weight]


def turned(x, position):
    """Pairs (2i, 2i + 1) of one head, turned by position * 10000^(-2i/d)."""
    out = list(x)
    for i in range(0, len(x), 2):
        angle = position * 10_000 ** (-i / len(x))
        out[i] = x[i] * math.cos(angle) - x[i + 1] * math.sin(angle)
        out[i + 1] = x[i] * math.sin(angle) + x[i + 1] * math.cos(angle)
    return out


def attended(xn, qkv, positions):
    """Causal attention of one row, head by head and key by key."""
    n, d = len(xn), D // H
    parts = [times(x, qkv) for x in xn]  # q | k | v
    out = [[0.0] * D for _ in range(n)]
    for h in range(H):
        q, k, v = ([p[s * D + h * d : s * D + (h + 1) * d] for p in parts] for s in range(3))
        q = [turned(x, p) for x, p in zip(q, positions, strict=True)]
        k = [turned(x, p) for x, p in zip(k, positions, strict=True)]
        for i in range(n):
            scores = [sum(a * b for a, b in zip(q[i], k[j], strict=True)) for j in range(i + 1)]
            shares = [math.exp(s / math.sqrt(d)) for s in scores]
            for j, share in enumerate(shares):
                for c in range(d):
                    out[i][h * d + c] += share / sum(shares) * v[j][c]
    return out


ACTS = {
    "sigmoid": lambda g: 1 / (1 + math.exp(-g)),
    "silu": lambda g: g / (1 + math.exp(-g)),
    "tanh": math.tanh,
    "identity": lambda g: g,
}


def twin(block, x, positions):
    """One row of the block, from the equations."""
    w = {name: p.tolist() for name, p in block.named_parameters()}
    kind = "rms" if isinstance(block.norm_in, RMSNorm) else "layer"
    xn = [normed(v, w["norm_in.weight"], kind) for v in x]
    found = attended(xn, w["attention.qkv.weight"], positions)
    out = []
    for i, v in enumerate(x):
        a = times(found[i], w["attention.out.weight"]) if block.attention.out else found[i]
        if block.gate_map:
            source = {"raw": v, "normed": xn[i], "attn_out": a}[block.gate_map.source]
            g = times(source, w["gate_map.linear.weight"])
            bias = w.get("gate_map.linear.bias", [0.0] * D)
            act = ACTS[block.gate_map.act]
            a = [act(s + b) * t for s, b, t in zip(g, bias, a, strict=True)]
        mid = [s + t for s, t in zip(v, a, strict=True)]
        h = times(normed(mid, w["norm_mid.weight"], kind), w["feed_forward.w_in.weight"])
        if block.feed_forward.kind == "swiglu":
            half = len(h) // 2
            h = [ACTS["silu"](s) * t for s, t in zip(h[:half], h[half:], strict=True)]
        else:
            h = [s * 0.5 * (1 + math.erf(s / math.sqrt(2))) for s in h]
        out.append(
            [s + t for s, t in zip(mid, times(h, w["feed_forward.out.weight"]), strict=True)]
        )
    return out


@pytest.mark.parametrize(
    ("gate", "settings"),
    [
        (None, {}),
        ({}, {}),
        ({"source": "normed", "bias": 1.0}, {"ffn": "gelu"}),
        ({"source": "attn_out", "act": "tanh"}, {"norm": "layer"}),
        ({"act": "silu", "init": "normal"}, {"out_proj": False}),
    ],
)
def test_u2_a_block_equals_its_equations(gate, settings):
    block = block_of(None if gate is None else NLIR(D, **gate), **settings)
    x = torch.randn(B, N, D, dtype=torch.float64)
    positions = torch.tensor([[0, 0, 1, 2, 7], [0, 0, 0, 1, 7]])
    got = block(x, sight_of(positions))
    for row in range(B):
        expected = torch.tensor(twin(block, x[row].tolist(), positions[row].tolist()))
        torch.testing.assert_close(got[row], expected.double(), rtol=0, atol=1e-6)


def test_u6_an_identity_gate_of_one_is_no_gate_to_the_bit():
    gated = block_of(NLIR(D, act="identity", bias=1.0))
    with torch.no_grad():
        gated.gate_map.linear.weight.zero_()
        gated.gate_map.linear.bias.fill_(1.0)
    bare = block_of()
    bare.load_state_dict({k: v for k, v in gated.state_dict().items() if "gate_map" not in k})
    x, sight = torch.randn(B, N, D, dtype=torch.float64), sight_of(torch.arange(N))
    assert torch.equal(gated(x, sight), bare(x, sight))


@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
def test_u6_parameters_of_a_block(kind):
    r = 2
    block = block_of(NLIR(D), ffn=kind)
    assert sum(p.numel() for p in block.parameters()) == 5 * D**2 + 3 * r * D**2 + 2 * D


def test_gates_start_where_the_settings_say_and_maps_into_the_stream_small():
    x = torch.randn(B, N, D)
    assert (NLIR(D)(x, x, x) == 0.5).all()
    assert torch.allclose(NLIR(D, bias=1.0)(x, x, x), torch.tensor(1.0).sigmoid())
    assert NLIR(D, init="normal")(x, x, x).std() > 0
    block = InteractionBlock(SelfAttention(64, 2), NLIR(64), FeedForward(64, 128))
    block.initialise(8)
    spread = {name: p.std().item() for name, p in block.named_parameters()}
    for name, expected in (("attention.qkv", 0.02), ("attention.out", 0.005),
                           ("feed_forward.w_in", 0.02), ("feed_forward.out", 0.005)):  # fmt: skip
        assert spread[f"{name}.weight"] == pytest.approx(expected, rel=0.1)


def test_taps_see_the_tokens_of_the_sequence_alone():
    block, seen = block_of(NLIR(D)), {}
    for name in ("seq", "seq_valid", "nlir", "nlir_valid"):
        tap = getattr(block, name)
        tap.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    x = torch.randn(B, N, D, dtype=torch.float64)
    out = block(x, sight_of(torch.arange(N)))
    assert list(seen) == ["nlir_valid", "nlir", "seq_valid", "seq"]
    assert torch.equal(seen["seq"], out[:, 1:3])
    torch.testing.assert_close(seen["nlir"], block.gate_map(x, x, x)[:, 1:3])


def test_weights_are_shares_of_what_is_visible():
    block, positions = block_of(), torch.arange(N)
    x, sight = torch.randn(B, N, D, dtype=torch.float64), sight_of(positions)
    visible = torch.ones(N, N, dtype=torch.bool).tril().expand(B, 1, N, N)
    weights = block.attention.weights(x, sight, visible)
    v = block.attention.qkv(x)[..., 2 * D :].unflatten(2, (H, -1)).transpose(1, 2)
    found = (weights @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.attention.out(found), block.attention(x, sight))
    assert not block.attention.weights(x, sight, visible & False).any()


@pytest.mark.parametrize("shape", [(3, 5, 8), (4, 8), (0, 8), (2, 3, 1)])
def test_rms_norm_and_its_gradients_equal_those_of_the_definition(shape):
    torch.manual_seed(0)
    norm = RMSNorm(shape[-1]).double()
    with torch.no_grad():
        norm.weight.add_(torch.randn(shape[-1]))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    up = torch.randn(shape, dtype=torch.float64)

    def plain(x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight

    torch.testing.assert_close(norm(x), plain(x))
    got, expected = (
        torch.autograd.grad((f(x) * up).sum(), (x, norm.weight)) for f in (norm, plain)
    )
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_zeros_stay_zero_and_a_transposed_input_is_no_matter():
    norm = RMSNorm(4)
    x = torch.zeros(3, 4, requires_grad=True)
    norm(x).sum().backward()
    assert not norm(x).any()
    assert x.grad.isfinite().all()
    y = torch.randn(4, 3, requires_grad=True)
    norm(y.T).square().sum().backward()
    assert y.grad.isfinite().all()


@pytest.mark.parametrize(("heads", "fix"), [(3, "6"), (8, "16"), (0, "")])
def test_heads_that_do_not_fit_are_refused_with_a_width_that_does(heads, fix):
    with pytest.raises(ConfigError) as refused:
        SelfAttention(D, heads)
    assert fix in refused.value.fix
