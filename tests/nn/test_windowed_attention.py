"""Attention against three loops, whichever way it is computed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fullrank.nn import windowed_attention
from fullrank.nn.attention_mask import Visibility
from fullrank.nn.rotary import Rotary
from fullrank.nn.windowed_attention import banded_attention, full_attention, sliding_attention


def loops(q, k, v, valid, sees):
    """Attention from its definition; `sees(i, j)` decides on places."""
    B, H, N, d = q.shape
    q, k, v = (x.detach() for x in (q, k, v))
    out = torch.zeros_like(q)
    for b in range(B):
        for h in range(H):
            for i in range(N):
                keys = [j for j in range(N) if valid[b, j] and sees(i, j)]
                if not valid[b, i]:
                    continue
                scores = [float(q[b, h, i] @ k[b, h, j]) / math.sqrt(d) for j in keys]
                top = max(scores)
                weights = [math.exp(s - top) for s in scores]
                for j, weight in zip(keys, weights, strict=True):
                    out[b, h, i] += weight / sum(weights) * v[b, h, j]
    return out


def operands(B, H, N, d, *, padded, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    # Heads come out of one projection, so that a head's tokens do not lie side by side.
    q, k, v = (torch.randn(B, N, H, d, generator=draw, dtype=dtype).transpose(1, 2) for _ in "qkv")
    valid = torch.rand(B, N, generator=draw) >= padded
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), valid


def gradients(out, *inputs):
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    return torch.autograd.grad((out * weight).sum(), inputs)


def ways(q, k, v, valid, window):
    """All ways to the same answer."""
    B, H, N, d = q.shape
    visible = Visibility(num_static=0, window=window).matrix(N)
    row = torch.where(valid, torch.arange(B).unsqueeze(1), -1).flatten()
    flat = banded_attention(
        *(x.transpose(1, 2).reshape(B * N, H, d) for x in (q, k, v)), row, window
    )
    flat = flat.view(B, N, H, d).transpose(1, 2) * valid[:, None, :, None]
    return {
        "chosen": sliding_attention(q, k, v, valid, window),
        "masked": full_attention(q, k, v, valid, visible=visible),
        "banded": flat,
    }


def test_u2_full_attention_with_rotary_positions_is_the_triple_loop():
    B, H, N, d = 2, 2, 9, 4  # D = 8
    q, k, v, valid = operands(B, H, N, d, padded=0.0)
    valid[0, 2:5] = False
    position = torch.tensor([0, 0, 0, 1, 2, 3, 4, 9, 9])

    def turned(x):
        out = torch.empty_like(x)
        for n, p in enumerate(position.tolist()):
            for i in range(d // 2):
                angle = p * 10_000.0 ** (-2 * i / d)
                a, b = x[:, :, n, 2 * i], x[:, :, n, 2 * i + 1]
                out[:, :, n, 2 * i] = a * math.cos(angle) - b * math.sin(angle)
                out[:, :, n, 2 * i + 1] = a * math.sin(angle) + b * math.cos(angle)
        return out

    rotary = Rotary(d)
    found = full_attention(rotary(q, position), rotary(k, position), v, valid)
    wanted = loops(turned(q), turned(k), v, valid, lambda i, j: j <= i)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    still = loops(q, k, v, valid, lambda i, j: j <= i)
    assert (found - still).abs().max() > 1e-3


@pytest.mark.parametrize("window", [1, 2, 4, 9, 20])
def test_u2_sliding_attention_is_the_triple_loop(window):
    q, k, v, valid = operands(2, 2, 9, 4, padded=0.3)
    wanted = loops(q, k, v, valid, lambda i, j: 0 <= i - j < window)
    for way, found in ways(q, k, v, valid, window).items():
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10, msg=way)


@settings(max_examples=25, deadline=None)
@given(
    B=st.integers(1, 3),
    N=st.integers(1, 130),
    window=st.integers(1, 70),
    padded=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 5),
)
def test_all_ways_of_sliding_agree_in_values_and_gradients(B, N, window, padded, seed):
    q, k, v, valid = operands(B, 2, N, 4, padded=padded, seed=seed)
    found = ways(q, k, v, valid, window)
    wanted = gradients(found["masked"], q, k, v)
    for way in ("chosen", "banded"):
        torch.testing.assert_close(found[way], found["masked"], rtol=0, atol=1e-10)
        torch.testing.assert_close(gradients(found[way], q, k, v), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("padding", ["none", "behind", "between", "in front", "a whole row"])
def test_all_ways_of_full_attention_agree_in_values_and_gradients(padding, monkeypatch):
    q, k, v, valid = operands(3, 2, 40, 4, padded=0.0)
    if padding != "none":
        valid[1, {"behind": slice(30, 40), "between": slice(5, 17), "in front": slice(0, 9)}.get(
            padding, slice(0, 40)
        )] = False  # fmt: skip
    causal = torch.ones(40, 40, dtype=torch.bool).tril()
    wanted = full_attention(q, k, v, valid, visible=causal)
    assert bool(wanted.isfinite().all())
    assert not bool(wanted.transpose(1, 2)[~valid].any())
    slopes = gradients(wanted, q, k, v)
    for border in (1, 1000):
        monkeypatch.setattr(windowed_attention, "_COMPACT_FROM", border)
        found = full_attention(q, k, v, valid)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
        torch.testing.assert_close(gradients(found, q, k, v), slopes, rtol=0, atol=1e-10)


@pytest.mark.parametrize("N", [9, 100])
def test_u5_a_key_outside_the_window_has_no_gradient(N):
    window, i = 4, N - 1
    q, k, v, valid = operands(1, 2, N, 4, padded=0.0)
    out = sliding_attention(q, k, v, valid, window)
    for grad in torch.autograd.grad(out[0, :, i].square().sum(), (k, v)):
        reached = grad[0].abs().amax((0, 2)) > 0
        assert reached.nonzero().flatten().tolist() == list(range(i - window + 1, i + 1))


def test_padding_is_not_read_and_gets_no_gradient():
    q, k, v, valid = operands(2, 2, 60, 4, padded=0.4)
    for attend in (
        full_attention,
        lambda *x: sliding_attention(*x, window=4),
        lambda *x: sliding_attention(*x, window=60),
    ):
        out = attend(q, k, v, valid)
        for grad in gradients(out, q, k, v):
            assert float(grad.transpose(1, 2)[~valid].abs().sum()) == 0
        other = [torch.where(valid[:, None, :, None], x, 1e3 * x) for x in (q, k, v)]
        torch.testing.assert_close(attend(*other, valid), out, rtol=0, atol=1e-12)


class Attend(nn.Module):
    def __init__(self, window):
        super().__init__()
        self.window = window

    def forward(self, q, k, v, valid):
        if self.window is None:
            return full_attention(q, k, v, valid)
        return sliding_attention(q, k, v, valid, self.window)


@pytest.mark.parametrize(("window", "N"), [(None, 20), (None, 300), (4, 20), (4, 77), (64, 77)])
def test_exports_for_any_number_of_rows(window, N):
    rows = torch.export.Dim("rows", min=1, max=4096)
    module, example = Attend(window), operands(3, 2, N, 4, padded=0.3, dtype=torch.float32)
    with torch.no_grad():
        program = torch.export.export(module, example, dynamic_shapes=[{0: rows}] * 4).module()
        for B in (1, 2, 8):
            q, k, v, valid = operands(B, 2, N, 4, padded=0.3, seed=B, dtype=torch.float32)
            torch.testing.assert_close(program(q, k, v, valid), module(q, k, v, valid))
