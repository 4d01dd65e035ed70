from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.data.featurizer import Featurizer
from fullrank.data.spec import Category, Event, History, Number, Spec, Tags, Target, Vector
from fullrank.data.vocab import Vocabulary
from fullrank.errors import (
    ArtifactError,
    DataFormatError,
    FullrankError,
    LabelError,
    SchemaError,
)

SPEC = Spec(
    columns=(
        Category(name="user", side="user"),
        Number(name="age"),
        Number(name="count", transform="log"),
        Number(name="raw", transform="none"),
        Tags(name="tags", table="tag", max_length=2),
        Category(name="item", side="item", min_count=2),
        Vector(name="vector", shape=(2,)),
        Category(name="extra", optional=True),
        History(
            name="past",
            events=(
                Event(name="item", column="past_item", table="item"),
                Event(name="time", column="past_time"),
            ),
            max_length=2,
        ),
        Target(name="click"),
    ),
    item="item",
    group="user",
    time="ts",
)
ROWS = pl.DataFrame(
    {
        "user": ["a", "b", "a", None, "c"],
        "age": [10.0, None, 30.0, 40.0, 50.0],
        "count": [0, 1, 10, 100, -5],
        "raw": [1.5, 2.5, None, 4.5, 5.5],
        "tags": ["x|y|z", "y", "", None, "x|y"],
        "item": [1, 2, 3, 2, 2],
        "vector": [[1.0, 2.0], [3.0, 4.0], None, [0.0, 0.5], [1.0, 1.0]],
        "extra": ["k", "k", "l", "l", "l"],
        "past_item": [[1, 2, 4], [], [2], None, [9, 2]],
        "past_time": [[1, 2, 3], [], [3], None, [4, 5]],
        "ts": [10, 11, 12, 13, 14],
        "click": [0, 1, 0, 1, 1],
        "unknown_column": [0, 0, 0, 0, 0],
    }
)
VALUES = st.lists(st.one_of(st.none(), st.text("abc", max_size=2)), min_size=1, max_size=40)


def fitted() -> Featurizer:
    return Featurizer.fit(SPEC, ROWS.lazy())


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES, st.integers(1, 3))
def test_rows_equal_a_dictionary_made_by_hand(train, other, min_count) -> None:
    frame = pl.DataFrame({"v": train}, schema={"v": pl.String}).lazy()
    vocabulary = Vocabulary.fit([frame], min_count)
    counts = Counter(v for v in train if v)
    kept = sorted((v for v, n in counts.items() if n >= min_count), key=lambda v: (-counts[v], v))
    by_hand = {v: i + 1 for i, v in enumerate(kept)}
    raw = pl.Series("v", other, dtype=pl.String)
    expected = [by_hand.get(v, 0) for v in other]
    assert vocabulary.rows(raw).tolist() == expected
    if kept:  # both ways of looking up, whatever the sizes chose
        nulled = raw.set(raw == "", None)
        assert vocabulary._searched(nulled).tolist() == expected
    assert vocabulary.unknown == len(train) - sum(counts[v] for v in kept)


def test_a_large_batch_and_single_rows_are_looked_up_alike() -> None:
    values = np.random.default_rng(0).permutation(20000)[:9000]
    vocabulary = Vocabulary.fit([pl.DataFrame({"v": values}).lazy()], 1)
    raw = pl.Series("v", np.arange(20000))
    together = vocabulary.rows(raw)
    some = range(0, 20000, 997)
    assert [int(vocabulary.rows(raw[i : i + 1])[0]) for i in some] == [together[i] for i in some]
    assert set(together.tolist()) == set(range(9001))


def test_numbers_of_json_and_of_parquet_name_the_same_id() -> None:
    vocabulary = Vocabulary.fit([pl.DataFrame({"v": [3, 5, 5]}).lazy()], 1)
    assert vocabulary.rows(pl.Series([5.0, 5.5, 3.0])).tolist() == [1, 0, 2]
    assert vocabulary.rows(pl.Series(["5", "x", "3"])).tolist() == [1, 0, 2]


