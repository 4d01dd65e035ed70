"""Rotary positions: scores see distances, norms stay."""

from __future__ import annotations

import math

import pytest
import torch

from fullrank.errors import ConfigError
from fullrank.nn.rotary import Rotary


def test_the_rotation_is_that_of_the_paper():
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    position = torch.tensor([0, 0, 1, 7, 300])
    found = Rotary(6, base=100.0)(x, position)
    for n, p in enumerate(position.tolist()):
        for i in range(3):
            turn = p * 100.0 ** (-2 * i / 6)
            matrix = torch.tensor(
                [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]],
                dtype=torch.float64,
            )
            pair = x[:, :, n, 2 * i : 2 * i + 2]
            torch.testing.assert_close(found[:, :, n, 2 * i : 2 * i + 2], pair @ matrix.T)


def test_a_score_depends_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    rotary = Rotary(8)

    def score(i, j):
        return float((rotary(q, torch.tensor([i])) * rotary(k, torch.tensor([j]))).sum())

    assert score(3, 1) == pytest.approx(score(1003, 1001), abs=1e-9)
    assert abs(score(3, 1) - score(1, 3)) > 1e-6
    assert score(5, 5) == pytest.approx(float((q * k).sum()))


def test_norms_stay_and_position_zero_turns_nothing():
    x, position = torch.randn(2, 2, 7, 4), torch.tensor([[0, 1, 2, 3, 4, 5, 4096]] * 2)
    turned = Rotary(4)(x, position)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    assert not torch.allclose(turned[:, :, 1], x[:, :, 1])


def test_positions_per_row_and_in_common_agree_and_angles_are_shared():
    rotary, x = Rotary(4), torch.randn(3, 2, 5, 4)
    common = torch.tensor([0, 0, 1, 2, 9])
    each = torch.stack([common, common + 1, common * 2])
    found = rotary.rotate(x, *rotary.angles(each))
    for b in range(3):
        torch.testing.assert_close(found[b : b + 1], rotary(x[b : b + 1], each[b]))
    assert torch.equal(rotary(x, common), rotary.rotate(x, *rotary.angles(common)))


def test_the_memory_layout_stays_and_gradients_turn_back():
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64).transpose(1, 2).requires_grad_()
    rotary, position = Rotary(4), torch.arange(5)
    out = rotary(x, position)
    grad = torch.randn_like(out)
    (back,) = torch.autograd.grad(out, x, grad)
    torch.testing.assert_close(back, rotary(grad, -position))
    assert out.stride() == x.stride()


def test_exported_and_half_precision_rotations_are_the_same():
    x, position, rotary = torch.randn(2, 3, 2, 5, 4), torch.arange(5), Rotary(4)

    class Turn(torch.nn.Module):
        def forward(self, x, position):
            return rotary(x, position)

    program = torch.export.export(Turn(), (x, position))
    assert "complex" not in str(program.graph)
    torch.testing.assert_close(program.module()(x, position), rotary(x, position))
    half = rotary(x.bfloat16(), position)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), rotary(x, position), rtol=0, atol=0.05)
    far = rotary(x.bfloat16(), position + 301)
    torch.testing.assert_close(far.float(), rotary(x, position + 301), rtol=0, atol=0.05)


def test_an_odd_width_is_refused():
    with pytest.raises(ConfigError, match="even"):
        Rotary(5)
