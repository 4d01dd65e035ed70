"""D-MoE: what each switch of its progressive study changes, against twins and counts."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn

from fullrank.config import from_dict, to_dict
from fullrank.diagnose.redundancy import GroupCorrelation
from fullrank.errors import ConfigError, SchemaError
from fullrank.losses.decorrelation import Decorrelation
from fullrank.models.dmoe import DMoE, DMoEConfig, Step
from fullrank.nn.expert_bank import Interaction
from fullrank.nn.gating import Gate
from fullrank.schema import Categorical, Label, Schema, Table
from fullrank.testing import random_batch

FIELDS, VALUES, DIM, UNITS = 4, 6, 3, 5
SCHEMA = Schema(
    tables=tuple(Table(f"t{i}", VALUES) for i in range(FIELDS)),
    fields=tuple(Categorical(f"f{i}", f"t{i}") for i in range(FIELDS)),
    labels=(Label("click"), Label("buy")),
)
PLAIN = DMoEConfig(
    dim=DIM, embedding_std=0.5, num_cross=2, cin_maps=(4, 3), dnn_hidden=(7,), expert_dim=UNITS,
    decorrelation=None, tower_hidden=(6,), dropout=0.0,
)  # fmt: skip
LOSSY = replace(PLAIN, decorrelation=Decorrelation(weight=0.1, warmup_steps=0))
SAME = replace(PLAIN.step("S1"), gate="mean")
KINDS, GATES = get_args(Interaction), get_args(Gate)


def rows(count=32, seed=0):
    return random_batch(SCHEMA, count, torch.Generator().manual_seed(seed))


def built(config, seed=0, schema=SCHEMA):
    torch.manual_seed(seed)
    return DMoE(schema, config)


def taps(model, batch):
    seen = {}
    for name in ("embed", "experts", "gate", "head_in"):
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: out.detach()})
        )
    model.score(batch)
    return seen


def total(losses):
    return torch.stack(list(losses.values())).sum()


def moved(model, seed=3):
    """The model with noise on every parameter, in evaluation mode."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=g))
    return model.eval()


def slow_interaction(kind, module, v):
    """The interaction of one row, from the definition."""
    flat, pairs = v.flatten(), list(itertools.combinations(range(FIELDS), 2))
    match kind:
        case "cross":
            x = flat
            for layer in module.layers:
                x = flat * (layer.linear.weight @ x + layer.linear.bias) + x
            return x
        case "cin":
            out, x = [], v
            for weight in module.weights:
                maps = weight.reshape(weight.shape[0], x.shape[0], FIELDS)
                x = torch.einsum("hij,id,jd->hd", maps, x, v)
                out.append(x.sum(1))
            return torch.cat(out)
        case "dnn":
            first, norm, _ = module[1].layers
            x = first.weight @ flat - norm.running_mean
            x = x / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
            return x.clamp(min=0)
        case "fwfm":
            return torch.stack([v[i] @ v[j] for i, j in pairs])
        case "ipnn":
            return torch.cat([flat, torch.stack([v[i] @ v[j] for i, j in pairs])])
        case "fmfm":
            return torch.stack([v[i] @ module.weight[p] @ v[j] for p, (i, j) in enumerate(pairs)])
    return flat


