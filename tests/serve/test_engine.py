"""A request is answered with the bits that `Predictor.score` gives the same rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import fullrank.serve.values as values_module
from fullrank.batch import Batch
from fullrank.data.featurizer import Featurizer
from fullrank.data.spec import Category, Event, History, Number, Spec, Tags, Target
from fullrank.errors import DataFormatError, FullrankError, RequestError, SchemaError
from fullrank.serve.block_sizes import SIZES, try_blocks
from fullrank.serve.engine import Engine, concatenated
from fullrank.serve.predictor import Predictor, probabilities
from fullrank.serve.values import ValueEncoder
from fullrank.serve.wire import Wire

from .conftest import make_artifact, make_log

ROWS = make_log(150, seed=1).drop("click", "buy")
USER, CONTEXT = ("user", "past"), ("browser", "price", "age", "tags", "picture")


def as_engine(name: str, log: pl.DataFrame) -> Engine:
    predictor = Predictor(make_artifact(name, log))
    return Engine(predictor, "made up", predictor.model.score, max_rows=200)


@pytest.fixture(scope="module", params=["dcnv2", "dien", "rankmixer"])
def engine(request, log) -> Engine:
    return as_engine(request.param, log)


@pytest.fixture(scope="module")
def plain(log) -> Engine:
    return as_engine("dcnv2", log)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def objects(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON gives them, without the fields that are empty."""
    kept = [{k: v for k, v in row.items() if v is not None} for row in frame.to_dicts()]
    return json.loads(json.dumps(kept))


# ---- scores


def test_rows_in_every_form_score_as_the_predictor_scores_them(engine):
    expected = engine.predictor.score(ROWS)
    for label in expected:
        assert len(np.unique(expected[label])) > 100  # rows differ, so that equality says something
    assert same(engine.score(engine.encode_rows(objects(ROWS))), expected)
    assert same(engine.score(engine.encode_rows(ROWS)), expected)
    assert same(engine.score(engine.encode_rows(ROWS.to_arrow())), expected)
    alone = [engine.score(engine.encode_rows([row])) for row in objects(ROWS[:20])]
    assert same({n: np.concatenate([s[n] for s in alone]) for n in expected}, {
        n: v[:20] for n, v in expected.items()
    })  # fmt: skip


@pytest.mark.parametrize("with_user", [(), ("price",), CONTEXT])
def test_candidates_score_as_rows_that_repeat_their_user(engine, with_user):
    user = ROWS[3].select(*USER, *with_user)
    candidates = ROWS.drop(user.columns)
    rows = user.select(pl.all().gather([0] * len(ROWS))).hstack(candidates)
    expected = engine.predictor.score(rows)
    one, many = objects(user)[0], objects(candidates)
    assert same(engine.score(engine.encode_rank(one, many)), expected)
    assert same(engine.score(engine.encode_rank(user, candidates)), expected)
    other = engine.score(
        engine.encode_rank(one | {"user": "u1" if one["user"] != "u1" else "u2"}, many)
    )
    assert not same(other, expected)  # fmt: skip


def test_requests_that_are_scored_together_score_as_they_do_alone(engine):
    parts = [ROWS[i : i + n] for i, n in ((0, 1), (1, 70), (71, 3), (74, 76))]
    batches = [engine.encode_rows(objects(part)) for part in parts]
    assert same(engine.score(concatenated(batches)), engine.predictor.score(ROWS))


def altered(engine: Engine, change: Callable[[Batch, torch.Tensor], torch.Tensor]) -> Any:
    def score(batch: Batch) -> dict[str, torch.Tensor]:
        scores = engine.predictor.model.score(batch)
        return {n: change(batch, x) for n, x in scores.items()}

    return score


