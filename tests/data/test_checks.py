"""Checks at load time: each planted fault is found and shown, and its clean twin passes."""

# Longer than 400 lines, because each fault stands beside its clean twin.

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from fullrank.data.checks import check
from fullrank.data.spec import (
    Category,
    Event,
    History,
    Number,
    Spec,
    Tags,
    Target,
    Vector,
)
from fullrank.errors import (
    DataFormatError,
    FullrankError,
    LabelError,
    LeakError,
    SchemaError,
    SplitError,
)

HISTORY = History(
    name="past",
    events=(
        Event(name="ad", column="past_ad", table="ad"),
        Event(name="time", column="past_time"),
    ),
)
SPEC = Spec(
    columns=(
        Category(name="user"),
        Category(name="ad"),
        Category(name="maybe", optional=True),
        Number(name="price"),
        Tags(name="words"),
        Vector(name="vector", shape=(2, 2)),
        HISTORY,
        Target(name="click"),
        Target(name="buy", given="click", observed="known"),
    ),
    item="ad",
    time="time",
    weight="weight",
    identity=("id",),
    ignore=(("title", "free text"),),
)
REPEATS = dataclasses.replace(
    SPEC,
    columns=tuple(
        dataclasses.replace(c, repeats=True) if isinstance(c, History) else c for c in SPEC.columns
    ),
)
NAMELESS = dataclasses.replace(SPEC, identity=(), ignore=(*SPEC.ignore, ("id", "not unique")))
Change = Callable[[pl.DataFrame], pl.DataFrame]


def log(first: int, rows: int = 240, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed + first)
    number = np.arange(first, first + rows)
    click = (rng.random(rows) < 0.5).astype(np.int8)
    return pl.DataFrame(
        {
            "id": number,
            "time": 10_000 + 10 * number,
            "user": rng.integers(0, 9, rows),
            "ad": rng.integers(0, 7, rows),
            "maybe": [None if i % 5 else "x" for i in number],
            "price": rng.normal(size=rows),
            "words": [["a", "b"][: 1 + i % 2] for i in number],
            "vector": rng.normal(size=(rows, 4)).tolist(),
            "past_ad": [[7, 8][: i % 3] for i in number],
            "past_time": [[5, 5 + i][: i % 3] for i in number],
            "click": click,
            "buy": click * (rng.random(rows) < 0.4).astype(np.int8),
            "known": (click == 1) & (rng.random(rows) < 0.9),
            "weight": np.ones(rows),
            "title": ["t"] * rows,
        }
    )


def splits(change: Change = lambda rows: rows, part: str = "train") -> dict[str, pl.LazyFrame]:
    parts = {"train": log(0), "valid": log(240), "test": log(480)}
    parts[part] = change(parts[part])
    return {name: rows.lazy() for name, rows in parts.items()}


def at(row: int, column: str, value: Any) -> Change:
    """Returns a change that plants a value in one row."""

    def change(rows: pl.DataFrame) -> pl.DataFrame:
        values = rows[column].to_list()
        values[row] = value
        return rows.with_columns(pl.Series(column, values, strict=False))

    return change


def column(**values: pl.Expr) -> Change:
    return lambda rows: rows.with_columns(**values)


def test_the_clean_log_passes_under_every_spec() -> None:
    for spec in (SPEC, REPEATS, NAMELESS):
        assert check(splits(), spec, name="clean") == []


