from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given

from fullrank.errors import (
    ConfigError,
    EmptyInputError,
    IncomparableError,
    MetricUndefinedError,
    UnknownNameError,
)
from fullrank.evaluate import bootstrap as module
from fullrank.evaluate.bootstrap import bootstrap, paired_bootstrap
from fullrank.evaluate.metric import Rows
from tests.evaluate.small_logs import Log, few, logs
from tests.reference import metric_twins as twin

METRICS = ("auc", "logloss", "ne", "gauc")


@few
@given(logs(2, 16))
def test_a_resample_equals_the_metric_of_repeated_rows(log: Log) -> None:
    """Counting a group k times must be the same as writing its rows down k times."""
    score, label, weight, group = log.seen()
    score = np.float32(score).tolist()
    names = sorted(set(group))
    counts = [(3 * i + len(score)) % 4 for i in range(len(names))]
    repeated = [
        (s, y, w, (g, copy))
        for s, y, w, g in zip(score, label, weight, group, strict=True)
        for copy in range(counts[names.index(g)])
    ]
    if len(set(label)) < 2:
        return
    rows = Rows.of(score, label, weight, group)
    unit, units = module._units(rows)
    drawn = torch.tensor([counts], dtype=torch.float64)
    s, y, w, g = map(list, zip(*repeated, strict=True)) if repeated else ([], [], [], [])
    both = len(set(y)) == 2
    expected = {
        "auc": twin.auc(s, y, w),
        "logloss": twin.logloss(s, y, w) if s else None,
        "ne": twin.normalized_entropy(s, y, w) if both else None,
        "gauc": twin.gauc(s, y, w, g)[0],
    }
    for metric in METRICS:
        if metric == "gauc" and twin.gauc(score, label, weight, group)[0] is None:
            continue
        value = float(module._STATISTICS[metric](rows, unit, units)(drawn)[0])
        if expected[metric] is None:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(expected[metric], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_interval_holds_the_value_and_repeats(metric: str) -> None:
    rows = _world(400, 5, 0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = bootstrap(rows, metric, replicates=300, seed=1)
    assert torch.equal(torch.get_rng_state(), state)  # the global state is left alone
    assert first.low < first.value < first.high
    assert first.samples == 300
    assert first == bootstrap(rows, metric, replicates=300, seed=1)
    assert first != bootstrap(rows, metric, replicates=300, seed=2)
    wider = bootstrap(rows, metric, replicates=300, seed=1, level=0.999)
    assert wider.low < first.low
    assert first.high < wider.high


def test_interval_covers_the_truth_nine_times_in_ten() -> None:
    """Sixty worlds: the 90 % interval of the mean log-loss must hold the true one in most."""
    truth = bootstrap(_world(20_000, 3, 999), "logloss", replicates=2).value
    inside = 0
    for seed in range(60):
        found = bootstrap(_world(60, 3, seed), "logloss", replicates=200, level=0.9)
        inside += found.low <= truth <= found.high
    assert 46 <= inside <= 60  # expected 54; below 46 has a chance near 0.001


def test_rows_of_a_group_are_not_independent() -> None:
    """Rows that are copies within groups: resampling rows would claim too narrow an interval."""
    once = _world(150, 1, 3)
    copies = [part.repeat_interleave(9) for part in (once.score, once.label, once.weight)]
    group = torch.arange(150).repeat_interleave(9)
    by_group = bootstrap(Rows(*copies, group), "auc", replicates=400)
    by_row = bootstrap(Rows(*copies), "auc", replicates=400)
    honest = bootstrap(Rows(once.score, once.label, once.weight), "auc", replicates=400)
    assert by_group.high - by_group.low == pytest.approx(honest.high - honest.low, rel=0.2)
    assert by_row.high - by_row.low < 0.5 * (by_group.high - by_group.low)


@pytest.mark.parametrize("metric", METRICS)
def test_pairing_sees_what_two_intervals_do_not(metric: str) -> None:
    rows = _world(400, 5, 0)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(len(rows), generator=generator)
    worse = Rows(rows.score + 0.35 * noise, rows.label, rows.weight, rows.group)
    single = [bootstrap(side, metric, replicates=300) for side in (worse, rows)]
    difference = paired_bootstrap(worse, rows, metric, replicates=300)
    assert difference.value == pytest.approx(single[1].value - single[0].value)
    assert max(s.low for s in single) < min(s.high for s in single)  # they overlap
    better = -1 if metric in ("logloss", "ne") else 1
    assert min(better * difference.low, better * difference.high) > 0
    same = paired_bootstrap(rows, rows, metric, replicates=50)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_blocks_do_not_change_the_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 1)
    assert bootstrap(_world(20, 3, 0), "auc", replicates=7).samples == 7


def test_undefined_resamples_are_counted_or_refused() -> None:
    """One positive in four rows is absent from (3/4)**4 = 32 % of the resamples."""
    score = [0.1, 0.2, 0.3, 0.4]
    found = bootstrap(Rows.of(score, [0, 0, 0, 1]), "auc", replicates=1000)
    assert found.samples == pytest.approx(684, abs=60)
    with pytest.raises(MetricUndefinedError, match="undefined in most resamples"):
        bootstrap(Rows.of(score[:2], [0, 1]), "auc", replicates=401, seed=1)


def test_refusals() -> None:
    rows = Rows.of([0.1, 0.2, 0.3], [0, 1, 1])
    with pytest.raises(UnknownNameError, match="no bootstrap"):
        bootstrap(rows, "accuracy")
    with pytest.raises(ConfigError):
        bootstrap(rows, "auc", replicates=1)
    with pytest.raises(ConfigError):
        bootstrap(rows, "auc", level=1.0)
    with pytest.raises(EmptyInputError):
        bootstrap(Rows.of([], []), "auc")
    with pytest.raises(MetricUndefinedError, match="one group"):
        bootstrap(Rows.of([0.1, 0.2], [0, 1], group=[4, 4]), "auc")
    for metric in ("auc", "ne", "gauc"):
        with pytest.raises(MetricUndefinedError):
            bootstrap(Rows.of([0.1, 0.2], [1, 1], group=[0, 1]), metric)
    with pytest.raises(IncomparableError, match="same rows") as caught:
        paired_bootstrap(rows, Rows.of([0.1, 0.2, 0.3], [1, 0, 1]), "auc")
    assert "labels" in caught.value.where
    with pytest.raises(IncomparableError, match="same rows"):
        paired_bootstrap(rows, Rows.of([0.1, 0.2, 0.3], [0, 1, 1], group=[0, 1, 1]), "auc")


def _world(groups: int, size: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(groups * size, generator=generator)
    label = torch.rand(groups * size, generator=generator) < torch.sigmoid(1.5 * score)
    return Rows.of(score, label, group=torch.arange(groups).repeat_interleave(size))
