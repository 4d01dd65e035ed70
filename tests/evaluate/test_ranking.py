from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from fullrank.errors import (
    BatchError,
    EmptyInputError,
    IncomparableError,
    LabelError,
    MetricUndefinedError,
)
from fullrank.evaluate import ranking
from fullrank.evaluate.ranking import AUC, ExactAUC, LogLoss, NormalizedEntropy, exact_auc
from tests.evaluate.small_logs import Log, few, fold, logs
from tests.reference import metric_twins as twin

CUTS = st.lists(st.integers(0, 24), max_size=4)
ALL = (AUC, ExactAUC, LogLoss, NormalizedEntropy)


@few
@given(logs(2), CUTS)
def test_auc_equals_the_double_loop(log: Log, cuts: list[int]) -> None:
    score, label, weight, _ = log.seen()
    expected = twin.auc(np.float32(score).tolist(), label, weight)
    assume(expected is not None)
    assert exact_auc(score, label, weight) == pytest.approx(expected, abs=1e-12)
    for make in (AUC, ExactAUC):
        value = fold(lambda make=make: make("click"), log, cuts).compute()
        assert value == {"auc": pytest.approx(expected, abs=1e-12)}


@few
@given(logs(1), CUTS)
def test_log_loss_equals_the_loop(log: Log, cuts: list[int]) -> None:
    score, label, weight, _ = log.seen()
    assume(score)
    value = fold(lambda: LogLoss("click"), log, cuts).compute()["logloss"]
    assert value == pytest.approx(twin.logloss(score, label, weight), rel=1e-9)
    if len(set(label)) == 2:
        value = fold(lambda: NormalizedEntropy("click"), log, cuts).compute()["ne"]
        assert value == pytest.approx(twin.normalized_entropy(score, label, weight), rel=1e-9)


def test_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    score = np.round(rng.normal(size=3000), 1).astype(np.float32)  # plenty of ties
    label = (rng.random(3000) < 1 / (1 + np.exp(-score))).astype(int)
    weight = rng.integers(1, 5, 3000).astype(np.float32)
    log = Log(score.tolist(), label.tolist(), weight.tolist(), [0] * 3000, [True] * 3000)
    expected = roc_auc_score(label, score, sample_weight=weight)
    assert exact_auc(score, label, weight) == pytest.approx(expected, abs=1e-12)
    loss = fold(lambda: LogLoss("click"), log, []).compute()["logloss"]
    p = 1 / (1 + np.exp(-score.astype(np.float64)))
    assert loss == pytest.approx(log_loss(label, p, sample_weight=weight), abs=1e-12)


@pytest.mark.parametrize(
    "case",
    ["spread", "rare", "collapsed", "outlier", "extreme", "tiny", "heavy", "constant"],
)
def test_histogram_is_within_1e_6_of_exact(case: str, skewed) -> None:
    score, label = skewed[case]
    exact = exact_auc(score, label)
    streamed = _streamed(score, label, 30_000)
    assert abs(streamed.compute()["auc"] - exact) < 1e-6
    assert abs(streamed.compute()["auc"] - exact) <= streamed.error_bound() + 1e-12
    assert streamed.error_bound() < 2e-5
    if case == "constant":
        assert exact == 0.5


def test_a_histogram_of_probabilities_would_not_resolve_these(skewed) -> None:
    """The control: equal bins of the probability, the usual way, fail on collapsed scores."""
    score, label = skewed["collapsed"]
    bins = (torch.sigmoid(score.double()) * ranking.MAX_BINS).floor()
    assert abs(exact_auc(bins, label) - exact_auc(score, label)) > 1e-2


@pytest.mark.parametrize("case", ["spread", "collapsed", "heavy"])
def test_merged_histograms_are_equal_in_any_order(case: str, skewed) -> None:
    score, label = skewed[case]
    whole = _streamed(score, label, 200_000)
    shuffled = torch.randperm(len(score), generator=torch.Generator().manual_seed(1))
    parts = [_streamed(score[part], label[part], 9_000) for part in shuffled.split(70_001)]
    small = _streamed(score[:7], label[:7], 7)  # a part that has lost no bits takes a coarse one
    rest = _streamed(score[7:], label[7:], 50_000)
    small.merge(rest)
    merged = parts.pop()
    for part in parts:
        merged.merge(part)
    assert merged.compute() == whole.compute() == small.compute()
    assert merged.error_bound() == whole.error_bound()
    assert case == "collapsed" or whole.error_bound() > 0  # few float32 fit into a narrow band


def test_histogram_memory_is_bounded(skewed) -> None:
    metric = _streamed(*skewed["heavy"], 10_000)
    assert metric._num_pending == sum(len(keys) for keys, _ in metric._pending) < ranking.MAX_BINS
    metric.compute()
    assert metric._keys.numel() <= ranking.MAX_BINS
    assert not metric._pending


@few
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2))
def test_keys_keep_the_order(values: list[float]) -> None:
    score = torch.tensor(values)
    keys = ranking.ordered_keys(score)
    for other in (0, -1):
        assert torch.equal(keys > keys[other], score > score[other])
        assert torch.equal(keys == keys[other], score == score[other])


