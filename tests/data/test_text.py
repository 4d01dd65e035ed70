"""Readers against slow twins, and every kind of broken file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.data.text import BadRows, Dialect, lines, read_delimited, read_libfm, staged
from fullrank.errors import (
    ConfigError,
    DataFormatError,
    DataMissingError,
    DiskFullError,
    FullrankError,
    LabelError,
    SchemaError,
)

KINDS = {"label": "label", "price": "float", "word": "text"}


@pytest.fixture
def quarantine(tmp_path: Path) -> BadRows:
    return BadRows("quarantine", tmp_path / "out" / "bad.jsonl")


def written(bad_rows: BadRows) -> list[dict[str, object]]:
    assert bad_rows.path is not None
    rows = [json.loads(line) for line in bad_rows.path.read_text("utf-8").splitlines()]
    assert len(rows) == bad_rows.count
    return rows


def refused(path: Path, kinds=KINDS, **arguments) -> FullrankError:
    with pytest.raises(FullrankError) as caught:
        read_delimited(path, kinds, BadRows(), **arguments)
    assert caught.value.exit_code == 1
    return caught.value


VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=6)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=8),
    block=st.integers(20, 90),
    packed=st.booleans(),
)
def test_quoted_text_reads_as_the_csv_module_reads_it(tmp_path_factory, rows, block, packed):
    """Blocks are cut anywhere, and gzip changes nothing."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([("a", "b", "c"), *rows])
    raw = out.getvalue().encode()
    path = tmp_path_factory.mktemp("csv") / "log.csv"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_BLOCK", block)
        frame = read_delimited(path, dict.fromkeys("abc", "text"), BadRows()).collect()
    assert [tuple(v or "" for v in row) for row in frame.rows()] == rows


@pytest.mark.parametrize("separator", ["\t", "::", ", ", "|"])
@pytest.mark.parametrize("block", [7, 1 << 20])
def test_unquoted_text_equals_a_split_by_hand(tmp_path, monkeypatch, separator, block):
    monkeypatch.setattr(lines, "_BLOCK", block)
    text = ['5"', "Café", "x y", "", "a'b"]
    rows = [[str(i), f"{i / 7:.3f}", text[i % 5]] for i in range(20)]
    path = tmp_path / "log.txt"
    path.write_bytes("\r\n".join(separator.join(r) for r in rows).encode("latin-1"))  # no last \n
    dialect = Dialect(separator=separator, quote="", header=False, encoding="latin-1")
    kinds = {"i": "int", "x": "float", "t": "text"}
    frame = read_delimited(path, kinds, BadRows(), dialect=dialect).collect()
    assert frame.rows() == [(int(i), float(x), t or None) for i, x, t in rows]


@pytest.mark.parametrize("block", [16, 1 << 20])
def test_quoted_values_may_hold_line_ends_only_where_asked_for(tmp_path, monkeypatch, block):
    monkeypatch.setattr(lines, "_BLOCK", block)
    path = tmp_path / "log.csv"
    path.write_text('a,b\n1,"two\nlines"\n2,x\n3\n4,"a\n\nb"\n5\n')
    kinds = {"a": "int", "b": "text"}
    bad = BadRows("quarantine", tmp_path / "bad.jsonl")
    dialect = Dialect(newlines=True)
    frame = read_delimited(path, kinds, bad, dialect=dialect).collect()
    assert frame["b"].to_list() == ["two\nlines", "x", "a\n\nb"]
    assert [row["line"] for row in written(bad)] == [5, 9]
    assert "quote" in refused(path, kinds).found


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), block=st.integers(30, 200))
def test_every_bad_row_is_named_and_every_good_one_kept(tmp_path_factory, seed, block):
    """A slow twin judges each line alone; planted mistakes of all kinds stand anywhere."""
    dice = random.Random(seed)
    bad_lines = [
        *("1,2.0", "1,2.0,x,y", "2,1.0,x", ",1.0,x", "1,nan,x", "1,-inf,x", "1,abc,x"),
        *("one,1.0,x", '1,1.0,"x', "1,1.0,\0x", "1,1.0,\udcff"),
    ]
    good_lines = ["1,2.5,x", "0,,y", '0,1e3,"a,b"', "1,-7,", '1,3,"say ""so"""']
    text = [dice.choice(good_lines) for _ in range(dice.randint(1, 12))]
    text += [dice.choice(bad_lines) for _ in range(dice.randint(0, 6))] + [""] * dice.randint(0, 2)
    dice.shuffle(text)
    folder = tmp_path_factory.mktemp("csv")
    data = "\n".join(["label,price,word", *text]) + "\n"
    (folder / "log.csv").write_bytes(data.encode("utf-8", "surrogateescape"))
    bad = BadRows("quarantine", folder / "bad.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_BLOCK", block)
        frame = read_delimited(folder / "log.csv", KINDS, bad).collect()
    numbered = [(i, line) for i, line in enumerate(text, start=2)]
    good = [next(csv.reader([line])) for _, line in numbered if line in good_lines]
    expected = [(int(a), float(b) if b else None, c or None) for a, b, c in good]
    assert frame.rows() == expected
    found = {row["line"] for row in written(bad)} if bad.count else set()
    assert found == {i for i, line in numbered if line in bad_lines}


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ("1,2.0", DataFormatError, ("2 values", "3 values")),
        ("1,2.0,x,y", DataFormatError, ("4 values", "3 values")),
        ("2,1.0,x", LabelError, ("label is 2", "0 or 1")),
        (",1.0,x", LabelError, ("label is empty", "0 or 1")),
        ("yes,1.0,x", LabelError, ("label is 'yes'", "0 or 1")),
        ("1,NaN,x", DataFormatError, ("price is nan", "finite")),
        ("1,inf,x", DataFormatError, ("price is inf", "finite")),
        ("1,abc,x", DataFormatError, ("price is 'abc'", "number")),
        ('1,2,"x', DataFormatError, ("quote", "closed")),
        ("1,2,a\0b", DataFormatError, ("0x00", "control")),
        ("1,2," + "x" * (lines.MAX_VALUE + 1), DataFormatError, ("1,048,577 bytes", "1,048,576")),
    ],
)
def test_a_bad_row_is_refused_with_file_line_and_both_sides(tmp_path, line, error, words):
    path = tmp_path / "log.csv"
    path.write_text(f"label,price,word\n1,2.5,fine\n\n{line}\n0,1,fine\n")
    caught = refused(path)
    assert type(caught) is error
    assert caught.where == f"{path}, line 4"
    assert words[0] in caught.found
    assert words[1] in caught.expected
    assert "--bad-rows quarantine" in caught.fix


