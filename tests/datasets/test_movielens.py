"""Past events and the cut by time, against a loop over the ratings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.data.datasets import _movielens as movielens
from fullrank.data.datasets import collm_ml1m, dataset
from fullrank.data.text import BadRows
from fullrank.errors import DataMissingError

RATING = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 5), st.integers(0, 12))


def slow_past(rows, row, length):
    """The newest events of the same user at earlier times, oldest first, by definition."""
    user, _, _, time = row
    past = [r for r in rows if r[0] == user and r[3] < time]
    past.sort(key=lambda r: r[3])  # stable, as the file is for equal times
    return past[max(0, len(past) - length) :]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(RATING, min_size=1, max_size=25, unique_by=lambda r: (r[0], r[1])),
    length=st.integers(1, 4),
    chunk=st.integers(1, 9),
)
def test_the_past_is_what_a_loop_finds(rows, length, chunk):
    frame = pl.DataFrame(rows, schema=["user", "item", "rating", "time"], orient="row")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(movielens, "LENGTH", length)
        patch.setattr(movielens, "_CHUNK", chunk)
        found = movielens.Ratings.of(frame.lazy()).lazy().collect()
    assert found["time"].is_sorted()
    assert sorted(found.select("user", "item", "rating", "time").rows()) == sorted(rows)
    for row in found.iter_rows(named=True):
        key = (row["user"], row["item"], row["rating"], row["time"])
        past = slow_past(rows, key, length)
        assert row["history_item"] == [r[1] for r in past]
        assert row["history_liked"] == [int(r[2] >= 4) for r in past]
        assert row["history_time"] == [r[3] for r in past]
        assert row["click"] == int(row["rating"] >= 4)


def test_rows_are_the_same_however_they_are_asked_for(monkeypatch):
    rows, *_ = movielens.invented()
    frame = pl.DataFrame(rows, schema=["user", "item", "rating", "time"], orient="row")
    monkeypatch.setattr(movielens, "_CHUNK", 17)
    lazy = movielens.Ratings.of(frame.lazy()).lazy()
    whole = lazy.collect()
    assert lazy.collect(engine="streaming").equals(whole)
    for head in (0, 1, 17, 40):
        assert lazy.head(head).collect().equals(whole.head(head))
    assert lazy.slice(30, 20).collect().equals(whole.slice(30, 20))
    some = (pl.col("user") == 3) & (pl.col("time") > 978_400_000)
    assert lazy.filter(some).collect().equals(whole.filter(some))
    assert lazy.filter(some).head(2).collect().equals(whole.filter(some).head(2))
    assert (
        lazy.filter(some)
        .select("history_item")
        .collect()
        .equals(whole.filter(some).select("history_item"))
    )
    assert lazy.select(pl.len()).collect().item() == whole.height


def test_ties_in_the_invented_log_are_real(tmp_path: Path):
    rows, *_ = movielens.invented()
    assert len({(u, t) for u, _, _, t in rows}) < len(rows)


def test_all_releases_read_the_same_events(tmp_path: Path):
    """Four formats of one invented log; stars of the csv form are halved for odd movies."""
    frames = {}
    for name in ("ml_100k", "ml_1m", "ml_20m", "ml_latest"):
        dataset(name).write_sample(tmp_path)
        parts = dataset(name).load(tmp_path, BadRows())
        frames[name] = pl.concat(p.collect() for p in parts.values())
    columns = ["user", "item", "time", "history_item", "history_time", "year"]
    first = frames["ml_100k"].select(columns)
    assert frames["ml_1m"].select(columns).equals(first)
    undated = pl.when(pl.col("item") != 40).then("year").cast(pl.Int32)  # has no year in the csv
    for name in ("ml_20m", "ml_latest"):
        assert frames[name].select(columns).equals(first.with_columns(undated))
    titles = set(frames["ml_20m"]["title"])
    assert 'Café, The "7" (1997)' in titles
    assert set(frames["ml_1m"]["genres"]) == {"Comedy|Drama", "Action", "Sci-Fi|War"}
    assert set(frames["ml_100k"]["genres"]) == {
        "Action|Drama",
        "Adventure|Drama",
        "Animation|Drama",
    }
    assert frames["ml_100k"]["gender"].null_count() == 0
    assert frames["ml_1m"].filter(pl.col("user") == 4)["zip"].unique().to_list() == ["10004"]


def test_the_full_latest_release_wins_over_the_small_one(tmp_path: Path):
    found = dataset("ml_latest")
    found.write_sample(tmp_path)
    (tmp_path / "ml-latest").mkdir()
    with pytest.raises(DataMissingError):
        found.load(tmp_path, BadRows())


def test_bad_ratings_are_left_out_of_every_past(tmp_path: Path):
    found = dataset("ml_100k")
    found.write_sample(tmp_path)
    log = tmp_path / "ml-100k" / "u.data"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:50], "3\t77\t5\tnever", *lines[50:]]) + "\n")
    bad = BadRows("quarantine", tmp_path / "bad.jsonl")
    rows = pl.concat(p.collect() for p in found.load(tmp_path, bad).values())
    assert bad.count == 1
    assert "line 51" not in (tmp_path / "bad.jsonl").read_text()
    assert '"line": 51' in (tmp_path / "bad.jsonl").read_text()
    assert 77 not in np.unique(rows["history_item"].explode().drop_nulls().to_numpy())


def test_collm_rows_show_the_newest_likes_as_a_bag_and_the_year(tmp_path):
    collm_ml1m.write_sample(tmp_path)
    rows = collm_ml1m.load(tmp_path, BadRows())["train"].collect()
    assert max(len(his) for his in rows["his"]) > collm_ml1m.RECENT  # else nothing was cut
    for his, liked, iid, year in rows.select("his", "liked", "iid", "year").iter_rows():
        assert liked == his[-collm_ml1m.RECENT :]
        assert year == 1960 + iid
