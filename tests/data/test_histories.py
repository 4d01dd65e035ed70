"""Histories at the door: what is refused with its row, and what is read as it is."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from fullrank.data.checks import check
from fullrank.data.datasets import dataset
from fullrank.data.featurizer import Featurizer
from fullrank.data.spec import Category, Event, History, Spec, Target
from fullrank.data.text import BadRows
from fullrank.errors import DataFormatError, LeakError, SchemaError
from fullrank.target import TargetHistory

SPEC = Spec(
    columns=(
        Category(name="item"),
        History(
            name="past",
            events=(
                Event(name="item", column="past_item", table="item"),
                Event(name="time", column="past_time"),
            ),
            max_length=3,
        ),
        Target(name="click"),
    ),
    item="item",
    time="time",
)


def log(first: int, **row_five: list) -> pl.LazyFrame:
    """Ten rows from second `first` on; the sixth may be given another past."""
    past = {"past_item": [[1, 2]] * 10, "past_time": [[3, 4]] * 10}
    for name, value in row_five.items():
        past[name] = [*past[name][:5], value, *past[name][6:]]
    plain = {"item": [10 + i for i in range(10)], "click": [i % 2 for i in range(10)]}
    times = {"time": [first + i for i in range(10)]}
    return pl.DataFrame({**plain, **times, **past}, strict=False).lazy()


def splits(part: str, **row_five: list) -> dict[str, pl.LazyFrame]:
    starts = {"train": 100, "valid": 200, "test": 300}
    return {n: log(s, **(row_five if n == part else {})) for n, s in starts.items()}


@pytest.mark.parametrize("part", ["train", "valid", "test"])
@pytest.mark.parametrize(
    ("past", "error", "what"),
    [
        ({"past_time": [3, 999]}, LeakError, "not earlier than its impression"),
        ({"past_time": [999, 3]}, LeakError, "not earlier than its impression"),
        ({"past_time": [4, 3]}, LeakError, "time runs backwards"),
        ({"past_item": [1, 2, 3], "past_time": [3, 5, 4]}, LeakError, "time runs backwards"),
        ({"past_item": [1, 2, 3], "past_time": [5, None, 4]}, DataFormatError, "lacks a value"),
        ({"past_time": [3.0, float("nan")]}, DataFormatError, "lacks a value"),
        ({"past_time": [3]}, DataFormatError, "differ in length"),
        ({"past_item": [1, 15]}, LeakError, "in its own history"),
    ],
)
def test_a_bad_past_is_refused_and_its_row_is_named(part, past, error, what) -> None:
    with pytest.raises(error, match=what) as caught:
        check(splits(part, **past), SPEC, name="planted")
    assert caught.value.where == f"row 5 of '{part}' of planted"
    assert "(1 such rows)" in caught.value.found
    assert check(splits(part), SPEC, name="clean") == []


def test_times_that_are_text_are_refused_by_column() -> None:
    broken = {n: rows.with_columns(past_time=pl.lit(["3", "4"])) for n, rows in splits("").items()}
    with pytest.raises(SchemaError, match="type") as caught:
        check(broken, SPEC, name="planted")
    assert "'past_time'" in caught.value.where
    assert caught.value.expected == "a list of numbers"


def test_empty_pasts_unknown_items_and_long_pasts_are_no_errors() -> None:
    odd = {
        "past_item": [[], None, [77, 1], [1, 2, 1, 2, 1], [2]],
        "past_time": [[], None, [3, 4], [1, 2, 3, 4, 5], [9]],
    }
    rows = pl.DataFrame({**odd, "item": [10, 99, 11, 12, 13], "click": 1, "time": 300}).lazy()
    parts = {**splits(""), "test": rows}
    assert len(check(parts, SPEC, name="odd")) == 1  # all labels of the test split are equal
    made = Featurizer.fit(SPEC, parts["train"])
    batch, known = made(rows.collect()), made.vocabularies["item"]
    past = batch.sequences["past"]
    one, two = known.rows(pl.Series([1, 2])).tolist()
    assert past.offsets.tolist() == [0, 0, 0, 2, 5, 6]
    assert past.values["item"].tolist() == [0, one, one, two, one, two]  # 77 is row 0; newest three
    assert past.values["time"].tolist() == [3, 4, 3, 4, 5, 9]
    assert batch.categorical["item"].tolist()[1] == 0
    assert 0 not in (one, two)


@pytest.mark.parametrize(
    ("name", "fields", "columns", "feedback"),
    [
        ("ml_100k", ("item",), ("item",), ("liked",)),
        ("ml_100k_users", ("item",), ("item",), ("liked",)),
        ("collm_ml1m", ("iid",), ("item",), ()),
        ("amazon_beauty", ("item", "category"), ("item", "category"), ()),
        ("amazon_games", ("item",), ("item",), ()),
        ("ml_1m_impressions", ("item", "category"), ("item", "category"), ()),
    ],
)
def test_the_judged_item_can_be_compared_with_the_past(
    name: str, fields: tuple, columns: tuple, feedback: tuple, tmp_path: Path
) -> None:
    source = dataset(name)
    source.write_sample(tmp_path)
    parts = source.load(tmp_path, BadRows())
    made = Featurizer.fit(source.SPEC, parts["train"])
    history = TargetHistory(made.schema)
    assert (history.fields, history.columns, history.feedback) == (fields, columns, feedback)
    assert made.schema.item in history.fields
    assert history.length == source.SPEC.histories()[0].max_length
    past = made(parts["test"].collect()).sequences["history"]
    assert past.values[columns[0]].any()  # not all of them unknown