def test_scores_beyond_float32_stay_in_order() -> None:
    keys = ranking.ordered_keys(torch.tensor([-1e300, -1.0, 1.0, 1e300], dtype=torch.float64))
    assert keys.tolist() == sorted(set(keys.tolist()))


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("observed", [True, False])
def test_no_rows(make, observed: bool) -> None:
    metric = make("click")
    log = Log([], [], [], [], []) if observed else Log([1.0], [1], [1.0], [0], [False])
    metric.update(*log.batch())
    with pytest.raises(EmptyInputError, match="no rows"):
        metric.compute()


@pytest.mark.parametrize("make", [AUC, ExactAUC, NormalizedEntropy])
@pytest.mark.parametrize("label", [0, 1])
def test_equal_labels_are_named_and_counted(make, label: int) -> None:
    metric = make("click")
    metric.update(*Log([0.1, 0.2, 0.3], [label] * 3, [1.0] * 3, [0] * 3, [True] * 3).batch())
    with pytest.raises(MetricUndefinedError, match="all labels are equal") as caught:
        metric.compute()
    assert "click" in caught.value.where
    assert caught.value.found == f"3 rows, all with label {label}"


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite(make, bad: float) -> None:
    log = Log([0.1, bad], [0, 1], [1.0] * 2, [0] * 2, [True, True])
    with pytest.raises(MetricUndefinedError, match="not finite") as caught:
        make("click").update(*log.batch())
    assert caught.value.found.startswith("1 NaN" if bad != bad else "0 NaN and 1 infinite")
    log.observed[1] = False  # a row nobody asks about may hold anything
    make("click").update(*log.batch())


def test_bad_labels_weights_and_shapes() -> None:
    with pytest.raises(LabelError, match="neither 0 nor 1") as caught:
        exact_auc([0.1, 0.2], [0, 2])
    assert "row 1" in caught.value.where
    with pytest.raises(BatchError, match="impossible weight"):
        exact_auc([0.1, 0.2], [0, 1], [1.0, -1.0])
    with pytest.raises(BatchError, match="differ in number"):
        exact_auc([0.1, 0.2, 0.3], [0, 1])
    with pytest.raises(BatchError, match="not a vector"):
        exact_auc([[0.1, 0.2]], [0, 1])
    prediction, batch = Log([0.1, 0.2], [0, 1], [1.0] * 2, [0] * 2, [True] * 2).batch()
    with pytest.raises(BatchError, match="wrong shape"):
        AUC("click").update({"click": prediction["click"][:, None]}, batch)
    with pytest.raises(BatchError, match="the model has no such label") as missing:
        AUC("clicks").update(prediction, batch)
    assert "'click'" in missing.value.fix


def test_unlike_metrics_do_not_merge() -> None:
    with pytest.raises(IncomparableError, match="cannot be merged"):
        AUC("click").merge(AUC("buy"))
    with pytest.raises(IncomparableError, match="cannot be merged"):
        AUC("click").merge(ExactAUC("click"))  # type: ignore[arg-type]


def test_extreme_logits_cost_exactly_the_clip() -> None:
    log = Log([500.0, -500.0], [0, 1], [1.0] * 2, [0] * 2, [True] * 2)
    metric = LogLoss("click")
    metric.update(*log.batch())
    assert metric.compute()["logloss"] == pytest.approx(-np.log(1e-7), rel=1e-9)


def test_half_precision_scores_are_taken() -> None:
    log = Log([0.5, -0.5, 0.25], [1, 0, 0], [1.0] * 3, [0] * 3, [True] * 3)
    prediction, batch = log.batch()
    for make in (AUC, ExactAUC):
        metric = make("click")
        metric.update({"click": prediction["click"].bfloat16()}, batch)
        assert metric.compute() == {"auc": 1.0}


def test_a_metric_keeps_nothing_of_a_reused_buffer() -> None:
    log = Log([0.5, -0.5, 0.1], [1, 0, 0], [1.0] * 3, [0, 0, 0], [True] * 3)
    prediction, batch = log.batch()
    metric = ExactAUC("click")
    metric.update(prediction, batch)
    prediction["click"].neg_()
    batch.labels.block.zero_()
    batch.weight.zero_()
    assert metric.compute() == {"auc": 1.0}


def _streamed(score: torch.Tensor, label: torch.Tensor, size: int) -> AUC:
    metric = AUC("click")
    _, empty = Log([], [], [], [], []).batch()
    for s, y in zip(score.split(size), label.split(size), strict=True):
        batch = type(empty)(
            categorical=empty.categorical,
            numeric=empty.numeric,
            labels=type(empty.labels)(("click",), y[:, None].float()),
            observed=type(empty.labels)(("click",), torch.ones(len(s), 1, dtype=torch.bool)),
            weight=torch.ones(len(s)),
            group=torch.zeros(len(s), dtype=torch.int64),
            time=torch.zeros(len(s), dtype=torch.int64),
        )
        metric.update({"click": s}, batch)
    return metric