def test_bytes_that_are_not_the_encoding_are_named(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b"label,price,word\n1,2,ok\n1,2,caf\xe9\n")
    caught = refused(path)
    assert (caught.where, "0xe9" in caught.found) == (f"{path}, line 3", True)
    frame = read_delimited(path, KINDS, BadRows(), dialect=Dialect(encoding="latin-1")).collect()
    assert frame["word"].to_list() == ["ok", "café"]


def test_a_long_row_of_short_values_is_no_mistake(tmp_path):
    names = [f"c{i}" for i in range(3)]
    path = tmp_path / "log.csv"
    path.write_text(",".join(names) + "\n" + ",".join("y" * 600_000 for _ in names) + "\n")
    frame = read_delimited(path, dict.fromkeys(names, "text"), BadRows()).collect()
    assert frame["c2"].str.len_bytes().item() == 600_000


def test_words_stand_for_labels_and_for_nothing(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("label,price,word\nyes,NULL,a\nno,3,NULL\n")
    dialect = Dialect(words=(("yes", 1), ("no", 0)), null=("", "NULL"))
    frame = read_delimited(path, KINDS, BadRows(), dialect=dialect).collect()
    assert frame.rows() == [(1, None, "a"), (0, 3.0, None)]


def test_a_label_that_is_not_known_yet_may_be_empty(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("label,price,word\n,1,a\n1,1,b\n")
    kinds = {**KINDS, "label": "late_label"}
    assert read_delimited(path, kinds, BadRows()).collect()["label"].to_list() == [None, 1]
    path.write_text("label,price,word\n3,1,a\n")
    assert isinstance(refused(path, kinds), LabelError)


def test_broken_files_are_refused_as_a_whole(tmp_path, quarantine):
    good = ("label,price,word\n" + "1,2.0,x\n" * 5000).encode()
    cases: dict[str, tuple[bytes, type[FullrankError], str]] = {
        "empty.csv": (b"", DataFormatError, "empty"),
        "header.csv": (b"label,price,word\n", DataFormatError, "no rows"),
        "short.csv.gz": (gzip.compress(good)[:-20], DataFormatError, "truncated"),
        "damaged.csv.gz": (
            gzip.compress(good)[:60] + b"\xff" * 9 + gzip.compress(good)[69:],
            DataFormatError,
            "truncated or damaged",
        ),
        "table.csv": (b"PAR1" + bytes(100), DataFormatError, "binary"),
        "noise.csv": (bytes(range(256)) * 9, DataFormatError, "binary"),
        "utf16.csv": ("label,price,word\n".encode("utf-16"), DataFormatError, "binary"),
        "columns.csv": (b"label,prize,word\n1,2,x\n", SchemaError, "lacks a column"),
        "twice.csv": (b"label,price,word,word\n1,2,x,y\n", SchemaError, "twice"),
        "separator.csv": (b"label,price,word\n" + b"1;2;x\n" * 200, DataFormatError, "half"),
    }
    for name, (raw, error, words) in cases.items():
        path = tmp_path / name
        path.write_bytes(raw)
        with pytest.raises(error, match=words) as caught:
            read_delimited(path, KINDS, quarantine)
        assert caught.value.exit_code == 1
        assert str(path) in caught.value.where
    assert isinstance(refused(tmp_path / "absent.csv"), DataMissingError)
    assert "folder" in refused(tmp_path).found


def test_a_row_without_an_end_is_not_read_forever(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_ROW", 1000)
    monkeypatch.setattr(lines, "_BLOCK", 300)
    path = tmp_path / "log.csv"
    path.write_text("label,price,word\n" + "x" * 5000)
    assert "1,000 bytes" in refused(path).expected


def test_libfm_lines_read_as_a_loop_reads_them(tmp_path, quarantine):
    good = ["-1 4:1 10:1", "1 3:1 12:1 ", "0 2:1 11:1", "+1 1:1 9:1"]
    bad = ["1 3:1", "1 3:1 4:1 5:1", "2 3:1 4:1", "1 3:2 4:1", "1 a:1 4:1", "1 3 4:1"]
    text = [good[0], bad[0], good[1], *bad[1:4], good[2], *bad[4:], good[3]]
    path = tmp_path / "log.libfm"
    path.write_text("\n".join(text) + "\n")
    frame = read_libfm(path, ["user", "item"], quarantine).collect()
    split = [line.split() for line in good]
    expected = [
        (int(float(y) > 0), int(u.split(":")[0]), int(i.split(":")[0])) for y, u, i in split
    ]
    assert frame.rows() == expected
    assert frame.schema == {"label": pl.Int8, "user": pl.Int32, "item": pl.Int32}
    assert sorted(r["line"] for r in written(quarantine)) == [
        i for i, line in enumerate(text, 1) if line in bad
    ]
    path.write_text("2 3:1 4:1\n")
    with pytest.raises(LabelError):
        read_libfm(path, ["user", "item"], BadRows())


def test_big_files_are_staged_once_and_read_equal(tmp_path, monkeypatch):
    path, folder = tmp_path / "log.csv", tmp_path / "staged"
    random_rows = np.random.default_rng(0).random(200)
    path.write_text(
        "label,price,word\n" + "".join(f"1,{x},w{i}\n" for i, x in enumerate(random_rows))
    )
    monkeypatch.setattr(lines, "_BLOCK", 500)
    small = read_delimited(path, KINDS, BadRows()).collect()
    monkeypatch.setattr(staged, "IN_MEMORY", 100)
    big = read_delimited(path, KINDS, BadRows(), staging=folder)
    assert big.collect().equals(small)
    names = sorted(folder.iterdir())
    read_delimited(path, KINDS, BadRows(), staging=folder)
    assert sorted(folder.iterdir()) == names  # used again
    path.write_text(path.read_text() + "0,1,new\n")
    assert read_delimited(path, KINDS, BadRows(), staging=folder).collect().height == 201


def test_staged_bad_rows_are_reported_every_time(tmp_path, monkeypatch):
    monkeypatch.setattr(staged, "IN_MEMORY", 10)
    path = tmp_path / "log.csv"
    path.write_text("label,price,word\n1,2,x\n7,2,x\n")
    for _ in range(2):
        bad = BadRows("quarantine", tmp_path / "bad.jsonl")
        assert read_delimited(path, KINDS, bad, staging=tmp_path / "s").collect().height == 1
        assert len(written(bad)) == 1


def test_nothing_half_written_stays_when_staging_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(staged, "IN_MEMORY", 10)
    monkeypatch.setattr(lines, "_BLOCK", 40)
    path, folder = tmp_path / "log.csv", tmp_path / "staged"
    path.write_text("label,price,word\n" + "1,2,x\n" * 50 + "9,2,x\n")
    assert isinstance(refused(path, staging=folder), LabelError)
    assert list(folder.iterdir()) == []

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staged, "write_parquet", full)
    assert isinstance(refused(path, staging=folder), DiskFullError)
    assert list(folder.iterdir()) == []


def test_quarantine_needs_a_place_and_begins_anew(tmp_path):
    with pytest.raises(ConfigError):
        BadRows("quarantine")
    log, out = tmp_path / "log.csv", tmp_path / "bad.jsonl"
    out.write_text("from an earlier run\n")
    log.write_text("label,price,word\n1,2,x\n8,2,x\n9,2,x\n")
    bad = BadRows("quarantine", out)
    read_delimited(log, KINDS, bad)
    assert [r["text"] for r in written(bad)] == ["8,2,x", "9,2,x"]
