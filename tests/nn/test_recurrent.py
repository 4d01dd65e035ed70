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


@settings(max_examples=20, deadline=None)
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


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_are_those_of_finite_differences(kind):
    unit, x, a = make([3, 0, 1], kind)

    def states(x, a, *weights):
        for name, value in zip(("weight", "recurrent", "bias"), weights, strict=True):
            object.__setattr__(unit, name, value)
        return run(unit, x, a, [3, 0, 1])

    weights = [p.detach().clone().requires_grad_() for p in unit.parameters()]
    for name in ("weight", "recurrent", "bias"):
        del unit._parameters[name]
    assert torch.autograd.gradcheck(states, (x, a, *weights))


def test_a_gru_is_that_of_torch_with_the_sign_of_one_gate_turned():
    """Torch's z keeps the state where our u renews it: z = 1 - u."""
    lengths = [4, 2, 3]
    unit, x, _ = make(lengths, "GRU")
    theirs = torch.nn.GRU(3, 2, batch_first=True).double()
    with torch.no_grad():
        for mine, name in ((unit.weight, "weight_ih_l0"), (unit.recurrent, "weight_hh_l0")):
            u, r, n = mine.split(2)
            getattr(theirs, name).copy_(torch.cat([r, -u, n]))
        u, r, n = unit.bias.split(2)
        theirs.bias_ih_l0.copy_(torch.cat([r, -u, n]))
        theirs.bias_hh_l0.zero_()
    _, final = run(unit, x, None, lengths)
    for row, events in enumerate(x.split(lengths)):
        torch.testing.assert_close(final[row], theirs(events[None])[1][0, 0])


@pytest.mark.parametrize("kind", ["AUGRU", "AGRU"])
def test_s7_with_no_attention_the_first_state_stays_and_with_all_of_it_augru_is_a_gru(kind):
    lengths = [2, 0, 4, 1]
    unit, x, _ = make(lengths, kind)
    after, final = run(unit, x, torch.zeros(7, dtype=torch.float64), lengths)
    assert not after.any()
    assert not final.any()
    if kind == "AUGRU":
        plain = GatedRecurrence(3, 2).double()
        plain.load_state_dict(unit.state_dict())
        ones = torch.ones(7, dtype=torch.float64)
        for mine, theirs in zip(
            run(unit, x, ones, lengths), run(plain, x, None, lengths), strict=True
        ):
            assert torch.equal(mine, theirs)


def test_s7_agru_with_all_attention_is_the_candidate():
    unit, x, _ = make([1], "AGRU")
    _, final = run(unit, x, torch.ones(1, dtype=torch.float64), [1])
    candidate = torch.tanh(unit.weight[2:] @ x[0] + unit.bias[2:])  # the first state is zero
    torch.testing.assert_close(final[0], candidate)