def by_hand(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    """Logits whose bits depend on nothing but the row."""
    return batch.categorical.block.sum(1) * 0.125 + batch.weight


def timed(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> None:
    monkeypatch.setattr(
        "fullrank.serve.block_sizes._seconds",
        lambda score, schema, sizes: {size: seconds(size) for size in sizes},
    )


def test_a_block_size_that_costs_more_per_row_is_not_used(plain, monkeypatch):
    schema = plain.artifact.schema
    timed(monkeypatch, {64: 1.0, 128: 1.5, 256: 3.2, 512: 5.0}.__getitem__)
    blocks = try_blocks(altered(plain, by_hand), schema)
    assert blocks.seconds == {64: 1.0, 128: 1.5, 512: 5.0}


def test_a_block_size_that_changes_bits_is_not_used(plain, monkeypatch):
    schema = plain.artifact.schema
    timed(monkeypatch, lambda size: 1.0 + size / 64)
    blocks = try_blocks(altered(plain, by_hand), schema)
    assert (tuple(blocks.seconds), blocks.independent) == ((64, *SIZES), True)
    sized = altered(plain, lambda b, x: by_hand(b, x) + 1e-3 * (len(b) == 256))
    assert tuple(try_blocks(sized, schema).seconds) == (64, 128, 512)
    beside = altered(plain, lambda b, x: by_hand(b, x) + by_hand(b, x)[0])
    blocks = try_blocks(beside, schema)
    assert (tuple(blocks.seconds), blocks.independent) == ((64,), False)


@pytest.mark.parametrize("rows", [1, 64, 65, 129, 300, 513, 700])
def test_any_number_of_rows_goes_through_blocks_that_were_tried(plain, rows):
    seen: list[int] = []

    def watched(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        return by_hand(batch, logits)

    engine = Engine(plain.predictor, "made up", altered(plain, watched), max_rows=1000)
    seen.clear()
    frame = make_log(rows, seed=2).drop("click", "buy")
    batch = engine.encode_rows(frame)
    expected = probabilities(by_hand(batch, batch.weight).numpy())
    assert np.array_equal(engine.score(batch)["click"], expected)
    assert set(seen) <= {64, *SIZES}
    assert len(seen) == 2 * -(-rows // 512)  # each label looks at each block
    assert engine.seconds(2 * rows) >= engine.seconds(rows) > 0


# ---- values


ODD = {
    "user": ["u1", "u99", "", None, 7, 7.5, True, "u2 "],
    "ad": [3, 99, "3", " 3", 3.0, 3.5, None, True, "", 2**40],
    "price": [1, 1.5, -0.0, 12345678901, 1e-300],
    "age": [None, 0, -3, 17.25],
    "tags": [None, "", "t0", "t0|t1||t9", ["t0", None, "t1"], [], "|"],
    "past": [None, [], [1, 2, 3], [1, None, 99, "2"]],
}


def blocks(encoded: Any) -> dict[str, list[Any]]:
    found = {n: b.tolist() for n, b in encoded.blocks.items()}
    for name, (columns, offsets) in encoded.jagged.items():
        found[name] = [offsets.tolist(), *(v.tolist() for v in columns.values())]
    return found


@pytest.mark.parametrize("most_words", [10**6, 0])
@pytest.mark.parametrize(("column", "value"), [(c, v) for c, vs in ODD.items() for v in vs])
def test_values_of_every_type_become_the_rows_of_the_featurizer(
    plain, monkeypatch, column, value, most_words
):
    monkeypatch.setattr(values_module, "_MOST_WORDS", most_words)
    featurizer = plain.featurizer
    row = {**objects(ROWS[5])[0], column: value}
    empty = {"past": pl.List(pl.Int64), "tags": pl.String}.get(column) if value is None else None
    frame = pl.DataFrame({n: pl.Series([v], strict=False) for n, v in row.items()})
    if empty:
        frame = frame.with_columns(pl.col(column).cast(empty))
    if column == "past" and value and "2" in value:  # a frame has one type, JSON need not
        frame = frame.with_columns(past=pl.Series([["1", None, "99", "2"]]))
    columns = {n: [v] for n, v in row.items()}
    found = ValueEncoder(featurizer).encode(columns, 1, featurizer.spec.columns)
    expected = featurizer.encode(frame)
    del expected.blocks["group"]  # no score depends on it
    assert blocks(found) == blocks(expected)


FRAMES = make_log(60, seed=4).drop("click", "buy")
USUAL = {
    "as it is": FRAMES,
    "narrow": FRAMES.cast({"ad": pl.Int8, "price": pl.Float32, "past": pl.List(pl.UInt16)}),
    "whole prices": FRAMES.with_columns(pl.col("price").cast(pl.Int32)),
    "wide vectors": FRAMES.cast({"picture": pl.List(pl.Float64)}),
    "optional columns missing": FRAMES.drop("browser", "age", "tags", "picture", "past"),
    "optional values missing": FRAMES.with_columns(
        pl.when(pl.int_range(60) % 3 == 0).then(c).alias(c)
        for c in ("browser", "tags", "picture", "past")
    ),
    "empty entries": FRAMES.with_columns(past=pl.Series([[1, None, 3]] * 60)),
    "unknown values": FRAMES.with_columns(user=pl.lit("nobody"), ad=pl.lit(10**12)),
    "other columns": FRAMES.with_columns(pl.lit("x").alias("more")),
}
UNUSUAL = {
    "a needed column missing": FRAMES.drop("ad"),
    "a needed value missing": FRAMES.with_columns(price=pl.lit(None, pl.Float64)),
    "numbers for text": FRAMES.with_columns(user=pl.lit(7)),
    "text for numbers": FRAMES.with_columns(ad=pl.lit("7")),
    "parts for wholes": FRAMES.with_columns(ad=pl.lit(7.0)),
    "64 bits without a sign": FRAMES.cast({"ad": pl.UInt64}),
    "an enumeration": FRAMES.cast({"user": pl.Categorical}),
    "truths": FRAMES.with_columns(price=pl.lit(True)),
}


@pytest.mark.parametrize("frame", USUAL.values(), ids=USUAL)
def test_frames_of_usual_types_are_encoded_as_lists_to_the_same_bits(plain, frame):
    featurizer, columns = plain.featurizer, plain.featurizer.spec.columns
    encoder = ValueEncoder(featurizer)
    values = encoder.plain(frame, columns)
    assert values is not None
    expected = featurizer.encode(frame)
    expected.blocks.pop("group", None)  # no score depends on it
    assert blocks(encoder.encode(values, len(frame), columns)) == blocks(expected)


@pytest.mark.parametrize("frame", UNUSUAL.values(), ids=UNUSUAL)
def test_frames_of_unusual_types_go_the_featurizers_way(plain, frame):
    assert ValueEncoder(plain.featurizer).plain(frame, plain.featurizer.spec.columns) is None


def test_two_columns_of_a_history_must_be_as_long_as_each_other():
    spec = Spec(
        columns=(
            Category(name="item", side="item"),
            History(
                name="past",
                events=(
                    Event(name="item", column="items", table="item"),
                    Event(name="time", column="times"),
                ),
                max_length=3,
            ),
            Target(name="click"),
        ),
        time="now",
    )
    log = pl.DataFrame(
        {"item": [1, 2], "items": [[1], [2]], "times": [[5], [6]], "now": [1, 2], "click": [0, 1]}
    )
    featurizer = Featurizer.fit(spec, log.lazy())
    encode = ValueEncoder(featurizer).encode
    given = {"item": [2], "items": [[1, 2, 1, 2]], "times": [[1, 2, 3, None]], "now": [9]}
    frame = pl.DataFrame(given)
    assert blocks(encode(given, 1, spec.columns)) == blocks(featurizer.encode(frame))
    with pytest.raises(DataFormatError) as caught:
        encode({**given, "times": [[1, 2]]}, 1, spec.columns)
    with pytest.raises(DataFormatError) as other:
        featurizer.encode(frame.with_columns(times=pl.Series([[1, 2]])))
    assert caught.value.to_dict() == other.value.to_dict()  # fmt: skip


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"price": 1e300}, "'price', row 1"),
        ({"price": math.nan}, "'price', row 1"),
        ({"age": math.inf}, "'age', row 1"),
        ({"picture": [0.0, 1e300]}, "'picture', row 1"),
        ({"past": 3}, "rows[1].past"),
        ({"weather": 3}, "rows[1]"),
        ({"user": [1]}, "rows[1].user"),
        ({"picture": [1.0]}, "rows[1].picture"),
    ],
)
def test_a_wrong_value_is_named_with_its_row(plain, change, where):
    rows = objects(ROWS[:3])
    rows[1] = rows[1] | change
    with pytest.raises(FullrankError) as caught:
        plain.encode_rows(rows)
    assert where in caught.value.where


