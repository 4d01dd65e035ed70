from __future__ import annotations

import math
from itertools import pairwise

import pytest

from fullrank.errors import ConfigError
from fullrank.train.config import TrainConfig
from fullrank.train.schedule import Progress, rate_factor


def factors(total: int, **settings: object) -> list[float]:
    config = TrainConfig(**settings)  # type: ignore[arg-type]
    return [rate_factor(config, step, total) for step in range(total)]


def test_none_stays_at_one() -> None:
    assert factors(4) == [1.0] * 4


def test_warm_up_rises_linearly_and_reaches_the_peak() -> None:
    assert factors(6, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_ends_exactly_at_the_final_factor() -> None:
    got = factors(5, schedule="linear", final_factor=0.2)
    assert got == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_linear_starts_to_fall_where_warm_up_ends() -> None:
    got = factors(6, schedule="linear", warmup_steps=2)
    assert got == pytest.approx([0.5, 1.0, 0.75, 0.5, 0.25, 0.0])


def test_cosine_is_symmetric_about_its_middle() -> None:
    got = factors(9, schedule="cosine")
    assert got[0] == 1.0
    assert got[-1] == pytest.approx(0.0)
    assert [a + b for a, b in zip(got, reversed(got), strict=True)] == pytest.approx([1.0] * 9)
    assert all(a > b for a, b in pairwise(got))


def test_a_run_of_one_step_has_a_rate() -> None:
    assert factors(1, schedule="linear") == [1.0]
    assert factors(1, schedule="cosine", warmup_steps=5) == [0.2]


def test_plateau_cuts_after_each_validation_without_a_best() -> None:
    config = TrainConfig(schedule="plateau", patience=None, learning_rate=1e-3)
    memory, rates = Progress(), []
    for epoch, value in enumerate([0.6, 0.7, 0.65, 0.71, 0.70, 0.69, 0.68]):
        rates.append(rate_factor(config, 10 * epoch, 100, memory.plateaus))
        memory.update(config, {"auc": value}, epoch)
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.001])
    # FuxiCTR's floor of 1e-6
    assert rate_factor(config, 99, 100, memory.plateaus + 5) * 1e-3 == pytest.approx(1e-6)


@pytest.mark.parametrize("higher", [True, False])
def test_early_stopping_counts_validations_in_a_row(higher: bool) -> None:
    config = TrainConfig(patience=2, metric="m", higher_is_better=higher)
    memory, stops = Progress(), []
    values = [0.5, 0.6, 0.55, 0.61, 0.61, 0.61 + 1e-9]
    for epoch, value in enumerate(values):
        memory.update(config, {"m": value if higher else -value}, epoch)
        stops.append(memory.should_stop(config))
    assert stops == [False] * 5 + [True]  # an equal or hardly better value is no new best
    assert memory.best_epoch == 3


def test_never_stops_without_patience() -> None:
    config, memory = TrainConfig(patience=None), Progress()
    for epoch in range(50):
        memory.update(config, {"auc": 0.5}, epoch)
    assert not memory.should_stop(config)


def test_a_first_value_of_nan_does_not_stay_best() -> None:
    config, memory = TrainConfig(), Progress()
    memory.update(config, {"auc": math.nan}, 0)
    assert memory.update(config, {"auc": 0.4}, 1)


def test_the_first_of_several_labels_decides() -> None:
    memory = Progress()
    memory.update(TrainConfig(), {"click/auc": 0.7, "buy/auc": 0.9}, 0)
    assert memory.best == 0.7


def test_a_metric_that_was_not_measured_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        Progress().update(TrainConfig(metric="logloss"), {"auc": 0.7, "log_loss": 0.3}, 0)
    assert "log_loss" in error.value.fix


@pytest.mark.parametrize(
    "bad",
    [{"epochs": 0}, {"clip_norm": 0.0}, {"table_l2": -1.0}, {"final_factor": 2.0}, {"patience": 0}],
)
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig(**bad)  # type: ignore[arg-type]
    assert next(iter(bad)) in error.value.where