FAULTS: dict[str, tuple[Change, type[FullrankError], str, str]] = {
    # what is planted -> change, error, words of what, words of found or where
    "NaN": (at(17, "price", float("nan")), DataFormatError, "column 'price'", "row 17"),
    "infinity": (at(3, "price", float("-inf")), DataFormatError, "column 'price'", "-inf (1 such"),
    "NaN in a vector": (
        at(9, "vector", [0.0, 1.0, float("nan"), 2.0]),
        DataFormatError,
        "column 'vector'",
        "row 9",
    ),
    "infinity in a vector": (
        at(9, "vector", [0.0, float("inf"), 1.0, 2.0]),
        DataFormatError,
        "column 'vector'",
        "inf",
    ),
    "short vector": (at(2, "vector", [1.0]), DataFormatError, "wrong length", "vector = [1.0]"),
    "label 2": (at(5, "click", 2), LabelError, "column 'click'", "click = 2 (1 such"),
    "label half": (at(5, "click", 0.5), LabelError, "column 'click'", "0.5"),
    "label missing": (at(5, "click", None), LabelError, "column 'click'", "None"),
    "label NaN": (at(5, "click", float("nan")), LabelError, "column 'click'", "nan"),
    "known label missing": (
        lambda rows: at(8, "known", True)(at(8, "buy", None)(rows)),
        LabelError,
        "column 'buy'",
        "row 8",
    ),
    "weight 0": (at(4, "weight", 0.0), DataFormatError, "column 'weight'", "weight = 0.0"),
    "weight NaN": (at(4, "weight", float("nan")), DataFormatError, "column 'weight'", "nan"),
    "weight missing": (at(4, "weight", None), DataFormatError, "column 'weight'", "None"),
    "no time": (at(4, "time", None), DataFormatError, "no time", "row 4"),
    "target in its history": (
        lambda rows: at(11, "past_ad", [3, 8])(at(11, "ad", 3)(rows)),
        LeakError,
        "own history",
        "ad = 3, past_ad = [3, 8]",
    ),
    "event at its impression": (
        lambda rows: at(11, "past_time", [5, rows["time"][11]])(rows),
        LeakError,
        "not earlier",
        "row 11",
    ),
    "event after its impression": (
        at(2, "past_time", [5, 99_999]),
        LeakError,
        "not earlier",
        "99999",
    ),
    "history backwards": (at(2, "past_time", [7, 6]), LeakError, "backwards", "[7, 6]"),
    "ragged history": (at(2, "past_time", [7]), DataFormatError, "differ in length", "[7]"),
    "missing column of a history": (at(2, "past_time", None), DataFormatError, "differ", "None"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_fault_in_one_row_is_found_in_every_split_and_shown(fault: str, part: str) -> None:
    change, error, what, found = FAULTS[fault]
    with pytest.raises(error) as caught:
        check(splits(change, part), SPEC, name="planted")
    assert what in caught.value.what
    assert found in caught.value.where + " " + caught.value.found
    assert f"'{part}' of planted" in caught.value.where


def test_the_count_of_faulty_rows_is_right() -> None:
    nan = pl.when(pl.col("id") % 10 == 3).then(float("nan")).otherwise("price")
    with pytest.raises(DataFormatError, match="price") as caught:
        check(splits(column(price=nan)), SPEC, name="planted")
    assert "24 such rows" in caught.value.found
    assert "row 3 " in caught.value.where


def test_what_only_looks_like_a_fault_passes() -> None:
    harmless = {
        "empty number": at(7, "price", None),
        "empty history": lambda rows: at(2, "past_ad", [])(at(2, "past_time", [])(rows)),
        "no history": lambda rows: at(2, "past_ad", None)(at(2, "past_time", None)(rows)),
        "equal times": at(2, "past_time", [6, 6]),
        "event just before": at(2, "past_time", [5, 10_019]),
        "unknown label missing": lambda rows: at(8, "known", False)(at(8, "buy", None)(rows)),
        "boolean label": column(click=pl.col("click") == 1),
        "float label": column(click=pl.col("click").cast(pl.Float32)),
        "optional column absent": lambda rows: rows.drop("maybe"),
        "ignored column absent": lambda rows: rows.drop("title"),
        "array vector": column(vector=pl.col("vector").cast(pl.Array(pl.Float32, 4))),
        "text in another type": column(ad=pl.col("ad").cast(pl.String)),
        "enum": column(user=pl.col("user").cast(pl.String).cast(pl.Categorical)),
    }
    for change in harmless.values():
        assert check(splits(change), SPEC, name="clean") == []


def test_repeats_allow_the_target_in_the_past_but_never_at_or_after_its_impression() -> None:
    seen_before = FAULTS["target in its history"][0]
    assert check(splits(seen_before), REPEATS, name="clean") == []
    for fault in ("event at its impression", "event after its impression"):
        both = FAULTS[fault][0]
        with pytest.raises(LeakError, match="not earlier"):
            check(splits(lambda rows, f=both: f(seen_before(rows))), REPEATS, name="planted")


def test_target_is_found_in_a_history_of_another_type() -> None:
    def change(rows: pl.DataFrame) -> pl.DataFrame:
        return FAULTS["target in its history"][0](rows).with_columns(pl.col("ad").cast(pl.String))

    with pytest.raises(LeakError, match="own history"):
        check(splits(change), SPEC, name="planted")


# ---- columns


def test_columns_and_spec_must_agree_and_the_nearest_name_is_given() -> None:
    with pytest.raises(SchemaError, match="not in the spec") as unknown:
        check(splits(column(usr=pl.lit(1))), SPEC, name="planted")
    assert "'usr'" in unknown.value.found
    assert "'user'" in unknown.value.fix
    with pytest.raises(SchemaError, match="missing") as missing:
        check(splits(lambda rows: rows.drop("price"), "valid"), SPEC, name="planted")
    assert "'price' in 'valid'" in missing.value.where
    with pytest.raises(SchemaError) as renamed:
        check(splits(lambda rows: rows.rename({"price": "prise"})), SPEC, name="planted")
    assert "'price'" in renamed.value.fix
    with pytest.raises(SchemaError, match="missing"):
        check(splits(lambda rows: rows.drop("id")), SPEC, name="planted")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user", pl.col("words")),
        ("vector", pl.lit(1.0)),
        ("past_ad", pl.lit(1)),
        ("click", pl.lit("yes")),
        ("known", pl.lit(1)),
        ("time", pl.lit("2024-01-01")),
        ("price", pl.lit([1.0])),
        ("words", pl.lit(3)),
    ],
)
def test_a_column_of_the_wrong_type_is_refused(name: str, value: pl.Expr) -> None:
    with pytest.raises(SchemaError, match="type") as caught:
        check(splits(column(**{name: value})), SPEC, name="planted")
    assert f"'{name}'" in caught.value.where


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user", pl.lit(3)),
        ("user", pl.lit(None, dtype=pl.Int64)),
        ("maybe", pl.lit("x")),
        ("words", pl.lit(["a", "a"])),
    ],
)
def test_a_vocabulary_of_one_is_refused(name: str, value: pl.Expr) -> None:
    with pytest.raises(SchemaError, match="vocabulary of one") as caught:
        check(splits(column(**{name: value})), SPEC, name="planted")
    assert name in caught.value.what
    assert "ignore" in caught.value.fix
    assert check(splits(column(**{name: value}), "test"), SPEC, name="clean") == []


