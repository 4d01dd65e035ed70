from __future__ import annotations

from typing import Any

import pytest
import torch

from fullrank.config import from_dict, to_dict
from fullrank.errors import ConfigError
from fullrank.models.pfl import PFL, PFLConfig
from fullrank.schema import Categorical, Label, Schema, Table
from fullrank.testing import area_under_curve, fit, planted, random_batch
from tests.reference import interaction_twin as twin

F, K = 5, 4
SCHEMA = Schema(
    tables=tuple(Table(f"f{i}", 4) for i in range(F)),
    fields=tuple(Categorical(f"f{i}", f"f{i}") for i in range(F)),
    labels=(Label("click"), Label("buy")),
)


def built(**settings: Any) -> tuple[Any, Any]:
    model: Any = PFL(SCHEMA, PFLConfig(dim=K, **settings)).double().eval()
    g = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=g, dtype=torch.float64)
    return model, random_batch(SCHEMA, 3, g)


@pytest.mark.parametrize("classifier", ["mlp", "linear", "parallel_mlp"])
def test_u1_scores_follow_the_formulas(classifier: Any) -> None:
    settings = {} if classifier == "linear" else {"hidden": (6,)}
    model, batch = built(num_layers=3, classifier=classifier, first_order=True, **settings)
    w = {name: p.detach().numpy() for name, p in model.named_parameters()}
    layers = [
        w[f"block{n}.linear.weight"].reshape(F, K, F, K).transpose(0, 2, 1, 3) for n in (0, 1)
    ]
    first = model.linear.fields(batch).detach().sum(1).numpy()
    for row, e in enumerate(model.embeddings.fields(batch).detach().numpy()):
        v = twin.pfl(e, layers, w["alpha"])
        if classifier != "linear":
            network = [(w["deep.layers.0.weight"], w["deep.layers.0.bias"])]
            read = v if classifier == "mlp" else twin.flat(e)
            out = twin.network(read, network)
            v = out if classifier == "mlp" else [*v, *out]
        for label, logits in enumerate(model.score(batch).values()):
            slow = twin.affine(v, w["head.weight"][label], w["head.bias"][label])
            assert abs(logits[row].item() - slow - first[row, label]) < 1e-10


def test_u4_each_layer_has_one_degree() -> None:
    model, batch = built(num_layers=4, classifier="linear")
    e = model.embeddings.fields(batch)
    one, three = e, 3 * e
    for layer in range(3):
        block = model.get_submodule(f"block{layer}")
        one, three = block(e, one), block(3 * e, three)
        torch.testing.assert_close(three, 3 ** (layer + 2) * one)


def test_u5_parameters_of_the_interaction() -> None:
    schema = Schema(
        tables=tuple(Table(f"f{i}", 2) for i in range(39)),
        fields=tuple(Categorical(f"f{i}", f"f{i}") for i in range(39)),
        labels=(Label("click"),),
    )
    model = PFL(schema, PFLConfig(num_layers=3, classifier="linear"))
    names = [n for n, _ in model.named_parameters() if n.startswith(("block", "alpha"))]
    assert sum(model.get_parameter(name).numel() for name in names) == 304_200 + 3


def test_the_projection_is_what_reaches_the_other_field() -> None:
    model, batch = built(num_layers=2)
    e = model.embeddings.fields(batch)
    parts = [e[:, i] @ model.pair_projection(i, 2) for i in range(F)]
    torch.testing.assert_close(model.block0(e, e)[:, 2], e[:, 2] * torch.stack(parts).sum(0))


def test_layers_above_the_first_are_dead_from_tiny_embeddings_and_alive_from_larger_ones() -> None:
    torch.manual_seed(0)
    sizes = {}
    for std in (1e-4, 0.1):
        model: Any = PFL(SCHEMA, PFLConfig(dim=K, embedding_std=std))
        batch = random_batch(SCHEMA, 64, torch.Generator().manual_seed(1))
        e = model.embeddings.fields(batch)
        sizes[std] = (model.block0(e, e).std() / e.std()).item()
    assert sizes[1e-4] < 1e-3
    assert sizes[0.1] > 1e-2


def test_products_alone_find_a_planted_pair_and_the_raw_layer_alone_does_not() -> None:
    g = torch.Generator().manual_seed(3)
    schema, train, _ = planted(2, 2000, g)
    schema, test, _ = planted(2, 2000, g)
    reached = []
    for silent in (False, True):
        torch.manual_seed(0)
        model = PFL(schema, PFLConfig(dim=4, num_layers=2, classifier="linear"))
        if silent:
            model.alpha.register_hook(lambda grad: grad * torch.tensor([1.0, 0.0]))
            model.alpha.data[1] = 0.0
        fit(model, train, steps=60)
        reached.append(area_under_curve(model.score(test)["click"].detach(), test.labels["click"]))
    assert reached[0] > 0.8
    assert reached[1] < 0.56


def test_settings_survive_storage_and_idle_ones_are_refused() -> None:
    assert from_dict(PFLConfig, to_dict(PFLConfig.tiny())) == PFLConfig.tiny()
    with pytest.raises(ConfigError) as refused:
        PFLConfig(classifier="linear", hidden=(8,))
    assert "classifier=mlp" in refused.value.fix
