"""Files of any size are scored in a stream, JSON lines included."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import fullrank.data.stream as stream
from fullrank.data.home import cache_folder
from fullrank.data.spec import Category, Event, History, Number, Spec, Tags, Target, Vector
from fullrank.data.stream import count_rows, stream_rows
from fullrank.data.text import BadRows
from fullrank.errors import DataFormatError, SchemaError
from fullrank.serve.predictor import Predictor
from fullrank.workflow.apply import predict_command
from fullrank.workflow.data import DataOptions

from .small_world import command, make_log

SPEC = Spec(
    columns=(
        Category(name="ad"),
        Number(name="price"),
        Tags(name="tags", optional=True),
        Vector(name="point", shape=(2,), optional=True),
        History(
            name="past",
            events=(Event(name="item", column="ads", table="ad"), Event(name="time", column="at")),
            optional=True,
        ),
        Target(name="click"),
    )
)
ROW = {"ad": 7, "price": 1, "tags": ["x"], "point": [1, 2.5], "ads": [3, "4"], "at": [5, 6]}


def lines(path: Path, *rows: object) -> Path:
    text = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(text) + "\n")
    return path


def read(path: Path, bad_rows: BadRows | None = None) -> pl.DataFrame:
    return pl.concat(stream_rows(path, SPEC, bad_rows or BadRows(), 1000))


@pytest.mark.parametrize("block", [8 << 20, 500])
def test_json_lines_are_scored_as_the_predictor_scores_them(trained, tmp_path, monkeypatch, block):
    monkeypatch.setattr(stream, "_BLOCK", block)
    rows = make_log(300, 5)[0].with_columns(note=pl.lit("n"))
    rows.write_ndjson(tmp_path / "in.jsonl")
    said = predict_command(
        trained.folder, tmp_path / "in.jsonl", tmp_path / "out.parquet", DataOptions()
    )
    assert said["rows"] == 300
    assert said["rows_per_second"] > 0
    found = pl.read_parquet(tmp_path / "out.parquet")
    assert found.drop("probability_click").equals(rows)
    expected = Predictor.load(trained.folder / "artifact").score(rows)["click"]
    assert np.array_equal(found["probability_click"].to_numpy(), expected)


def test_text_is_read_once_and_leaves_no_copy(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("fullrank.data.text.staged.IN_MEMORY", 100)
    make_log(300, 5)[0].write_csv(tmp_path / "in.csv")
    out = tmp_path / "out.csv"
    said = command(capsys, "predict", trained.folder, tmp_path / "in.csv", "--out", out)
    assert said.json["rows"] == 300
    assert not cache_folder().exists()
    assert "scoring in.csv" in said.err


def test_values_get_the_types_of_the_spec(tmp_path):
    odd = {"price": None, "ad": "x", "later": 1, "tags": None}
    found = read(lines(tmp_path / "a.ndjson", ROW, odd, "", ROW | {"ad": 7.0}))
    assert found["ad"].to_list() == ["7", "x", "7"]
    assert found["price"].to_list() == [1.0, None, 1.0]
    assert found["ads"].to_list() == [["3", "4"], None, ["3", "4"]]
    assert found["at"].to_list()[0] == [5, 6]
    assert found["point"].to_list()[0] == [1.0, 2.5]
    packed = tmp_path / "b.jsonl"
    packed.write_bytes(gzip.compress((tmp_path / "a.ndjson").read_bytes()))
    assert read(packed).equals(found)
    assert (count_rows(tmp_path / "a.ndjson"), count_rows(packed)) == (4, None)


@pytest.mark.parametrize(
    "bad", ["{", "[1]", '{"price": "dear"}', '{"at": ["x"]}', '{"price": NaN}', "\x00\xff"]
)
def test_a_bad_line_is_named_or_kept_apart(tmp_path, bad):
    path = lines(tmp_path / "a.jsonl", *[ROW] * 5, bad, *[ROW] * 6)
    with pytest.raises(DataFormatError, match="line 6"):
        read(path)
    kept = BadRows("quarantine", tmp_path / "bad.jsonl")
    assert len(read(path, kept)) == 11
    assert kept.count == 1
    assert json.loads((tmp_path / "bad.jsonl").read_text())["line"] == 6


def test_a_file_without_a_column_or_without_json_is_refused(tmp_path):
    with pytest.raises(SchemaError, match="price"):
        read(lines(tmp_path / "a.jsonl", {"ad": 1}))
    with pytest.raises(DataFormatError, match="line 1"):
        read(lines(tmp_path / "b.jsonl", "ad,price"))