def test_a_constant_number_is_only_a_remark() -> None:
    (note,) = check(splits(column(price=pl.lit(2.5))), SPEC, name="odd")
    assert "'price'" in note
    assert "2.5" in note


# ---- labels


def test_equal_labels_stop_training_and_are_a_remark_elsewhere() -> None:
    # known, too: without clicks no conversion is known
    none = column(click=pl.lit(0, dtype=pl.Int8), buy=pl.lit(0, dtype=pl.Int8))
    with pytest.raises(LabelError, match="all training labels are equal: column 'click'") as caught:
        check(splits(none), SPEC, name="planted")
    assert "240 known labels, 0 of them 1" in caught.value.found
    with pytest.raises(LabelError, match="column 'buy'") as unknown:
        check(splits(column(known=pl.lit(False))), SPEC, name="planted")
    assert "0 known" in unknown.value.found
    notes = check(splits(none, "test"), SPEC, name="odd")
    assert [n.split("'")[1:4:2] for n in notes] == [["click", "test"], ["buy", "test"]]


# ---- a field that equals the label


LEAKS: dict[str, tuple[Change, str]] = {
    "category": (column(user=pl.col("click")), "user"),
    "negated": (column(user=1 - pl.col("click")), "user"),
    "words for it": (column(user=pl.col("click").cast(pl.String) + " clicks"), "user"),
    "several values each": (column(user=2 * (pl.col("id") % 4) + pl.col("click")), "user"),
    "number": (column(price=3.5 * pl.col("click") - 1), "price"),
    "boolean": (column(user=pl.col("click") == 1), "user"),
    "empty without a click": (column(price=pl.when(pl.col("click") == 1).then("price")), "price"),
    "empty with a click": (column(ad=pl.when(pl.col("click") == 0).then("ad")), "ad"),
    "tags": (column(words=pl.when(pl.col("click") == 1).then("words")), "words"),
    "the other label": (
        column(user=pl.when("known").then("buy").otherwise(pl.col("user") % 2)),
        "user",
    ),
}  # fmt: skip


@pytest.mark.parametrize("leak", LEAKS)
def test_a_field_that_equals_a_label_is_found(leak: str) -> None:
    change, name = LEAKS[leak]
    with pytest.raises(LeakError, match="equals the label") as caught:
        check(splits(change), SPEC, name="planted")
    assert f"'{name}'" in caught.value.what
    label = "buy" if leak == "the other label" else "click"
    assert f"label '{label}'" in caught.value.where

    def contradicted(rows: pl.DataFrame) -> pl.DataFrame:
        """Turns one label: the field is an ordinary, if strong, field."""
        rows = change(rows)
        row = rows["known"].arg_true()[0]
        turned = at(row, label, 1 - rows[label][row])(rows)
        return turned if label == "buy" else at(row, "known", False)(turned)

    assert check(splits(contradicted), SPEC, name="clean") == []


