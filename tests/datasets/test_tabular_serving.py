"""Rows to be scored: labels may be absent, odd or empty, and other columns pass through."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest

from fullrank.data.datasets.tabular import from_files, read_files
from fullrank.data.spec import Category, Number, Spec, Target
from fullrank.data.text import BadRows, Dialect
from fullrank.errors import DataFormatError, LabelError, SchemaError

SPEC = Spec(
    columns=(
        Category(name="user"),
        Number(name="price"),
        Category(name="browser", optional=True),
        Target(name="click"),
        Target(name="bought", observed="closed"),
    ),
    time="time",
    group="user",
    ignore=(("text", "free text"),),
)
ROWS = pl.DataFrame(
    {
        "user": ["u1", "u2", "u3"],
        "price": [0.5, 1.5, None],
        "click": [0, 1, 1],
        "bought": [0, None, 1],
        "closed": [True, False, True],
        "time": [1000, 1001, 1002],
    }
)
ENDINGS = pytest.mark.parametrize("ending", ["csv", "parquet", "arrow"])


def write(folder: Path, ending: str, rows: pl.DataFrame) -> Path:
    path = folder / f"rows.{ending}"
    writers = {"csv": rows.write_csv, "parquet": rows.write_parquet, "arrow": rows.write_ipc}
    writers[ending](path)
    return path


def scored(path: Path, **how: bool) -> pl.DataFrame:
    how = {"labels": False, "extra": True} | how
    return read_files(path, SPEC, BadRows(), **how).collect()


@ENDINGS
def test_rows_to_be_scored_need_no_labels(tmp_path, ending):
    bare = ROWS.select("user", "price", "time")
    found = scored(write(tmp_path, ending, bare))
    assert found.rows() == bare.rows()
    with pytest.raises(SchemaError, match="click"):
        scored(tmp_path / f"rows.{ending}", labels=True)


@ENDINGS
def test_neither_clock_nor_group_is_needed_to_score(tmp_path, ending):
    found = scored(write(tmp_path, ending, ROWS.select("user", "price")))
    assert found.columns == ["user", "price"]
    with pytest.raises(SchemaError, match="price"):
        scored(write(tmp_path, ending, ROWS.select("user")))


@ENDINGS
@pytest.mark.parametrize("odd", [7, None, -1])
def test_labels_that_are_there_are_not_judged(tmp_path, ending, odd):
    rows = ROWS.with_columns(click=pl.lit(odd, pl.Int64))
    path = write(tmp_path, ending, rows)
    assert scored(path).height == 3
    with pytest.raises(LabelError):
        scored(path, labels=True)


@ENDINGS
def test_numbers_are_judged_all_the_same(tmp_path, ending):
    path = write(tmp_path, ending, ROWS.with_columns(price=pl.lit(float("inf"))))
    with pytest.raises(DataFormatError, match="price is inf"):
        scored(path)


@ENDINGS
def test_other_columns_pass_only_where_it_is_said(tmp_path, ending):
    rows = ROWS.with_columns(weather=pl.lit("sun"), text=pl.lit("known, and ignored"))
    path = write(tmp_path, ending, rows)
    assert scored(path)["weather"].to_list() == ["sun"] * 3
    with pytest.raises(SchemaError, match="weather") as caught:
        scored(path, extra=False)
    assert "text" not in caught.value.found
    with pytest.raises(SchemaError, match="weather"):
        read_files(path, SPEC, BadRows())  # training, by default, wants to know every column


@ENDINGS
def test_labels_are_typed_for_training(tmp_path, ending):
    found = read_files(write(tmp_path, ending, ROWS), SPEC, BadRows()).collect()
    assert found["click"].to_list() == [0, 1, 1]
    assert found["bought"].to_list() == [0, None, 1]
    assert found["closed"].to_list() == [True, False, True]


def test_where_the_files_are(tmp_path, monkeypatch):
    """Preparing again depends on it: a path that is found is absolute, whatever the data root."""
    path = write(tmp_path, "csv", ROWS)
    monkeypatch.chdir(tmp_path)
    near = from_files(Path("rows.csv"), SPEC)
    assert (str(path),) == near.FOLDERS
    assert Path("/data") / near.FOLDERS[0] == path
    far = from_files({"train": Path("a/b.csv"), "test": Path("rows.csv")}, SPEC)
    assert ("a/b.csv", str(path)) == far.FOLDERS
    monkeypatch.chdir("/")
    (tmp_path / "a").mkdir()
    path.rename(tmp_path / "a" / "b.csv")
    below = from_files(Path("a/b.csv"), SPEC, split="random", fractions={"all": 1.0})
    assert below.load(tmp_path, BadRows())["all"].collect().height == 3


# ---- text whose form the spec has to tell


@pytest.mark.parametrize("names", ["user,price,click,bought,closed,time", "time,user,price"])
def test_a_header_without_rows_is_a_file_without_rows(tmp_path, names):
    (tmp_path / "rows.csv").write_text(names + "\n")
    with pytest.raises(DataFormatError, match="no rows"):
        scored(tmp_path / "rows.csv")


def test_a_header_over_words_alone_is_known_by_the_spec(tmp_path):
    spec = Spec(columns=(Category(name="user"), Category(name="ad"), Target(name="click")))
    (tmp_path / "rows.csv").write_text("user,ad\nann,soap\nann,soap\n")
    found = read_files(tmp_path / "rows.csv", spec, BadRows(), labels=False).collect()
    assert found.rows() == [("ann", "soap"), ("ann", "soap")]


@pytest.mark.parametrize("dialect", [None, Dialect()])
def test_a_gzip_that_breaks_off_is_named(tmp_path, dialect):
    text = ROWS.write_csv() + "u1,0.25,0,0,true,1003\n" * 10_000
    packed = gzip.compress(text.encode())
    for size in (12, len(packed) // 2, len(packed) - 4):
        (tmp_path / "rows.csv.gz").write_bytes(packed[:size])
        with pytest.raises(DataFormatError, match="gzip") as caught:
            read_files(tmp_path / "rows.csv.gz", SPEC, BadRows(), dialect)
        assert "rows.csv.gz" in caught.value.where
    (tmp_path / "rows.csv.gz").write_bytes(packed)
    assert read_files(tmp_path / "rows.csv.gz", SPEC, BadRows(), dialect).collect().height == 10_003
