"""The simulator: true probabilities, dials, seeds, histories, delays, files."""

# Longer than 400 lines, because one world is made once and every effect is looked for in it.

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fullrank.data.checks import check
from fullrank.data.datasets import simulated
from fullrank.data.datasets import simulated_collapse as collapse
from fullrank.data.oracle import best_scores, weighted_auc, weighted_log_loss
from fullrank.data.spec import Category, Number, Spec, Target
from fullrank.data.synthetic import read_log, simulate, wide_log
from fullrank.data.text import BadRows
from fullrank.data.truth import Impressions, Truth
from fullrank.data.world import DEVICES, PLACEMENTS, START, World
from fullrank.errors import ConfigError, DataFormatError, DataMissingError, DiskFullError

TINY = World(
    num_rows=1500,
    num_users=30,
    num_ads=25,
    num_categories=5,
    days=4.0,
    partner=0.8,
    window_hours=14.0,
    context_taste=0.6,
    context_history=2.0,
)
STRENGTHS = (
    "main",
    "taste",
    "cross",
    "position_bias",
    "history_relevance",
    "partner",
    "drift",
    "context_taste",
    "context_history",
)


def tiny(**dials: Any) -> World:
    return dataclasses.replace(TINY, **dials)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(TINY, tmp_path_factory.mktemp("tiny") / "simulated")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = World(
        num_rows=40_000,
        num_users=400,
        num_ads=100,
        partner=1.0,
        drift=1.0,
        context_taste=0.5,
        context_history=2.0,
    )
    return simulate(world, tmp_path_factory.mktemp("large") / "simulated")


def read(folder: Path) -> tuple[World, pl.DataFrame, pl.DataFrame]:
    world = World(**_tuples(json.loads((folder / "world.json").read_text())["world"]))
    return world, pl.read_parquet(folder / "log.parquet"), pl.read_parquet(folder / "truth.parquet")


def _tuples(plain: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}


def impressions(log: pl.DataFrame) -> Impressions:
    """Rebuilds what decided each click from the columns of the log alone."""
    match = [
        sum(c == own for c in past) / len(past) if len(past) else math.nan
        for past, own in zip(log["history_category"].to_list(), log["category"], strict=True)
    ]
    contexts = [c for c in log.columns if c.startswith("context_")]
    return Impressions(
        time=log["time"].to_numpy(),
        user=log["user"].to_numpy(),
        ad=log["ad"].to_numpy(),
        device=np.array([DEVICES.index(d) for d in log["device"]]),
        placement=np.array([PLACEMENTS.index(p) for p in log["placement"]]),
        position=log["position"].to_numpy() - 1,
        contexts=log.select(contexts).to_numpy() if contexts else np.zeros((len(log), 0), int),
        partner=log["partner"].to_numpy(),
        match=np.array(match),
    )


def slow_click_probability(world: World, truth: Truth, row: dict[str, Any]) -> float:
    """The definition of a click, for one row of the log, in plain floats."""
    u, a, k, p = row["user"], row["ad"], row["category"], row["partner"]
    place = PLACEMENTS.index(row["placement"])
    main = truth.user_main[u] + truth.ad_main[a] + truth.device_main[DEVICES.index(row["device"])]
    main += truth.placement_main[place] + truth.hour_main[row["hour"]]
    for i in range(world.num_contexts):
        main += truth.context_main[i][row[f"context_{i}"]]
    logit = truth.click_intercept + world.main / math.sqrt(7 + world.num_contexts) * main
    inner = sum(x * y for x, y in zip(truth.user_hidden[u], truth.ad_hidden[a], strict=True))
    logit += world.taste * truth.taste_scale * inner
    logit += world.cross * truth.cross[place][k]
    logit -= world.position_bias * math.log(row["position"])
    past = row["history_category"]
    if past:
        share = sum(c == k for c in past) / len(past)
        usual = sum(s for c, s in zip(truth.ad_category, truth.ad_share, strict=True) if c == k)
        logit += world.history_relevance * (share - usual)
        factor = sum(truth.context_history[i][row[f"context_{i}"]] for i in range(2))
        logit += world.context_history * factor * (share - usual)
    logit += world.context_taste * sum(
        truth.context_taste[i][row[f"context_{i}"]][k] for i in range(2)
    )
    both = truth.user_partner[u][p] + truth.ad_partner[a][p]
    logit += world.partner * both / math.sqrt(len(world.low_rank_fields))
    days = (row["time"] - START) / 86400
    logit += world.drift * (days / world.days - 0.5) * truth.drift[k]
    return 1 / (1 + math.exp(-logit))


