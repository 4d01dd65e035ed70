"""Recurrences over rows of unequal length against loops over rows, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.nn.recurrent import GatedRecurrence, steps_of

KINDS = ("GRU", "AUGRU", "AGRU")


def offsets_of(lengths):
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)


def make(lengths, kind, in_dim=3, dim=2, seed=0):
    """A unit with no weight at its initial value, events [S, I] and shares [S] in [0, 1]."""
    torch.manual_seed(seed)
    unit = GatedRecurrence(in_dim, dim, kind).double()
    for parameter in unit.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(sum(lengths), in_dim, dtype=torch.float64, requires_grad=True)
    a = torch.rand(sum(lengths), dtype=torch.float64, requires_grad=True)
    return unit, x, a


def run(unit, x, a, lengths, window=99):
    """The states after the events, [S, D], and the last of each row, [B, D]."""
    steps = steps_of(offsets_of(lengths), window, len(x))
    share = None if unit.kind == "GRU" else steps.lay_out(a[:, None])[:, 0] * steps.real
    after, final = unit(steps.lay_out(x), steps, share)
    return steps.collect(after), final


def slow(unit, x, a, lengths):
    """The formulas, one event at a time."""
    D, start, after, final = unit.dim, 0, [], []
    zero = torch.zeros(D, dtype=x.dtype)
    parts = {"AGRU": ("r", "n")}.get(unit.kind, ("u", "r", "n"))
    W, U, b = (
        dict(zip(parts, p.split(D), strict=True)) for p in (unit.weight, unit.recurrent, unit.bias)
    )
    for length in lengths:
        s = zero
        for j in range(start, start + length):
            gate = {k: torch.sigmoid(W[k] @ x[j] + U[k] @ s + b[k]) for k in parts if k != "n"}
            n = torch.tanh(W["n"] @ x[j] + gate["r"] * (U["n"] @ s) + b["n"])
            w = {
                "GRU": lambda: gate["u"],  # noqa: B023
                "AUGRU": lambda: a[j] * gate["u"],  # noqa: B023
                "AGRU": lambda: a[j],  # noqa: B023
            }[unit.kind]()
            s = (1 - w) * s + w * n
            after.append(s)
        final.append(s)
        start += length
    return torch.stack([zero, *after])[1:], torch.stack(final)


lengths_of_rows = st.one_of(
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
    st.lists(st.integers(0, 3), min_size=40, max_size=70),
)


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(KINDS), lengths=lengths_of_rows, seed=st.integers(0, 9))
def test_states_and_gradients_equal_a_loop_over_rows(kind, lengths, seed):
    unit, x, a = make(lengths, kind, seed=seed)
    inputs = [x, *unit.parameters(), *([] if kind == "GRU" else [a])]
    weights = None
    found = []
    for how in (run, slow):
        after, final = how(unit, x, a, lengths)
        if weights is None:
            weights = torch.randn_like(after), torch.randn_like(final)
        value = (after * weights[0]).sum() + (final * weights[1]).sum() + 0 * x.sum()
        gradients = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
        found.append((after, final, *gradients))
    for mine, twin in zip(*found, strict=True):
        torch.testing.assert_close(mine, twin)