def test_only_the_newest_events_of_a_window_are_read_in_their_order():
    lengths, window = [5, 2, 3], 3
    unit, x, _ = make(lengths, "GRU")
    kept = torch.cat([x[2:5], x[5:7], x[7:10]])
    _, final = run(unit, x, None, lengths, window)
    assert torch.equal(final, run(unit, kept, None, [3, 2, 3])[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [[0], [0, 0, 0], [1], [0, 2, 0]])
def test_rows_without_events_end_at_zero_and_nothing_fails(kind, lengths):
    unit, x, a = make(lengths, kind)
    after, final = run(unit, x, a, lengths)
    assert after.shape == (sum(lengths), 2)
    assert not final[torch.tensor(lengths) == 0].any()
    (after.sum() + final.sum()).backward()
    for parameter in unit.parameters():
        assert bool(parameter.grad.isfinite().all())
        assert bool(parameter.grad.any()) == bool(sum(lengths)) or sum(lengths) == 1
    with torch.no_grad():
        assert torch.equal(run(unit, x, a, lengths)[1], final)


def test_strides_do_not_matter_and_a_unit_may_be_used_twice():
    lengths = [3, 1, 2]
    unit, x, a = make(lengths, "AUGRU")

    def gradients(x, expand):
        unit.zero_grad()
        after, final = run(unit, x, a, lengths)
        again, _ = run(unit, x * 2, a, lengths)
        seed = torch.ones(2, dtype=torch.float64)
        after.backward(seed.expand(6, 2) if expand else seed.repeat(6, 1), retain_graph=True)
        (final.T.contiguous().sum() + again.sum()).backward()
        return [p.grad.clone() for p in unit.parameters()]

    turned = x.detach().T.contiguous().T.requires_grad_()
    assert not turned.is_contiguous()
    for one, other in zip(gradients(x, False), gradients(turned, True), strict=True):
        torch.testing.assert_close(one, other)


def events_of(lengths, width, seed=0):
    torch.manual_seed(seed)
    return torch.randn(sum(lengths), width, dtype=torch.float64, requires_grad=True)


@settings(max_examples=15, deadline=None)
@given(lengths=lengths_of_rows)
def test_layout_products_and_shares_equal_loops_over_rows(lengths):
    steps = steps_of(offsets_of(lengths), 99, sum(lengths))
    x = events_of(lengths, 3)
    q = torch.randn(len(lengths), 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(steps.collect(steps.lay_out(x)), x)
    shares = steps.softmax(steps.dots(steps.lay_out(x), q))
    assert not shares[~steps.real].any()
    expected = [torch.softmax(part @ row, 0) for part, row in zip(x.split(lengths), q, strict=True)]
    weight = torch.randn(sum(lengths), dtype=torch.float64)
    found = []
    for y in (steps.collect(shares[:, None])[:, 0], torch.cat(expected)):
        found.append(
            (y, *torch.autograd.grad((y * weight).sum() + 0 * x.sum() + 0 * q.sum(), (x, q)))
        )
    for mine, twin in zip(*found, strict=True):
        torch.testing.assert_close(mine, twin)
    side = steps.rectangle(steps.lay_out(x), 6)
    for row, part in enumerate(x.split(lengths)):
        assert torch.equal(side[row, : len(part)], part)
        assert not side[row, len(part) :].any()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_equals_what_is_trained(kind, monkeypatch):
    lengths = [3, 0, 5, 1]
    unit, x, _ = make(lengths, kind)
    q = torch.randn(4, 3, dtype=torch.float64)

    def states():
        steps = steps_of(offsets_of(lengths), 4, len(x))
        laid = steps.lay_out(x)
        shares = steps.softmax(steps.dots(laid, q))
        after, final = unit(laid, steps, None if kind == "GRU" else shares)
        return final, steps.rectangle(after, 4), steps.rectangle(shares, 4)

    trained = states()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for mine, theirs in zip(trained, states(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_block_a_row_has_the_same_bits_in_any_company(kind):
    """64 rows as a server scores them; widths that no vector register divides."""
    torch.manual_seed(0)
    unit = GatedRecurrence(7, 5, kind).requires_grad_(False)
    lengths = torch.randint(0, 9, (64,))
    lengths[3], lengths[9] = 9, 5  # row 3 is the only one in its last step
    x, q = torch.randn(int(lengths.sum()), 7), torch.randn(64, 7)
    parts = x.split(lengths.tolist())

    def final(rows):
        offsets = offsets_of(lengths[rows].tolist())
        steps = steps_of(offsets, 20, int(offsets[-1]))
        laid = steps.lay_out(torch.cat([parts[i] for i in rows]))
        shares = None if kind == "GRU" else steps.softmax(steps.dots(laid, q[rows]))
        return unit(laid, steps, shares)[1]

    together = final(list(range(64)))
    for row in (3, 9, 20):
        assert torch.equal(final([row] * 64)[0], together[row])
        assert torch.equal(final([63, 1, row, *range(61)])[2], together[row])
