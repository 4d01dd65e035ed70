"""The first guess of a Spec: counts against a slow twin, roles on planted columns, pasted text."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.data import inspect as looking
from fullrank.data.datasets import dataset
from fullrank.data.inspect import inspect, sniff
from fullrank.data.spec import History, Number, Spec, Tags, Vector
from fullrank.data.text import BadRows, lines
from fullrank.errors import DataFormatError, DataMissingError

DICE = random.Random(0)
ROWS = 400
LOG = pl.DataFrame(
    {
        "user_id": [f"u{DICE.randrange(50)}" for _ in range(ROWS)],
        "movie_id": [DICE.randrange(2000) for _ in range(ROWS)],
        "price": [DICE.random() * 9 for _ in range(ROWS)],
        "num_views": [DICE.randrange(100_000) for _ in range(ROWS)],
        "weekday": [DICE.randrange(7) for _ in range(ROWS)],
        "genres": ["|".join(DICE.sample(["Drama", "Comedy", "War"], 2)) for _ in range(ROWS)],
        "title": [f"a rather long title that is never said twice {i}" for i in range(ROWS)],
        "version": ["v1"] * ROWS,
        "ts": [1_600_000_000 + 60 * i for i in range(ROWS)],
        "is_new": [i % 2 for i in range(ROWS)],
        "click": [DICE.randrange(2) for _ in range(ROWS)],
    }
)
ROLES = {
    "user_id": "id",
    "movie_id": "id",
    "price": "number",
    "num_views": "number",
    "weekday": "category",
    "genres": "tags",
    "title": "text",
    "version": "constant",
    "ts": "time",
    "is_new": "category",
    "click": "label",
}


def pasted(source: str) -> Spec:
    names: dict[str, Spec] = {}
    exec(source, names)
    return names["SPEC"]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "arrow"])
def test_planted_roles_are_found_in_every_format(tmp_path, ending):
    path = tmp_path / f"log.{ending}"
    match ending:
        case "csv":
            LOG.write_csv(path)
        case "tsv":
            LOG.write_csv(path, separator="\t")
        case "parquet":
            LOG.write_parquet(path)
        case _:
            LOG.write_ipc(path)
    guess = inspect(path)
    assert guess.rows == ROWS
    assert {c.name: c.role for c in guess.columns} == ROLES
    assert all(c.reason for c in guess.columns)
    for column in guess.columns:
        assert column.distinct == LOG[column.name].n_unique()
        if LOG.schema[column.name].is_numeric():
            assert (column.low, column.high) == (LOG[column.name].min(), LOG[column.name].max())
    spec = pasted(guess.source)
    assert (spec.item, spec.group, spec.time) == ("movie_id", "user_id", "ts")
    assert [t.name for t in spec.targets()] == ["click"]
    assert spec.accounted() == set(LOG.columns)
    parts = dataset(path, spec).load(tmp_path, BadRows())  # the guess reads its own file
    assert sum(p.collect().height for p in parts.values()) == ROWS


def test_lists_become_histories_and_vectors(tmp_path):
    path = tmp_path / "log.parquet"
    pl.DataFrame(
        {
            "past_items": [[], [1, 2], [3]],
            "embedding": [[0.5, 1.5], [0.25, 2.0], [0.1, 0.2]],
            "click": [True, False, True],
        }
    ).write_parquet(path)
    guess = inspect(path)
    assert [c.role for c in guess.columns] == ["history", "vector", "label"]
    kinds = [type(c) for c in pasted(guess.source).columns]
    assert kinds[:2] == [History, Vector]


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(
        st.one_of(st.just(""), st.integers(-50, 50).map(str), st.just("abc")), min_size=1
    ),
    block=st.integers(10, 60),
)
def test_counts_do_not_depend_on_blocks(tmp_path_factory, values, block):
    path = tmp_path_factory.mktemp("look") / "log.csv"
    path.write_text("key,value\n" + "".join(f"{i},{v}\n" for i, v in enumerate(values)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_BLOCK", block)
        column = inspect(path).columns[1]
    filled = [v for v in values if v]
    assert (column.rows, column.empty) == (len(values), len(values) - len(filled))
    assert column.distinct == len(set(filled))
    if filled and "abc" not in filled:
        assert (column.low, column.high) == (min(map(int, filled)), max(map(int, filled)))
    else:
        assert column.low is None


def test_the_count_of_distinct_values_is_close_when_there_are_many(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("a,b\n" + "".join(f"{i},{i % 30_000}\n" for i in range(60_000)))
    wide, narrow = inspect(path).columns
    assert wide.distinct == pytest.approx(60_000, rel=0.08)  # five deviations of 1.6 %
    assert narrow.distinct == pytest.approx(30_000, rel=0.08)
    assert len(wide.hashes) <= looking._SKETCH


def test_a_look_goes_past_bad_rows_and_may_stop_early(tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    path.write_text("a,click\n" + "1,0\n2,1\n3\n" * 60)
    guess = inspect(path)
    assert (guess.rows, guess.bad_rows) == (120, 60)
    monkeypatch.setattr(lines, "_BLOCK", 50)
    assert 10 <= inspect(path, max_rows=10).rows < 40


@pytest.mark.parametrize(
    ("text", "separator", "header"),
    [
        (b"a,b\n1,2\n3,4\n", ",", True),
        (b"1,2\n3,4\n", ",", False),
        (b"a\tb\n1\tx, y\n3\tz\n", "\t", True),
        (b"1::One::Drama\n2::Two::War\n", "::", False),
        (b'id;name\n1;"a;b"\n2;"c"\n', ";", True),
        (b"only\n1\n2\n", ",", True),
        (b"38, Not in universe, 1\n17, Private, 2\n", ", ", False),
    ],
)
def test_separator_and_header_are_found(tmp_path, text, separator, header):
    path = tmp_path / "log.txt"
    path.write_bytes(text)
    dialect = sniff(path)
    assert (dialect.separator, dialect.header) == (separator, header)


def test_latin_letters_and_stray_quotes_are_noticed(tmp_path):
    path = tmp_path / "log.txt"
    path.write_bytes('1|5" caf\xe9|x\n2|b|y\n'.encode("latin-1"))
    dialect = sniff(path)
    assert (dialect.encoding, dialect.quote, dialect.separator) == ("latin-1", "", "|")
    assert inspect(path).columns[1].examples[0] == '5" café'


def test_what_cannot_be_guessed_is_refused(tmp_path):
    cases = {
        "a.libfm": (b"1 3:1 4:1\n-1 2:1 5:1\n", "libfm"),
        "b.csv": (b"", "empty"),
        "c.csv": (bytes(range(256)) * 4, "binary"),
        "d.parquet": (b"PAR1 and no more", "truncated"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataFormatError, match=words):
            inspect(tmp_path / name)
    with pytest.raises(DataMissingError):
        inspect(tmp_path / "absent.csv")


def test_a_binary_column_without_a_telling_name_is_only_a_guess(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("x,flag\n" + "1,0\n7,1\n9,1\n")
    guess = inspect(path)
    assert guess.columns[1].role == "label"
    assert "check it" in guess.columns[1].reason


def test_numbers_and_tags_keep_what_was_seen(tmp_path):
    path = tmp_path / "log.csv"
    LOG.write_csv(path)
    columns = {c.name: c for c in pasted(inspect(path).source).columns}
    assert columns["num_views"] == Number(name="num_views", transform="log")
    assert columns["price"] == Number(name="price")
    assert columns["genres"] == Tags(name="genres", separator="|")


def test_a_folder_is_looked_at_as_one_log(tmp_path: Path):
    for i in range(2):
        pa.parquet.write_table(pa.table({"a": [i, 5]}), tmp_path / f"{i}.parquet")
    guess = inspect(tmp_path)
    assert (guess.rows, guess.columns[0].distinct) == (4, 3)


def test_dates_and_milliseconds_are_times_that_need_work(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "date,event_time,click\n2020-01-01,1600000000000,0\n2020-01-02,1600000000001,1\n"
    )
    guess = inspect(path)
    assert [c.role for c in guess.columns] == ["time", "time", "label"]
    spec = pasted(guess.source)
    assert spec.time == ""
    assert {name for name, _ in spec.ignore} == {"date", "event_time"}


def test_an_id_in_the_range_of_unix_seconds_stays_an_id(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("session_id,stamp\n1600000000,1600000000\n1600000007,1600000009\n")
    assert [c.role for c in inspect(path).columns] == ["id", "time"]


def test_phrases_are_not_tags_and_pasts_share_the_table_of_the_item(tmp_path):
    places = ["United States", "United Kingdom", "New Zealand", "Spain"]
    path = tmp_path / "log.parquet"
    pl.DataFrame(
        {
            "country": [places[i % 4] for i in range(40)],
            "item": list(range(40)),
            "past": [[i] * (i % 3) for i in range(40)],
        }
    ).write_parquet(path)
    guess = inspect(path)
    assert [c.role for c in guess.columns] == ["category", "id", "history"]
    assert pasted(guess.source).histories()[0].events[0].table == "item"
