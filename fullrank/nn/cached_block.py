"""One transformer block inside each of very many short patches, a few patches at a time.

The time branch of FEDIN, arXiv:2605.01726, has as many positions as all histories have events.
PyTorch's parts pass some forty times over tensors far larger than the cache. On a CPU this takes a
chunk of patches through the whole block before the next one; the results are the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fullrank.nn.dropout import draw, keep, keep_scale

_CHUNK = 1024  # positions whose temporaries stay in the cache
_EPS = 1e-5  # of both norms, as in torch.nn.LayerNorm
_SLOPE = 0.01  # of the activation below zero, as in torch.nn.functional.leaky_relu


class Block(NamedTuple):
    """What a block learns; matrices are [in, out], so that rows stand on their left.

    Args:
        position: [P, D].
        project: [D, 3 * D], to queries, keys and values.
        attended, attended_bias: [D, D] and [D], behind the attention.
        scale1, shift1: [D], the norm behind it.
        up, up_bias, down, down_bias: [D, D] and [D].
        scale2, shift2: [D], the last norm.
    """

    position: Tensor
    project: Tensor
    attended: Tensor
    attended_bias: Tensor
    scale1: Tensor
    shift1: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor
    scale2: Tensor
    shift2: Tensor


def encode_patches(x: Tensor, unseen: Tensor, block: Block, heads: int, dropout: float) -> Tensor:
    """Takes patches through the block and adds up their positions.

    Args:
        x: [M, P, D].
        unseen: [P, M, P], key first: 0 where the query sees the key, else minus infinity.
        block: parameters.
        heads: H, a divisor of D.
        dropout: on attention weights and on what the residuals add; 0 at evaluation.

    Returns:
        [M, D].
    """
    kept = keep_scale(dropout)
    scaled = block._replace(
        attended=block.attended * (kept * kept),  # of the weights, and of the residual
        attended_bias=block.attended_bias * kept,
        down=block.down * kept,
        down_bias=block.down_bias * kept,
    )
    out: Tensor = _CachedBlock.apply(x, unseen, heads, dropout, *scaled)  # type: ignore[no-untyped-call]
    return out


class _Kept(NamedTuple):
    """What a chunk of R = m * P positions keeps for the way back."""

    entry: Tensor  # [R, D] with positions
    qkv: Tensor  # [R, 3 D]
    weights: Tensor  # [P, H, m, P], key first
    dropped: Tensor  # [H, m, P, P], the same after dropout, key last
    mixed: Tensor  # [R, D] behind the attention
    sum1: Tensor  # [R, D] before the first norm
    mean1: Tensor
    rate1: Tensor
    middle: Tensor  # [R, D] behind it
    inner: Tensor  # [R, D] behind the activation
    sum2: Tensor  # [R, D] before the second norm
    mean2: Tensor
    rate2: Tensor
    draws: Tensor | None  # [2 R D + P H m P] int16, of dropout


class _CachedBlock(torch.autograd.Function):
    """A chunk of patches at a time; masks are drawn as numbers and made again on the way back."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, unseen: Tensor, heads: int, p: float, *block: Tensor
    ) -> Tensor:
        b, size = Block(*block), max(1, _CHUNK // x.shape[1])
        out, chunks = x.new_empty(x.shape[0], x.shape[2]), []
        for xi, oi, ui in zip(
            *(torch.split(t, size) for t in (x, out)), torch.split(unseen, size, 1), strict=True
        ):
            chunks.append(_encode(xi, ui, b, heads, p, oi))
        ctx.heads, ctx.p, ctx.chunks, ctx.size = heads, p, chunks, size
        ctx.save_for_backward(*block)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        b = Block(*ctx.saved_tensors)
        grads = Block(*(torch.zeros_like(t) for t in b))
        P, D = b.position.shape
        to_x = g.new_empty(g.shape[0], P, D)
        for gi, oi, c in zip(
            *(torch.split(t, ctx.size) for t in (g, to_x)), ctx.chunks, strict=True
        ):
            _differentiate(gi, c, b, grads, ctx.heads, ctx.p, oi)
        return to_x, None, None, None, *grads


def _encode(x: Tensor, unseen: Tensor, b: Block, heads: int, p: float, out: Tensor) -> _Kept:
    m, P, D = x.shape
    R, one = m * P, x.new_empty(m * P, D)
    draws = draw(2 * R * D + P * heads * m * P) if p > 0.0 else None
    entry = (x + b.position).view(R, D)
    qkv = entry @ b.project  # [R, 3 D]
    scores = x.new_empty(heads, m, P, P)
    for h, (q, k, _) in enumerate(_heads(qkv, heads, m, P)):
        torch.bmm(q, k.mT, out=scores[h])
    # Softmax over the first dimension of four: over five numbers in a row it is 7 times slower.
    scores = scores.permute(3, 0, 1, 2).contiguous().mul_((D // heads) ** -0.5)
    weights = scores.add_(unseen.unsqueeze(1)).softmax(0)
    kept = weights
    if draws is not None:
        kept = keep(draws[2 * R * D :].view(weights.shape), p, scores).mul_(weights)
    dropped = kept.permute(1, 2, 3, 0).contiguous()
    mixed = x.new_empty(R, D)
    parts = mixed.view(m, P, heads, -1)
    for h, (_, _, v) in enumerate(_heads(qkv, heads, m, P)):
        parts[:, :, h] = torch.bmm(dropped[h], v)
    sum1 = torch.addmm(b.attended_bias, mixed, b.attended)
    _drop(sum1, draws, 0, p, one)
    sum1.add_(entry)
    middle, mean1, rate1 = torch.native_layer_norm(sum1, [D], b.scale1, b.shift1, _EPS)
    inner = F.leaky_relu_(torch.addmm(b.up_bias, middle, b.up), _SLOPE)
    sum2 = torch.addmm(b.down_bias, inner, b.down)
    _drop(sum2, draws, R * D, p, one)
    sum2.add_(middle)
    last, mean2, rate2 = torch.native_layer_norm(sum2, [D], b.scale2, b.shift2, _EPS)
    torch.sum(last.view(m, P, D), dim=1, out=out)
    return _Kept(entry, qkv, weights, dropped, mixed, sum1, mean1, rate1, middle, inner, sum2,
                 mean2, rate2, draws)  # fmt: skip


def _differentiate(
    g: Tensor, c: _Kept, b: Block, to: Block, heads: int, p: float, out: Tensor
) -> None:
    """Writes the gradient of a chunk into `out` [m, P, D], and adds to those of the block."""
    m, P, D = out.shape
    R, one = m * P, g.new_empty(m * P, D)
    ones = g.new_ones(1, R)
    last = one.new_empty(m, P, D).copy_(g.unsqueeze(1)).view(R, D)
    g_sum2, s, t = _norm_back(last, c.sum2, c.mean2, c.rate2, b.scale2, b.shift2)
    to.scale2.add_(s)
    to.shift2.add_(t)
    g_down = _drop(last.copy_(g_sum2), c.draws, R * D, p, one)
    to.down.addmm_(c.inner.T, g_down)
    to.down_bias.view(1, D).addmm_(ones, g_down)
    g_inner = torch.mm(g_down, b.down.T)
    g_inner = torch.ops.aten.leaky_relu_backward(g_inner, c.inner, _SLOPE, True)
    to.up.addmm_(c.middle.T, g_inner)
    to.up_bias.view(1, D).addmm_(ones, g_inner)
    g_middle = g_sum2.addmm_(g_inner, b.up.T)
    g_sum1, s, t = _norm_back(g_middle, c.sum1, c.mean1, c.rate1, b.scale1, b.shift1)
    to.scale1.add_(s)
    to.shift1.add_(t)
    g_attended = _drop(last.copy_(g_sum1), c.draws, 0, p, one)
    to.attended.addmm_(c.mixed.T, g_attended)
    to.attended_bias.view(1, D).addmm_(ones, g_attended)
    g_qkv = _attention_back(torch.mm(g_attended, b.attended.T), c, heads, p, m)
    to.project.addmm_(c.entry.T, g_qkv)
    torch.addmm(g_sum1, g_qkv, b.project.T, out=out.view(R, D))
    to.position.view(1, P * D).addmm_(g.new_ones(1, m), out.view(m, P * D))


def _attention_back(g: Tensor, c: _Kept, heads: int, p: float, m: int) -> Tensor:
    """Returns the gradient [R, 3 D] of queries, keys and values."""
    P = c.weights.shape[0]
    parts = g.view(m, P, heads, -1)
    to_qkv = torch.empty_like(c.qkv)
    to = to_qkv.view(m, P, 3, heads, -1)
    g_weights = g.new_empty(c.dropped.shape)
    for h, (_, _, v) in enumerate(_heads(c.qkv, heads, m, P)):
        torch.bmm(parts[:, :, h], v.mT, out=g_weights[h])
        to[:, :, 2, h] = torch.bmm(c.dropped[h].mT, parts[:, :, h])
    moved = g_weights.permute(3, 0, 1, 2).contiguous()  # key first
    if c.draws is not None:
        moved.mul_(keep(c.draws[-moved.numel() :].view(moved.shape), p, torch.empty_like(moved)))
    g_scores = torch._softmax_backward_data(moved, c.weights, 0, g.dtype)
    g_weights.copy_(g_scores.mul_(parts.shape[3] ** -0.5).permute(1, 2, 3, 0))
    for h, (q, k, _) in enumerate(_heads(c.qkv, heads, m, P)):
        to[:, :, 0, h] = torch.bmm(g_weights[h], k)
        to[:, :, 1, h] = torch.bmm(g_weights[h].mT, q)
    return to_qkv


def _heads(qkv: Tensor, heads: int, m: int, P: int) -> list[tuple[Tensor, ...]]:
    """Returns q, k and v [m, P, d] of each head: views, which a product reads as they lie."""
    parts = qkv.view(m, P, 3, heads, -1)
    return [parts[:, :, :, h].unbind(2) for h in range(heads)]


def _drop(x: Tensor, draws: Tensor | None, start: int, p: float, mask: Tensor) -> Tensor:
    if draws is not None:
        x.mul_(keep(draws[start : start + x.numel()].view(x.shape), p, mask))
    return x


def _norm_back(
    g: Tensor, x: Tensor, mean: Tensor, rate: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_layer_norm_backward(
        g, x, [x.shape[1]], mean, rate, scale, shift, [True, True, True]
    )
    return grads