def test_encoding_equals_the_definition() -> None:
    batch = fitted()(ROWS)
    assert batch.categorical["user"].tolist() == [1, 2, 1, 0, 3]
    # item is also in the histories: 2 occurs 6 times, 1 twice; 3, 4 and 9 fall below the floor
    assert batch.categorical["item"].tolist() == [2, 1, 0, 1, 1]
    ages = [10.0, 30.0, 40.0, 50.0]
    mean = sum(ages) / 4
    deviation = math.sqrt(sum((a - mean) ** 2 for a in ages) / 4)
    expected = [0.0 if a is None else (a - mean) / deviation for a in ROWS["age"]]
    assert batch.numeric["age"].tolist() == pytest.approx(expected)
    logs = [math.copysign(math.log1p(abs(c)), c) for c in ROWS["count"]]
    mean, deviation = np.mean(logs), np.std(logs)
    assert batch.numeric["count"].tolist() == pytest.approx([(x - mean) / deviation for x in logs])
    assert batch.numeric["raw"].tolist() == pytest.approx([1.5, 2.5, 3.5, 4.5, 5.5])
    names = {i + 1: v for i, v in enumerate(fitted().vocabularies["tag"].values)}
    bag = batch.bags["tags"]
    assert [names[int(v)] for v in bag.values["value"]] == ["x", "y", "y", "x", "y"]
    assert bag.offsets.tolist() == [0, 2, 3, 3, 3, 5]
    past = batch.sequences["past"]
    assert past.offsets.tolist() == [0, 2, 2, 3, 3, 5]  # the newest two
    assert past.values["item"].tolist() == [1, 0, 1, 0, 1]
    assert past.values["time"].tolist() == [2, 3, 3, 4, 5]
    assert batch.dense["vector"].tolist() == [[1, 2], [3, 4], [0, 0], [0, 0.5], [1, 1]]
    assert batch.labels["click"].tolist() == [0, 1, 0, 1, 1]
    assert batch.time.tolist() == [10, 11, 12, 13, 14]
    groups = batch.group.tolist()
    assert groups[0] == groups[2]
    assert len(set(groups)) == 4


def test_a_row_alone_equals_the_row_in_a_batch_to_the_bit() -> None:
    featurizer = fitted()
    together = featurizer(ROWS)
    for i in range(len(ROWS)):
        alone = featurizer(ROWS[i : i + 1])
        same = together.rows(torch.tensor([i]))
        assert torch.equal(alone.categorical.block, same.categorical.block)
        assert torch.equal(alone.numeric.block, same.numeric.block)
        assert torch.equal(alone.dense["vector"], same.dense["vector"])
        assert torch.equal(alone.group, same.group)
        for kind in ("bags", "sequences"):
            for name, jagged in getattr(alone, kind).items():
                other = getattr(same, kind)[name]
                assert torch.equal(jagged.offsets, other.offsets)
                for column, values in jagged.values.items():
                    assert torch.equal(values, other.values[column])


def test_serving_rows_may_lack_labels_optional_columns_and_have_others() -> None:
    served = ROWS.drop("click", "extra", "ts").with_columns(surprise=pl.lit(1))
    batch = fitted()(served.to_arrow())
    assert batch.categorical["extra"].tolist() == [0] * 5
    assert not batch.observed.block.any()
    assert batch.time.tolist() == [0] * 5


def test_only_training_rows_teach() -> None:
    before = fitted().fingerprint()
    featurizer = fitted()
    featurizer(ROWS.with_columns(user=pl.lit("new"), age=pl.lit(1e9)))
    assert featurizer.fingerprint() == before
    assert (featurizer(ROWS.with_columns(user=pl.lit("new"))).categorical["user"] == 0).all()


