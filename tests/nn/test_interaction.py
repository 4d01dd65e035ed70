from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch

from fullrank.errors import ConfigError
from fullrank.nn.aggregate import Aggregator, Attentive, Field, Filter, SqueezeExcitation
from fullrank.nn.interaction import Pairs, Product, product

F, D = 3, 6
PAIRS = {
    "upper": Pairs.upper(F),
    "every": Pairs.every(F, F),
    "no self": Pairs.every(F, F, self_pairs=False),
    "wide": Pairs.every(2, F),
}


def drawn(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved(module: Any) -> Any:
    module = module.double()
    for n, parameter in enumerate(module.parameters()):
        parameter.data = drawn(*parameter.shape, seed=n + 1)
    return module


def listed(pairs: Pairs) -> list[tuple[int, int]]:
    return list(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))


def test_pairs_are_listed_row_by_row() -> None:
    assert listed(PAIRS["upper"]) == [(0, 1), (0, 2), (1, 2)]
    assert listed(PAIRS["wide"]) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert listed(PAIRS["no self"]) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]


@pytest.mark.parametrize("which", PAIRS)
@pytest.mark.parametrize("kind", get_args(Product))
def test_projecting_and_mixing_follow_the_matrix_of_each_pair(kind: Any, which: str) -> None:
    pairs = PAIRS[which]
    if kind == "field_block" and which == "wide":
        with pytest.raises(ConfigError):
            product(kind, pairs, D)
        return
    f, b = moved(product(kind, pairs, D)), drawn(4, F, D)
    mixed = torch.zeros(4, pairs.shape[0], D, dtype=torch.float64)
    for p, (i, j) in enumerate(listed(pairs)):
        w = f.matrix(p)
        if w is None:  # a scalar: 1, or the weight
            weight = 1.0 if f.weight is None else f.weight[p]
            w = weight * torch.eye(D, dtype=torch.float64)
        expected = b[:, j] @ w.double().T
        torch.testing.assert_close(f.project(b)[:, p], expected)
        mixed[:, i] += expected
    torch.testing.assert_close(f.mix(b), mixed)


@pytest.mark.parametrize("which", ["upper", "every"])
def test_a_projection_is_what_a_row_becomes_before_its_partner_meets_it(which: str) -> None:
    pairs = PAIRS[which]
    f, e = moved(product("projected", pairs, D)), drawn(4, F, D)
    grid = pairs.grid(f.weight)
    for i in range(F):
        for j in range(F):
            through = f.projection(i, j)
            if which == "upper" and i == j:
                assert through is None
                continue
            met = (e[:, j] * (e[:, i] @ through)).sum(1)
            # The pair has i on the right as W_ji; FmFM has only the one with the smaller left.
            left, right = (j, i) if which == "every" or j < i else (i, j)
            pair = torch.einsum("bk,km,bm->b", e[:, left], grid[left, right], e[:, right])
            torch.testing.assert_close(met, pair)
    assert product("weighted", pairs, D).projection(0, 1) is None


def test_init_scopes_are_those_of_the_published_codes() -> None:
    torch.manual_seed(0)
    pairs, dim = Pairs.upper(39), 10
    scopes: dict[Any, float] = {
        "pair": 1 / math.sqrt(10), "layer": 1 / math.sqrt(390),
        "stack": math.sqrt(2 / (100 + 7410)), "yahoo": 0.01,
    }  # fmt: skip
    for scope, std in scopes.items():
        for kind in ("projected", "projected_lowrank"):
            f: Any = product(kind, pairs, dim, scope=scope, rank=5)
            entries = torch.stack([f.matrix(p) for p in range(pairs.count)])
            assert abs(entries.std().item() / std - 1) < 0.1
    identity: Any = product("projected", pairs, dim, scope="identity")
    assert torch.equal(identity.weight, torch.eye(dim).expand(741, -1, -1))
    for kind in ("weighted", "diagonal"):
        assert bool((product(kind, pairs, dim).weight == 1).all())


