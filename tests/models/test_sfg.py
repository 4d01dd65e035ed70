"""SFG against loops written from the paper, on every ranker that has slots."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fullrank.batch import Batch, Columns
from fullrank.config import from_dict, override, to_dict
from fullrank.diagnose.collapse import Options, diagnose
from fullrank.diagnose.records import RunContext
from fullrank.errors import ConfigError
from fullrank.model import create, model_class
from fullrank.models.sfg import SFG, SFGConfig
from fullrank.nn.operand import FieldMask, Generator, Operand, PairOperands
from fullrank.schema import Categorical, Label, Schema, Table
from fullrank.tap import Tap
from fullrank.testing import check_law, random_batch, tiny_schema
from tests.reference.sfg_twin import deep, first_order, generate, logits

F, D, ROWS = 4, 3, 6
BASES: dict[str, dict[str, Any]] = {
    "fm": {},
    "fwfm": {},
    "deepfm": {"hidden": (5,), "dropout": 0.0, "batch_norm": False},
    "xdeepfm": {"maps": (3, 2), "hidden": (5,), "dropout": 0.0, "batch_norm": False},
    "dcnv2": {"num_cross": 2, "hidden": (5,), "dropout": 0.0, "batch_norm": False},
}
LAYERS = {"fm": 1, "fwfm": 1, "deepfm": 1, "xdeepfm": 2, "dcnv2": 2}
PAIRS = ("fm", "fwfm", "deepfm")


def schema(order: tuple[int, ...] = (0, 1, 2, 3)) -> Schema:
    names = [f"f{i}" for i in order]
    return Schema(
        tables=tuple(Table(f"f{i}", 5 + i) for i in range(F)),
        fields=tuple(Categorical(name, name) for name in names),
        labels=(Label("click"),),
    )


def rows(count: int = ROWS, world: Schema | None = None) -> Batch:
    return random_batch(world or schema(), count, torch.Generator().manual_seed(0))


def built(base: str, **settings: Any) -> SFG:
    config = {"dim": D, **BASES[base]}
    model = SFG(schema(), SFGConfig(base=base, config=config, **settings)).double().eval()
    g = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
    return model


def generators(model: nn.Module) -> list[Generator]:
    return [m for m in model.modules() if isinstance(m, Generator)]


@pytest.mark.parametrize("base", BASES)
def test_u4_scores_are_those_of_the_loops(base: str) -> None:
    model, batch = built(base, gamma=0.7), rows()
    expected = logits(model.base, model.embeddings.fields(batch), batch, base, generators(model))
    torch.testing.assert_close(model.score(batch)["click"], expected)


@pytest.mark.parametrize("base", BASES)
def test_u1_without_generation_it_is_the_ranker_to_the_bit(base: str) -> None:
    config = model_class(base).Config.tiny()
    world = tiny_schema()
    torch.manual_seed(4)
    plain = create(base, world, config)
    torch.manual_seed(4)
    wrapped = SFG(world, SFGConfig(base=base, config=config, gen=False))
    torch.manual_seed(4)
    generated = SFG(world, SFGConfig(base=base, config=config))
    stored = plain.state_dict()
    assert [f"base.{name}" for name in stored] == list(wrapped.state_dict())
    for name, value in stored.items():  # the generators draw after the ranker
        assert torch.equal(value, generated.state_dict()[f"base.{name}"])
    batch = rows(world=world)
    for training in (False, True):
        scores = []
        for model in (plain, wrapped):
            torch.manual_seed(5)
            scores.append(model.train(training)(batch))
        assert all(torch.equal(scores[0][label], scores[1][label]) for label in scores[0])


@pytest.mark.parametrize("base", BASES)
def test_u2_a_generator_that_copies_gives_the_ranker_back(base: str) -> None:
    model, off = built(base, phi="linear"), built(base, gen=False)
    for generator in generators(model):
        generator.encoder.linear.weight.data = torch.eye(F * D, dtype=torch.float64)
        generator.encoder.linear.bias.data.zero_()
    shared = {k: v for k, v in model.state_dict().items() if k in off.state_dict()}
    off.load_state_dict(shared)
    batch = rows()
    expected, found = off.score(batch)["click"], model.score(batch)["click"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def perturbed(model: SFG, field: int) -> Tensor:
    """The scores when the generated vector of one field moves."""
    (generator,) = generators(model)
    hook = generator.register_forward_hook(
        lambda _, __, g: g + functional.one_hot(torch.tensor(field), F)[:, None]
    )
    moved = model.score(rows())["click"]
    hook.remove()
    return moved


@pytest.mark.parametrize("base", PAIRS)
def test_u3_the_last_generated_vector_is_not_used(base: str) -> None:
    for pairing, silent in (("upper", True), ("symmetric", False), ("all", False)):
        model = built(base, pairing=pairing)
        score = model.score(rows())["click"]
        assert torch.equal(perturbed(model, F - 1), score) == silent
        assert not torch.allclose(perturbed(model, 0), score)


def permuted(pairing: Any, model: SFG, order: tuple[int, ...]) -> SFG:
    """The same FM over the same fields in another order, its generator permuted with them."""
    config = SFGConfig(base="fm", config={"dim": D}, pairing=pairing)
    other = SFG(schema(order), config).double().eval()
    other.load_state_dict(model.state_dict())
    index = (torch.tensor(order)[:, None] * D + torch.arange(D)).flatten()
    linear, source = generators(other)[0].encoder.linear, generators(model)[0].encoder.linear
    linear.weight.data = source.weight.data[index][:, index]
    linear.bias.data = source.bias.data[index]
    return other


@pytest.mark.parametrize(
    ("pairing", "same"), [("upper", False), ("symmetric", True), ("all", True)]
)
def test_u3_the_order_of_fields_matters_only_for_upper_pairs(pairing: Any, same: bool) -> None:
    model, order = built("fm", pairing=pairing), (2, 0, 3, 1)
    other, batch = permuted(pairing, model, order), rows()
    names = tuple(f"f{i}" for i in order)
    turned = replace(batch, categorical=Columns(names, batch.categorical.block[:, list(order)]))
    close = torch.allclose(other.score(turned)["click"], model.score(batch)["click"])
    assert close == same


@pytest.mark.parametrize("base", BASES)
def test_u5_every_layer_adds_one_generator(base: str) -> None:
    def count(gen: bool) -> int:
        return sum(p.numel() for p in built(base, gen=gen).parameters())

    assert count(True) - count(False) == LAYERS[base] * ((F * D) ** 2 + F * D)


@pytest.mark.parametrize("base", ["deepfm", "xdeepfm", "dcnv2"])
def test_u6_the_deep_network_reads_raw_embeddings(base: str) -> None:
    seen = []
    model, batch = built(base), rows()
    model.base.deep.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.score(batch)
    for generator in generators(model):
        generator.gamma = 0.0
    model.score(batch)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], model.embeddings.fields(batch).flatten(1))


@pytest.mark.parametrize("base", BASES)
def test_u7_the_loss_is_the_cross_entropy_and_both_operands_learn(base: str) -> None:
    model, batch = built(base).train(), rows(32)
    losses = model(batch)
    assert list(losses) == ["click"]
    found = generators(model)
    twin = logits(model.base, model.embeddings.fields(batch), batch, base, found)
    known = batch.observed["click"]
    weight, label = batch.weight[known].double(), batch.labels["click"][known].double()
    each = functional.binary_cross_entropy_with_logits(twin[known], label, reduction="none")
    expected = (weight * each).sum() / weight.sum()
    torch.testing.assert_close(losses["click"].double(), expected)
    # No detached copy: the loops have none, and every parameter learns the same from both.
    parameters = list(model.parameters())
    ours = torch.autograd.grad(losses["click"], parameters)
    for gradient, other in zip(ours, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)
        assert gradient.abs().sum() > 0


def test_u8_gamma_is_no_part_of_the_state() -> None:
    model = built("fm", gamma=0.1)
    assert not [name for name in model.state_dict() if "gamma" in name]
    for scale in (2.0, 0.25):  # the interaction of an FM is linear in g
        other = built("fm", gamma=0.1 * scale)
        batch, rest = rows(), built("fm", gamma=1e-30)
        plain = rest.score(batch)["click"]
        torch.testing.assert_close(
            other.score(batch)["click"] - plain, scale * (model.score(batch)["click"] - plain)
        )


def test_layers_read_their_state_when_asked() -> None:
    model, batch = built("dcnv2", use_gen_rst=True, gen_residual=True, gamma=0.1), rows()
    v = model.embeddings.fields(batch)
    x = v.flatten(1)
    for layer, generator in enumerate(generators(model)):
        linear = model.base.get_submodule(f"block{layer}.cross.linear")
        g = x + generate(generator, x).flatten(1)
        x = g * (x @ linear.weight.T + linear.bias) + x
    head = model.base.head
    expected = torch.cat([x, deep(model.base, v)], 1) @ head.weight[0] + head.bias
    torch.testing.assert_close(model.score(batch)["click"], expected)


def test_dropout_falls_on_the_whole_output_of_a_cross_layer() -> None:
    model = built("dcnv2", cross_drop=0.5, gen=False).train()
    seen = []
    model.base.block0.mix.register_forward_hook(lambda _, __, x: seen.append(x))
    model.score(rows(200))
    share = (seen[0] == 0).double().mean()  # residual included, or nothing would be zero
    assert 0.4 < share < 0.6


@pytest.mark.parametrize("base", ["fm", "dcnv2"])
def test_a_field_that_is_no_target_takes_part_on_neither_side(base: str) -> None:
    model, batch = built(base, target="hard_masked_k", target_k=2), rows()
    v = model.embeddings.fields(batch)
    if base == "fm":
        g = generate(generators(model)[0], v)
        expected = first_order(model.base, batch) + model.base.bias
        expected = expected + sum(
            (g[:, i] * v[:, j]).sum(1) for j in (2, 3) for i in range(j)
        )  # fields 2 and 3 have the largest vocabularies
        torch.testing.assert_close(model.score(batch)["click"], expected)
        return
    seen = []
    model.base.block0.mix_branch.register_forward_hook(lambda _, __, x: seen.append(x))
    model.score(batch)
    silent = (seen[0].view(ROWS, F, D) == 0).all(2).all(0)
    assert silent.tolist() == [True, True, False, False]


def test_fresh_targets_are_drawn_once_per_training_batch() -> None:
    for target, masks in (("masked_k", 1), ("field_masked_k", 2)):
        model = built("dcnv2", target=target, target_k=1)
        found = [m for m in model.modules() if isinstance(m, FieldMask)]
        assert len(found) == masks
        assert torch.equal(model.score(rows())["click"], model.score(rows())["click"])
        drawn = set()
        for _ in range(30):
            model.train()(rows())
            drawn.add(tuple(int(m.keep.argmax()) for m in found))
        assert len(drawn) > 1


def test_taps_keep_their_place_and_nothing_is_stored_twice() -> None:
    model = built("dcnv2")
    taps = {name for name, m in model.named_modules() if isinstance(m, Tap)}
    assert {"embed", "left", "right", "head_in", "base.block0.mix"} <= taps
    assert all(name.startswith("base.") for name in model.state_dict())
    assert not [m for m in model.modules() if isinstance(m, Operand | PairOperands)]


@pytest.mark.parametrize("base", BASES)
def test_diagnose_reads_the_operands_of_the_first_interaction(base: str) -> None:
    model, batch = built(base).float(), rows(300)
    options = Options(rows=300, information=False)
    found = diagnose(model, [batch], context=RunContext(run_id="r", variant=base), options=options)
    kind = "redundancy:left x right"
    for metric in ("red_mean", "red_diag", "red_off"):
        (record,) = found.find(matrix_kind=kind, metric=metric)
        assert record.value is not None
        assert 0 < record.value < 1
    (spectrum,) = found.find(matrix_kind="batch_flat:left", metric="erank", centred=True)
    assert spectrum.value is not None
    assert 1 < spectrum.value <= F * D
    assert found.find(matrix_kind="table:f0", metric="erank")  # without a prefix
    with torch.no_grad():
        v = model.embeddings.fields(batch)
        g = generators(model)[0](v)
    both = torch.cat([g.flatten(1), v.flatten(1)], 1).T.double()
    blocks = torch.corrcoef(both)[: F * D, F * D :].nan_to_num(0).abs().view(F, D, F, D)
    (record,) = found.find(matrix_kind=kind, metric="red_diag")
    own = torch.stack([blocks[i, :, i].mean() for i in range(F)]).mean()
    assert record.value == pytest.approx(float(own), rel=1e-5)


def test_the_projection_of_a_pair_is_that_of_the_ranker() -> None:
    model = built("dcnv2")
    weight = model.base.block0.cross.linear.weight
    e = torch.randn(7, D, dtype=torch.float64)
    for i, j in ((0, 1), (3, 2)):
        whole = torch.zeros(7, F, D, dtype=torch.float64)
        whole[:, i] = e  # field i alone, as field j meets it
        expected = (whole.flatten(1) @ weight.T).view(7, F, D)[:, j]
        projection = model.pair_projection(i, j)
        assert projection is not None
        torch.testing.assert_close(e @ projection, expected)
    assert built("fm").pair_projection(0, 1) is None
    low_rank = {"low_rank": {"rank": 2, "experts": 1}}
    assert create("dcnv2", schema(), low_rank).pair_projection(0, 1) is None


@pytest.mark.parametrize("base", ["fm", "fwfm", "deepfm", "xdeepfm"])
def test_the_laws_that_a_wrapper_could_break_hold_around_every_ranker(base: str) -> None:
    class Config(SFGConfig):
        @classmethod
        def tiny(cls) -> SFGConfig:
            return SFGConfig(base=base, config=model_class(base).Config.tiny())

    around = type("Around", (SFG,), {"Config": Config})
    for law in ("gradients", "rows", "save", "untouched", "taps"):
        check_law(around, law)


def test_a_ranker_without_slots_is_refused_and_the_others_are_named() -> None:
    with pytest.raises(ConfigError, match="slots") as caught:
        SFG(schema(), SFGConfig(base="lr"))
    for base in BASES:
        assert base in caught.value.expected
    assert "lr" not in caught.value.expected.split(", ")


@pytest.mark.parametrize(
    ("base", "settings"),
    [
        ("dcnv2", {"pairing": "symmetric"}),
        ("xdeepfm", {"pairing": "all"}),
        ("fm", {"use_gen_rst": True}),
        ("xdeepfm", {"use_gen_rst": True}),
        ("fm", {"cross_drop": 0.1}),
        ("xdeepfm", {"cross_drop": 0.1}),
        ("xdeepfm", {"target": "random_k", "target_k": 2}),
        ("fm", {"target": "field_masked_k", "target_k": 2}),
        ("fm", {"target": "masked_k", "target_k": 4}),
        ("fm", {"raw_fields": ("f0", "f1", "f2", "f3")}),
    ],
)
def test_settings_about_what_the_ranker_lacks_are_refused(
    base: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="impossible"):
        built(base, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"gamma": 0.0},
        {"cross_drop": 1.0},
        {"rank": 0},
        {"gen": False, "gamma": 2.0},
        {"gen": False, "target": "random_k"},
        {"encoder": "own", "source": "all_for_high_card"},
        {"encoder": "stacked_2", "rank": 2},
        {"target_k": 3},
        {"target": "masked_k", "target_seed": 1},
        {"base": "fm", "config": model_class("dcnv2").Config()},
    ],
)
def test_impossible_and_idle_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="impossible"):
        SFGConfig(**settings)


def test_the_settings_of_the_ranker_are_stored_whole_and_can_be_overridden() -> None:
    config = SFGConfig(base="fm", config={"dim": 3})
    assert config.config == model_class("fm").Config(dim=3)
    assert from_dict(SFGConfig, to_dict(config)) == config
    assert to_dict(config)["config"]["embedding_std"] == 0.01
    assert override(config, "config.dim=7").config.dim == 7
    with pytest.raises(ConfigError, match="does not exist"):
        SFGConfig(base="fm", config={"dimm": 3})
