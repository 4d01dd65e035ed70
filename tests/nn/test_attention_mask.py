"""What the layers of a full-then-sliding network let their tokens see."""

from __future__ import annotations

import pytest
import torch

from fullrank.errors import ConfigError
from fullrank.nn.attention_mask import Visibility, attention_flops, visible_pairs

# Two field tokens, a separator, four behaviours, a separator, one target.
FULL = [list(range(i + 1)) for i in range(9)]
SLIDING = {
    4: [[0], [0, 1], [2], [2, 3], [2, 3, 4]] + [list(range(i - 3, i + 1)) for i in range(5, 9)],
    2: [[0], [0, 1], [2], [2, 3], [3, 4], [4, 5], [5, 6], [6, 7], [7, 8]],
}  # fmt: skip


def seen(matrix):
    return [row.nonzero().flatten().tolist() for row in matrix]


def test_u1_the_worked_example():
    full = Visibility(num_static=2).matrix(9)
    assert seen(full) == FULL
    assert torch.equal(full, full.tril())
    for window, table in SLIDING.items():
        found = Visibility(num_static=2, window=window, discard_static=True).matrix(9)
        assert seen(found) == table


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("M", [0, 2, 6])
@pytest.mark.parametrize("separator", [False, True])
@pytest.mark.parametrize("both_ways", [False, True])
def test_u1_every_token_sees_itself_and_the_rule_holds(window, M, separator, both_ways):
    rule = Visibility(
        num_static=M, window=window, discard_static=True, discard_separator=separator,
        static_bidirectional=both_ways,
    )  # fmt: skip
    found, last = rule.matrix(12), M + separator
    assert bool(found.diagonal().all())
    for i in range(12):
        for j in range(12):
            order = j <= i or (both_ways and i < M and j < M)
            near = window is None or abs(i - j) < window
            assert bool(found[i, j]) == (order and near and not (i >= last and j < last))


def test_the_window_alone_keeps_field_tokens_in_sight():
    assert seen(Visibility(num_static=2, window=4).matrix(9))[3:6] == [
        [0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5],
    ]  # fmt: skip


def test_field_tokens_may_see_one_another_both_ways():
    found = seen(Visibility(num_static=3, static_bidirectional=True).matrix(5))
    assert found == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("window", [None, 1, 2, 7, 30])
def test_u9_what_is_counted_is_what_the_mask_lets_through(window):
    matrix = Visibility(num_static=0, window=window).matrix(30)
    assert visible_pairs(30, window) == int(matrix.sum())
    assert attention_flops(30, window, 8) == 32 * int(matrix.sum())


def test_u9_a_sliding_layer_grows_with_n_times_w_and_fewer_full_layers_cost_less():
    def layers(*windows, length=83):
        return sum(attention_flops(length, w, 64) for w in windows)

    assert layers(32, length=4096) / layers(32, length=2048) == pytest.approx(2, rel=0.01)
    assert layers(64, length=4096) / layers(32, length=4096) == pytest.approx(2, rel=0.02)
    assert layers(None, length=4096) / layers(None, length=2048) == pytest.approx(4, rel=0.01)
    assert layers(None, None, 32, 16) < layers(None, None, None, 32) < layers(*[None] * 4)


def test_impossible_rules_are_refused():
    for wrong in (
        {"num_static": -1},
        {"num_static": 2, "window": 0},
        {"num_static": 2, "discard_separator": True},
    ):
        with pytest.raises(ConfigError):
            Visibility(**wrong)
