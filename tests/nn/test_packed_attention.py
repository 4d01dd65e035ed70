"""Attention without padding is attention with padding, less the padding."""

from __future__ import annotations

import pytest
import torch

from fullrank.nn.packed_attention import Packing, length_buckets
from fullrank.nn.windowed_attention import full_attention


def rectangle(lengths, width=60, seed=0):
    """Rows with padding in front, between and behind: where is drawn."""
    draw = torch.Generator().manual_seed(seed)
    keys = torch.rand(len(lengths), width, generator=draw)
    valid = keys.argsort(1).argsort(1) < torch.tensor(lengths)[:, None]
    qkv = [
        torch.randn(len(lengths), width, 2, 4, generator=draw, dtype=torch.float64) for _ in "qkv"
    ]
    return valid, [x.requires_grad_() for x in qkv]


@pytest.mark.parametrize("window", [None, 1, 3, 20, 500])
@pytest.mark.parametrize("lengths", [(1,), (60, 60), (1, 50, 17, 33, 2, 16, 60)])
def test_packed_attention_is_masked_attention(window, lengths):
    valid, qkv = rectangle(lengths)
    place = valid.cumsum(1)
    near = place[:, :, None] - place[:, None, :] < (window or 10**6)
    visible = (near & torch.ones(60, 60, dtype=torch.bool).tril()).unsqueeze(1)
    wanted = full_attention(*(x.transpose(1, 2) for x in qkv), valid, visible=visible)
    packing = Packing(valid)
    assert packing.row.tolist() == [b for b, n in enumerate(lengths) for _ in range(n)]
    packed = [packing.pack(x).transpose(1, 2) for x in qkv]  # [1, H, S, d]
    out = packing.full(*packed) if window is None else packing.sliding(*packed, window)
    assert out.shape == (1, 2, sum(lengths), 4)
    found = packing.unpack(out.transpose(1, 2).flatten(2)).unflatten(2, (2, 4)).transpose(1, 2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    weight = torch.randn(wanted.shape, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((found * weight).sum(), qkv),
        torch.autograd.grad((wanted * weight).sum(), qkv),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_layers_share_the_rectangles():
    valid, qkv = rectangle((5, 40))
    packing = Packing(valid)
    packed = [packing.pack(x).transpose(1, 2) for x in qkv]
    first, kept = packing.full(*packed), packing._rectangles
    assert torch.equal(first, packing.full(*packed))
    assert packing._rectangles is kept


def test_buckets_hold_every_row_once_and_rows_of_similar_length():
    lengths = torch.randint(1, 300, (500,), generator=torch.Generator().manual_seed(0))
    buckets = length_buckets(lengths)
    assert torch.cat(buckets).sort().values.tolist() == list(range(500))
    filled = 0
    for rows in buckets:
        rounded = (lengths[rows] + 15) // 16 * 16
        assert float(rounded.max() / rounded.min()) < 1.25
        filled += len(rows) * int(rounded.max())
    assert filled < 1.25 * float(lengths.sum()) < 500 * 299
    assert [b.tolist() for b in length_buckets(torch.tensor([3, 3, 3]))] == [[0, 1, 2]]
