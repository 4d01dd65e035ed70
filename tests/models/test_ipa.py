from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fullrank.config import from_dict, to_dict
from fullrank.errors import ConfigError, SchemaError
from fullrank.models.dcnv2 import DCNv2, DCNv2Config
from fullrank.models.fm import FM, FMConfig
from fullrank.models.fwfm import FwFM, FwFMConfig
from fullrank.models.ipa import IPA, IPAConfig
from fullrank.models.pfl import PFL, PFLConfig
from fullrank.models.xdeepfm import XDeepFM, XDeepFMConfig
from fullrank.schema import Categorical, Label, Schema, Table
from fullrank.testing import random_batch
from tests.reference import interaction_twin as twin

F, K, B = 5, 4, 3


def fields(count: int = F, size: int = 4, labels: int = 1) -> Schema:
    names = tuple(f"f{i}" for i in range(count))
    return Schema(
        tables=tuple(Table(name, size) for name in names),
        fields=tuple(Categorical(name, name) for name in names),
        labels=tuple(Label(f"y{i}") for i in range(labels)),
    )


def rows(schema: Schema, count: int = B) -> Any:
    return random_batch(schema, count, torch.Generator().manual_seed(0))


def moved(model: Any, seed: int = 0) -> Any:
    """In float64, with every parameter off its initial value."""
    g = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    return model


def small(config: IPAConfig, **changes: Any) -> IPAConfig:
    if config.classifier in ("mlp", "parallel_mlp"):
        changes = {"hidden": (6,), **changes}
    return replace(config, **{"dim": K, **changes})


def arrays(model: Any) -> dict[str, Any]:
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


def layer(w: dict[str, Any], number: int, name: str = "interaction.weight") -> Any:
    return w[f"block{number}.pool.{name}"]


def blocks(w: dict[str, Any], number: int) -> Any:
    """The F*K x F*K matrix of a layer that has one block per pair of fields."""
    return layer(w, number).reshape(F, F, K, K).transpose(0, 2, 1, 3).reshape(F * K, F * K)


def deep(w: dict[str, Any]) -> list[Any]:
    return [(w["deep.layers.0.weight"], w["deep.layers.0.bias"])]


def head(x: list[float], w: dict[str, Any]) -> float:
    return twin.affine(x, w["head.weight"][0], w["head.bias"][0])


def parallel(x: list[float], e: Any, w: dict[str, Any]) -> float:
    return head([*x, *twin.network(twin.flat(e), deep(w))], w)


def dcn_layers(w: dict[str, Any], count: int) -> list[Any]:
    return [(layer(w, n).reshape(-1), layer(w, n, "bias").reshape(-1)) for n in range(count)]


def dcn_v2_layers(w: dict[str, Any], count: int) -> list[Any]:
    return [(blocks(w, n), layer(w, n, "bias").reshape(-1)) for n in range(count)]


def cin_layers(w: dict[str, Any], count: int) -> list[Any]:
    found = [layer(w, n, "weight") for n in range(count)]
    return [c.reshape(len(c), -1, F) for c in found]


def autoint_layers(w: dict[str, Any], count: int) -> list[Any]:
    parts = ("query", "key", "value", "keep")
    return [tuple(layer(w, n, f"{part}.weight") for part in parts) for n in range(count)]


def pfl_layers(w: dict[str, Any], count: int) -> list[Any]:
    return [layer(w, n).reshape(F, F, K, K) for n in range(count)]