@pytest.mark.parametrize(
    "request_of",
    [
        lambda e, row: e.encode_rows([{k: v for k, v in row.items() if k != "ad"}]),
        lambda e, row: e.encode_rows(ROWS[:1].drop("ad")),
        lambda e, row: e.encode_rank(row_without(row, "ad", "price"), [{"ad": 1}]),
        lambda e, row: e.encode_rank(row_without(row, "ad"), [{}]),
        lambda e, row: e.encode_rank(row_without(row, "ad"), [{"ad": 1, "price": 2}]),
        lambda e, row: e.encode_rank(
            row_without(row, "ad", "price"), [{"ad": 1, "price": 2}, {"ad": 1}]
        ),
        lambda e, row: e.encode_rank(row, [{"ad": 1}]),
        lambda e, row: e.encode_rank(row_without(row, "ad"), [{"ad": 1, "past": [1]}]),
        lambda e, row: e.encode_rank(ROWS[:2].drop("ad"), ROWS[:2].select("ad")),
        lambda e, row: e.encode_rank(ROWS[:1], ROWS[:2].select("ad")),
        lambda e, row: e.encode_rank(ROWS[:1].drop("ad"), ROWS[:2].select("ad", "price")),
        lambda e, row: e.encode_rank(ROWS[:1].drop("ad"), ROWS[:2].select("price")),
        lambda e, row: e.encode_rows([]),
        lambda e, row: e.encode_rows([row] * 201),
    ],
)  # fmt: skip
def test_missing_double_and_misplaced_fields_are_refused(
    plain, request_of: Callable[[Engine, dict[str, Any]], Batch]
):
    row = objects(ROWS[:1])[0]
    plain.encode_rank(row_without(row, "ad"), [{"ad": 1}])  # the same, but right
    with pytest.raises((RequestError, SchemaError, DataFormatError)):
        request_of(plain, row)


