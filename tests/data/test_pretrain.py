"""Pre-trained vectors: against a slow twin, and blind to every row that a model may train on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from fullrank.data import pretrain
from fullrank.data.loader import Loader
from fullrank.data.prepare import Prepared, Split, prepare
from fullrank.data.pretrain import PretrainedVectors, later
from fullrank.data.spec import Category, Event, History, Number, Spec, Tags, Target
from fullrank.errors import ConfigError, SchemaError, SplitError
from fullrank.lookup import Lookup
from fullrank.models.rankup import RankUp
from fullrank.testing import area_under_curve

ROWS = 4000
SPEC = Spec(
    columns=(
        Category(name="user"),
        Category(name="ad", table="item"),
        Number(name="price"),
        Tags(name="tags"),
        History(name="past", events=(Event(name="item", column="past", table="item"),)),
        Target(name="click", observed="known"),
    ),
    time="time",
)
VECTORS = PretrainedVectors(item="ad", dim=4, share=0.5)


def log(rows: int = ROWS, seed: int = 0) -> pl.DataFrame:
    """Clicks that follow the product of hidden vectors of users and ads, two rows a second."""
    truth = np.random.default_rng(1)
    users, ads = truth.normal(size=(40, 2)), truth.normal(size=(30, 2))
    rng = np.random.default_rng([2, seed])
    user, ad = rng.integers(0, 40, rows), rng.integers(0, 30, rows)
    chance = 1 / (1 + np.exp(-2.5 * (users[user] * ads[ad]).sum(1)))
    return pl.DataFrame(
        {
            "user": user,
            "ad": ad,
            "price": rng.random(rows),
            "tags": ["|".join(map(str, rng.integers(0, 5, rng.integers(0, 4)))) for _ in user],
            "past": [rng.integers(0, 30, rng.integers(0, 4)).tolist() for _ in user],
            "click": (rng.random(rows) < chance).astype(np.int64),
            "known": rng.random(rows) < 0.9,
            "time": 1000 + np.arange(rows) // 2,
        },
        schema_overrides={"past": pl.List(pl.Int64)},
    )


def prepared(frame: pl.DataFrame, folder: Path, spec: Spec = SPEC) -> Prepared:
    return prepare({"train": frame.lazy(), "test": log(600, 1).lazy()}, spec, folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(log(), tmp_path_factory.mktemp("sorted") / "data")


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, pl.DataFrame]:
    frame = log().sample(fraction=1.0, shuffle=True, seed=3)
    return prepared(frame, tmp_path_factory.mktemp("shuffled") / "data"), frame


def changed(data: Prepared, change: Callable[[Split, dict[str, np.ndarray]], None]) -> Prepared:
    """The same data with other training rows; the featurizer stays what it was."""
    split = data.splits["train"]
    columns = tuple(np.array(c) for c in split.columns["categorical"])
    blocks = {name: np.array(block) for name, block in split.blocks.items()}
    change(split, blocks | {"user": columns[0], "ad": columns[1]})
    other = replace(split, columns=split.columns | {"categorical": columns}, blocks=blocks)
    return replace(data, splits=data.splits | {"train": other})


def values(data: Prepared, vectors: PretrainedVectors = VECTORS) -> dict[str, torch.Tensor]:
    return {name: x.values for name, x in vectors.make(data).lookups.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# ---- what the vectors are


def test_the_products_are_those_of_the_best_approximation_of_the_twin(data):
    split = data.splits["train"]
    users, ads = (c.tolist() for c in split.columns["categorical"])
    clicks = split.blocks["labels"][:, 0].tolist()
    known = split.blocks["observed"][:, 0].tolist()
    seen = [
        (users[i], ads[i]) for i in range(ROWS // 2) if clicks[i] and known[i] and users[i] * ads[i]
    ]
    both, user, ad = Counter(seen), Counter(u for u, _ in seen), Counter(a for _, a in seen)
    table = np.zeros((41, 31))
    for (u, a), count in both.items():
        table[u, a] = math.log(1 + count * len(seen) / (user[u] * ad[a]))
    u, s, v = np.linalg.svd(table)
    best = (u[:, :4] * s[:4]) @ v[:4]
    found = values(data)
    products = found["user_vectors"].double() @ found["item_vectors"].double().T
    np.testing.assert_allclose(products.numpy(), best, atol=2e-3)  # randomised
    lengths = [(x.double() ** 2).sum(0).numpy() for x in found.values()]
    np.testing.assert_allclose(lengths[0], lengths[1], rtol=1e-4)  # the split of S is even


def test_lookups_say_their_table_their_origin_and_the_time_that_they_end(data):
    made = VECTORS.make(data)
    assert {name: x.key for name, x in made.lookups.items()} == {
        "user_vectors": "user",
        "item_vectors": "item",
    }
    assert made.since == 1000 + ROWS // 4
    for name, size in (("user_vectors", 41), ("item_vectors", 31)):
        assert made.lookups[name].values.shape == (size, 4)
        assert "share=0.5" in made.lookups[name].source.made_by
        assert "1970-01-01T00:33:20" in made.lookups[name].source.date


def test_a_value_without_an_early_positive_row_has_the_zero_vector(data):
    def never(split: Split, rows: dict[str, np.ndarray]) -> None:
        rows["labels"][(rows["user"] == 7) & (rows["time"] < 2000)] = 0
        rows["ad"][rows["ad"] == 5] = 0  # unknown

    found = values(changed(data, never))
    for name, silent in (("user_vectors", {0, 7}), ("item_vectors", {0, 5})):
        zero = (found[name] == 0).all(1).nonzero().flatten().tolist()
        assert set(zero) == silent


def test_the_seed_decides_and_the_global_random_state_stays(data):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert same(values(data), values(data))
    assert torch.equal(torch.get_rng_state(), before)


# ---- leakage


def scrambled(since: int) -> Callable[[Split, dict[str, np.ndarray]], None]:
    """Other labels, users and ads from a time on."""

    def change(split: Split, rows: dict[str, np.ndarray]) -> None:
        after = rows["time"] >= since
        rows["labels"][after] = 1 - rows["labels"][after]
        for name in ("user", "ad"):
            rows[name][after] = rows[name][after][::-1].copy()

    return change


def test_no_vector_knows_a_row_of_the_training_window(data):
    made = VECTORS.make(data)
    assert made.since is not None
    rest = later(data.splits["train"], made.since)
    assert rest.rows == ROWS // 2
    assert rest.blocks["time"].min() == made.since
    assert same(values(changed(data, scrambled(made.since))), values(data))
    assert not same(values(changed(data, scrambled(made.since - 1))), values(data))  # control


def test_a_leak_would_be_noticed(data, monkeypatch):
    """The same law with vectors that read one second of the window must fail."""
    since = VECTORS.make(data).since
    assert since is not None
    monkeypatch.setattr(pretrain, "_boundary", lambda *_: since + 1)
    assert not same(values(changed(data, scrambled(since))), values(data))


def test_a_second_that_is_half_inside_the_share_stays_outside(data):
    made = replace(VECTORS, share=0.5001).make(data)  # one row further, of a second of two rows
    assert made.since == VECTORS.make(data).since


def test_the_order_of_rows_on_disk_does_not_matter(data, shuffled):
    other, frame = shuffled
    assert VECTORS.make(other).since == VECTORS.make(data).since
    names = data.featurizer, other.featurizer
    rows = pl.DataFrame(frame.sort("time")[:50])
    at = [f(rows).categorical.block.long() for f in names]
    a, b = values(data), values(other)
    products = [
        (x["user_vectors"][i[:, 0]] * x["item_vectors"][i[:, 1]]).sum(1)
        for x, i in zip((a, b), at, strict=True)
    ]
    torch.testing.assert_close(*products, atol=1e-4, rtol=1e-4)


# ---- the rows that are left


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_later_rows_are_those_of_the_raw_log(data, shuffled, order):
    made, frame = (data, log()) if order == "sorted" else shuffled
    left = later(made.splits["train"], 2000)
    expected = made.featurizer(frame.filter(pl.col("time") >= 2000))
    found = left.batch(0, left.rows)
    for part in ("categorical", "numeric", "labels", "observed"):
        assert torch.equal(getattr(found, part).block, getattr(expected, part).block)
    assert torch.equal(found.time, expected.time)
    for a, b in ((found.bags, expected.bags), (found.sequences, expected.sequences)):
        for name in a:
            assert torch.equal(a[name].offsets, b[name].offsets)
            for column in a[name].values:
                assert torch.equal(a[name].values[column], b[name].values[column])
    on_disk = isinstance(left.columns["categorical"][0], np.memmap)
    assert on_disk == (order == "sorted")
    assert sum(len(b) for b in Loader(left, 300)) == left.rows


# ---- do they help?


def reached(data: Prepared, lookups: dict[str, Lookup]) -> float:
    """Test AUC of a model that reads the lookups and trains on few rows."""
    torch.manual_seed(0)
    config = RankUp.Config(
        embedding_dim=4, sparse_tokens=2, num_blocks=1, token_dim=20, cross="pretrained"
    )
    model = RankUp(data.schema, config, lookups)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for seed in range(4):
        for batch in Loader(later(data.splits["train"], 2800), 64, seed=seed):
            optimizer.zero_grad()
            sum(model(batch).values()).backward()
            optimizer.step()
    model.eval()
    (batch,) = data.splits["test"].batches()
    return area_under_curve(model.score(batch)["click"].detach(), batch.labels["click"])


def test_planted_vectors_help_and_the_same_vectors_of_others_do_not(data):
    made = replace(VECTORS, share=0.9).make(data).lookups
    order = torch.Generator().manual_seed(0)
    mixed = {}
    for name, lookup in made.items():
        rows = 1 + torch.randperm(len(lookup.values) - 1, generator=order)
        mixed[name] = Lookup(
            lookup.key, lookup.values[torch.cat([rows.new_zeros(1), rows])], lookup.source
        )
    assert reached(data, made) > reached(data, mixed) + 0.05


# ---- refusals


@pytest.mark.parametrize(
    ("vectors", "error", "found", "fix"),
    [
        ({"dim": 31}, ConfigError, "30 items", "30 or less"),
        ({"item": "price"}, ConfigError, "'price' of kind Numeric", "user, ad"),
        ({"item": "user"}, ConfigError, "share the table 'user'", "another"),
        ({"item": "adx"}, SchemaError, "'adx'", "ad"),
    ],
)
def test_what_cannot_be_done_is_refused(data, vectors, error, found, fix):
    with pytest.raises(error) as caught:
        replace(VECTORS, **vectors).make(data)
    assert found in caught.value.found
    assert fix in caught.value.fix


def test_logs_without_an_earliest_part_are_refused(data, tmp_path):
    timeless = prepared(log(200), tmp_path / "timeless", replace(SPEC, time=""))
    for broken in (VECTORS.make, lambda d: later(d.splits["train"], 0)):
        with pytest.raises(SplitError) as caught:
            broken(timeless)
        assert "Spec(time=" in caught.value.expected

    def at_once(split: Split, rows: dict[str, np.ndarray]) -> None:
        rows["time"][: ROWS - 1] = 1000

    with pytest.raises(SplitError) as caught:
        VECTORS.make(changed(data, at_once))
    assert "3,999 rows of 4,000" in caught.value.found

    def silent(split: Split, rows: dict[str, np.ndarray]) -> None:
        rows["labels"][rows["time"] < 2000] = 0

    with pytest.raises(SplitError, match="nothing to learn"):
        VECTORS.make(changed(data, silent))
    with pytest.raises(SplitError, match="no rows are left"):
        later(data.splits["train"], 10_000)
    for setting in ({"dim": 0}, {"share": 1.0}, {"seed": -1}):
        with pytest.raises(ConfigError):
            replace(VECTORS, **setting)