def slow_projection(layers, z):
    weight, norm, _ = layers
    x = (weight.weight @ z - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    return (x * norm.weight + norm.bias).clamp(min=0)


@pytest.mark.parametrize("kind", KINDS)
def test_u7_one_expert_is_its_interaction_a_projection_and_a_tower(kind):
    config = replace(PLAIN, experts=tuple(KINDS), num_experts=len(KINDS)).step("C1")
    own = {k: getattr(PLAIN, k) for k in ("num_cross", "cin_maps", "dnn_hidden")}
    read = {"cross": "num_cross", "cin": "cin_maps", "dnn": "dnn_hidden"}.get(kind)
    default = {k: getattr(DMoEConfig(), k) for k in own}
    settings = default | ({read: own[read]} if read else {})
    model = moved(built(replace(config, dim=DIM, experts=(kind,), **settings)).double())
    batch = rows(6)
    scores = model.score(batch)
    for b, v in enumerate(model.embeddings.fields(batch)):
        h = slow_projection(
            model.projections[0].layers, slow_interaction(kind, model.interactions[0], v)
        )
        body, head = model.towers[0]
        logits = head.weight @ slow_projection(body.layers, h) + head.bias
        found = torch.stack([scores["click"][b], scores["buy"][b]])
        torch.testing.assert_close(found, logits)


@pytest.mark.parametrize("gate", GATES)
def test_u9_gates_follow_their_definition_and_the_soft_ones_add_up_to_one(gate):
    model, batch = moved(built(replace(PLAIN, gate=gate))), rows(8)
    sets = [e.fields(batch).flatten(1) for e in (model.embeddings, *model.more_embeddings)]
    joined, weights = torch.cat(sets, 1), model.gating
    if gate == "softmax_own":
        scores = [e @ v + c for e, v, c in zip(sets, weights.weight, weights.bias, strict=True)]
        expected = torch.stack(scores, 1).softmax(1)[..., None]
    elif gate == "softmax_shared":
        expected = (joined @ weights.scores.weight.T + weights.scores.bias).softmax(1)[..., None]
    elif gate == "elementwise":
        scores = joined @ weights.scores.weight.T + weights.scores.bias
        expected = scores.view(8, 3, UNITS).softmax(1)
    else:
        level = {"mean": torch.full((3,), 1 / 3), "sum": torch.ones(3)}
        expected = level.get(gate, getattr(weights, "weight", None)).expand(8, 3)[..., None]
    seen = taps(model, batch)
    torch.testing.assert_close(seen["gate"], expected.detach().mean(2))
    torch.testing.assert_close(seen["head_in"], (expected.detach() * seen["experts"]).sum(1))
    if gate not in ("sum", "learned"):
        torch.testing.assert_close(seen["gate"].sum(1), torch.ones(8))


def test_u6_every_soft_gate_starts_as_the_mean_to_the_bit():
    reference = built(replace(PLAIN, gate="mean")).score(rows())
    for gate in ("softmax_own", "softmax_shared", "elementwise"):
        found = built(replace(PLAIN, gate=gate))
        found.load_state_dict(built(replace(PLAIN, gate="mean")).state_dict(), strict=False)
        assert all(torch.equal(found.score(rows())[k], reference[k]) for k in reference), gate


def test_u6_without_the_loss_nothing_of_it_is_left():
    def trained(config):
        model = built(config)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(3):
            optimizer.zero_grad()
            losses = model(rows(seed=step))
            losses.pop("decorrelation", None)
            total(losses).backward()
            optimizer.step()
        return model.state_dict()

    with_loss, without = trained(LOSSY), trained(PLAIN)
    assert set(with_loss) - set(without) == {"decorrelation.steps"}
    assert all(torch.equal(with_loss[k], without[k]) for k in without)
    assert "decorrelation" not in built(PLAIN)(rows())
    assert "decorrelation" in built(LOSSY)(rows())


def test_u7_equal_tables_and_experts_stay_equal_and_different_draws_do_not():
    model = built(SAME)
    for parts in (model.more_embeddings, model.interactions, model.projections):
        source = model.embeddings if parts is model.more_embeddings else parts[0]
        for part in parts:
            part.load_state_dict(source.state_dict())
    total(model(rows())).backward()
    first = model.embeddings.rows.grad
    assert float(first.abs().max()) > 0
    assert all(torch.allclose(e.rows.grad, first, atol=1e-7) for e in model.more_embeddings)
    fresh = built(SAME)
    assert not torch.equal(fresh.embeddings.rows, fresh.more_embeddings[0].rows)


def test_u8_the_metric_of_the_experts_tap_does_not_depend_on_the_cut():
    h = taps(moved(built(PLAIN).double()), rows(100))["experts"]
    found = []
    for size in (100, 17):
        seen = GroupCorrelation(*h.shape[1:])
        for part in h.split(size):
            seen.update(part)
        found.append(seen.experts().cec)
    assert found[0] == pytest.approx(found[1], abs=1e-8)


@pytest.mark.parametrize("step", get_args(Step))
def test_u9_each_row_of_the_study_has_the_parameters_of_its_description(step):
    K, F, V, m, Y = 3, FIELDS, FIELDS * VALUES, UNITS, 2
    config = LOSSY.step(step)
    model = built(config)
    d = DIM * K if step == "C1" else DIM
    sets = 1 if step in ("S0", "S1'", "S3a", "C1") else K
    experts = 1 if step in ("C1", "C2") else K
    assert config.shared_embedding == (step in ("S0", "S1'", "S3a"))
    assert (config.decorrelation is not None) == step.startswith("S3")
    widths = {"cross": F * d, "cin": 7, "dnn": 7}
    weights = {"cross": 2 * ((F * d) ** 2 + F * d), "cin": 4 * F * F + 3 * 4 * F}
    weights["dnn"] = F * d * 7 + 2 * 7
    kinds = ("cross", "cin", "dnn") if step in ("S1'", "S2", "S3") else ("cross",) * experts
    tables, gate = sets * V * d, 0 if step == "C1" else K * (F * d + 1)
    projections = sum(widths[k] * m + 2 * m for k in kinds)  # no bias below a batch norm
    tower = m * 6 + 2 * 6 + 6 * Y + Y
    expected = tables + gate + sum(weights[k] for k in kinds) + projections + tower
    assert sum(p.numel() for p in model.parameters()) == expected
    assert taps(model, rows(8))["experts"].shape == (8, 1 if step == "C1" else K, m)


def test_sets_never_meet_before_the_mixture():
    model = moved(built(PLAIN))
    before = taps(model, rows())["experts"]
    with torch.no_grad():
        model.more_embeddings[0].rows.mul_(2.0)
    changed = (taps(model, rows())["experts"] - before).abs().amax((0, 2)) > 0
    assert changed.tolist() == [False, True, False]


def test_a_shared_expert_is_one_function_of_every_set():
    model = moved(built(replace(PLAIN.step("C2"), gate="mean")))
    for tables in model.more_embeddings:
        tables.load_state_dict(model.embeddings.state_dict())
    h = taps(model, rows())["experts"]
    assert torch.equal(h[:, 0], h[:, 2])
    assert float(h.std()) > 0


def test_a_tower_per_expert_mixes_logits():
    model, batch = moved(built(replace(PLAIN, aggregate_before_tower=False))), rows(8)
    seen, scores = taps(model, batch), model.score(batch)
    per_expert = [tower(seen["experts"][:, k]) for k, tower in enumerate(model.towers)]
    expected = sum(seen["gate"][:, k, None] * logits for k, logits in enumerate(per_expert))
    torch.testing.assert_close(torch.stack([scores["click"], scores["buy"]], 1), expected)
    assert seen["head_in"].shape == (8, 3 * UNITS)


def test_the_gate_can_be_kept_from_the_embeddings_and_from_fields():
    def reach(**settings):
        model, batch = moved(built(replace(PLAIN, **settings))), rows()
        sets = [e.fields(batch).detach().requires_grad_() for e in (model.embeddings,) * 3]
        model._gates(sets)[:, 0].sum().backward()
        grad = sets[0].grad
        return [False] * FIELDS if grad is None else (grad.abs().amax((0, 2)) > 0).tolist()

    assert reach() == [True] * FIELDS
    assert reach(gate_stopgrad=True) == [False] * FIELDS
    assert reach(gate_fields=("f2", "f0")) == [True, False, True, False]


def test_the_loss_lowers_the_correlation_of_the_experts():
    def correlation(config):
        model = built(config)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            total(model(rows(256))).backward()
            optimizer.step()
        h = taps(model.eval(), rows(256))["experts"]
        seen = GroupCorrelation(*h.shape[1:])
        seen.update(h.double())
        return seen.experts().cec

    strong = Decorrelation(weight=10.0, warmup_steps=10)
    assert correlation(replace(SAME, decorrelation=strong)) < 0.7 * correlation(SAME)


def test_every_setting_survives_storage_and_multi_embedding_is_as_released():
    config = replace(PLAIN, decorrelation=Decorrelation(reduction="cka", rows=32), gate="sum")
    assert from_dict(DMoEConfig, to_dict(config)) == config
    released = DMoEConfig.multi_embedding(num_experts=4, dim=10)
    assert (released.gate, released.num_cross, released.expert_dim) == ("mean", 4, 400)
    assert len(built(released).interactions) == 4
    with pytest.raises(ConfigError) as caught:
        from_dict(DMoEConfig, {"experts": ["cros"], "num_experts": 3})
    assert "'cross'" in caught.value.fix


@pytest.mark.parametrize(
    ("settings", "where", "fix"),
    [
        ({"experts": ("cross", "cni", "dnn")}, "experts", "did you mean 'cin'?"),
        ({"num_experts": 4}, "experts", "set num_experts=3, or name 4 experts"),
        ({"num_experts": 1, "experts": ("cross",)}, "decorrelation", "set decorrelation=None"),
        (
            {"num_experts": 1, "experts": ("cross",), "decorrelation": None},
            "gate",
            "set gate='mean'",
        ),
        ({"experts": ("dnn",), "num_cross": 4}, "num_cross", "set num_cross=3"),
        ({"cin_maps": ()}, "cin_maps", "set (16,)"),
        ({"gate": "mean", "gate_stopgrad": True}, "gate_stopgrad", "set gate_stopgrad=False"),
        ({"gate": "sum", "gate_fields": ("f0",)}, "gate_fields", "set gate_fields=()"),
        ({"shared_expert": True}, "shared_expert", "set shared_expert=False"),
        (
            {"shared_expert": True, "shared_embedding": True, "experts": ("cin",)},
            "shared_expert",
            "or change shared_embedding",
        ),
        ({"gate": "softmax_shared", "shared_embedding": True}, "gate", "set gate='softmax_own'"),
        ({"gate": "elementwise", "aggregate_before_tower": False}, "gate", "a tower per expert"),
    ],
)
def test_impossible_settings_are_refused_with_a_way_out(settings, where, fix):
    with pytest.raises(ConfigError) as caught:
        DMoEConfig(**settings)
    assert caught.value.where == f"DMoEConfig.{where}"
    assert fix in caught.value.fix


def test_what_only_the_schema_tells_is_refused_at_construction():
    with pytest.raises(ConfigError) as caught:
        built(replace(PLAIN, decorrelation=Decorrelation(hook="z")))
    assert caught.value.found == "'z' with cross 12 wide, cin 7 wide, dnn 7 wide"
    with pytest.raises(ConfigError, match="impossible") as caught:
        built(replace(PLAIN, gate_fields=("f9",)))
    assert caught.value.where == "DMoEConfig.gate_fields"
    one = SCHEMA.select(["f0"], [])
    with pytest.raises(SchemaError, match="no pair"):
        built(replace(DMoEConfig().step("S1"), experts=("ipnn",)), schema=one)
    with pytest.raises(ConfigError) as caught:
        SAME.step("S2")
    assert "another kind" in caught.value.fix


def test_equal_widths_may_be_compared_before_the_projection():
    model = built(replace(LOSSY.step("S3b"), decorrelation=Decorrelation(hook="z")))
    assert isinstance(model.decorrelation, nn.Module)
    assert float(model(rows())["decorrelation"].detach()) > 0
