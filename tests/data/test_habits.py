"""Habits of the simulated world: what order tells, what nothing else does, and the controls."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from fullrank.data.datasets.simulated_habits import WORLD
from fullrank.data.synthetic import simulate
from fullrank.data.truth import Impressions, Truth
from fullrank.data.world import START, World

SMALL = replace(WORLD, num_rows=6000, num_users=60)
BOTH = replace(SMALL, monthly=2.0, history_length=210, days=210.0)
MONTHLY = replace(SMALL, weekly=0.0, monthly=2.0, history_length=60, days=60.0)


def made(world: World, folder: Path) -> pl.DataFrame:
    """Returns log and truth in one frame."""
    place = simulate(world, folder / "simulated")
    hidden = pl.read_parquet(place / "truth.parquet")
    return pl.read_parquet(place / "log.parquet").join(hidden, on="impression")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    worlds = {
        "weekly": SMALL,
        "monthly": MONTHLY,
        "both": BOTH,
        "noise": replace(SMALL, habit_noise=1.0),
    }
    return {name: made(w, tmp_path_factory.mktemp(name)) for name, w in worlds.items()}


def hits(log: pl.DataFrame) -> NDArray[np.bool_]:
    """Returns [n, L]: was the event in the ad's category?"""
    return np.array(log["history_category"].to_list()) == log["category"].to_numpy()[:, None]


def rounds_ago(log: pl.DataFrame, days: int) -> NDArray[np.float64]:
    """Returns the share of hits a whole number of rounds before the impression, [n]."""
    x = hits(log)[:, ::-1]  # yesterday first
    return x[:, days - 1 :: days].mean(1)


def auc(log: pl.DataFrame, score: NDArray[Any]) -> float:
    return float(roc_auc_score(log["click"], score))


@pytest.mark.parametrize("name", ["weekly", "monthly", "both"])
def test_probabilities_equal_the_definition(name: str, logs: dict[str, pl.DataFrame]) -> None:
    world = {"weekly": SMALL, "monthly": MONTHLY, "both": BOTH}[name]
    truth = Truth(world)
    assert truth.habits is not None
    for row in logs[name].head(400).iter_rows(named=True):
        day, logit = (row["time"] - START) // 86400, truth.click_intercept
        for habit, (days, _) in {"weekly": (7, 7), "monthly": (30, 5)}.items():
            if getattr(world, habit) == 0:
                continue
            categories, places = (table[row["user"]] for table in truth.habits.all[habit])
            if row["category"] in categories:
                due = categories[places[day % days]] == row["category"]
                logit += getattr(world, habit) * (1 if due else -1)
        assert row["p_click"] == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-9)


def test_every_user_has_a_round_of_its_own() -> None:
    habits = Truth(BOTH).habits
    assert habits is not None
    weekly, monthly = habits.all["weekly"], habits.all["monthly"]
    for user in range(BOTH.num_users):
        assert len({*weekly.categories[user], *monthly.categories[user]}) == 12
        assert sorted(weekly.places[user]) == [*range(7)]
        assert Counter(monthly.places[user].tolist()) == dict.fromkeys(range(5), 6)
    assert len({*map(tuple, weekly.categories.tolist())}) == BOTH.num_users
    assert len({*map(tuple, monthly.places.tolist())}) == BOTH.num_users
    alone = Truth(MONTHLY).habits  # the other habit does not move it
    assert alone is not None
    np.testing.assert_array_equal(alone.all["monthly"].places, monthly.places)


