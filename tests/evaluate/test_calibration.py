from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from fullrank.errors import (
    ConfigError,
    EmptyInputError,
    IncomparableError,
    MetricUndefinedError,
)
from fullrank.evaluate.calibration import (
    CalibrationRatio,
    EqualMassCalibrationError,
    ExpectedCalibrationError,
)
from tests.evaluate.small_logs import Log, few, fold, logs
from tests.reference import metric_twins as twin

CUTS = st.lists(st.integers(0, 24), max_size=4)


@few
@given(logs(1), CUTS, st.sampled_from([1, 4, 10]))
def test_errors_equal_the_loops(log: Log, cuts: list[int], buckets: int) -> None:
    score, label, weight, _ = log.seen()
    assume(score)
    score = np.float32(score).tolist()
    width = fold(lambda: ExpectedCalibrationError("click", buckets), log, cuts)
    assert width.compute()["ece"] == pytest.approx(
        twin.ece(score, label, weight, buckets), abs=1e-9
    )
    mass = fold(lambda: EqualMassCalibrationError("click", buckets), log, cuts)
    assert mass.compute()["ece_mass"] == pytest.approx(
        twin.ece_mass(score, label, weight, buckets), abs=1e-9
    )
    ratio = fold(lambda: CalibrationRatio("click"), log, cuts)
    if any(label):
        expected = twin.calibration(score, label, weight)
        assert ratio.compute()["calibration"] == pytest.approx(expected, rel=1e-9)
    else:
        with pytest.raises(MetricUndefinedError, match="no row is positive"):
            ratio.compute()


def test_tables_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(size=4000).astype(np.float32)
    label = (rng.random(4000) < 0.3).astype(int)
    log = Log(score.tolist(), label.tolist(), [1.0] * 4000, [0] * 4000, [True] * 4000)
    p = 1 / (1 + np.exp(-score.astype(np.float64)))
    for make, strategy in (
        (ExpectedCalibrationError, "uniform"),
        (EqualMassCalibrationError, "quantile"),
    ):
        table = fold(lambda make=make: make("click", 8), log, [1000]).table()
        observed, predicted = calibration_curve(label, p, n_bins=8, strategy=strategy)
        assert table.predicted.numpy() == pytest.approx(predicted, abs=1e-3)
        assert table.observed.numpy() == pytest.approx(observed, abs=1e-2)
        assert table.weight.sum() == 4000


def test_a_true_model_is_calibrated_and_a_bold_one_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(20_000, generator=generator) - 2.0
    label = torch.rand(20_000, generator=generator) < torch.sigmoid(score)
    errors = {}
    for name, said in (("true", score), ("bold", 3.0 * score), ("high", score + 1.0)):
        rest = ([1.0] * 20_000, [0] * 20_000, [True] * 20_000)
        log = Log(said.tolist(), label.int().tolist(), *rest)
        errors[name] = {
            **fold(lambda: ExpectedCalibrationError("click"), log, []).compute(),
            **fold(lambda: EqualMassCalibrationError("click"), log, []).compute(),
            **fold(lambda: CalibrationRatio("click"), log, []).compute(),
        }
    for name in ("ece", "ece_mass"):
        assert errors["true"][name] < 0.012 < 0.03 < errors["bold"][name]
    assert errors["true"]["calibration"] == pytest.approx(1.0, abs=0.03)
    assert errors["high"]["calibration"] > 1.5


@pytest.mark.parametrize(
    "make", [ExpectedCalibrationError, EqualMassCalibrationError, CalibrationRatio]
)
def test_no_rows(make) -> None:
    with pytest.raises(EmptyInputError):
        make("click").compute()


def test_settings() -> None:
    with pytest.raises(ConfigError):
        ExpectedCalibrationError("click", 0)
    with pytest.raises(IncomparableError, match="cannot be merged") as caught:
        ExpectedCalibrationError("click", 10).merge(ExpectedCalibrationError("click", 20))
    assert caught.value.found == "buckets 10 and 20"
