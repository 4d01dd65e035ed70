"""Two towers: vectors known without each other, against loops, and what the correction is for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fullrank.batch import Batch, Columns
from fullrank.errors import ConfigError, SchemaError
from fullrank.model import Ranker, Retriever
from fullrank.models.lr import LR
from fullrank.models.two_tower import TwoTower, TwoTowerConfig
from fullrank.schema import Bag, Categorical, Label, Numeric, Schema, Table
from fullrank.testing import check_law, fit, random_batch, tiny_schema

VARIANTS: dict[str, dict[str, Any]] = {
    "product": {},
    "cosine": {"similarity": "cosine", "temperature": 0.2},
    "in_batch": {"loss": "in_batch"},
    "uncorrected": {"loss": "in_batch", "corrected": False},
}


def tiny(variant: str) -> TwoTowerConfig:
    return replace(TwoTowerConfig.tiny(), **VARIANTS[variant])


def variant_class(variant: str) -> type[TwoTower]:
    class VariantConfig(TwoTowerConfig):
        @classmethod
        def tiny(cls) -> VariantConfig:
            return cls(**{**vars(TwoTowerConfig.tiny()), **VARIANTS[variant]})

    class Variant(TwoTower):
        Config = VariantConfig

    return Variant


def built(variant: str, rows: int = 40) -> tuple[TwoTower, Batch]:
    torch.manual_seed(0)
    model = TwoTower(tiny_schema(), tiny(variant)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model, random_batch(tiny_schema(), rows, torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "law", ["config", "finite", "gradients", "rows", "histories", "save", "untouched", "export"]
)
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "product"])
def test_variants_keep_the_laws(variant: str, law: str) -> None:
    check_law(variant_class(variant), law)


def shuffled(batch: Batch, order: Tensor, side: str) -> Batch:
    """Gives rows the fields of another row, for the fields of one side, or all others."""
    other, schema = batch.rows(order), tiny_schema()
    moved = {f.name for f in schema.fields if (f.side == "item") == (side == "item")}

    def columns(mine: Columns, theirs: Columns) -> Columns:
        picked = [theirs[n] if n in moved else mine[n] for n in mine.names]
        return Columns(mine.names, torch.stack(picked, dim=1))

    return replace(
        batch,
        categorical=columns(batch.categorical, other.categorical),
        numeric=columns(batch.numeric, other.numeric),
        bags={n: other.bags[n] if n in moved else j for n, j in batch.bags.items()},
        dense={n: other.dense[n] if n in moved else x for n, x in batch.dense.items()},
        sequences=batch.sequences if side == "item" else other.sequences,
    )


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_vector_is_known_without_the_other_side(variant: str) -> None:
    model, batch = built(variant)
    assert model.item_fields == ("tags", "item", "vector")
    order = torch.arange(len(batch)).roll(1)
    user, item = model.encode_user(batch), model.encode_item(batch)
    other_items, other_users = shuffled(batch, order, "item"), shuffled(batch, order, "user")
    for label, vectors in model.encode_user(other_items).items():
        assert torch.equal(vectors, user[label])
    assert torch.equal(model.encode_item(other_users), item)
    assert not torch.equal(model.encode_item(other_items), item)
    assert not torch.equal(model.encode_user(other_users)["click"], user["click"])


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_products_of_the_vectors(variant: str) -> None:
    model, batch = built(variant)
    user, item, scores = model.encode_user(batch), model.encode_item(batch), model.score(batch)
    matched = model.match(user, item)
    for i, (label, logits) in enumerate(scores.items()):
        assert torch.equal(matched[label], logits)
        product = torch.einsum("bd,bd->b", user[label].double(), item.double()) + model.bias[i]
        torch.testing.assert_close(product.float(), logits, rtol=1e-5, atol=1e-5)
    one = {label: vectors[:1] for label, vectors in user.items()}
    alike = {label: vectors[:1].expand(len(batch), -1) for label, vectors in user.items()}
    assert torch.equal(model.match(one, item)["buy"], model.match(alike, item)["buy"])


def tower(layers: torch.nn.Sequential, x: list[float]) -> list[float]:
    """Linear, ReLU, linear, by loops."""
    linears = [m for m in layers.modules() if isinstance(m, torch.nn.Linear)]
    for i, layer in enumerate(linears):
        out = []
        for weights, bias in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True):
            out.append(sum(w * v for w, v in zip(weights, x, strict=True)) + bias)
        x = [max(0.0, v) for v in out] if i < len(linears) - 1 else out
    return x


@torch.no_grad()
@pytest.mark.parametrize("variant", ["product", "cosine"])
def test_scores_are_those_of_the_loops(variant: str) -> None:
    model, batch = built(variant, rows=12)
    dim, block = model.config.dim, model.embeddings.fields(batch)
    for row in range(len(batch)):
        parts = {n.name: block[row, i].tolist() for i, n in enumerate(tiny_schema().fields)}
        user_in, item_in = parts["user"] + parts["age"], []
        for name in ("tags", "item", "vector"):
            item_in += parts[name]
        past = batch.sequences["history"]
        start, end = past.offsets[row : row + 2].tolist()
        for column, table in (("item", "items"), ("liked", "liked")):
            newest = past.values[column][start:end].tolist()[-3:]
            rows = model.embeddings.weight(table).tolist()
            events = [rows[i if i < len(rows) else 0] for i in newest]
            mean = [sum(e[d] for e in events) / max(1, len(events)) for d in range(4)]
            user_in += mean
        user = tower(model.user_tower.layers, user_in)
        item = tower(model.item_tower.layers, item_in)
        for i, (label, logits) in enumerate(model.score(batch).items()):
            u = user[i * dim : (i + 1) * dim]
            value = sum(a * b for a, b in zip(u, item, strict=True))
            if variant == "cosine":
                value /= sum(a * a for a in u) ** 0.5 * sum(b * b for b in item) ** 0.5
                value /= model.config.temperature
            value += float(model.bias[i])
            assert float(logits[row]) == pytest.approx(value, rel=1e-4, abs=1e-4), label


KINDS, EACH = 4, 4
ITEMS = 1 + KINDS * EACH
LOG = Schema(
    tables=(Table("users", 1 + KINDS), Table("items", ITEMS)),
    fields=(Categorical("user", "users", "user"), Categorical("item", "items", "item")),
    labels=(Label("click"),),
    item="item",
)


def chosen(rows: int, seed: int, *, taste: float) -> tuple[Batch, Tensor]:
    """Users of four kinds choose among items whose popularity is skewed; all rows are choices.

    Returns:
        The rows, and the logarithm of each user's true probabilities, [users, items].
    """
    g = torch.Generator().manual_seed(seed)
    kind, place = torch.arange(ITEMS - 1) // EACH, torch.arange(ITEMS - 1) % EACH
    worth = taste * (kind == torch.arange(KINDS)[:, None]).float() - 0.7 * place  # [users, items]
    user = torch.randint(0, KINDS, (rows,), generator=g)
    item = torch.multinomial(worth.softmax(1)[user], 1, generator=g)[:, 0]
    ids = torch.stack([user + 1, item + 1], dim=1).int()
    batch = replace(
        random_batch(LOG, rows, g),
        categorical=Columns(("user", "item"), ids),
        labels=Columns(("click",), torch.ones(rows, 1)),
        observed=Columns(("click",), torch.ones(rows, 1, dtype=torch.bool)),
        weight=torch.ones(rows),
    )
    return batch, worth.log_softmax(1)


def learnt(variant: str, batch: Batch) -> Tensor:
    """Returns the scores of every user for every item, [users, items], after training."""
    torch.manual_seed(0)
    model = TwoTower(LOG, replace(tiny(variant), dim=8, dropout=0.0))
    fit(model, batch, steps=80, learning_rate=0.02)
    pairs = torch.cartesian_prod(torch.arange(1, KINDS + 1), torch.arange(1, ITEMS)).int()
    every = replace(
        random_batch(LOG, len(pairs), torch.Generator().manual_seed(0)),
        categorical=Columns(("user", "item"), pairs),
    )
    return model.score(every)["click"].detach().view(KINDS, ITEMS - 1)


def correlation(a: Tensor, b: Tensor) -> float:
    both = torch.stack([(x - x.mean(1, keepdim=True)).flatten() for x in (a, b)])
    return float(torch.corrcoef(both)[0, 1])


def test_in_batch_finds_the_taste_and_the_correction_finds_the_popularity() -> None:
    batch, truth = chosen(1536, seed=1, taste=2.0)
    beyond = truth - truth.exp().mean(0).log()  # how much more than others a user likes an item
    corrected, plain = learnt("in_batch", batch), learnt("uncorrected", batch)
    assert correlation(corrected, truth) > 0.9
    assert correlation(plain, truth) < 0.8  # popularity is held against the items
    assert correlation(plain, beyond) > 0.9
    assert taste_of(corrected, truth) > 0.9


def test_without_a_taste_users_differ_by_chance_alone() -> None:
    batch, _ = chosen(1536, seed=1, taste=0.0)
    _, elsewhere = chosen(8, seed=2, taste=2.0)
    assert abs(taste_of(learnt("in_batch", batch), elsewhere)) < 0.3


def taste_of(scores: Tensor, truth: Tensor) -> float:
    """Returns how far users differ in the way that they truly do: 1 is as far, 0 is not at all."""
    own, true = scores - scores.mean(0), truth - truth.mean(0)  # popularity taken away
    return float((own * true).sum() / (true * true).sum())


@torch.no_grad()
def test_only_rows_that_were_liked_and_are_known_choose_an_item() -> None:
    model, batch = built("uncorrected", rows=12)
    user, item, losses = model.encode_user(batch), model.encode_item(batch), model(batch)
    for label, vectors in user.items():
        total = norm = 0.0
        for row in range(len(batch)):
            if batch.observed[label][row] and batch.labels[label][row] == 1:
                w = float(batch.weight[row])
                total -= w * float((item @ vectors[row]).log_softmax(0)[row])
                norm += w
        assert norm > 0
        assert float(losses[label]) == pytest.approx(total / norm, rel=1e-4)


def test_shares_are_counted_in_training_alone() -> None:
    model, batch = built("in_batch")
    model(batch)
    assert float(model.counts.sum()) == 0
    model.train()(batch)
    model(batch)
    ids = batch.categorical["item"]
    known = torch.where(ids < 7, ids, 0)  # the table grew after it was built
    assert model.counts.tolist() == [2.0 * int((known == i).sum()) for i in range(7)]
    assert "counts" not in built("product")[0].state_dict()


def test_a_side_without_fields_is_a_constant() -> None:
    schema = Schema((Table("a", 5),), (Categorical("a", "a", "user"),), (), (Label("y"),))
    model = TwoTower(schema, TwoTowerConfig.tiny()).eval()
    assert model.item_fields == ()
    batch = random_batch(schema, 6, torch.Generator().manual_seed(0))
    item = model.encode_item(batch)
    assert bool((item == item[0]).all())
    items_only = replace(schema, fields=(Categorical("a", "a", "item"),))
    user = TwoTower(items_only, TwoTowerConfig.tiny()).eval().encode_user(batch)["y"]
    assert bool((user == user[0]).all())


def test_the_judged_item_belongs_to_the_item_whatever_its_side() -> None:
    schema = Schema(
        (Table("a", 5),), (Categorical("a", "a"), Numeric("n")), (), (Label("y"),), item="a"
    )
    assert TwoTower(schema, TwoTowerConfig.tiny()).item_fields == ("a",)


@pytest.mark.parametrize("item", [None, "tags"])
def test_shares_need_one_judged_item(item: str | None) -> None:
    fields = (Categorical("a", "t"), Bag("tags", "t"))
    schema = Schema((Table("t", 5),), fields, (), (Label("y"),), item=item)
    with pytest.raises(SchemaError, match="no judged item"):
        TwoTower(schema, tiny("in_batch"))
    TwoTower(schema, tiny("uncorrected"))


def test_settings_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="temperature"):
        TwoTowerConfig(temperature=0.1)
    with pytest.raises(ConfigError, match="corrected"):
        TwoTowerConfig(corrected=False)


def test_it_is_a_retriever_and_others_are_not() -> None:
    model, _ = built("product")
    assert isinstance(model, Retriever)
    assert isinstance(model, Ranker)
    other = LR(tiny_schema(), LR.Config())
    assert isinstance(other, Ranker)
    assert not isinstance(other, Retriever)
