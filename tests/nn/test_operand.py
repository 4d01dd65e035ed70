"""Generators of operands against loops, and what they promise about scale and masks."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from fullrank.errors import ConfigError, SchemaError
from fullrank.nn.operand import (
    Encoder,
    FieldKind,
    FieldMask,
    Generator,
    Operand,
    PairGenerator,
    PairOperands,
    Phi,
    by_vocabulary,
    field_kinds,
    field_masks,
    make_encoder,
)
from fullrank.schema import Categorical, Label, Numeric, Schema, Table

F, D, ROWS = 4, 3, 5
ALL: tuple[FieldKind, ...] = ("all",) * F
SCALAR = {
    "relu": lambda u: max(u, 0.0),
    "silu": lambda u: u / (1.0 + math.exp(-u)),
    "tanh": math.tanh,
    "sigmoid": lambda u: 1.0 / (1.0 + math.exp(-u)),
    "linear": lambda u: u,
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(
    encoder: Encoder = "field_wise",
    kinds: tuple[FieldKind, ...] = ALL,
    phi: Phi = "relu",
    gamma: float = 0.7,
    rank: int | None = None,
    **options: bool,
) -> Generator:
    parts = make_encoder(encoder, kinds, D, phi, rank)
    generator = Generator(kinds, parts, phi, gamma, **options).double()
    for i, parameter in enumerate(generator.parameters()):
        parameter.data = 0.5 * draw(*parameter.shape, seed=7 + i)
    return generator


def by_loops(weight: Tensor, bias: Tensor, source: Tensor, phi: Phi, gamma: float) -> Tensor:
    """The g of the paper, one number at a time: h W + b, phi, gamma."""
    w, b, out = weight.tolist(), bias.tolist(), torch.empty_like(source)
    for row, h in enumerate(source.flatten(1).tolist()):
        for i in range(F):
            for d in range(D):
                u = b[i * D + d] + sum(w[i * D + d][k] * h[k] for k in range(F * D))
                out[row, i, d] = gamma * SCALAR[phi](u)
    return out


@pytest.mark.parametrize("phi", get_args(Phi))
def test_a_generator_is_the_loop_over_rows_fields_and_widths(phi: Phi) -> None:
    generator, x = made(phi=phi), draw(ROWS, F, D)
    linear = generator.encoder.linear
    expected = by_loops(linear.weight, linear.bias, x, phi, 0.7)
    torch.testing.assert_close(generator(x), expected)
    torch.testing.assert_close(generator(x.flatten(1)), expected.flatten(1))


def test_the_state_of_a_layer_is_the_source_only_when_asked() -> None:
    x, state = draw(ROWS, F, D), draw(ROWS, F, D, seed=1)
    plain, stateful = made(residual=True), made(residual=True, from_state=True)
    torch.testing.assert_close(plain(x, state), plain(x))
    torch.testing.assert_close(stateful(x, state), plain(state))
    torch.testing.assert_close(plain(x) - x, made()(x))


def test_u8_gamma_scales_exactly_and_is_neither_trained_nor_stored() -> None:
    x, once, twice = draw(ROWS, F, D), made(gamma=0.5), made(gamma=4.0)
    assert torch.equal(8 * once(x), twice(x))  # a power of two: no rounding
    assert set(once.state_dict()) == {"encoder.linear.weight", "encoder.linear.bias"}


def test_fields_are_encoded_their_own_code_or_raw() -> None:
    x, kinds = draw(ROWS, F, D), ("own", "all", "raw", "all")
    generator = made(kinds=kinds, phi="tanh", gamma=3.0)
    assert tuple(generator.encoder.linear.weight.shape) == (2 * D, F * D)  # no silent rows
    g = generator(x)
    torch.testing.assert_close(g[:, 0], 3.0 * torch.tanh(x[:, 0]))
    torch.testing.assert_close(g[:, 2], x[:, 2])
    code = (x.flatten(1) @ generator.encoder.linear.weight.T + generator.encoder.linear.bias).tanh()
    torch.testing.assert_close(g[:, [1, 3]], 3.0 * code.view(ROWS, 2, D))
    moved = x.clone()
    moved[:, 3] += 1
    changed = (generator(moved) - g).abs().amax((0, 2)) > 0
    assert changed.tolist() == [False, True, False, True]


def test_raw_fields_beat_the_residual_and_the_state() -> None:
    x, state = draw(ROWS, F, D), draw(ROWS, F, D, seed=1)
    generator = made(kinds=("all", "raw", "all", "all"), residual=True, from_state=True)
    torch.testing.assert_close(generator(x, state)[:, 1], x[:, 1])


def test_encoders_follow_their_names() -> None:
    x = draw(ROWS, F, D)
    shared = made("field_shared")(x)
    assert torch.equal(shared, shared[:, :1].expand_as(shared))
    own = made("own", ("own",) * F, phi="silu", gamma=2.0)
    assert not list(own.parameters())
    torch.testing.assert_close(own(x), 2.0 * nn.functional.silu(x))
    stacked = made("stacked_2")
    first, _, second = stacked.encoder
    hidden = by_loops(first.linear.weight, first.linear.bias, x, "relu", 1.0)
    expected = by_loops(second.linear.weight, second.linear.bias, hidden, "relu", 0.7)
    torch.testing.assert_close(stacked(x), expected)
    low = made(rank=2, phi="linear", gamma=1.0)
    assert torch.linalg.matrix_rank(low(draw(40, F, D)).flatten(1).diff(dim=0)) == 2


def test_self_attention_is_the_loop_over_fields() -> None:
    x = draw(ROWS, F, D)
    kinds: tuple[FieldKind, ...] = ("all", "own", "all", "all")
    generator = made("self_attention", kinds, phi="linear", gamma=1.0)
    attention = generator.encoder
    key, value = attention.key_value.weight.detach().chunk(2)
    expected = x.clone()  # field 1 is its own code
    for row in range(ROWS):
        for i in (0, 2, 3):
            q = attention.query.weight.detach() @ x[row, i]
            e = [math.exp(float(q @ (key @ x[row, j])) / math.sqrt(D)) for j in range(F)]
            expected[row, i] = sum(e[j] / sum(e) * (value @ x[row, j]) for j in range(F))
    torch.testing.assert_close(generator(x), expected)


def test_slots_hand_on_what_they_get() -> None:
    x = draw(ROWS, F, D)
    assert Operand(F, D)(x, x + 1) is x
    left, right = PairOperands(F, D)(x)
    assert left is x
    assert right is x
    assert not list(PairOperands(F, D).state_dict())


def test_pairings_choose_the_operands() -> None:
    x, generator = draw(ROWS, F, D), made()
    for pairing, same in (("upper", False), ("symmetric", True), ("all", False)):
        pair = PairGenerator(generator, pairing, nn.Identity())
        left, right = pair(x)
        torch.testing.assert_close(left, generator(x))
        torch.testing.assert_close(right, left if same else x)
        assert pair.both_ways == (pairing == "all")


def schema(*sizes: int) -> Schema:
    named = [(f"f{i}", size) for i, size in enumerate(sizes)]
    return Schema(
        tables=tuple(Table(name, size) for name, size in named),
        fields=(*(Categorical(name, name) for name, _ in named), Numeric("x")),
        labels=(Label("click"),),
    )


def test_sources_split_the_fields_at_the_median_vocabulary() -> None:
    world = schema(9, 3, 100, 5)  # and a number, the smallest
    assert by_vocabulary(world) == [4, 1, 3, 0, 2]
    high = field_kinds(world, "field_wise", "all_for_high_card", ())
    low = field_kinds(world, "field_wise", "all_for_low_card", ("x",))
    assert high == ("all", "own", "all", "all", "own")
    assert low == ("own", "all", "own", "all", "raw")
    assert field_kinds(world, "own", "all", ("f0",)) == ("raw", "own", "own", "own", "own")
    with pytest.raises(ConfigError, match="impossible"):
        field_kinds(world, "field_wise", "all_for_low_card", ("f1", "f3", "x"))
    with pytest.raises(SchemaError, match="no such field"):
        field_kinds(world, "field_wise", "all", ("f9",))


def kept(mask: nn.Module) -> list[int]:
    return (mask(torch.ones(1, 5, 1))[0, :, 0] > 0).nonzero().flatten().tolist()


def test_fixed_masks_hold_everywhere() -> None:
    world = schema(9, 3, 100, 5)
    (hard,) = field_masks(world, "hard_masked_k", 2, 0, 1)
    assert kept(hard) == kept(hard.eval()) == [0, 2]
    masks = [kept(field_masks(world, "random_k", 2, seed, 1)[0].eval()) for seed in range(9)]
    assert all(len(mask) == 2 for mask in masks)
    assert len({tuple(mask) for mask in masks}) > 1
    assert kept(field_masks(world, "random_k", 2, 3, 1)[0]) == masks[3]


def test_fresh_masks_change_keep_the_mean_and_rest_in_evaluation() -> None:
    world = schema(9, 3, 100, 5)
    first, second = field_masks(world, "masked_k", 2, 0, 2)
    assert first is second
    first, second = field_masks(world, "field_masked_k", 2, 0, 2)
    assert isinstance(first, FieldMask)
    assert first is not second
    total = torch.zeros(5)
    for _ in range(400):
        first.draw()
        assert len(kept(first)) == 2
        total += first(torch.ones(1, 5, 1))[0, :, 0]
    assert (total / 400 - 1).abs().max() < 0.3
    assert kept(first.eval()) == [0, 1, 2, 3, 4]
    assert not first.state_dict()


def test_a_mask_that_keeps_every_field_is_refused() -> None:
    with pytest.raises(ConfigError, match="impossible") as caught:
        field_masks(schema(9, 3), "masked_k", 3, 0, 1)
    assert "2" in caught.value.fix
