"""The log with habits: its dials, its splits, and what the splits give away."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from fullrank.data.datasets import simulated_habits
from fullrank.data.datasets.simulated import SimulatedLog, spec
from fullrank.data.datasets.simulated_habits import WORLD, at
from fullrank.data.synthetic import read_log, simulate
from fullrank.data.world import START
from fullrank.errors import ConfigError
from fullrank.target import TargetHistory
from fullrank.workflow.data import DataOptions, open_data


def test_a_setting_of_the_dials_is_a_world_and_a_name():
    assert at().NAME == simulated_habits.NAME
    assert at().world == WORLD
    assert at(noise=0.1, seed=3).world == replace(WORLD, habit_noise=0.1, seed=3)
    settings = ({}, {"weekly": 1.0}, {"monthly": 1.0}, {"noise": 1.0}, {"history_length": 70})
    assert len({at(**s).NAME for s in settings}) == len(settings)
    assert all(set(at(**s).NAME) <= {*"abcdefghijklmnopqrstuvwxyz_-=.0123456789"} for s in settings)


def test_the_past_has_whole_rounds_by_default_and_part_of_one_is_refused():
    assert [at(weekly=w, monthly=m).world.history_length for w, m in ((1, 0), (0, 1), (1, 1))] == [
        49,
        210,
        210,
    ]
    with pytest.raises(ConfigError) as caught:
        at(history_length=50)
    assert caught.value.fix == "use 49"


@pytest.mark.parametrize("history_length", [7, 49, 994])
def test_the_window_of_the_history_is_that_of_the_world(history_length):
    (history,) = spec(at(history_length=history_length).world).histories()
    assert history.max_length == history_length


def test_the_splits_are_whole_rounds_and_say_nothing_about_the_day(tmp_path):
    for log, days in ((at(num_rows=14_000), 7), (at(weekly=0.0, monthly=3.0, num_rows=6000), 30)):
        parts = {
            name: rows.collect()
            for name, rows in read_log(simulate(log.world, tmp_path / log.NAME)).items()
        }
        for rows in parts.values():
            day = (rows["time"] - START) // 86400
            assert (day.max() + 1 - day.min()) % days == 0
        # What a user did with a category in training says nothing about it in test.
        keys = ["user", "category"]
        means = parts["train"].group_by(keys).agg(pl.col("click").mean().alias("mean"))
        known = parts["test"].join(means, on=keys)
        assert abs(roc_auc_score(known["click"], known["mean"]) - 0.5) < 0.06


def test_a_ranker_can_pair_the_ad_with_the_past(tmp_path):
    (tmp_path / "root").mkdir()
    world = replace(WORLD, num_rows=1200, num_users=30, context_taste=1.0, num_contexts=3)
    options = DataOptions(root=tmp_path / "root", cache=tmp_path / "cache")
    data = open_data(SimulatedLog("small", world), options)
    history = TargetHistory(data.schema)
    assert set(history.fields) == {"ad", "category"}
    assert history.length == 49
    assert {"context_0", "context_2", "user"} <= set(history.context)