C = IPAConfig
TWINS: dict[str, tuple[IPAConfig, Any]] = {
    "fm": (small(C.fm()), lambda e, w: twin.fm(e) + w["bias"][0]),
    "fwfm": (small(C.fwfm()), lambda e, w: twin.fwfm(e, layer(w, 0)) + w["bias"][0]),
    "fvfm": (small(C.fvfm()), lambda e, w: twin.fvfm(e, layer(w, 0)) + w["bias"][0]),
    "fmfm": (small(C.fmfm()), lambda e, w: twin.fmfm(e, layer(w, 0)) + w["bias"][0]),
    "ffm": (C.ffm(F, 2), lambda e, w: twin.ffm(e) + w["bias"][0]),
    "nfm": (
        small(C.nfm()),
        lambda e, w: head(twin.network(twin.bi_interaction(e), deep(w)), w),
    ),
    "afm": (
        small(C.afm()),
        lambda e, w: head(
            twin.attention(
                e, layer(w, 0, "hidden.weight"), layer(w, 0, "hidden.bias"),
                layer(w, 0, "vote.weight")[0],
            ),
            w,
        ),
    ),
    "ipnn": (small(C.ipnn()), lambda e, w: head(twin.network(twin.inner_products(e), deep(w)), w)),
    "fibinet": (
        small(C.fibinet()),
        lambda e, w: head(
            twin.network(
                twin.fibinet(
                    e, layer(w, 0), layer(w, 0, "squeeze.down.weight"),
                    layer(w, 0, "squeeze.up.weight"),
                ),
                deep(w),
            ),
            w,
        ),
    ),
    "dcn": (
        small(C.dcn(), num_layers=3),
        lambda e, w: parallel(twin.dcn(twin.flat(e), dcn_layers(w, 2)), e, w),
    ),
    "dcn_v2": (
        small(C.dcn_v2(), num_layers=3),
        lambda e, w: parallel(twin.dcn_v2(twin.flat(e), dcn_v2_layers(w, 2)), e, w),
    ),
    "cin": (small(C.cin(), maps=(3, 2)), lambda e, w: head(twin.cin(e, cin_layers(w, 2)), w)),
    "xdeepfm": (
        small(C.xdeepfm(), maps=(3, 2)),
        lambda e, w: parallel(twin.cin(e, cin_layers(w, 2)), e, w),
    ),
    "autoint": (
        small(C.autoint(), num_layers=3),
        lambda e, w: head(twin.autoint(e, autoint_layers(w, 2), 2), w),
    ),
    "pfl": (
        small(C.pfl(), num_layers=3),
        lambda e, w: head(
            twin.network(twin.pfl(e, pfl_layers(w, 2), w["aggregate.alpha"].ravel()), deep(w)), w
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TWINS)
def test_u1_every_preset_equals_a_naive_implementation(name: str) -> None:
    config, slow = TWINS[name]
    schema = fields()
    model, batch = moved(IPA(schema, config)), rows(schema)
    e, w = model.embeddings.fields(batch).detach(), arrays(model)
    expected = torch.tensor([slow(row, w) for row in e.numpy()], dtype=torch.float64)
    if config.use_lr == "id":
        expected = expected + model.linear.fields(batch).detach().sum(dim=(1, 2))
    torch.testing.assert_close(model.score(batch)["y0"].detach(), expected, rtol=0, atol=1e-10)


def copied(source: Any, target: Any, names: dict[str, str]) -> None:
    """Copies all of `source`; `names` says what a prefix is called in `target`."""
    state = {}
    for name, value in source.state_dict().items():
        prefix = next((p for p in sorted(names, key=len, reverse=True) if name.startswith(p)), "")
        state[names.get(prefix, "") + name[len(prefix) :]] = value
    target.load_state_dict({k: v.reshape(target.state_dict()[k].shape) for k, v in state.items()})


def as_blocks(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.view(F, K, F, K).transpose(1, 2).reshape(F * F, K, K)


def same_scores(a: Any, b: Any, schema: Schema, atol: float = 1e-12) -> None:
    batch = rows(schema, 16)
    for label, logits in a.score(batch).items():
        torch.testing.assert_close(b.score(batch)[label], logits, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ["fm", "fwfm", "xdeepfm"])
def test_named_points_equal_the_models_that_stand_alone(kind: str) -> None:
    schema = fields()
    alone: Any
    names: dict[str, str] = {}
    if kind == "fm":
        alone, config = FM(schema, FMConfig(dim=K)), small(C.fm())
    elif kind == "fwfm":
        alone, config = FwFM(schema, FwFMConfig(dim=K)), small(C.fwfm())
        names = {"r": "block0.pool.interaction.weight"}
    else:
        settings = {"maps": (3, 2), "hidden": (6,), "batch_norm": True, "dropout": 0.0}
        alone = XDeepFM(schema, XDeepFMConfig(dim=K, **settings))
        config = small(C.xdeepfm(), **settings)
        names = {f"cin.weights.{n}": f"block{n}.pool.weight" for n in range(2)}
    alone, point = moved(alone), IPA(schema, config).double().eval()
    copied(alone, point, names)
    same_scores(alone, point, schema)


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
def test_u3_dcn_v2_is_field_pooling_of_its_blocks(structure: Any) -> None:
    schema, hidden = fields(), (6,)
    alone: Any = DCNv2(
        schema,
        DCNv2Config(dim=K, num_cross=2, structure=structure, hidden=hidden, dropout=0.0),
    )
    classifier = "parallel_mlp" if structure == "parallel" else "mlp"
    config = small(C.dcn_v2(), num_layers=3, batch_norm=True, classifier=classifier)
    alone, point = moved(alone), IPA(schema, config).double().eval()
    for n in range(2):
        weight = alone.get_parameter(f"block{n}.cross.linear.weight")
        weight.data = as_blocks(weight.data)
    names = {f"block{n}.cross.linear.weight": f"block{n}.pool.interaction.weight" for n in (0, 1)}
    names |= {f"block{n}.cross.linear.bias": f"block{n}.pool.bias" for n in (0, 1)}
    copied(alone, point, names)
    for n in range(2):
        weight = alone.get_parameter(f"block{n}.cross.linear.weight")
        weight.data = weight.view(F, F, K, K).transpose(1, 2).reshape(F * K, F * K)
    same_scores(alone, point, schema)


def test_u3_dcn_is_dcn_v2_with_equal_rows() -> None:
    schema = fields()
    one = moved(IPA(schema, small(C.dcn(), num_layers=3)))
    two = IPA(schema, small(C.dcn_v2(), num_layers=3)).double().eval()
    state = one.state_dict()
    for n in range(2):
        state[f"block{n}.pool.bias"].zero_()  # DCN adds it beside the product, DCN-V2 inside
        w = state[f"block{n}.pool.interaction.weight"]  # [F, K]
        state[f"block{n}.pool.interaction.weight"] = (
            w.view(1, F, 1, K).expand(F, F, K, K).reshape(F * F, K, K)
        )
    two.load_state_dict(state)
    same_scores(one, two, schema, atol=1e-12)


def test_u3_the_residual_adds_lower_degrees_again_and_pfl_does_not() -> None:
    schema = fields()
    with_residual = replace(small(C.dcn_v2(), num_layers=3), bias="none")
    model = moved(IPA(schema, with_residual))
    x = model.embeddings.fields(rows(schema))
    first, second = (
        lambda t, n=n: x * model.get_submodule(f"block{n}.pool.interaction").mix(t) for n in (0, 1)
    )
    expansion = x + first(x) + second(x) + second(first(x))
    torch.testing.assert_close(model.layers(x)[-1], expansion)
    without = moved(IPA(schema, replace(with_residual, residual=False)))
    without.load_state_dict(model.state_dict())
    torch.testing.assert_close(without.layers(x)[-1], second(first(x)))


def test_pfl_alone_is_the_point_pfl() -> None:
    schema = fields(labels=2)
    for classifier in ("mlp", "linear", "parallel_mlp"):
        network = {} if classifier == "linear" else {"hidden": (6,), "batch_norm": True}
        settings: dict[str, Any] = {"dim": K, "classifier": classifier, **network}
        alone: Any = moved(PFL(schema, PFLConfig(**settings, first_order=True)))
        point: Any = IPA(schema, IPAConfig(**settings, use_lr="id")).double().eval()
        names = {"alpha": "aggregate.alpha"}
        for n in range(3):
            weight = alone.get_parameter(f"block{n}.linear.weight")
            weight.data = as_blocks(weight.data)
            names[f"block{n}.linear.weight"] = f"block{n}.pool.interaction.weight"
        copied(alone, point, names)
        for n in range(3):
            weight = alone.get_parameter(f"block{n}.linear.weight")
            weight.data = weight.view(F, F, K, K).transpose(1, 2).reshape(F * K, F * K)
        same_scores(alone, point, schema, atol=1e-12)
        for i, j in ((0, 3), (3, 0)):
            torch.testing.assert_close(alone.pair_projection(i, j), point.pair_projection(i, j))


def test_u2_each_factorisation_machine_contains_the_one_before() -> None:
    schema = fields()
    fm = moved(IPA(schema, small(C.fm())))
    for config in (C.fwfm(), C.fvfm(), replace(C.fmfm(), init_scope="identity")):
        wider = IPA(schema, small(config)).double().eval()
        wider.load_state_dict({**wider.state_dict(), **fm.state_dict()})
        same_scores(fm, wider, schema)


def test_u2_one_map_of_ones_above_the_diagonal_is_the_term_of_nfm() -> None:
    schema = fields()
    cin = moved(IPA(schema, small(C.cin(), maps=(1,), num_layers=2)))
    upper = torch.ones(F, F).triu(1).double()
    cin.get_parameter("block0.pool.weight").data = upper.reshape(1, F * F)
    x = cin.embeddings.fields(rows(schema))
    nfm = IPA(schema, small(C.nfm())).double()
    torch.testing.assert_close(cin.layers(x)[1], nfm.layers(x)[1])


@pytest.mark.parametrize("pooling", ["global", "field", "filter", "keep"])
@pytest.mark.parametrize("interaction", ["naive", "weighted", "diagonal", "projected"])
def test_u4_layer_l_is_homogeneous_of_degree_l(interaction: Any, pooling: Any) -> None:
    config = IPAConfig(
        dim=K, interaction=interaction, pooling=pooling, num_layers=4, aggregator="concat",
        classifier="linear",
    )  # fmt: skip
    model = moved(IPA(fields(), config))
    x = torch.randn(B, F, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for degree, (one, three) in enumerate(
        zip(model.layers(x), model.layers(3 * x), strict=True), 1
    ):
        assert one.abs().max() > 1e-6
        torch.testing.assert_close(three, 3**degree * one)


CRITEO = {
    "fwfm": (C.fwfm(), [741]),
    "fvfm": (C.fvfm(), [7_410]),
    "fmfm": (C.fmfm(), [74_100]),
    "dcn": (replace(C.dcn(), num_layers=2), [390 + 390]),
    "dcn_v2": (replace(C.dcn_v2(), num_layers=2), [152_100 + 390]),
    "cin": (replace(C.cin(), maps=(16,)), [24_336, 9_984]),
    "pfl": (replace(C.pfl(), num_layers=3), [152_100, 152_100]),
}


@pytest.mark.parametrize("name", CRITEO)
def test_u5_interactions_have_the_published_numbers_of_parameters(name: str) -> None:
    config, expected = CRITEO[name]
    model = IPA(fields(39, size=2), config)
    counted = [
        sum(p.numel() for p in model.get_submodule(f"block{n}").parameters())
        for n in range(config.num_layers - 1)
    ]
    assert counted == expected
    weights = sum(p.numel() for p in model.aggregate.parameters())
    assert weights == (3 if name == "pfl" else 0)


def test_a_field_meets_itself_only_where_that_is_allowed() -> None:
    pairs = {}
    for pooling in ("field", "filter"):
        settings: dict[str, Any] = {"pooling": pooling, "aggregator": "last", "num_layers": 3}
        settings |= {"maps": (F,)} if pooling == "filter" else {}
        model = IPA(fields(), IPAConfig(dim=K, self_pairs=False, **settings))
        parts = [model.get_submodule(f"block{n}.pool.interaction.pairs") for n in (0, 1)]
        pairs[pooling] = [part.mask.tolist() for part in parts]
    every, others = torch.ones(F, F).tolist(), (1 - torch.eye(F)).tolist()
    assert pairs["field"] == [others, others]
    assert pairs["filter"] == [others, every]  # the maps of a filter belong to no field


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("keep", [39, 741, 28_899]), ("field", [39, 39, 39]), ("global", [39, 1, 1]),
     ("filter", [39, 16, 16])],
)  # fmt: skip
def test_u6_numbers_of_terms(pooling: Any, expected: list[int]) -> None:
    extra: dict[str, Any] = {"keep": {"max_terms": 28_899}, "filter": {"maps": (16,)}}
    config = IPAConfig(
        dim=2, interaction="naive", pooling=pooling, num_layers=3, aggregator="concat",
        classifier="linear", **extra.get(pooling, {}),
    )  # fmt: skip
    model = IPA(fields(39, size=2), config)
    assert [t.shape[1] for t in model.layers(torch.ones(1, 39, 2))] == expected


def test_u7_layer_weights_are_concatenation_with_tied_weights_below_a_linear_classifier() -> None:
    schema = fields()
    weighted = moved(IPA(schema, small(C.pfl(), classifier="linear", hidden=(400, 400))))
    joined = IPA(schema, replace(weighted.config, aggregator="concat")).double().eval()
    state = weighted.state_dict()
    alpha, w = state.pop("aggregate.alpha"), state["head.weight"]
    joined.load_state_dict({**state, "head.weight": torch.cat([a * w for a in alpha.ravel()], 1)})
    same_scores(weighted, joined, schema, atol=1e-12)


def test_u8_more_terms_than_the_budget_are_refused_before_they_are_made() -> None:
    config = replace(C.fmfm(), num_layers=3, dim=64)
    with pytest.raises(ConfigError) as refused:
        IPA(fields(39, size=2), replace(config, max_terms=740))
    assert "layer 2 of 39 fields has 741" in refused.value.found
    wide = replace(C.fm(), num_layers=3, dim=1)
    with pytest.raises(ConfigError) as refused:
        IPA(fields(39, size=2), wide)
    assert "layer 3 of 39 fields has 28,899" in refused.value.found
    assert refused.value.fix == "num_layers=2, pooling='field', or max_terms=28899"
    assert IPA(fields(39, size=2), replace(wide, num_layers=2, max_terms=741))


def test_u9_the_order_of_fields_does_not_matter_when_weights_move_along() -> None:
    schema, order = fields(), torch.tensor([3, 0, 4, 1, 2])
    config = small(
        C.pfl(), num_layers=3, bias="inside", residual=True, aggregator="element_weight",
        classifier="linear", hidden=(400, 400),
    )  # fmt: skip
    model = moved(IPA(schema, config))
    x = model.embeddings.fields(rows(schema))
    moved_fields = moved(IPA(schema, config))
    state = model.state_dict()
    for n in range(2):
        w = state[f"block{n}.pool.interaction.weight"].view(F, F, K, K)
        state[f"block{n}.pool.interaction.weight"] = w[order][:, order].reshape(F * F, K, K)
        state[f"block{n}.pool.bias"] = state[f"block{n}.pool.bias"][order]
    state["aggregate.alpha"] = state["aggregate.alpha"][:, order]
    state["head.weight"] = state["head.weight"].view(1, F, K)[:, order].reshape(1, F * K)
    moved_fields.load_state_dict(state)
    here = model.head(model.aggregate(model.layers(x)))
    there = moved_fields.head(moved_fields.aggregate(moved_fields.layers(x[:, order])))
    torch.testing.assert_close(there, here)
    assert (model.head(model.aggregate(model.layers(x[:, order]))) - here).abs().max() > 1e-3


def test_first_order_terms_on_the_embedding_weigh_its_elements() -> None:
    schema = fields()
    model = moved(IPA(schema, small(C.fm(), use_lr="embedding")))
    plain = IPA(schema, replace(model.config, use_lr="off")).double().eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "linear" not in k})
    batch = rows(schema)
    x = model.embeddings.fields(batch).flatten(1)
    added = model.score(batch)["y0"] - plain.score(batch)["y0"]
    torch.testing.assert_close(added, x @ model.linear.weight[0])


