"""Frappe: the published splits, and the rule by which negatives are drawn."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fullrank.data.datasets import dataset, note
from fullrank.data.datasets.frappe_log import with_negatives
from fullrank.data.home import data_root
from fullrank.data.text import BadRows
from fullrank.errors import DataFormatError, DataMissingError

CONTEXT = ["daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city"]


def world(num_users: int, num_items: int, rows: int, seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    columns = {
        "user": random.integers(0, num_users, rows),
        "item": random.integers(0, num_items, rows),
    }
    return pl.DataFrame({**columns, **{c: random.integers(0, 2, rows) for c in CONTEXT}})


def test_negatives_follow_the_rule():
    log = world(num_users=6, num_items=30, rows=80)
    rows = with_negatives(log, pl.Series(range(30)), seed=1)
    positives = rows.filter(pl.col("label") == 1)
    assert positives.drop("label").equals(log)
    used, per_group, drawn = defaultdict(set), Counter(), defaultdict(list)
    for row in log.iter_rows(named=True):
        used[row["user"]].add(row["item"])
        per_group[(row["user"], *(row[c] for c in CONTEXT))] += 1
    for row in rows.filter(pl.col("label") == 0).iter_rows(named=True):
        assert row["item"] not in used[row["user"]]
        drawn[(row["user"], *(row[c] for c in CONTEXT))].append(row["item"])
    for group, positive in per_group.items():
        assert len(drawn[group]) == min(2 * positive, 30 - len(used[group[0]]))
        assert len(set(drawn[group])) == len(drawn[group])


def test_negatives_are_even_and_seeded():
    log = world(num_users=1, num_items=3, rows=4000).with_columns(city=pl.int_range(4000))
    items = pl.Series(range(13))
    rows = with_negatives(log, items, seed=5)
    counts = rows.filter(pl.col("label") == 0)["item"].value_counts()["count"].cast(int)
    assert len(counts) == 10
    expected = 800  # 8,000 draws over 10 unused apps; deviation about 27
    assert ((counts - expected).abs() < 6 * 27).all()
    assert rows.equals(with_negatives(log, items, seed=5))
    assert not rows.equals(with_negatives(log, items, seed=6))


def test_a_user_of_every_app_gets_no_negatives():
    log = world(num_users=1, num_items=3, rows=60)
    assert with_negatives(log, log["item"].unique(), seed=0)["label"].min() == 1


def test_raw_log_joins_the_category_and_hides_the_count(tmp_path: Path):
    found = dataset("frappe_log")
    found.write_sample(tmp_path)
    rows = pl.concat(p.collect() for p in found.load(tmp_path, BadRows()).values())
    assert "cnt" not in rows.columns
    assert rows["label"].mean() == pytest.approx(1 / 3)
    names = pl.Series(["Tools", "Games"])
    assert rows["category"].to_list() == [names[i % 2] for i in rows["item"]]
    assert rows["description"].unique().to_list() == ['"An app']  # a stray quote is text


def test_the_note_is_said_for_the_rebuilt_file_only(tmp_path: Path):
    found = dataset("frappe")
    found.write_sample(tmp_path)
    assert note("frappe", tmp_path) == ""
    original = tmp_path / "frappe" / "frappe.train.libfm"
    (tmp_path / "frappe" / "frappe.train_redrawn.libfm").write_text(
        original.read_text()[: 400 * 50]
    )
    assert note("frappe", tmp_path) == "train negatives re-drawn"


def test_real_frappe_has_the_published_sizes():
    if not os.environ.get("FULLRANK_DATA"):
        pytest.skip("frappe: FULLRANK_DATA is not set")
    try:
        parts = dataset("frappe").load(data_root(), BadRows())
    except DataMissingError as error:
        pytest.skip(f"frappe: {error.what}")
    sizes = {n: (r.height, r["label"].sum()) for n, p in parts.items() for r in [p.collect()]}
    # He & Chua, SIGIR 2017: 288,609 rows, cut 7 : 2 : 1; a third of them are positives
    assert sum(rows for rows, _ in sizes.values()) == 288_609
    assert sum(positive for _, positive in sizes.values()) == 96_203
    assert sizes["valid"] == (57_722, 19_063)


def test_ipinyou_refuses_an_index_in_the_place_of_another_field(tmp_path: Path):
    found = dataset("ipinyou_sample")
    found.write_sample(tmp_path)
    train = tmp_path / "ipinyou_sample" / "train.fm.txt"
    rows = found.load(tmp_path, BadRows())["train"].collect()
    assert set(rows["weekday"]) == {f"w:{i}" for i in range(5)}  # words may hold the separator
    lines = train.read_text().splitlines()
    parts = lines[3].split()
    train.write_text(
        "\n".join([*lines[:3], " ".join([parts[0], *parts[:0:-1]]), *lines[4:]]) + "\n"
    )
    with pytest.raises(DataFormatError, match="place of another field"):
        found.load(tmp_path, BadRows())
