from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.data import columns as columns_module
from fullrank.data.columns import one_pass
from fullrank.data.featurizer import Featurizer
from fullrank.data.prepare import prepare
from fullrank.data.spec import Category, Number, Spec, Tags, Target
from fullrank.data.vocab import Vocabulary
from fullrank.errors import DataFormatError, SchemaError

SPEC = Spec(
    columns=(
        Category(name="user"),
        Category(name="extra", optional=True),
        Number(name="known"),
        Number(name="price", transform="log", optional=True),
        Tags(name="tags", optional=True),
        Target(name="click", observed="known"),
    ),
    group="user",
    time="ts",
)
ROWS = pl.DataFrame(
    {
        "user": [7, 8, 7, None, 9, 7],
        "extra": ["a", "b", "", None, "a", "a"],
        "known": [1, 0, 1, 1, 0, 1],
        "price": [1.0, None, 3.0, -4.0, 5.0, 0.0],
        "tags": ["x|y", "", None, "y", "x", "z|x"],
        "click": [1, 0, 1, 0, 0, 1],
        "ts": [1, 2, 3, 4, 5, 6],
    }
)
TEXTS = st.lists(st.one_of(st.none(), st.text("ab", max_size=2)), max_size=30)
IDS = st.lists(st.one_of(st.none(), st.integers(-2, 9)), max_size=30)
FLOATS = st.lists(st.one_of(st.none(), st.sampled_from([0.0, 1.0, 1.5, -2.0, 1e30])), max_size=30)


@settings(max_examples=80, deadline=None)
@given(
    st.one_of(
        st.tuples(st.just(pl.String), TEXTS, st.just(pl.String), TEXTS),
        st.tuples(st.just(pl.Int32), IDS, st.just(pl.Int8), IDS),
        st.tuples(st.just(pl.Int64), IDS, st.just(pl.Float64), FLOATS),
    ),
    st.integers(1, 5),
)
def test_a_whole_column_is_looked_up_as_its_values_are(case, chunk_rows: int) -> None:
    train_kind, train, kind, values = case
    vocabulary = Vocabulary.fit([pl.DataFrame({"v": pl.Series(train, dtype=train_kind)}).lazy()], 1)
    raw = pl.Series("v", values, dtype=kind)
    chunks = list(vocabulary.column_rows(raw.to_frame().lazy(), chunk_rows))
    together = np.concatenate([np.empty(0, np.int32), *chunks])
    assert together.tolist() == vocabulary.rows(raw).tolist()
    assert all(len(c) == chunk_rows for c in chunks[:-1])


def test_a_broken_number_names_no_id_in_a_whole_column_either() -> None:
    vocabulary = Vocabulary.fit([pl.DataFrame({"v": [1, 2]}).lazy()], 1)
    raw = pl.DataFrame({"v": [1.0, 1.5, None, 2.0]}).lazy()
    assert np.concatenate(list(vocabulary.column_rows(raw, 3))).tolist() == [1, 0, 0, 2]


@pytest.mark.parametrize(
    ("values", "kind"),
    [(255, np.uint8), (256, np.uint16), (65_535, np.uint16), (65_536, np.int32)],
)
def test_row_numbers_take_the_narrowest_type_that_holds_them(values: int, kind: type) -> None:
    frame = pl.DataFrame({"v": np.arange(values)}).lazy()
    chunks = list(Vocabulary.fit([frame], 1).column_rows(frame, 1 << 20))
    together = np.concatenate(chunks)
    assert together.dtype == kind
    assert together.tolist() == list(range(1, values + 1))


def test_columns_with_two_meanings_and_absent_ones_are_encoded_as_the_featurizer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns_module, "_CHUNK_ROWS", 4)
    monkeypatch.setattr(columns_module, "_REST_ROWS", 5)
    served = ROWS.drop("extra", "price", "tags")
    made = prepare({"test": served.lazy(), "train": ROWS.lazy()}, SPEC, tmp_path / "d")
    assert list(made.splits) == ["test", "train"]
    for name, frame in {"train": ROWS, "test": served}.items():
        read, expected = made.splits[name].batch(0, len(frame)), made.featurizer(frame)
        assert torch.equal(read.categorical.block, expected.categorical.block)
        assert torch.equal(read.numeric.block, expected.numeric.block)
        assert torch.equal(read.observed.block, expected.observed.block)
        assert torch.equal(read.group, expected.group)
        assert torch.equal(read.bags["tags"].offsets, expected.bags["tags"].offsets)
        assert read.categorical.block.dtype == torch.int32
        assert read.categorical.block.is_contiguous()
        assert read.numeric.block.is_contiguous()
    assert not (made.splits["train"].batch(0, 6).categorical["extra"] == 0).all()
    with pytest.raises(SchemaError, match="'user'"):
        prepare({"train": ROWS.lazy(), "test": ROWS.drop("user").lazy()}, SPEC, tmp_path / "e")


def test_a_number_that_is_not_finite_is_named_by_its_row_in_the_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns_module, "_CHUNK_ROWS", 2)
    broken = ROWS.with_columns(price=pl.Series([0.0] * 5 + [np.inf]))
    with pytest.raises(DataFormatError, match="column 'price', row 5"):
        prepare({"train": ROWS.lazy(), "test": broken.lazy()}, SPEC, tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_a_split_without_labels_and_without_context_has_its_fields(tmp_path: Path) -> None:
    spec = Spec(columns=(Category(name="user"), Target(name="click")))
    made = prepare({"train": ROWS.lazy(), "live": ROWS.select("user").lazy()}, spec, tmp_path / "d")
    live = made.splits["live"].batch(0, 6)
    assert live.categorical["user"].tolist() == [1, 2, 1, 0, 3, 1]
    assert not live.observed.block.any()


def test_a_dear_plan_runs_once_and_a_plain_one_is_not_copied(tmp_path: Path) -> None:
    runs = 0

    def dear(frame: pl.DataFrame) -> pl.DataFrame:
        nonlocal runs
        runs += 1
        return frame.with_columns(ts=pl.lit(100 + runs))

    plan = ROWS.lazy().map_batches(dear, schema={**ROWS.schema, "ts": pl.Int32})
    made = prepare({"train": plan}, SPEC, tmp_path / "d")
    assert runs == 1
    assert made.splits["train"].batch(0, 6).time.tolist() == [101] * 6
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == [
        "featurizer",
        "manifest.json",
        "train",
    ]
    ROWS.write_parquet(tmp_path / "rows.parquet")
    scan, copy = pl.scan_parquet(tmp_path / "rows.parquet"), tmp_path / "copy.arrow"
    late, half = pl.col("ts") > 3, pl.int_range(pl.len()).shuffle() < 3
    for frame, copied in (
        (scan, False),
        (scan.filter(late), False),
        (ROWS.lazy().filter(late), False),
        (scan.filter(half), True),  # other rows at every run
        (ROWS.lazy().join(ROWS.lazy(), on="ts", how="semi"), True),
        (scan.sort("click", descending=True), True),
    ):
        with one_pass(frame, copy, SPEC) as kept:
            assert copy.exists() == copied
            if not copied:
                assert kept.collect().equals(frame.select(*SPEC.raw_columns()).collect())
        assert not copy.exists()


def test_rows_that_change_while_they_are_read_are_refused(tmp_path: Path) -> None:
    featurizer = Featurizer.fit(SPEC, ROWS.lazy())
    with (
        columns_module.SplitWriter(tmp_path, featurizer, rows=7) as writer,
        pytest.raises(DataFormatError, match="changed"),
    ):
        list(writer.write(ROWS.lazy()))
