"""What popularity alone reaches, against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.errors import BatchError, EmptyInputError
from fullrank.evaluate.metric import Rows
from fullrank.evaluate.popularity import (
    popularity_line,
    popularity_metrics,
    popularity_scores,
    positive_counts,
)

ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), max_size=30)

GROUPED = st.tuples(st.integers(0, 9), st.integers(0, 1), st.integers(0, 2))


def pairs(scores: list[float], labels: list[int]) -> float | None:
    won = [
        0.5 * (a == b) + (a > b)
        for a, x in zip(scores, labels, strict=True)
        for b, y in zip(scores, labels, strict=True)
        if x > y
    ]
    return sum(won) / len(won) if won else None


@settings(deadline=None)
@given(train=ROWS, test=st.lists(GROUPED, min_size=1, max_size=25))
def test_scores_and_metrics_are_what_loops_find(train, test) -> None:
    counts = positive_counts(
        torch.tensor([i for i, _ in train], dtype=torch.int32),
        torch.tensor([y for _, y in train], dtype=torch.float32),
    )
    item, label, group = (torch.tensor(c) for c in zip(*test, strict=True))
    scores = popularity_scores(item, counts)
    seen = [sum(i == j and y == 1 for i, y in train) for j, _, _ in test]
    assert scores.tolist() == pytest.approx([math.log(1 + n) for n in seen])
    found = popularity_metrics(Rows.of(scores, label, group=group))
    assert found.get("auc") == pytest.approx(pairs(seen, label.tolist()))
    each = {}
    for g in set(group.tolist()):
        rows = [r for r, (_, _, h) in enumerate(test) if h == g]
        each[g] = pairs([seen[r] for r in rows], [test[r][1] for r in rows]), len(rows)
    kept = [(auc, n) for auc, n in each.values() if auc is not None]
    if kept:
        assert found["gauc"] == pytest.approx(sum(a * n for a, n in kept) / sum(n for _, n in kept))
    assert ("gauc" in found) == bool(kept)


def test_without_groups_there_is_no_gauc_and_a_line_says_what_there_is() -> None:
    counts = positive_counts(torch.tensor([1, 1, 2]), torch.tensor([1.0, 1.0, 0.0]))
    rows = Rows.of(popularity_scores(torch.tensor([1, 2]), counts), torch.tensor([1, 0]))
    assert popularity_metrics(rows) == {"auc": 1.0}
    assert popularity_line({"auc": 1.0}) == "popularity alone: AUC 1.0000"
    assert popularity_line({}) == ""


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(BatchError, match="differ in number"):
        positive_counts(torch.tensor([1, 2]), torch.tensor([1.0]))
    with pytest.raises(EmptyInputError):
        popularity_metrics(Rows.of(torch.zeros(0), torch.zeros(0)))