def test_conversion_is_defined_only_where_its_click_happened() -> None:
    spec = Spec(
        columns=(
            Category(name="a"),
            Target(name="click"),
            Target(name="buy", given="click", observed="known"),
        )
    )
    rows = pl.DataFrame(
        {
            "a": ["x", "y", "x", "y"],
            "click": [1, 1, 0, 1],
            "buy": [1, None, 0, 0],
            "known": [True, False, True, True],
        }
    )
    batch = Featurizer.fit(spec, rows.lazy())(rows)
    assert batch.observed["click"].tolist() == [True] * 4
    assert batch.observed["buy"].tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"age": [1.0, 2.0, float("nan"), 3.0, 4.0]}, DataFormatError, "'age', row 2"),
        ({"age": [1.0, float("inf"), 3.0, 3.0, 4.0]}, DataFormatError, "'age', row 1"),
        ({"click": [0, 1, 2, 0, 0]}, LabelError, "'click', row 2"),
        ({"click": [0, 1, None, 0, 0]}, LabelError, "'click', row 2"),
        ({"past_time": [[1], [], [3], None, [4, 5]]}, DataFormatError, "'past_time', row 0"),
        ({"vector": [[1.0], [3.0, 4.0], None, None, None]}, DataFormatError, "'vector', row 0"),
        ({"vector": [[1.0, None], None, None, None, None]}, DataFormatError, "not finite"),
    ],
)
def test_bad_values_are_named(change, error, said) -> None:
    rows = ROWS.with_columns(**{k: pl.Series(k, v) for k, v in change.items()})
    with pytest.raises(error) as caught:
        fitted()(rows)
    assert said in str(caught.value)


def test_a_missing_column_is_named_with_the_nearest() -> None:
    with pytest.raises(SchemaError, match="did you mean 'usr'"):
        fitted()(ROWS.rename({"user": "usr"}))
    with pytest.raises(SchemaError):
        Featurizer.fit(SPEC, ROWS.drop("item").lazy())


def test_saves_and_loads_to_the_bit_and_refuses_a_changed_file(tmp_path: Path) -> None:
    featurizer = fitted()
    featurizer.save(tmp_path / "f")
    loaded = Featurizer.load(tmp_path / "f")
    assert loaded.spec == SPEC
    assert loaded.schema == featurizer.schema
    assert loaded.fingerprint() == featurizer.fingerprint()
    assert torch.equal(loaded(ROWS).categorical.block, featurizer(ROWS).categorical.block)
    text = (tmp_path / "f" / "featurizer.json").read_text()
    (tmp_path / "f" / "featurizer.json").write_text(text.replace('"age"', '"aged"', 1))
    with pytest.raises(ArtifactError):
        Featurizer.load(tmp_path / "f")
    with pytest.raises(ArtifactError):
        Featurizer.load(tmp_path / "nowhere")


def test_a_forged_featurizer_is_refused_in_words(tmp_path):
    featurizer = Featurizer.fit(FORGED, pl.DataFrame({"user": ["a"], "past": [["b"]], "click": [1],
                                                      "price": [2.0]}).lazy())  # fmt: skip
    featurizer.save(tmp_path)
    assert Featurizer.load(tmp_path).fingerprint() == featurizer.fingerprint()
    path = tmp_path / "featurizer.json"
    whole = json.loads(path.read_text())
    odd = [None, True, -1, 7.5, "", "x", [], {}, [1, 2], ["a"], [[1]], {"a": 1}, 2**70, "\ud800"]
    read = 0
    for keys in _paths(whole):
        for value in odd:
            forged = json.loads(json.dumps(whole))
            part = forged
            for key in keys[:-1]:
                part = part[key]
            part[keys[-1]] = value
            path.write_text(json.dumps(forged))
            try:
                Featurizer.load(tmp_path)
                read += 1
            except FullrankError:  # and nothing else
                continue
    assert read < 60  # such as an item that is named in another way
    for text in ("[" * 100_000, "", "[]", "{}", "\x00"):
        path.write_text(text)
        with pytest.raises(ArtifactError):
            Featurizer.load(tmp_path)


FORGED = Spec(
    columns=(
        Category(name="user", side="user"),
        Number(name="price"),
        History(name="seen", events=(Event(name="item", column="past", table="item"),)),
        Target(name="click"),
    ),
    ignore=(("bid", "not read"),),
    identity=("user",),
)


def _paths(value, before=()):
    parts = enumerate(value) if isinstance(value, list) else value.items()
    for key, part in parts:
        yield (*before, key)
        if isinstance(part, dict | list):
            yield from _paths(part, (*before, key))


@pytest.mark.parametrize(
    "columns",
    [
        (Category(name=""),),
        (History(name="seen", events=()),),
        (Category(name="past"), History(name="seen", events=(Event(name="a", column="past"),))),
    ],
)
def test_columns_that_cannot_be_read_are_refused(columns):
    with pytest.raises(SchemaError):
        Spec(columns=columns)