def test_a_diary_has_one_event_a_day_and_follows_the_habit_but_for_the_noise(
    logs: dict[str, pl.DataFrame],
) -> None:
    truth = Truth(SMALL)
    assert truth.habits is not None
    habit, followed, total = truth.habits.all["weekly"], 0, 0
    seen: dict[tuple[int, int], tuple[int, int]] = {}
    for row in logs["weekly"].iter_rows(named=True):
        today = (row["time"] - START) // 86400
        days = [(t - START) // 86400 for t in row["history_time"]]
        assert days == [*range(today - 49, today)]
        for day, ad, category, t in zip(
            days, row["history_ad"], row["history_category"], row["history_time"], strict=True
        ):
            assert truth.ad_category[ad] == category
            assert seen.setdefault((row["user"], day), (ad, t)) == (ad, t)  # one diary
    for (user, day), (ad, _) in seen.items():
        followed += habit.categories[user][day % 7] == truth.ad_category[ad]
        total += 1
    expected = 0.7 + 0.3 / 12
    assert abs(followed / total - expected) < 0.02


def test_without_noise_the_past_repeats_itself(tmp_path: Path) -> None:
    for days, world in ((7, SMALL), (30, MONTHLY)):
        log = made(replace(world, num_rows=500, habit_noise=0.0), tmp_path / str(days))
        past = np.array(log["history_category"].to_list())
        assert (past[:, days:] == past[:, :-days]).all()
        np.testing.assert_array_equal(rounds_ago(log, days) == 1, log["p_click"] > 0.5)


@pytest.mark.parametrize(("name", "days"), [("weekly", 7), ("monthly", 30)])
def test_order_tells_nearly_all(name: str, days: int, logs: dict[str, pl.DataFrame]) -> None:
    log = logs[name]
    best = auc(log, log["p_click"].to_numpy())
    assert best > 0.85
    assert auc(log, rounds_ago(log, days)) > best - 0.05
    other = rounds_ago(log, 37 - days)
    assert auc(log, other) < 0.6  # the round of the other habit says little


def test_with_both_habits_each_shows_in_its_own_rounds(logs: dict[str, pl.DataFrame]) -> None:
    log = logs["both"]
    score = rounds_ago(log, 7), rounds_ago(log, 30)
    assert auc(log, score[0]) > 0.65
    assert auc(log, score[1]) > 0.65
    assert auc(log, score[0] + score[1]) > max(auc(log, s) for s in score) + 0.03


@pytest.mark.parametrize("name", ["weekly", "monthly", "both", "noise"])
def test_whoever_is_blind_to_order_is_at_chance(name: str, logs: dict[str, pl.DataFrame]) -> None:
    """The best that the bag of the past, the user, the ad and its popularity can tell."""
    log = logs[name]
    bag = hits(log).mean(1)
    assert abs(auc(log, bag) - 0.5) < 0.035
    popularity = log["ad"].value_counts()
    popular = log.join(popularity, on="ad", how="left", maintain_order="left")["count"]
    assert abs(auc(log, popular.to_numpy()) - 0.5) < 0.035
    past = np.array(log["history_category"].to_list())
    counts = np.stack([(past == c).sum(1) for c in range(WORLD.num_categories)], axis=1)
    held = np.sort(np.where(counts == bag[:, None] * past.shape[1], -1, counts), axis=1)
    x = np.column_stack([bag, held, popular, log["category"], log["hour"], log["user"]])
    # Expected AUC on the true probabilities of unseen users: luck of the labels plays no part.
    train = (log["user"] % 2 == 0).to_numpy()
    model = HistGradientBoostingClassifier(max_iter=40, random_state=0)
    score = model.fit(x[train], log["click"].to_numpy()[train]).predict_proba(x[~train])[:, 1]
    due = log["p_click"].to_numpy()[~train] > 0.5
    if name != "noise":
        assert abs(roc_auc_score(due, score) - 0.5) < 0.04


def test_the_bag_of_a_user_is_the_same_for_categories_on_their_day_and_off_it() -> None:
    """Exactly, without noise: whole rounds hold every category of a habit equally often."""
    for world in (replace(SMALL, habit_noise=0.0), replace(MONTHLY, habit_noise=0.0)):
        truth = Truth(world)
        assert truth.habits is not None
        (habit,), diary = truth.habits.all.values(), truth.ad_category[truth.habits.diary()]
        for user in range(0, world.num_users, 7):
            for day in range(0, 60, 9):
                bag = Counter(diary[user, day : day + world.history_length].tolist())
                assert {*bag} == {*habit.categories[user].tolist()}
                assert len({*bag.values()}) == 1


@pytest.mark.parametrize("name", ["weekly", "monthly", "both"])
def test_half_of_the_slots_are_on_their_day_and_as_popular(
    name: str, logs: dict[str, pl.DataFrame]
) -> None:
    log = logs[name]
    due = log["p_click"] > 0.5
    assert abs(due.mean() - 0.5) < 0.03  # type: ignore[operator]
    share = [
        np.bincount(log.filter(part)["category"], minlength=12) / part.sum() for part in (due, ~due)
    ]
    assert np.abs(share[0] - share[1]).max() < 0.05
    assert abs(log["click"].mean() - 0.5) < 0.03  # type: ignore[operator]


def test_a_wrong_day_is_any_other_day_of_the_round() -> None:
    habits = Truth(SMALL).habits
    assert habits is not None
    user = np.arange(14_000) % SMALL.num_users
    ad = habits.served(np.random.default_rng(0), user, np.zeros_like(user))
    category = Truth(SMALL).ad_category[ad]
    place = (habits.all["weekly"].categories[user] == category[:, None]).argmax(1)
    share = np.bincount(place, minlength=7) / len(place)
    np.testing.assert_allclose(share, [0.5] + [0.5 / 6] * 6, atol=0.02)


def test_the_asked_rate_is_that_of_the_ads_that_are_served(tmp_path: Path) -> None:
    log = made(replace(SMALL, click_rate=0.2), tmp_path)
    assert log["p_click"].mean() == pytest.approx(0.2, abs=0.01)


def test_with_noise_alone_the_effect_is_gone_and_the_truth_says_so(
    logs: dict[str, pl.DataFrame],
) -> None:
    assert logs["noise"]["p_click"].n_unique() == 1
    assert abs(auc(logs["noise"], rounds_ago(logs["noise"], 7)) - 0.5) < 0.03


def test_a_strength_of_zero_is_the_ordinary_world() -> None:
    off = replace(SMALL, weekly=0.0)
    truth = Truth(off)
    assert truth.habits is None
    x = Impressions(
        *(np.array([0]) for _ in range(6)), np.zeros((1, 2), int), np.array([0]), np.array([0.5])
    )
    terms = truth.click_terms(x)
    assert terms["weekly"] == terms["monthly"] == 0
