"""Cached layers and blocks against the plain parts, values and gradients, in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fullrank.nn import cached_block, cached_layers
from fullrank.nn.cached_layers import relu_layers
from fullrank.nn.dropout import keep_scale, kept_into
from fullrank.nn.patches import PatchEncoder

WIDTHS = (3, 8, 6, 2)


def layers(rows: int, seed: int = 0) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    weights = [draw(i, o) for i, o in pairwise(WIDTHS)]
    return draw(rows, WIDTHS[0]), weights, [draw(o) for o in WIDTHS[1:]]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_layers, "CHUNK", 4)
    monkeypatch.setattr(cached_block, "_CHUNK", 12)


def slow(x: Tensor, weights: list[Tensor], biases: list[Tensor], masks: list[Tensor]) -> Tensor:
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = x @ weight + bias
        if i < len(masks):
            x = x.relu() * masks[i]
    return x


@pytest.mark.parametrize("rows", [0, 1, 4, 11])
def test_layers_are_the_plain_ones(rows: int) -> None:
    x, weights, biases = layers(rows)
    read = [x, *weights, *biases]
    found = relu_layers(x, weights, biases)
    expected = slow(x, weights, biases, [torch.ones(1)] * 2)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(found.shape, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(found, read, cotangent),
        torch.autograd.grad(expected, read, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("parts", [1, 2])
def test_dropped_units_have_the_masks_of_the_draws(parts: int, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    x, weights, biases = layers(11)
    drawn: list[Tensor] = []
    plain = kept_into

    def seen(mask: Tensor, p: float) -> Tensor:
        drawn.append(plain(mask, p).clone())
        return mask

    monkeypatch.setattr(cached_layers, "kept_into", seen)
    found = relu_layers(x, weights, biases, dropout=0.25, parts=parts)
    masks = []
    for i in range(2):  # chunk by chunk, layer by layer
        mask = torch.cat(drawn[i::2]) * keep_scale(0.25)  # [rows, 1, width / parts]
        masks.append(mask.expand(-1, parts, -1).flatten(1))
    assert 0.1 < float((torch.cat([m.flatten() for m in masks]) == 0).double().mean()) < 0.4
    expected = slow(x, weights, biases, masks)
    torch.testing.assert_close(found, expected)
    read = [x, *weights, *biases]
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), read),
        torch.autograd.grad(expected.square().sum(), read),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_parts_for_other_devices_drop_the_same_share(parts: int) -> None:
    torch.manual_seed(0)
    h = torch.ones(200, 100)
    out = cached_layers._masked(h, 0.25, parts)
    assert torch.equal(out[:, :50], out[:, 50:]) == (parts == 2)
    torch.testing.assert_close(out[out > 0], torch.full_like(out[out > 0], 4 / 3))
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)


def encoder(P: int, dropout: float = 0.0) -> PatchEncoder:
    torch.manual_seed(0)
    module = PatchEncoder(6, 2, P, dropout).double()
    for parameter in module.parameters():
        parameter.data = 0.7 * torch.randn_like(parameter)
    return module


def patches(M: int, P: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(M, P, 6, generator=g, dtype=torch.float64).requires_grad_()
    seen = (torch.rand(M, 1, P, generator=g) < 0.6) | torch.eye(P, dtype=torch.bool)
    return x, seen


@pytest.mark.parametrize(("M", "P"), [(1, 1), (9, 3), (8, 5), (3, 20)])
def test_the_block_is_its_parts(M: int, P: int) -> None:
    e, (x, seen) = encoder(P), patches(M, P)
    read = [x, *(p for name, p in e.named_parameters() if not name.startswith("out"))]
    found, expected = e._cached(x, seen), e._in_parts(x, seen)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(found.shape, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(found, read, cotangent),
        torch.autograd.grad(expected, read, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_the_block_with_dropout_differentiates_what_it_computed() -> None:
    e, (x, seen) = encoder(3, 0.4).train(), patches(5, 3)

    def once(*read: Tensor) -> Tensor:
        torch.manual_seed(5)  # the same draws at every call
        out: Tensor = e._cached(read[0], seen)
        return out

    read = (x, *(p for name, p in e.named_parameters() if not name.startswith("out")))
    assert torch.autograd.gradcheck(once, read, fast_mode=False, atol=1e-6)
    assert not torch.allclose(once(x), e.eval()._cached(x, seen))


class Times(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@pytest.mark.parametrize(("drawn", "factor"), [(-(1 << 15), keep_scale(0.4)), ((1 << 15) - 1, 0.0)])
def test_what_is_kept_is_scaled_at_all_three_places(drawn, factor, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    e, (x, seen) = encoder(3, 0.4).train(), patches(9, 3)
    monkeypatch.setattr(
        cached_block, "draw", lambda size: torch.full((size,), drawn, dtype=torch.int16)
    )
    found = e._cached(x, seen)
    e.dropout = Times(factor)  # type: ignore[assignment]
    torch.testing.assert_close(found, e._in_parts(x, seen))


def test_dropout_keeps_the_mean_and_the_variance_of_what_the_parts_compute() -> None:
    e, (x, seen) = encoder(3, 0.4).train(), patches(6, 3)
    with torch.no_grad():
        sides = []
        for read in (e._cached, e._in_parts):
            torch.manual_seed(0)
            sides.append(torch.stack([read(x, seen) for _ in range(500)]))
    spread = sides[1].std(0)
    assert float(((sides[0].mean(0) - sides[1].mean(0)).abs() / spread).max()) < 0.3
    assert float((sides[0].std(0) / spread).min()) > 0.85
    assert float((sides[0].std(0) / spread).max()) < 1.15
