"""A user's own files: one log in every format, and broken ones."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from fullrank.data.datasets import dataset, list_datasets
from fullrank.data.datasets.tabular import from_files, read_files
from fullrank.data.spec import Category, Event, History, Number, Spec, Tags, Target, Vector
from fullrank.data.text import BadRows
from fullrank.errors import (
    DataFormatError,
    DataMissingError,
    LabelError,
    SchemaError,
    SplitError,
    UnknownNameError,
)

SPEC = Spec(
    columns=(
        Category(name="user", side="user"),
        Number(name="price"),
        Tags(name="tags"),
        Vector(name="point", shape=(2,)),
        History(name="past", events=(Event(name="item", column="past", table="item"),)),
        Category(name="extra", optional=True),
        Target(name="click"),
        Target(name="bought", observed="closed"),
    ),
    time="time",
    ignore=(("text", "free text"),),
)
ROWS = pl.DataFrame(
    {
        "user": [f"u{i % 3}" for i in range(20)],
        "price": [i / 4 for i in range(20)],
        "tags": ["a|b" if i % 2 else "c" for i in range(20)],
        "point": [[float(i), -0.5] for i in range(20)],
        "past": [[f"i{j}" for j in range(i % 3)] for i in range(20)],
        "click": [i % 2 for i in range(20)],
        "bought": [None if i % 5 == 0 else 1 for i in range(20)],
        "closed": [i % 5 != 0 for i in range(20)],
        "time": list(range(1_000, 1_020)),
        "text": ["x, y"] * 20,
    }
)


def as_text(rows: pl.DataFrame) -> pl.DataFrame:
    join = pl.col("past").list.join(" ")
    point = pl.format("[{}, {}]", pl.col("point").list.get(0), pl.col("point").list.get(1))
    return rows.with_columns(past=join, point=point)


def write(path: Path, rows: pl.DataFrame = ROWS) -> Path:
    match path.suffix:
        case ".csv":
            as_text(rows).write_csv(path)
        case ".tsv":
            as_text(rows).write_csv(path, separator="\t")
        case ".parquet":
            rows.write_parquet(path)
        case ".arrow":
            rows.write_ipc(path)
        case ".ipc":
            table = rows.to_arrow()
            with pa.ipc.new_stream(str(path), table.schema) as stream:
                stream.write_table(table)
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "arrow", "ipc"])
def test_one_log_reads_the_same_in_every_format(tmp_path, ending):
    path = write(tmp_path / f"log.{ending}")
    rows = read_files(path, SPEC, BadRows()).collect()
    assert rows.select(ROWS.columns).rows() == ROWS.rows()
    parts = dataset(path, SPEC).load(tmp_path, BadRows())
    assert {n: p.collect().height for n, p in parts.items()} == {"train": 16, "valid": 2, "test": 2}
    assert parts["train"].collect()["time"].max() < parts["valid"].collect()["time"].min()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_folder_is_its_files_in_order_of_their_names(tmp_path, ending):
    for name, rows in (("b", ROWS[12:]), ("a", ROWS[:12])):
        write(tmp_path / f"{name}.{ending}", rows)
    (tmp_path / "_SUCCESS").touch()
    assert read_files(tmp_path, SPEC, BadRows()).collect()["price"].equals(ROWS["price"])


def test_splits_may_be_files_and_other_cuts(tmp_path):
    paths = {name: write(tmp_path / f"{name}.csv") for name in ("train", "test")}
    parts = from_files(paths, SPEC).load(tmp_path, BadRows())
    assert list(parts) == ["train", "test"]
    one = paths["train"]
    ordered = from_files(one, SPEC, split="order").load(tmp_path, BadRows())
    assert ordered["train"].collect()["time"].to_list() == list(range(1_000, 1_016))
    shuffled = from_files(one, SPEC, split="random", seed=3, fractions={"train": 0.5, "test": 0.5})
    halves = [p.collect() for p in shuffled.load(tmp_path, BadRows()).values()]
    assert sorted(pl.concat(halves)["time"]) == ROWS["time"].to_list()
    assert from_files(one, SPEC).sample().height == 16
    with pytest.raises(SplitError):
        from_files(one, Spec(columns=(Target(name="click"),)), split="time")


@pytest.mark.parametrize("ending", ["csv", "parquet", "arrow"])
@pytest.mark.parametrize(
    ("column", "value", "error", "words"),
    [
        ("click", 2, LabelError, "click is 2"),
        ("click", None, LabelError, "click is empty"),
        ("bought", 3, LabelError, "bought is 3"),
        ("price", float("nan"), DataFormatError, "price is nan"),
        ("price", float("inf"), DataFormatError, "price is inf"),
    ],
)
def test_bad_values_are_named_in_every_format(tmp_path, ending, column, value, error, words):
    values = ROWS[column].to_list()
    values[6] = value
    rows = ROWS.with_columns(pl.Series(column, values, ROWS.schema[column]))
    path = write(tmp_path / f"log.{ending}", rows)
    with pytest.raises(error) as caught:
        read_files(path, SPEC, BadRows())
    line = 8 if ending == "csv" else 7  # the header is a line
    assert caught.value.where == f"{path}, line {line}"
    assert words in caught.value.found.lower()
    bad = BadRows("quarantine", tmp_path / "bad.jsonl")
    kept = read_files(path, SPEC, bad).collect()
    assert (kept.height, bad.count) == (19, 1)
    assert kept["time"].to_list() == [t for t in ROWS["time"] if t != 1_006]


def test_columns_that_do_not_fit_the_spec_are_refused(tmp_path):
    for ending in ("csv", "parquet"):
        path = write(tmp_path / f"log.{ending}", ROWS.rename({"price": "prize"}))
        with pytest.raises(SchemaError, match="lacks a column") as caught:
            read_files(path, SPEC, BadRows())
        assert "did you mean 'prize'" in caught.value.fix
        path = write(tmp_path / f"log.{ending}", ROWS.with_columns(more=1))
        with pytest.raises(SchemaError, match="does not know") as caught:
            read_files(path, SPEC, BadRows())
        assert caught.value.found == "more"
        assert "Spec.ignore" in caught.value.fix


@pytest.mark.parametrize("ending", ["parquet", "arrow", "ipc"])
def test_truncated_columnar_files_are_refused(tmp_path, ending):
    path = write(tmp_path / f"log.{ending}")
    raw = path.read_bytes()
    for broken in (raw[:-200], raw[:20], b"user,click\n1,0\n", b""):
        path.write_bytes(broken)
        with pytest.raises(DataFormatError) as caught:
            read_files(path, SPEC, BadRows()).collect()
        assert str(path) in caught.value.where
    path.unlink()
    with pytest.raises(DataMissingError):
        read_files(path, SPEC, BadRows())
    with pytest.raises(DataMissingError, match="no data here"):
        read_files(tmp_path, SPEC, BadRows())


def test_datasets_are_found_by_name_path_and_module(tmp_path, monkeypatch):
    assert "frappe" in list_datasets()
    assert "tabular" not in list_datasets()
    with pytest.raises(UnknownNameError) as caught:
        dataset("frape")
    assert "'frappe'" in caught.value.fix
    assert caught.value.exit_code == 2
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "ads.py").write_text("NAME = 'ads'\n")
    (tmp_path / "acme" / "broken.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert dataset("acme.ads").NAME == "ads"
    with pytest.raises(UnknownNameError):
        dataset("acme.adds")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        dataset("acme.broken")