# ---- the truth


def test_true_probabilities_equal_the_definition_row_by_row(folder: Path) -> None:
    world, log, hidden = read(folder)
    truth = Truth(world)
    assert log["impression"].to_list() == hidden["impression"].to_list()
    rows = log.iter_rows(named=True)
    expected = [slow_click_probability(world, truth, row) for row in rows]
    np.testing.assert_allclose(hidden["p_click"].to_numpy(), expected, rtol=1e-9)
    window = 1 - math.exp(-world.window_hours / world.mean_delay_hours)
    for row, p in list(zip(log.iter_rows(named=True), hidden["p_conversion"], strict=True))[:300]:
        u, a = row["user"], row["ad"]
        inner = truth.taste_scale * float(truth.user_hidden[u] @ truth.ad_hidden[a])
        own = (truth.user_conversion[u] + truth.ad_conversion[a]) / math.sqrt(2)
        logit = truth.conversion_intercept + world.main * own + 0.5 * world.taste * inner
        assert p == pytest.approx(window / (1 + math.exp(-logit)), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_auc_and_log_loss_equal_their_quadratic_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = np.round(rng.random(40), 1).clip(0.05, 0.95)  # with ties
    positive, negative = rng.random(40), rng.random(40)
    above = pairs = 0.0
    for i in range(40):
        for j in range(40):
            if i != j:
                weight = positive[i] * negative[j]
                pairs += weight
                above += weight * (1.0 if p[i] > p[j] else 0.5 if p[i] == p[j] else 0.0)
    assert weighted_auc(p, positive, negative) == pytest.approx(above / pairs, rel=1e-12)
    loss = sum(
        -a * math.log(x) - b * math.log(1 - x)
        for x, a, b in zip(p, positive, negative, strict=True)
    )
    total = float(positive.sum() + negative.sum())
    assert weighted_log_loss(p, positive, negative) == pytest.approx(loss / total, rel=1e-12)
    y = (rng.random(40) < p).astype(int)
    assert best_scores(p, y)["auc_realised"] == pytest.approx(roc_auc_score(y, p))


def test_expected_scores_are_the_means_over_labels_drawn_again() -> None:
    rng = np.random.default_rng(0)
    p, dropped = rng.uniform(0.05, 0.9, 4000), 0.6
    expected, realised = [], []
    for _ in range(60):
        y = rng.random(len(p)) < p
        kept = y | (rng.random(len(p)) >= dropped)
        scores = best_scores(p[kept], y[kept], negatives_dropped=dropped)
        realised.append([scores["auc_realised"], scores["log_loss_realised"]])
        expected.append([scores["auc_expected"], scores["log_loss_expected"]])
        assert scores["rate"] == pytest.approx(p.mean(), abs=0.05)
        assert scores["auc_difference"] == pytest.approx(realised[-1][0] - expected[-1][0])
    difference = np.array(realised) - np.array(expected)
    error = difference.std(0) / math.sqrt(60)
    assert (np.abs(difference.mean(0)) < 4 * error).all()
    assert (error < 2e-3).all()  # the bound above is tight enough to mean something


def test_scores_without_both_labels_have_no_value() -> None:
    none = best_scores(np.array([]), np.array([]))
    assert none["auc_realised"] is None
    assert none["log_loss_difference"] is None
    assert best_scores(np.array([0.3, 0.2]), np.array([0, 0]))["auc_realised"] is None


def test_stored_scores_are_those_of_the_splits(folder: Path) -> None:
    _, _, hidden = read(folder)
    stored = json.loads((folder / "truth.json").read_text())
    for name, rows in read_log(folder).items():
        part = rows.collect().join(hidden, on="impression")
        assert stored[name]["click"]["rows"] == len(part)
        auc = roc_auc_score(part["click"], part["p_click"])
        assert stored[name]["click"]["auc_realised"] == pytest.approx(auc)
        known = part.filter(pl.col("conversion_observed"))
        assert stored[name]["conversion"]["rows"] == len(known) > 0


def test_a_model_with_oracle_features_comes_near_the_best_and_shuffled_labels_stay_at_chance(
    large: Path,
) -> None:
    world, log, hidden = read(large)
    terms = Truth(world).click_terms(impressions(log))
    x, y = np.stack([terms[name] for name in STRENGTHS], axis=1), log["click"].to_numpy()
    train, test = slice(0, 30_000), slice(30_000, None)
    best = best_scores(hidden["p_click"].to_numpy()[test], y[test])["auc_realised"]
    assert best is not None
    assert best > 0.75
    model = LogisticRegression(C=1e6).fit(x[train], y[train])
    np.testing.assert_allclose(model.coef_, 1.0, atol=0.25)  # each term enters once
    auc = roc_auc_score(y[test], model.decision_function(x[test]))
    assert abs(auc - best) < 0.004
    shuffled = np.random.default_rng(0).permutation(y)
    blind = LogisticRegression(C=1e6).fit(x[train], shuffled[train])
    assert abs(roc_auc_score(shuffled[test], blind.decision_function(x[test])) - 0.5) < 0.03
    without = LogisticRegression(C=1e6).fit(x[train][:, [0]], y[train])
    assert roc_auc_score(y[test], without.decision_function(x[test][:, [0]])) < best - 0.05


def test_rates_are_those_asked_for(large: Path) -> None:
    world, log, hidden = read(large)
    error = math.sqrt(0.25 / len(log))
    assert abs(log["click"].mean() - hidden["p_click"].mean()) < 4 * error  # type: ignore[operator]
    assert hidden["p_click"].mean() == pytest.approx(world.click_rate, abs=0.02)
    clicked = hidden.filter(log["click"] == 1)
    assert clicked["p_conversion"].mean() == pytest.approx(world.conversion_rate, abs=0.03)
    deviation = math.sqrt(0.25 / len(clicked))
    assert abs(clicked["converts"].mean() - clicked["p_conversion"].mean()) < 4 * deviation  # type: ignore[operator]


# ---- dials


@pytest.mark.parametrize("dial", STRENGTHS)
def test_a_strength_of_zero_removes_its_effect_and_only_that(folder: Path, dial: str) -> None:
    _, log, _ = read(folder)
    x = impressions(log)
    with_all, without = Truth(TINY).click_terms(x), Truth(tiny(**{dial: 0.0})).click_terms(x)
    assert with_all.keys() == {*STRENGTHS, "weekly", "monthly"}
    for name in STRENGTHS:
        if name == dial:
            assert np.abs(with_all[name]).max() > 0.05
            assert not without[name].any()
        else:
            np.testing.assert_array_equal(with_all[name], without[name])


def test_with_all_strengths_at_zero_every_row_has_the_same_probability(tmp_path: Path) -> None:
    world = tiny(**dict.fromkeys(STRENGTHS, 0.0))
    _, _, hidden = read(simulate(world, tmp_path / "flat"))
    assert hidden["p_click"].to_numpy() == pytest.approx(world.click_rate, abs=1e-9)
    assert hidden["p_conversion"].to_numpy() == pytest.approx(world.conversion_rate, abs=1e-9)


def test_interactions_carry_no_main_effect_and_the_partner_has_low_rank() -> None:
    world = World(num_users=300, num_ads=200, partner=1.0, partner_size=3)
    truth = Truth(world)
    even = np.full(len(PLACEMENTS), 1 / len(PLACEMENTS))
    np.testing.assert_allclose(even @ truth.cross, 0, atol=1e-12)
    np.testing.assert_allclose(truth.cross @ truth.category_share, 0, atol=1e-12)
    taste = truth.taste_scale * truth.user_hidden @ truth.ad_hidden.T
    np.testing.assert_allclose(truth.user_share @ taste, 0, atol=1e-12)
    np.testing.assert_allclose(taste @ truth.ad_share, 0, atol=1e-12)
    assert truth.user_share @ taste**2 @ truth.ad_share == pytest.approx(1.0)
    rank = np.linalg.matrix_rank
    assert rank(taste) == 8
    assert rank(truth.ad_partner) == rank(truth.user_partner) == world.partner_size - 1
    static = Truth(dataclasses.replace(world, context_taste=1.0, context_history=1.0))
    each = np.full(world.context_size, 1 / world.context_size)
    for table, gate in zip(static.context_taste, static.context_history, strict=True):
        np.testing.assert_allclose(each @ table, 0, atol=1e-12)
        np.testing.assert_allclose(table @ static.category_share, 0, atol=1e-12)
        assert each @ gate == pytest.approx(0, abs=1e-12)
        deviation = each @ table**2 @ static.category_share, each @ gate**2
        assert deviation == pytest.approx((1 / world.num_contexts,) * 2)
    users, ads = (
        Truth(dataclasses.replace(world, low_rank_fields=(name,))) for name in ("user", "ad")
    )
    assert not users.ad_partner.any()
    assert not ads.user_partner.any()
    np.testing.assert_array_equal(users.user_partner, truth.user_partner)
    np.testing.assert_array_equal(ads.ad_partner, truth.ad_partner)


def test_position_bias_shows_in_the_clicks(tmp_path: Path) -> None:
    rates = {}
    for bias in (0.0, 1.5):
        world = tiny(num_rows=8000, position_bias=bias)
        _, log, _ = read(simulate(world, tmp_path / f"bias {bias}"))
        by_position = log.group_by("position").agg(pl.col("click").mean()).sort("position")
        rates[bias] = by_position["click"].to_list()
    assert rates[1.5][0] > 2 * rates[1.5][3]
    assert max(rates[0.0]) - min(rates[0.0]) < 6 * math.sqrt(0.16 / 2000)


def test_drift_moves_categories_between_first_and_last_day(large: Path) -> None:
    world, log, _ = read(large)
    drift = Truth(world).click_terms(impressions(log))["drift"]
    first, last = log["time"] < START + 86400, log["time"] >= START + 9 * 86400
    moved = [drift[m.to_numpy()].std() for m in (first, last)]
    middle = log["time"].is_between(START + 4.5 * 86400, START + 5.5 * 86400).to_numpy()
    assert min(moved) > 3 * drift[middle].std()


def test_small_dials_at_zero(tmp_path: Path) -> None:
    world = tiny(
        history_length=0,
        num_contexts=0,
        context_taste=0.0,
        context_history=0.0,
        conversion_rate=0.0,
        popularity_skew=0.0,
        vector_noise=0.0,
        text_noise=0.0,
        slots=1,
    )
    place = simulate(world, tmp_path / "simulated")
    _, log, hidden = read(place)
    truth = Truth(world)
    assert log["history_ad"].list.len().max() == 0
    assert not [c for c in log.columns if c.startswith("context_")]
    assert log["conversion"].sum() == hidden["converts"].sum() == 0
    np.testing.assert_allclose(truth.ad_share, 1 / world.num_ads)
    ads = pl.read_parquet(place / "ads.parquet")
    np.testing.assert_allclose(np.stack(ads["ad_vector"].to_list()), truth.ad_hidden, rtol=1e-6)
    topics: dict[str, set[int]] = defaultdict(set)
    for title, category in zip(ads["title"], truth.ad_category, strict=True):
        for word in title.split():
            topics[word].add(int(category))
    assert all(len(found) == 1 for found in topics.values())
    spec = simulated.spec(world)
    assert {"position", "conversion"} <= {name for name, _ in spec.ignore}
    assert check(simulated.load(tmp_path, BadRows()), spec, name="simulated") == []


def test_noise_dials_hide_the_topic() -> None:
    from fullrank.data.traffic import ads

    clear, noisy = (ads(Truth(tiny(vector_noise=v, text_noise=t))) for v, t in ((0, 0), (3, 1)))
    hidden = Truth(TINY).ad_hidden

    def likeness(table: Any) -> float:
        vectors = np.stack([np.array(v) for v in table["ad_vector"].to_pylist()])
        return float(np.corrcoef(vectors.ravel(), hidden.ravel())[0, 1])

    assert likeness(clear) > 0.999
    assert likeness(noisy) < 0.6
    words = [set(" ".join(t["title"].to_pylist()).split()) for t in (clear, noisy)]
    assert words[0].isdisjoint(words[1])


def test_popularity_follows_the_skew(large: Path) -> None:
    world, log, _ = read(large)
    share = Truth(world).ad_share
    counts = np.bincount(log["ad"].to_numpy(), minlength=world.num_ads)
    deviation = np.sqrt(share * len(log))
    assert (np.abs(counts - share * len(log)) < 5 * deviation + 1).all()
    steep = np.sort(Truth(tiny(popularity_skew=1.5)).ad_share)[::-1]
    np.testing.assert_allclose(steep[0] / steep[3], 4**1.5)


def test_dropped_negatives_come_back_as_weights(tmp_path: Path) -> None:
    plain, thin = (
        read(simulate(tiny(num_rows=6000, negatives_dropped=d), tmp_path / f"drop {d}"))
        for d in (0.0, 0.75)
    )
    assert len(plain[1]) == 6000
    assert set(plain[1]["weight"]) == {1.0}
    clicks = plain[1].filter(pl.col("click") == 1)["impression"]
    assert thin[1].filter(pl.col("click") == 1)["impression"].to_list() == clicks.to_list()
    negatives = thin[1].filter(pl.col("click") == 0)
    assert set(negatives["weight"]) == {4.0}
    kept, total = len(negatives), 6000 - len(clicks)
    assert abs(kept - total / 4) < 5 * math.sqrt(total * 0.25 * 0.75)


@pytest.mark.parametrize(("length", "fix"), [(0, 210), (300, 210), (400, 420), (1000, 840)])
def test_the_past_of_two_habits_holds_whole_rounds_of_both(length: int, fix: int) -> None:
    with pytest.raises(ConfigError) as caught:
        World(weekly=1.0, monthly=1.0, history_length=length)
    assert caught.value.fix == f"use {fix}"
    assert World(weekly=1.0, monthly=1.0, history_length=fix).round_days() == 210


# SHA-256 of the dials as JSON, before the youngest dials were there: caches are named by them.
DIGESTS = [
    (World(), "d2cd364e"),
    (collapse.WORLD, "3790cdba"),
    (collapse.at(partner=0.0).world, "23015f7b"),
]


@pytest.mark.parametrize(("world", "digest"), DIGESTS)
def test_younger_dials_leave_the_names_of_caches_as_they_were(world: World, digest: str) -> None:
    assert hashlib.sha256(json.dumps(world.plain()).encode()).hexdigest()[:8] == digest
    changed = dataclasses.replace(world, context_taste=0.5)
    assert changed.plain() == world.plain() | {"context_taste": 0.5}


def test_a_log_from_before_the_younger_dials_is_still_the_same_world(tmp_path: Path) -> None:
    old = tiny(num_rows=300, context_taste=0.0, context_history=0.0)
    place = simulated.ensure(tmp_path, old)
    written = json.loads((place / "world.json").read_text())["world"]
    assert not {"weekly", "monthly", "habit_noise", "context_taste", "context_history"} & {*written}
    before = digests(place)
    assert simulated.ensure(tmp_path, old) == place
    assert digests(place) == before
    with pytest.raises(ConfigError, match="another world") as caught:
        simulated.ensure(tmp_path, dataclasses.replace(old, context_taste=0.5))
    assert (caught.value.found, caught.value.expected) == ("context_taste=0.0", "context_taste=0.5")


@pytest.mark.parametrize(
    "bad",
    [
        {"num_rows": 0},
        {"num_users": 1},
        {"taste": -1.0},
        {"click_rate": 0.0},
        {"conversion_rate": 0.99},
        {"mean_delay_hours": 2000.0},
        {"negatives_dropped": 1.0},
        {"seed": -1},
        {"weekly": -1.0},
        {"context_taste": 1.0, "num_contexts": 0},
        {"context_history": 1.0, "num_contexts": 0},
        {"habit_noise": 0.1},
        {"history_length": 20, "weekly": 1.0},
        {"history_length": 0, "weekly": 1.0},
        {"history_length": 42, "weekly": 1.0, "monthly": 1.0},
        {"num_categories": 11, "history_length": 42, "weekly": 1.0},
        {"num_categories": 20, "num_ads": 90, "history_length": 42, "weekly": 1.0},
    ],
)
def test_impossible_dials_are_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        World(**bad)
    name = "conversion_rate" if "mean_delay_hours" in bad else next(iter(bad))
    assert caught.value.fix
    assert name in caught.value.where


# ---- histories and delays


def test_histories_are_the_clicks_before_the_hour_and_never_look_ahead(folder: Path) -> None:
    world, log, _ = read(folder)
    past: dict[int, list[tuple[int, int]]] = {}
    waiting: list[tuple[int, int, int]] = []  # clicks that the next refresh will show
    hour = None
    grew = 0
    for row in log.iter_rows(named=True):
        now = (row["time"] - START) // 3600
        if now != hour:
            for user, ad, time in waiting:
                past.setdefault(user, []).append((ad, time))
                grew += 1
            hour, waiting = now, []
        shown = list(zip(row["history_ad"], row["history_time"], strict=True))
        if row["user"] not in past or not any(t >= START for _, t in past[row["user"]]):
            past[row["user"]] = shown + [e for e in past.get(row["user"], []) if e not in shown]
        assert shown == past[row["user"]][-world.history_length :]
        assert all(time < row["time"] for _, time in shown)
        assert [t for _, t in shown] == sorted(t for _, t in shown)
        if row["click"]:
            waiting.append((row["user"], row["ad"], row["time"]))
    assert grew > 100


def test_conversions_wait_for_their_window(large: Path) -> None:
    world, log, hidden = read(large)
    end = START + (world.days * 24 + world.follow_up_hours) * 3600
    window = world.window_hours * 3600
    clicked, time = log["click"] == 1, log["time"]
    assert (log["conversion_observed"] == (clicked & (time + window <= end))).all()
    assert 0 < (clicked & ~log["conversion_observed"]).sum() < clicked.sum()
    done = log.filter(pl.col("conversion") == 1)
    delay = done["conversion_time"] - done["time"]
    assert delay.is_between(0, window).all()
    assert done["conversion_time"].max() <= end  # type: ignore[operator]
    assert log.filter(pl.col("conversion") == 0)["conversion_time"].null_count() == (
        len(log) - len(done)
    )
    assert log.filter(~clicked)["conversion"].sum() == 0
    known = log["conversion_observed"]
    assert (log["conversion"].filter(known) == hidden["converts"].filter(known)).all()
    # Exponential delays, cut at the window: compare the mean with the integral.
    mean, w = world.mean_delay_hours * 3600, window
    cut = mean - w * math.exp(-w / mean) / (1 - math.exp(-w / mean))
    settled = done.filter(pl.col("conversion_observed"))
    found = (settled["conversion_time"] - settled["time"]).mean()
    assert abs(found - cut) < 5 * mean / math.sqrt(len(settled))  # type: ignore[operator]


def test_training_knows_no_conversion_from_after_its_end(large: Path) -> None:
    world, _, _ = read(large)
    splits = {name: part.collect() for name, part in read_log(large).items()}
    today = splits["valid"]["time"].min()
    known = splits["train"].filter(pl.col("conversion_observed"))
    assert (known["time"] + world.window_hours * 3600).max() <= today  # type: ignore[operator]
    assert splits["train"]["conversion_time"].max() <= today  # type: ignore[operator]
    assert splits["train"]["conversion"].sum() == (
        splits["train"]["conversion_time"].is_not_null().sum()
    )
    assert len(known) > 100


def test_without_delay_conversions_happen_at_once(tmp_path: Path) -> None:
    _, log, _ = read(simulate(tiny(mean_delay_hours=0.0), tmp_path / "now"))
    done = log.filter(pl.col("conversion") == 1)
    assert len(done) > 10
    assert (done["conversion_time"] == done["time"]).all()


# ---- files


def digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.iterdir())
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_the_same_seed_writes_the_same_bytes_also_in_another_process(
    folder: Path, tmp_path: Path
) -> None:
    program = (
        "import sys; from pathlib import Path; from fullrank.data.synthetic import simulate; "
        "from fullrank.data.world import World; simulate(World(num_rows=1500, num_users=30, "
        "num_ads=25, num_categories=5, days=4.0, partner=0.8, window_hours=14.0, "
        "context_taste=0.6, context_history=2.0), "
        "Path(sys.argv[1]))"
    )
    again = tmp_path / "again"
    environment = {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", program, str(again)], check=True, env=environment)
    assert digests(again) == digests(folder)
    other = digests(simulate(tiny(seed=1), tmp_path / "other"))
    assert all(other[name] != digest for name, digest in digests(folder).items())


def test_the_loader_never_reads_the_truth(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "simulated"
    place.mkdir()
    for name in ("log.parquet", "ads.parquet", "world.json"):
        (place / name).write_bytes((folder / name).read_bytes())
    with_truth = simulated.load(folder.parent, BadRows())
    for name, rows in simulated.load(tmp_path, BadRows()).items():
        found = rows.collect()
        assert found.equals(with_truth[name].collect())
        assert not [c for c in found.columns if c.startswith("p_") or c == "converts"]


def test_the_dataset_passes_its_checks_and_its_spec_knows_every_column(large: Path) -> None:
    splits = simulated.load(large.parent, BadRows())
    spec = simulated.spec_at(large.parent)
    assert spec == simulated.SPEC
    assert check(splits, spec, name="simulated") == []
    sample = simulated.sample()
    assert set(sample.columns) == simulated.SPEC.accounted()
    assert 150 <= len(sample) <= 250
    assert set(sample["click"]) == set(sample.filter("conversion_observed")["conversion"]) == {0, 1}


def test_ensure_simulates_once_and_refuses_another_world(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError) as missing:
        simulated.load(tmp_path, BadRows())
    assert "fullrank simulate" in missing.value.fix
    seen: list[int] = []
    place = simulated.ensure(tmp_path, TINY, progress=seen.append)
    assert sum(seen) == TINY.num_rows
    before = digests(place)
    assert simulated.ensure(tmp_path, TINY, progress=seen.append) == place
    assert sum(seen) == TINY.num_rows
    assert digests(place) == before
    with pytest.raises(ConfigError, match="another world") as caught:
        simulated.ensure(tmp_path, tiny(taste=0.0))
    assert caught.value.expected == "taste=0.0"
    with pytest.raises(ConfigError):
        simulate(TINY, place)
    (place / "world.json").write_text("{")
    with pytest.raises(DataFormatError):
        simulated.load(tmp_path, BadRows())


def test_a_window_is_laid_out_in_parts_and_the_log_is_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fullrank.data import synthetic, traffic

    monkeypatch.setattr(traffic, "EVENTS", 3 * TINY.history_length)  # three rows at a time
    monkeypatch.setattr(synthetic, "GROUP_BYTES", 100_000)
    place = simulate(TINY, tmp_path / "simulated")
    assert pq.ParquetFile(place / "log.parquet").num_row_groups > 2
    for one, other in zip(read(place)[1:], read(folder)[1:], strict=True):
        assert one.equals(other)


def test_a_full_disk_or_an_interrupt_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(TINY, tmp_path / "simulated", progress=stop)
    assert list(tmp_path.iterdir()) == []

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    for write in (
        lambda: simulate(TINY, tmp_path / "simulated"),
        lambda: wide_log(tmp_path / "wide.parquet", 1000, largest=100),
    ):
        with pytest.raises(DiskFullError):
            write()
        assert list(tmp_path.iterdir()) == []


def test_wide_log_has_the_asked_shape_skew_and_bytes(tmp_path: Path) -> None:
    one = wide_log(tmp_path / "a.parquet", 150_000, categorical=4, numeric=2, largest=5000, seed=3)
    log = pl.read_parquet(one)
    assert log.columns == ["time", "c1", "c2", "c3", "c4", "n1", "n2", "click"]
    assert len(log) == 150_000
    assert set(log["click"]) == {0, 1}
    assert log["time"].is_sorted()
    assert pq.ParquetFile(one).num_row_groups > 1  # written in pieces
    assert log["c1"].n_unique() == 4
    weights = np.arange(1, 5001) ** -1.1
    shares = np.sort(log["c4"].value_counts()["count"].to_numpy())[::-1] / len(log)
    np.testing.assert_allclose(shares[:5], (weights / weights.sum())[:5], rtol=0.05)
    assert log["c4"].n_unique() > 4500  # the tail is drawn too
    assert log["n1"].null_count() == 0
    assert log["n2"].null_count() / len(log) == pytest.approx(0.1, abs=0.01)
    again = wide_log(
        tmp_path / "b.parquet", 150_000, categorical=4, numeric=2, largest=5000, seed=3
    )
    assert again.read_bytes() == one.read_bytes()
    flat = wide_log(tmp_path / "c.parquet", 20_000, categorical=2, numeric=1, largest=50, skew=0.0)
    counts = pl.read_parquet(flat)["c2"].value_counts()["count"].cast(pl.Int64).to_numpy()
    assert len(counts) == 50
    assert (np.abs(counts - 400) < 6 * math.sqrt(400)).all()
    parts = {"train": log.lazy().head(100_000), "test": log.lazy().slice(100_000)}
    spec = Spec(
        columns=(
            *(Number(name=name) for name in ("n1", "n2")),
            *(Category(name=f"c{i}") for i in (1, 2, 3, 4)),
            Target(name="click"),
        ),
        time="time",
    )
    assert check(parts, spec, name="wide") == []
    with pytest.raises(ConfigError):
        wide_log(one, 10)
    with pytest.raises(ConfigError):
        wide_log(tmp_path / "d.parquet", 0)
