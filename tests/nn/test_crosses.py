"""Each interaction against a twin written from the paper with loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fullrank.nn.crosses import CIN, Cross, LowRankCross, PairDots, pair_sum

shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31))
fast = settings(max_examples=15, deadline=None, derandomize=True)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@fast
@given(shapes)
def test_pair_sum_adds_up_all_pairs(case: tuple[int, int, int, int]) -> None:
    rows, fields, dim, seed = case
    v = draw(rows, fields, dim, seed=seed)
    x, twin = v.tolist(), [[0.0] * dim for _ in range(rows)]
    for b in range(rows):
        for i in range(fields):
            for j in range(i + 1, fields):
                for d in range(dim):
                    twin[b][d] += x[b][i][d] * x[b][j][d]
    torch.testing.assert_close(pair_sum(v), torch.tensor(twin, dtype=v.dtype))


@pytest.mark.parametrize("both_ways", [False, True])
@fast
@given(shapes)
def test_u4_a_right_operand_of_its_own_is_the_loop_over_rows_and_pairs(
    both_ways: bool, case: tuple[int, int, int, int]
) -> None:
    rows, fields, dim, seed = case
    left, right = draw(rows, fields, dim, seed=seed), draw(rows, fields, dim, seed=seed + 1)
    sums = torch.zeros(rows, dim, dtype=left.dtype)
    dots: list[list[float]] = [[] for _ in range(rows)]
    for b in range(rows):
        for i in range(fields):
            for j in range(i + 1, fields):
                product = left[b, i] * right[b, j]
                if both_ways:
                    product = product + left[b, j] * right[b, i]
                sums[b] += product
                dots[b].append(float(product.sum()))
    torch.testing.assert_close(pair_sum(left, right, both_ways=both_ways), sums)
    found = PairDots(fields)(left, right, both_ways=both_ways)
    torch.testing.assert_close(found, torch.tensor(dots, dtype=left.dtype).reshape(rows, -1))


def test_one_operand_or_the_same_one_twice_are_the_same_bits() -> None:
    v = draw(3, 5, 4, seed=0).float()
    assert torch.equal(pair_sum(v), pair_sum(v, v))
    assert torch.equal(PairDots(5)(v), PairDots(5)(v, v))
    cin = CIN(5, (3, 2))
    assert torch.equal(cin(v), cin(v, [v, v]))


@fast
@given(shapes)
def test_pair_dots_come_in_reading_order(case: tuple[int, int, int, int]) -> None:
    rows, fields, dim, seed = case
    v = draw(rows, fields, dim, seed=seed)
    twin = [
        [sum(p * q for p, q in zip(x[i], x[j], strict=True)) for i in range(fields)
         for j in range(i + 1, fields)]
        for x in v.tolist()
    ]  # fmt: skip
    pairs = PairDots(fields)
    assert pairs.num_pairs == len(twin[0])
    expected = torch.tensor(twin, dtype=v.dtype).reshape(rows, -1)
    torch.testing.assert_close(pairs(v), expected)


@fast
@given(shapes, st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_cin_follows_equations_6_and_8(case: tuple[int, int, int, int], maps: list[int]) -> None:
    rows, fields, dim, seed = case
    v = draw(rows, fields, dim, seed=seed)
    cin = CIN(fields, tuple(maps)).double()
    twin = []
    for x0 in v.tolist():
        x, pooled = x0, []
        for k, width in enumerate(maps):
            w = cin.weights[k].reshape(width, len(x), fields).tolist()
            x = [
                [sum(w[h][i][j] * x[i][d] * x0[j][d]
                     for i in range(len(x)) for j in range(fields))
                 for d in range(dim)]
                for h in range(width)
            ]  # fmt: skip
            pooled += [sum(row) for row in x]
        twin.append(pooled)
    assert cin.out_dim == sum(maps)
    torch.testing.assert_close(cin(v), torch.tensor(twin, dtype=v.dtype))


def test_u4_every_layer_of_a_cin_meets_its_own_left_operand() -> None:
    rows, fields, dim, maps = 2, 4, 3, (3, 2)
    v = draw(rows, fields, dim, seed=0)
    lefts = [draw(rows, fields, dim, seed=1), draw(rows, fields, dim, seed=2)]
    cin = CIN(fields, maps).double()
    twin = []
    for b in range(rows):
        x, pooled = v[b], []
        for k, width in enumerate(maps):
            w = cin.weights[k].reshape(width, len(x), fields)
            x = torch.stack([
                sum(w[h, i, j] * x[i] * lefts[k][b, j]
                    for i in range(len(x)) for j in range(fields))
                for h in range(width)
            ])  # fmt: skip
            pooled.append(x.sum(1))
        twin.append(torch.cat(pooled))
    torch.testing.assert_close(cin(v, lefts), torch.stack(twin))


@fast
@given(shapes)
def test_cross_follows_equation_1(case: tuple[int, int, int, int]) -> None:
    rows, dim, _, seed = case
    x0, x = draw(rows, dim, seed=seed), draw(rows, dim, seed=seed + 1)
    layer = Cross(dim).double()
    torch.nn.init.normal_(layer.linear.bias)
    w, b = layer.linear.weight.tolist(), layer.linear.bias.tolist()
    twin = [
        [p[i] * (sum(w[i][j] * q[j] for j in range(dim)) + b[i]) for i in range(dim)]
        for p, q in zip(x0.tolist(), x.tolist(), strict=True)
    ]
    torch.testing.assert_close(layer(x0, x), torch.tensor(twin, dtype=x.dtype))


@pytest.mark.parametrize("experts", [1, 3])
def test_low_rank_cross_follows_equations_3_and_4(experts: int) -> None:
    rows, dim, rank = 4, 5, 2
    x0, x = draw(rows, dim, seed=0), draw(rows, dim, seed=1)
    layer = LowRankCross(dim, rank, experts).double()
    torch.nn.init.normal_(layer.up.bias)
    down = layer.down.weight.reshape(experts, rank, dim).tolist()  # V transposed
    inner, up = layer.inner.tolist(), layer.up.weight.reshape(dim, experts, rank).tolist()
    bias = layer.up.bias.tolist()
    twin = []
    for p, q in zip(x0.tolist(), x.tolist(), strict=True):
        gates = [1.0]
        if layer.gate is not None:
            g, c = layer.gate.weight.tolist(), layer.gate.bias.tolist()
            e = [math.exp(sum(g[k][j] * q[j] for j in range(dim)) + c[k]) for k in range(experts)]
            gates = [value / sum(e) for value in e]
        total = [0.0] * dim
        for k in range(experts):
            low = [math.tanh(sum(down[k][r][j] * q[j] for j in range(dim))) for r in range(rank)]
            low = [
                math.tanh(sum(inner[k][s][r] * low[r] for r in range(rank))) for s in range(rank)
            ]
            for i in range(dim):
                expert = p[i] * (sum(up[i][k][r] * low[r] for r in range(rank)) + bias[i])
                total[i] += gates[k] * expert
        twin.append(total)
    torch.testing.assert_close(layer(x0, x), torch.tensor(twin, dtype=x.dtype))


def test_one_expert_has_no_gate() -> None:
    assert LowRankCross(3, 2, 1).gate is None
    assert LowRankCross(3, 2, 2).gate is not None