def test_orientations_agree_in_the_first_layer_and_part_in_the_second() -> None:
    layers = []
    for orientation in ("keep_raw", "keep_prev"):
        f = product("projected", PAIRS["every"], D)
        layers.append(moved(Field(f, D, orientation=orientation)))
    e, t = drawn(4, F, D), drawn(4, F, D, seed=9)
    torch.testing.assert_close(layers[0](e, e), layers[1](e, e))
    raw, prev = (layer(e, t) for layer in layers)
    torch.testing.assert_close(raw, e * layers[0].interaction.mix(t))
    torch.testing.assert_close(prev, t * layers[1].interaction.mix(e))
    assert (raw - prev).abs().max() > 0.1


def test_a_filter_weighs_every_pair() -> None:
    pool = moved(Filter(product("diagonal", PAIRS["wide"], D), 2))
    e, t = drawn(4, F, D), drawn(4, 2, D, seed=9)
    expected = torch.zeros(4, 2, D, dtype=torch.float64)
    for h in range(2):
        for p, (i, j) in enumerate(listed(PAIRS["wide"])):
            expected[:, h] += pool.weight[h, p] * t[:, i] * pool.interaction.weight[p] * e[:, j]
    torch.testing.assert_close(pool(e, t), expected)


def test_attention_adds_values_whose_weights_depend_on_the_row_and_products_do_not() -> None:
    """Doubling the fields quadruples a product; an attentive layer has no degree at all."""
    e = drawn(4, F, D).abs()
    attentive = moved(Attentive(D, 2, F, residual=False))
    once, twice = attentive(e, e), attentive(2 * e, 2 * e)
    degrees = torch.log2(twice / once)[(once > 1e-3) & (twice > 1e-3)]
    assert degrees.std() > 0.1
    # With equal fields the softmax is uniform, and what is left is the value: linear in it.
    same = e[:, :1].expand(-1, F, -1)
    torch.testing.assert_close(attentive(same, same), attentive.value(same).relu())


def test_squeeze_excitation_scales_fields_and_nothing_else() -> None:
    e = drawn(4, F, D)
    ratio = moved(SqueezeExcitation(F))(e) / e
    torch.testing.assert_close(ratio, ratio[:, :, :1].expand_as(ratio))


KINDS: dict[Any, Any] = {
    "last": lambda a, b, w: b,
    "sum": lambda a, b, w: a + b,
    "concat": lambda a, b, w: torch.cat([a.flatten(1), b.flatten(1)], 1),
    "layer_weight": lambda a, b, w: w[0, 0, 0] * a + w[1, 0, 0] * b,
    "field_weight": lambda a, b, w: w[0, :, :1] * a + w[1, :, :1] * b,
    "element_weight": lambda a, b, w: w[0] * a + w[1] * b,
    "sumpool_concat": lambda a, b, w: b.sum(2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_aggregators_follow_their_formulas(kind: Any) -> None:
    aggregate = moved(Aggregator(kind, [F, F], D))
    a, b = drawn(4, F, D), drawn(4, F, D, seed=9)
    expected = KINDS[kind](a, b, aggregate.alpha).flatten(1)
    torch.testing.assert_close(aggregate([a, b]), expected)
    assert aggregate.out_dim == expected.shape[1]


def test_weights_of_layers_may_add_up_to_one() -> None:
    aggregate = Aggregator("field_weight", [F, F], D, softmax=True).double()
    a, b = drawn(4, F, D), drawn(4, F, D, seed=9)
    torch.testing.assert_close(aggregate([a, b]), ((a + b) / 2).flatten(1))
    aggregate = moved(aggregate)
    share = torch.softmax(aggregate.alpha, 0)[0]
    torch.testing.assert_close(aggregate([a, b]), (share * a + (1 - share) * b).flatten(1))


def test_layers_of_unit_size_count_the_same_whatever_their_scale() -> None:
    a, b = drawn(4, F, D), drawn(4, F, D, seed=9)
    plain, rms = (Aggregator("sum", [F, F], D, rms=on) for on in (False, True))
    torch.testing.assert_close(rms([a, 1e-2 * b]), rms([a, b]))
    assert (plain([a, 1e-2 * b]) - plain([a, b])).abs().max() > 0.1
    assert bool(rms([a, torch.zeros_like(b)]).isfinite().all())


def test_layers_with_unequal_numbers_of_terms_are_not_added() -> None:
    with pytest.raises(ConfigError) as refused:
        Aggregator("layer_weight", [F, 1], D)
    assert "3, 1 terms" in refused.value.found
    assert Aggregator("concat", [F, 1], D).out_dim == (F + 1) * D
