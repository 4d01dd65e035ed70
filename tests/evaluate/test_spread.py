from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fullrank.errors import EmptyInputError
from fullrank.evaluate import spread
from fullrank.evaluate.spread import ScoreSpread
from tests.evaluate.small_logs import Log, few, fold, logs
from tests.reference import metric_twins as twin


@few
@given(logs(1), st.lists(st.integers(0, 24), max_size=4))
def test_spread_equals_the_loop(log: Log, cuts: list[int]) -> None:
    score = np.float32(log.seen()[0]).tolist()
    assume(score)
    mean, deviation, distinct = twin.spread(score)
    found = fold(lambda: ScoreSpread("click"), log, cuts).compute()
    assert found == {
        "score_mean": pytest.approx(mean, abs=1e-10),
        "score_std": pytest.approx(deviation, rel=1e-9, abs=1e-12),
        "score_distinct": pytest.approx(distinct),
    }


def test_a_narrow_band_far_from_zero_keeps_its_digits() -> None:
    """Sums of squares would lose the spread of collapsed scores to rounding."""
    score = np.float32(1000.0) + np.float32(2.0**-10) * np.arange(8, dtype=np.float32)
    log = Log(score.tolist(), [0] * 8, [1.0] * 8, [0] * 8, [True] * 8)
    found = fold(lambda: ScoreSpread("click"), log, [3]).compute()
    assert found["score_std"] == pytest.approx(np.std(score.astype(np.float64)), rel=1e-9)


def test_one_score_for_everybody_shows() -> None:
    log = Log([0.7] * 500, [0] * 500, [1.0] * 500, [0] * 500, [True] * 500)
    found = fold(lambda: ScoreSpread("click"), log, [200]).compute()
    assert found["score_std"] == 0.0
    assert found["score_distinct"] == 1 / 500


def test_many_distinct_scores_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "SKETCH", 1024)
    rng = np.random.default_rng(0)
    score = rng.integers(0, 30_000, 60_000).astype(np.float32)
    rest = ([0] * 60_000, [1.0] * 60_000, [0] * 60_000, [True] * 60_000)
    log = Log(score.tolist(), *rest)
    merged = fold(lambda: ScoreSpread("click"), log, [10_000, 30_000])
    whole = fold(lambda: ScoreSpread("click"), log, [])
    assert merged.distinct() == whole.distinct()
    assert merged.distinct() == pytest.approx(len(set(score.tolist())), rel=4 / 1024**0.5)
    assert len(merged._hashes) == 1024


def test_no_rows() -> None:
    with pytest.raises(EmptyInputError):
        ScoreSpread("click").compute()