def test_several_labels_share_the_pairs_and_weigh_them_apart() -> None:
    schema = fields(labels=2)
    model = IPA(schema, small(C.fmfm())).double()
    torch.nn.init.normal_(model.embeddings.rows)
    batch = rows(schema)
    scores = model.score(batch)
    torch.testing.assert_close(scores["y0"], scores["y1"])  # weights start at one
    torch.nn.init.normal_(model.head.weight)
    terms = model.layers(model.embeddings.fields(batch))[1].sum(dim=2)  # [B, P]
    expected = terms @ model.head.weight.T
    torch.testing.assert_close(torch.stack(list(model.score(batch).values()), 1), expected)


def test_the_first_operands_are_tapped_once() -> None:
    schema = fields()
    for name, right in (("fm", "fields"), ("dcn_v2", "mixed"), ("nfm", "mixed")):
        model = moved(IPA(schema, small(getattr(C, name)(), num_layers=2)))
        seen: dict[str, Any] = {}
        for path, module in model.named_modules():
            if path.rpartition(".")[2] in ("left", "right"):
                module.register_forward_hook(lambda _, __, out, p=path, s=seen: s.update({p: out}))
        batch = rows(schema)
        model.score(batch)
        x = model.embeddings.fields(batch)
        assert set(seen) == {"block0.pool.left", "block0.pool.right"}
        torch.testing.assert_close(seen["block0.pool.left"], x)
        mixed = model.get_submodule("block0.pool.interaction").mix(x)
        if name == "dcn_v2":
            mixed = mixed + model.get_parameter("block0.pool.bias")
        torch.testing.assert_close(seen["block0.pool.right"], x if right == "fields" else mixed)


