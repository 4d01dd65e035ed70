"""Sparse optimisers against twins written from their definitions, with loops and in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fullrank.train.optim import LazyAdam, RowWiseAdagrad, clip_gradients, distinct_rows

Step = list[tuple[int, list[float]]]  # look-ups of one step: row and gradient


def sparse(step: Step, v: int, d: int) -> Tensor:
    ids = torch.tensor([[r for r, _ in step]], dtype=torch.int64)
    values = torch.tensor([g for _, g in step], dtype=torch.float64).reshape(len(step), d)
    return torch.sparse_coo_tensor(ids, values, (v, d), check_invariants=True)


def added_up(step: Step, d: int) -> dict[int, list[float]]:
    out: dict[int, list[float]] = {}
    for row, g in step:
        for i in range(d):
            out.setdefault(row, [0.0] * d)[i] += g[i]
    return out


def adagrad_twin(w: list[list[float]], steps: list[Step], lr: float, eps: float, l2: float) -> None:
    total = [0.0] * len(w)
    for step in steps:
        for row, g in added_up(step, len(w[0])).items():
            g = [a + l2 * b for a, b in zip(g, w[row], strict=True)]
            total[row] += sum(a * a for a in g) / len(g)
            for i, a in enumerate(g):
                w[row][i] -= lr * a / (math.sqrt(total[row]) + eps)


def adam_twin(w: list[list[float]], steps: list[Step], lr: float, eps: float, l2: float) -> None:
    b1, b2 = 0.9, 0.999
    m = [[0.0] * len(w[0]) for _ in w]
    v = [[0.0] * len(w[0]) for _ in w]
    for t, step in enumerate(steps, start=1):
        for row, g in added_up(step, len(w[0])).items():
            for i, a in enumerate(g):
                a += l2 * w[row][i]
                m[row][i] = b1 * m[row][i] + (1 - b1) * a
                v[row][i] = b2 * v[row][i] + (1 - b2) * a * a
                w[row][i] -= (
                    lr * (m[row][i] / (1 - b1**t)) / (math.sqrt(v[row][i] / (1 - b2**t)) + eps)
                )


@st.composite
def runs(draw: Any) -> tuple[list[list[float]], list[Step]]:
    v, d = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    number = st.floats(-2, 2, width=32)
    row = st.lists(number, min_size=d, max_size=d)
    table = draw(st.lists(row, min_size=v, max_size=v))
    look_up = st.tuples(st.integers(0, v - 1), row)
    # a step may read nothing, and may read a row many times
    return table, draw(st.lists(st.lists(look_up, max_size=6), min_size=1, max_size=5))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(("make", "twin"), [(LazyAdam, adam_twin), (RowWiseAdagrad, adagrad_twin)])
@settings(max_examples=40, deadline=None)
@given(run=runs(), l2=st.sampled_from([0.0, 0.3]))
def test_equals_the_loop(make: Any, twin: Any, dense: bool, run: Any, l2: float) -> None:
    start, steps = run
    v, d = len(start), len(start[0])
    if dense:  # an all-zero row of a dense gradient counts as untouched, so drop those look-ups
        steps = [[(r, g) for r, g in step if any(added_up(step, d)[r])] for step in steps]
    expected = [list(row) for row in start]
    twin(expected, steps, 0.1, 1e-4, l2)
    table = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = make([table], lr=0.1, eps=1e-4, l2=l2)
    for step in steps:
        grad = sparse(step, v, d)
        table.grad = grad.to_dense() if dense else grad
        optimizer.step()
    torch.testing.assert_close(
        table.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6
    )


def test_lazy_adam_is_adam_when_every_row_is_read() -> None:
    torch.manual_seed(0)
    start, d = torch.randn(6, 3), 3
    lazy, full = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours = LazyAdam([lazy], lr=0.05, l2=0.1)
    theirs = torch.optim.Adam([full], lr=0.05, weight_decay=0.1)
    for _ in range(5):
        order = torch.cat([torch.randperm(6), torch.randint(0, 6, (4,))])
        lazy.grad = torch.sparse_coo_tensor(
            order[None], torch.randn(10, d), (6, d), check_invariants=True
        )
        full.grad = lazy.grad.to_dense()
        ours.step()
        theirs.step()
    torch.testing.assert_close(lazy, full)


def test_lazy_adam_leaves_unread_rows_alone_where_adam_does_not() -> None:
    start = torch.ones(3, 2)
    lazy, full = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours, theirs = LazyAdam([lazy], lr=0.1), torch.optim.Adam([full], lr=0.1)
    for row in (0, 1):
        lazy.grad = torch.sparse_coo_tensor(
            torch.tensor([[row]]), torch.ones(1, 2), (3, 2), check_invariants=True
        )
        full.grad = lazy.grad.to_dense()
        ours.step()
        theirs.step()
        if row == 0:
            after_one = lazy.detach().clone()
    assert torch.equal(lazy[0], after_one[0])  # not read in step two
    assert not torch.equal(full[0], after_one[0])  # Adam went on moving it
    assert torch.equal(lazy[2], start[2])


def test_distinct_rows_adds_up_repeats() -> None:
    step: Step = [(3, [1.0, 2.0]), (0, [0.5, 0.5]), (3, [10.0, 20.0])]
    rows, sums = distinct_rows(sparse(step, 5, 2))
    assert rows.tolist() == [0, 3]
    assert sums.tolist() == [[0.5, 0.5], [11.0, 22.0]]


@settings(max_examples=40, deadline=None)
@given(run=runs(), limit=st.floats(0.01, 5))
def test_clipping_equals_the_dense_norm(run: Any, limit: float) -> None:
    start, (step, *_) = run
    v, d = len(start), len(start[0])
    table = torch.nn.Parameter(torch.zeros(v, d, dtype=torch.float64))
    bias = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    table.grad, bias.grad = sparse(step, v, d), torch.tensor([1.0, -2.0], dtype=torch.float64)
    squares = 1.0 + 4.0
    for g in added_up(step, d).values():
        for a in g:
            squares += a * a
    before = table.grad.to_dense()
    norm = clip_gradients([("table", table), ("bias", bias)], limit)
    assert norm == pytest.approx(math.sqrt(squares))
    scale = min(1.0, limit / math.sqrt(squares))
    torch.testing.assert_close(table.grad.to_dense(), before * scale)
    assert bias.grad[1].item() == pytest.approx(-2.0 * scale)
