from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fullrank.errors import EmptyInputError, MetricUndefinedError, SchemaError
from fullrank.evaluate.grouped import GAUC, group_aucs
from fullrank.evaluate.metric import Rows
from tests.evaluate.small_logs import Log, few, fold, logs
from tests.reference import metric_twins as twin


@few
@given(logs(1), st.lists(st.integers(0, 24), max_size=4))
def test_gauc_equals_the_loop_over_groups(log: Log, cuts: list[int]) -> None:
    metric = fold(lambda: GAUC("click"), log, cuts)
    score, label, weight, group = log.seen()
    weighted, plain, dropped = twin.gauc(np.float32(score).tolist(), label, weight, group)
    if not score:
        with pytest.raises(EmptyInputError):
            metric.compute()
    elif weighted is None:
        with pytest.raises(MetricUndefinedError, match="no group holds both labels") as caught:
            metric.compute()
        assert caught.value.found.startswith(f"{dropped} groups")
    else:
        assert metric.compute() == {
            "gauc": pytest.approx(weighted, abs=1e-12),
            "gauc_mean": pytest.approx(plain, abs=1e-12),
            "gauc_dropped": dropped,
        }


def test_groups_against_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    group = rng.integers(0, 300, 4000) ** 2 - 50  # not consecutive, some below zero
    score = np.round(rng.normal(size=4000), 1)
    label = rng.random(4000) < 0.2
    found = group_aucs(Rows.of(score, label, group=group))
    assert found.group.tolist() == sorted(set(group.tolist()))
    for g, auc, defined, weight in zip(
        found.group, found.auc, found.defined, found.weight, strict=True
    ):
        mine = group == g.item()
        assert weight == mine.sum()
        assert bool(defined) == (0 < label[mine].sum() < mine.sum())
        if defined:
            assert auc == pytest.approx(roc_auc_score(label[mine], score[mine]), abs=1e-12)


def test_group_offsets_lift_auc_but_not_gauc() -> None:
    """Negative control: a score that only knows the user cannot rank within a user."""
    rng = np.random.default_rng(2)
    group = rng.integers(0, 50, 5000)
    taste = rng.normal(size=50)[group]
    label = (rng.random(5000) < 1 / (1 + np.exp(-2 * taste))).astype(int)
    log = Log(taste.tolist(), label.tolist(), [1.0] * 5000, group.tolist(), [True] * 5000)
    assert fold(lambda: GAUC("click"), log, []).compute()["gauc"] == 0.5
    assert roc_auc_score(label, taste) > 0.7


def test_large_weights_elsewhere_leave_a_group_alone() -> None:
    score, label, group = [0.3, 0.1, 0.2, 0.5, 0.4], [1, 0, 1, 1, 0], [0, 0, 1, 1, 1]
    found = group_aucs(Rows.of(score, label, [1e9, 3e9, 0.5, 0.25, 0.125], group))
    assert found.auc.tolist() == pytest.approx([1.0, 0.25 / 0.75], abs=1e-6)


def test_rows_without_groups() -> None:
    with pytest.raises(SchemaError, match="no groups"):
        group_aucs(Rows.of(torch.zeros(2), [0, 1]))