@pytest.mark.parametrize(
    ("change", "where", "fix"),
    [
        ({"pooling": "filter"}, "aggregator", "maps=(5,)"),
        ({"pooling": "global", "aggregator": "sum"}, "aggregator", "concat"),
        ({"interaction": "naive", "init_scope": "layer"}, "init_scope", "projected"),
        ({"rank": 2}, "rank", "projected_lowrank"),
        ({"maps": (3,)}, "maps", "pooling=filter"),
        ({"pooling": "filter", "aggregator": "concat", "maps": (3, 3)}, "maps", "num_layers=3"),
        ({"interaction": "projected_lowrank", "init_scope": "identity"}, "init_scope", "projected"),
        ({"orientation": "keep_prev", "num_layers": 2}, "orientation", "num_layers=3"),
        ({"interaction": "additive", "num_heads": 3}, "dim", "dim=12"),
        ({"interaction": "additive", "pooling": "global"}, "interaction", "field"),
        ({"interaction": "additive", "bias": "inside"}, "bias", "interaction=naive"),
        ({"interaction": "field_block", "dim": 12}, "dim", "10 or 15"),
        ({"interaction": "field_block", "pooling": "global", "aggregator": "last"},
         "interaction", "num_layers=2"),
        ({"pooling": "keep", "aggregator": "concat", "residual": True}, "residual", "field"),
        ({"pooling": "keep", "aggregator": "concat", "squeeze": True}, "squeeze", "num_layers=2"),
        ({"aggregator": "sum", "alpha_norm": True}, "alpha_norm", "layer_weight"),
        ({"classifier": "linear", "dropout": 0.1}, "dropout", "mlp"),
        ({"num_layers": 1}, "num_layers", "interval"),
    ],
)  # fmt: skip
def test_what_cannot_work_or_does_nothing_is_refused(change: Any, where: str, fix: str) -> None:
    with pytest.raises(ConfigError) as refused:
        IPA(fields(), replace(IPAConfig(), **change))
    assert where in refused.value.where
    assert fix in refused.value.fix


def test_one_field_has_no_pair() -> None:
    with pytest.raises(SchemaError, match="no pair"):
        IPA(fields(1), C.fm())
    assert IPA(fields(1), C.pfl())  # a field may meet itself


def test_every_preset_survives_storage() -> None:
    for config, _ in TWINS.values():
        assert from_dict(IPAConfig, to_dict(config)) == config
