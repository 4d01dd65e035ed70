"""Item sequences as impressions, against loops over the sequences."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.data.checks import check
from fullrank.data.datasets import _impressions, amazon_beauty, amazon_games, dataset
from fullrank.data.datasets._impressions import Impressions, Sequences, read_sequences
from fullrank.data.datasets.amazon_beauty import AmazonBeauty
from fullrank.data.datasets.amazon_games import AmazonGames
from fullrank.data.datasets.ml_1m_impressions import MovieLensImpressions
from fullrank.data.text import BadRows
from fullrank.errors import ConfigError, DataFormatError
from fullrank.workflow.data import DataOptions, open_data
from fullrank.workflow.popularity import popularity_alone


def lines(num_users: int, num_items: int, seed: int = 0) -> dict[int, list[int]]:
    """User -> items by a steep law of popularity, each once."""
    random = np.random.default_rng(seed)
    law = 1.0 / np.arange(3, num_items + 3)
    law /= law.sum()
    return {
        user: (random.choice(num_items, random.integers(3, 12), replace=False, p=law) + 1).tolist()
        for user in range(1, num_users + 1)
    }


def write(root: Path, chosen: dict[int, list[int]]) -> None:
    amazon_beauty.write_sample(root)  # properties of items 1 to 60
    text = "".join(f"{u} {' '.join(map(str, items))}\n" for u, items in chosen.items())
    (root / "amazon_beauty" / "Beauty.txt").write_text(text)


def loaded(source: Impressions, root: Path) -> dict[str, pl.DataFrame]:
    return {name: rows.collect() for name, rows in source.load(root, BadRows()).items()}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SimpleNamespace:
    root, chosen = tmp_path_factory.mktemp("amazon"), lines(60, 50)
    write(root, chosen)
    return SimpleNamespace(root=root, chosen=chosen)


@pytest.mark.parametrize("negatives", ["popularity", "uniform"])
@pytest.mark.parametrize("split", ["place", "user"])
def test_rows_are_what_a_loop_finds(world, negatives, split) -> None:
    source = AmazonBeauty(negatives=negatives, split=split, length=4, newest=5)
    parts = loaded(source, world.root)
    found, users = {}, {}
    for part, rows in parts.items():
        users[part] = set(rows["user"].to_list())
        for two in rows.iter_slices(2):  # the rows of one event
            yes, no = two.iter_rows(named=True)
            items, at = world.chosen[yes["user"]], yes["place"]
            assert (yes["click"], no["click"]) == (1, 0)
            assert yes["item"] == items[at]
            assert no["item"] not in items
            for row in (yes, no):
                assert (row["user"], row["place"]) == (yes["user"], at)
                assert row["history_item"] == items[max(0, at - 4) : at]
                kinds = [f"Kind {i % 7}" for i in row["history_item"]]
                assert row["history_category"] == kinds
                assert row["category"] == f"Kind {row['item'] % 7}"
            found[yes["user"], at] = part
    expected = {
        (u, at) for u, s in world.chosen.items() for at in range(max(1, len(s) - 5), len(s))
    }
    assert set(found) == expected
    if split == "user":
        assert not users["train"] & users["valid"]
        assert not users["test"] & (users["train"] | users["valid"])
        assert len(users["train"]) > 30
    else:
        for (user, at), part in found.items():
            to_come = len(world.chosen[user]) - 1 - at
            assert part == {0: "test", 1: "valid"}.get(to_come, "train")


@pytest.mark.parametrize("negatives", ["popularity", "uniform"])
def test_the_same_seed_gives_the_same_rows_and_splits_have_streams_of_their_own(
    world, negatives
) -> None:
    def drawn(**settings) -> dict[str, list[int]]:
        parts = loaded(AmazonBeauty(negatives=negatives, **settings), world.root)
        return {n: r.filter(pl.col("click") == 0)["item"].to_list() for n, r in parts.items()}

    first = drawn()
    assert drawn() == first
    other = drawn(seed=1)
    assert all(other[name] != first[name] for name in first)
    assert first["valid"] != first["test"]
    # Fewer training rows, other training popularity: what is uniform elsewhere does not move.
    if negatives == "uniform":
        fewer = drawn(newest=4)
        assert fewer["train"] != first["train"]
        assert (fewer["valid"], fewer["test"]) == (first["valid"], first["test"])


def test_rows_are_the_same_however_they_are_asked_for(world, monkeypatch) -> None:
    monkeypatch.setattr(_impressions, "_CHUNK", 14)
    lazy = AmazonBeauty().load(world.root, BadRows())["train"]
    whole = lazy.collect()
    assert lazy.collect(engine="streaming").equals(whole)
    for head in (0, 1, 14, 40):
        assert lazy.head(head).collect().equals(whole.head(head))
    some = (pl.col("click") == 0) & (pl.col("user") > 7)
    assert lazy.filter(some).collect().equals(whole.filter(some))
    assert lazy.filter(some).select("item").collect().equals(whole.filter(some).select("item"))
    assert lazy.select(pl.len()).collect().item() == whole.height
    assert lazy.select("click").collect()["click"].to_list() == [1, 0] * (whole.height // 2)


def test_seen_items_are_drawn_only_where_that_is_asked_for(world) -> None:
    source = AmazonBeauty(negatives="uniform", allow_seen=True)
    parts = source.load(world.root, BadRows())
    rows = parts["train"].collect().filter(pl.col("click") == 0)
    pairs = rows.select("user", "item").iter_rows()
    share = np.mean([item in world.chosen[user] for user, item in pairs])
    assert 0.05 < share < 0.35  # of 50 items a user has some 7, of which one is the positive
    assert check(parts, source.SPEC, name="seen") == []
    assert source.SPEC.histories()[0].repeats
    assert not AmazonBeauty().SPEC.histories()[0].repeats


@pytest.mark.parametrize("split", ["place", "user"])
def test_popularity_tells_uniform_negatives_and_not_matched_ones(tmp_path, split) -> None:
    write(tmp_path, lines(700, 60, seed=1))
    told = {}
    for negatives in ("popularity", "uniform"):
        source = AmazonBeauty(negatives=negatives, split=split)
        data = open_data(source, DataOptions(root=tmp_path, cache=tmp_path / "cache"))
        found = popularity_alone(data)
        assert set(found) == {"valid", "test"}
        told[negatives] = found["test"]
        assert ("user" in [f.name for f in data.schema.fields]) == (split == "place")
        assert data.notes == (source.NOTE,)
    assert told["uniform"]["auc"] > 0.6
    assert told["uniform"]["gauc"] > 0.6
    assert abs(told["popularity"]["auc"] - 0.5) < 0.05


def test_items_that_training_never_saw_are_unknown(tmp_path) -> None:
    chosen = lines(60, 50)
    chosen[7].append(60)  # in no other sequence, and last here
    write(tmp_path, chosen)
    options = DataOptions(root=tmp_path, cache=tmp_path / "cache")
    data = open_data(AmazonBeauty(), options)
    rows = loaded(AmazonBeauty(), tmp_path)["test"]
    at = rows["item"].to_list().index(60)
    batch = data.splits["test"].batch(0, rows.height)
    assert batch.categorical["item"][at] == 0
    assert batch.categorical["category"][at] > 0


# ---- settings and bad files


def test_every_setting_has_a_name_and_impossible_ones_are_refused() -> None:
    made = [
        AmazonBeauty(),
        AmazonBeauty(negatives="uniform"),
        AmazonBeauty(length=20),
        AmazonBeauty(split="user", newest=4),
        AmazonBeauty(seed=3, allow_seen=True),
        AmazonGames(),
        MovieLensImpressions(),
        MovieLensImpressions(newest=None),
    ]
    assert len({source.NAME for source in made}) == len(made)
    assert made[3].NAME == "amazon_beauty-split=user-newest=4"
    assert "uniform" in made[1].NOTE
    assert made[6].SPEC.histories()[0].max_length == 200
    for wrong in ({"negatives": "even"}, {"split": "time"}, {"length": 0}, {"length": 1001},
                  {"newest": 2}, {"newest": 0, "split": "user"}):  # fmt: skip
        with pytest.raises(ConfigError):
            AmazonBeauty(**wrong)
    assert AmazonBeauty(newest=1, split="user").newest == 1


@pytest.mark.parametrize(
    ("line", "why"),
    [("9 4 x 5", "not a whole number"), ("9", "without items"), ("2 4 5", "a line already"),
     ("9 4 5.5", "not a whole number")],
)  # fmt: skip
def test_a_bad_line_is_refused_by_its_number_or_left_out(tmp_path, line, why) -> None:
    path = tmp_path / "Beauty.txt"
    path.write_text(f"1 5 6\n\n2 7 8 9\n{line}\n4 5 7\n")
    with pytest.raises(DataFormatError, match="a row is bad") as caught:
        read_sequences(path, BadRows())
    assert "line 4" in caught.value.where
    assert why in caught.value.found
    bad = BadRows("quarantine", tmp_path / "bad.jsonl")
    log = read_sequences(path, bad)
    assert (bad.count, log.user.tolist()) == (1, [1, 2, 4])
    assert [log.items[e] for e in log.event] == [5, 6, 7, 8, 9, 5, 7]
    assert log.offsets.tolist() == [0, 2, 5, 7]
    assert log.owner().tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_broken_files_are_refused(tmp_path) -> None:
    amazon_beauty.write_sample(tmp_path)
    items = tmp_path / "amazon_beauty" / "items.jsonl.gz"
    items.unlink()
    (tmp_path / "amazon_beauty" / "items.jsonl").write_text('{"item_id": 1, "categ\n')
    with pytest.raises(DataFormatError, match="properties of items"):
        AmazonBeauty().load(tmp_path, BadRows())
    (tmp_path / "amazon_beauty" / "Beauty.txt").write_text("\n\n")
    with pytest.raises(DataFormatError, match="holds no sequences"):
        AmazonBeauty().load(tmp_path, BadRows())


def test_a_user_who_has_every_item_is_named(tmp_path) -> None:
    write(tmp_path, {1: [1, 2, 3, 4, 5], 2: [1, 2, 3], 3: [4, 5, 1]})
    with pytest.raises(DataFormatError, match="no item is left to draw") as caught:
        AmazonBeauty(negatives="uniform").load(tmp_path, BadRows())
    assert "user number 0" in caught.value.where
    assert AmazonBeauty(allow_seen=True).load(tmp_path, BadRows())["test"].collect().height == 6


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=7, unique=True), min_size=1,
                max_size=6), st.sampled_from(["place", "user"]))  # fmt: skip
def test_short_sequences_give_no_rows_and_no_error(sequences, split) -> None:
    log = Sequences.of(
        np.arange(len(sequences)),
        np.array([len(s) for s in sequences]),
        np.concatenate([np.array(s) for s in sequences]),
    )
    parts = AmazonGames(split=split)._events(log)
    kept = 4 if split == "user" else 99
    assert sum(len(p) for p in parts.values()) == sum(min(len(s) - 1, kept) for s in sequences)


# ---- the other logs of sequences


def test_games_have_no_category_and_ids_from_zero(tmp_path) -> None:
    amazon_games.write_sample(tmp_path)
    rows = loaded(AmazonGames(), tmp_path)
    assert rows["train"].columns[:3] == ["user", "item", "title"]
    assert rows["train"].filter(pl.col("item") == 0)["title"][0] == 'Pokémon "0", The'
    assert check(amazon_games.load(tmp_path, BadRows()), amazon_games.SPEC, name="games") == []


def test_movielens_sequences_may_come_from_ratings(tmp_path) -> None:
    source = dataset("ml_1m_impressions")
    source.write_sample(tmp_path)
    folder = tmp_path / "ml-1m"
    ratings = [line.split("::") for line in (folder / "ratings.dat").read_text().splitlines()]
    chosen: dict[int, list[tuple[int, int]]] = {}
    for user, item, _, time in ratings:
        chosen.setdefault(int(user), []).append((int(time), int(item)))
    text = [
        " ".join(map(str, [u, *(i for _, i in sorted(rated, key=lambda r: r[0]))]))
        for u, rated in chosen.items()
    ]
    (folder / "sequences.txt").write_text("\n".join(text) + "\n")
    from_sequences = loaded(MovieLensImpressions(), tmp_path)
    (folder / "sequences.txt").unlink()
    from_ratings = loaded(MovieLensImpressions(), tmp_path)
    assert all(from_ratings[n].equals(r) for n, r in from_sequences.items())
    row = from_ratings["train"].row(0, named=True)
    assert (row["gender"], row["age"], row["year"]) == ("F", "25", 1990 + row["item"] % 9)
    assert row["category"] in ("Comedy|Drama", "Action", "Sci-Fi|War")
    assert from_ratings["train"].group_by("user").len()["len"].max() == 2 * 14


def test_a_training_row_per_user_is_the_newest_and_remembers_all_before(tmp_path) -> None:
    users, all_rows = dataset("ml_100k_users"), dataset("ml_100k")
    users.write_sample(tmp_path)
    made, base = (
        {n: r.collect() for n, r in d.load(tmp_path, BadRows()).items()} for d in (users, all_rows)
    )
    assert made["train"]["user"].is_unique().all()
    newest = base["train"].group_by("user").agg(pl.col("time").max())
    assert made["train"].sort("user").select("user", "time").equals(newest.sort("user"))
    assert made["train"]["time"].is_sorted()
    plain = [c for c in base["test"].columns if not c.startswith("history")]
    for part in ("valid", "test"):
        assert made[part].select(plain).equals(base[part].select(plain))
    for row in made["train"].iter_rows(named=True):
        earlier = base["train"].filter(
            (pl.col("user") == row["user"]) & (pl.col("time") < row["time"])
        )
        assert sorted(row["history_item"]) == sorted(earlier["item"])
        assert sum(row["history_liked"]) == earlier["click"].sum()