CLICKS_ONLY = dataclasses.replace(
    SPEC,
    columns=SPEC.columns[:-1],
    ignore=(*SPEC.ignore, ("buy", "not asked for"), ("known", "not asked for")),
)


def test_an_identifier_that_is_new_in_every_row_is_no_alarm() -> None:
    pairs = pl.col("id") // 2
    for values in (pl.col("id"), pairs, pairs.cast(pl.String)):
        change = column(user=values, click=(pairs % 2).cast(pl.Int8))
        assert check(splits(change), CLICKS_ONLY, name="clean") == []


def test_values_must_stand_for_twenty_rows() -> None:
    def blocks(size: int) -> Change:
        block = pl.col("id") // size
        return column(user=block, click=(block % 2).cast(pl.Int8))

    assert check(splits(blocks(16)), CLICKS_ONLY, name="clean") == []
    with pytest.raises(LeakError, match="equals the label"):
        check(splits(blocks(24)), CLICKS_ONLY, name="planted")


def test_a_field_is_compared_where_the_label_is_defined() -> None:
    told = pl.when(pl.col("click") == 1).then("buy").otherwise(pl.col("id") % 2)
    change = column(known=pl.lit(True), user=told)
    with pytest.raises(LeakError, match="equals the label") as caught:
        check(splits(change), SPEC, name="planted")
    assert "label 'buy'" in caught.value.where


def test_a_handful_of_clicks_that_share_a_rare_value_is_no_alarm() -> None:
    def clicks(count: int) -> Change:
        few = (pl.col("id") < count).cast(pl.Int8)
        return column(click=few, user=few)

    assert check(splits(clicks(2)), CLICKS_ONLY, name="clean") == []
    with pytest.raises(LeakError, match="equals the label"):
        check(splits(clicks(12)), CLICKS_ONLY, name="planted")


def test_a_leak_is_found_beyond_the_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fullrank.data.leaks.SAMPLE", 10)
    with pytest.raises(LeakError):
        check(splits(LEAKS["category"][0]), SPEC, name="planted")
    late = column(user=pl.when(pl.col("id") < 10).then(pl.col("click")).otherwise("user"))
    assert check(splits(late), SPEC, name="clean") == []


# ---- splits


def test_a_row_in_two_splits_is_found_and_shown() -> None:
    copies = log(0).slice(5, 3).with_columns(time=pl.lit(19_999, dtype=pl.Int64))
    for part, other in (("valid", "train"), ("test", "train")):
        with pytest.raises(LeakError, match="two splits") as caught:
            check(splits(lambda rows: pl.concat([rows, copies]), part), SPEC, name="planted")
        assert "id = 5 (3 such rows)" in caught.value.found
        assert {part, other} <= set(caught.value.where.split("'"))
    assert check(splits(lambda rows: pl.concat([rows, rows.head(2)])), SPEC, name="clean") == []


def test_identity_of_two_columns_needs_both() -> None:
    spec = dataclasses.replace(SPEC, identity=("user", "time"), ignore=(*SPEC.ignore, ("id", "")))
    assert check(splits(), spec, name="clean") == []
    shared = log(0).select("user", "time").row(6)
    copy = column(
        user=pl.when(pl.col("id") == 250).then(shared[0]).otherwise("user"),
        time=pl.when(pl.col("id") == 250).then(shared[1]).otherwise("time"),
    )
    with pytest.raises(LeakError, match="two splits") as caught:
        check(splits(copy, "valid"), spec, name="planted")
    assert f"user = {shared[0]}, time = {shared[1]} (1 such" in caught.value.found


def test_overlap_in_time_is_refused_without_identity_and_a_remark_with_it() -> None:
    back = at(0, "time", 10_500)
    with pytest.raises(SplitError, match="looks ahead"):
        check(splits(back, "valid"), NAMELESS, name="planted")
    (note,) = check(splits(back, "valid"), SPEC, name="odd")
    assert "overlap in time" in note
    tie = at(0, "time", 10_000 + 10 * 239)
    with pytest.raises(SplitError):
        check(splits(tie, "valid"), NAMELESS, name="planted")


def test_an_empty_split_is_refused_by_name() -> None:
    with pytest.raises(SplitError, match="empty: valid"):
        check(splits(lambda rows: rows.head(0), "valid"), SPEC, name="planted")
