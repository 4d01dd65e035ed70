"""The time branch against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fullrank.nn.patches import PatchEncoder, PatchForecast, sinusoids

D, H = 4, 2


def encoder(longest: int = 3) -> PatchEncoder:
    torch.manual_seed(0)
    module = PatchEncoder(D, H, longest, 0.0).double()
    for parameter in module.parameters():
        parameter.data = 0.7 * torch.randn_like(parameter)
    return module


def steps(*shape: int) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def layer_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    away = x - x.mean()
    return away / torch.sqrt(away.square().mean() + norm.eps) * norm.weight + norm.bias


@torch.no_grad()
def one_patch(e: PatchEncoder, x: Tensor, valid: list[bool]) -> Tensor:
    """Encodes [P, D]: position by position, head by head, the linear layer before the sum."""
    P, d = len(x), D // H
    x = x + e.position[len(e.position) - P :]
    projected = x @ e.project.weight.T  # [P, 3 D]
    out = torch.zeros(D, dtype=torch.float64)
    for i in range(P):
        mixed = torch.zeros(D, dtype=torch.float64)
        for h in range(H):
            part = slice(h * d, (h + 1) * d)
            q = projected[i, :D][part]
            seen = [j for j in range(P) if valid[j] or j == i]
            scores = [float(q @ projected[j, D : 2 * D][part]) / math.sqrt(d) for j in seen]
            total = sum(math.exp(s) for s in scores)
            for j, s in zip(seen, scores, strict=True):
                mixed[part] += math.exp(s) / total * projected[j, 2 * D :][part]
        y = layer_norm(x[i] + e.attended.weight @ mixed + e.attended.bias, e.norm1)
        inner = e.up.weight @ y + e.up.bias
        inner = torch.where(inner > 0, inner, 0.01 * inner)
        y = layer_norm(y + e.down.weight @ inner + e.down.bias, e.norm2)
        out += e.out.weight @ y + e.out.bias
    return out


@pytest.mark.parametrize("P", [1, 2, 3])
def test_the_encoder_is_the_block_position_by_position(P: int) -> None:
    e, x = encoder(), steps(4, P, D)
    valid = torch.tensor([[True] * P, [False] * P, [False] * (P - 1) + [True], [True] * P])
    expected = torch.stack([one_patch(e, x[m], valid[m].tolist()) for m in range(4)])
    torch.testing.assert_close(e(x, valid), expected)


def test_other_events_do_not_see_padding() -> None:
    e, x = encoder(), steps(1, 3, D)
    valid = torch.tensor([[False, True, True]])
    moved = x.clone()
    moved[0, 0] += 1.0
    change = e(moved, valid) - e(x, valid)
    alone = one_patch(e, moved[0], valid[0].tolist()) - one_patch(e, x[0], valid[0].tolist())
    torch.testing.assert_close(change[0], alone)
    seen = torch.ones(1, 3, dtype=torch.bool)
    assert not torch.allclose(e(moved, seen) - e(x, seen), change)


@pytest.mark.parametrize(("length", "patch"), [(6, 3), (7, 3), (5, 2), (1, 3), (4, 1)])
def test_patches_are_cut_from_the_newest_end(length: int, patch: int) -> None:
    e, batch, future = encoder(), 2, 2
    forecast = PatchForecast(length, patch, future, (5,), 0.0).double()
    x = steps(batch, length, D)
    valid = torch.arange(length) >= torch.tensor([[0], [length // 2]])
    count = math.ceil(length / patch)
    for b in range(batch):
        encoded = []
        for n in range(count):
            places = range(length - (count - n) * patch, length - (count - n - 1) * patch)
            rows = [x[b, p] if p >= 0 else torch.zeros(D, dtype=torch.float64) for p in places]
            known = [p >= 0 and bool(valid[b, p]) for p in places]
            encoded.append(one_patch(e, torch.stack(rows), known))
        (inner, _), outer = forecast.over_patches[0].layers, forecast.over_patches[1]
        stacked = torch.stack(encoded, dim=1)  # [D, n]
        hidden = functional.relu(stacked @ inner.weight.T + inner.bias)
        expected = hidden @ outer.weight.T + outer.bias  # [D, future]
        torch.testing.assert_close(forecast(x, valid, e)[b], expected)


def test_sinusoids_are_those_of_the_transformer() -> None:
    for dim in (4, 5):
        table = sinusoids(6, dim)
        assert table.shape == (6, dim)
        for p in range(6):
            for i in range(dim):
                angle = p / 10_000 ** (2 * (i // 2) / dim)
                expected = math.sin(angle) if i % 2 == 0 else math.cos(angle)
                assert float(table[p, i]) == pytest.approx(expected, abs=1e-5)
    assert torch.equal(PatchEncoder(D, H, 6, 0.0).position, sinusoids(6, D))