def row_without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k not in names}


def test_labels_and_columns_that_the_spec_ignores_may_stand_in_a_row():
    spec = Spec(
        columns=(
            Category(name="a"),
            Number(name="x"),
            Tags(name="t", optional=True),
            Target(name="y"),
        ),
        identity=("id",),
        ignore=(("note", "free text"),),
        weight="w",
    )  # fmt: skip
    given = Wire(spec, 10).rows(
        [{"a": "p", "x": 1, "y": {"odd": []}, "id": "?", "note": [1], "w": None}]
    )
    assert set(given.columns) == {"a", "x"}


# ---- description


def test_the_example_requests_are_answered_and_are_what_training_saw(engine):
    example = json.loads(json.dumps(engine.schema_example()))
    scores = engine.score(engine.encode_rows(example["score"]["rows"]))
    rank = example["rank"]
    ranked = engine.score(engine.encode_rank(rank["user"], rank["candidates"]))
    assert set(scores) == set(ranked) == {"click", "buy"}
    batch = engine.encode_rows(example["score"]["rows"])
    assert bool((batch.categorical.block > 0).all())
    assert float(batch.numeric.block.abs().max()) < 1e-2  # the mean of training


def test_the_description_is_plain_data(plain):
    said = json.loads(json.dumps(plain.describe()))
    assert [c["name"] for c in said["columns"]] == [c.name for c in plain.featurizer.spec.columns][
        :8
    ]
    assert said["columns"][0] == {
        "name": "user", "kind": "category", "side": "user", "optional": False, "known_values": 20,
    }  # fmt: skip
    assert {c["name"]: c["side"] for c in said["columns"]}["past"] == "user"


def test_an_artefact_that_is_loaded_is_the_one_that_was_saved(saved):
    engine = Engine.load(saved)
    rows = objects(ROWS[:5])
    assert same(engine.score(engine.encode_rows(rows)), Predictor.load(saved).score(ROWS[:5]))
    assert engine.fingerprint == json.loads((saved / "artifact.json").read_text())["fingerprint"]
