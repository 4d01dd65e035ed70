"""A habit that only the order of the past gives away: what order tells, and what a bag does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fullrank.batch import Batch
from fullrank.testing import area_under_curve, periodic


def past(batch: Batch) -> Tensor:
    """Returns the categories of the past [B, n]; every row has equally many events."""
    return batch.sequences["past"].values["category"].reshape(len(batch), -1)


def hits(batch: Batch) -> Tensor:
    """Returns [B, n]: is the event in the target's category?"""
    return (past(batch) == batch.categorical["category"][:, None]).double()


def in_phase(batch: Batch, period: int) -> Tensor:
    """Returns how much more often the target occurs whole rounds before its turn, [B]."""
    x = hits(batch)
    return x[:, ::period].mean(1) - x.mean(1)


def entropy(batch: Batch) -> Tensor:
    """Returns the spectral entropy of the target's occurrences, [B], slowly."""
    out = []
    for row in hits(batch).numpy():
        row = row - row.mean()
        n = len(row)
        power = []
        for f in range(1, n // 2 + 1):
            angle = 2 * np.pi * f * np.arange(n) / n
            power.append((row @ np.cos(angle)) ** 2 + (row @ np.sin(angle)) ** 2)
        share = np.array(power) / max(sum(power), 1e-12) + 1e-12
        out.append(-(share @ np.log(share)) / np.log(len(share)))
    return torch.tensor(np.array(out))


@pytest.mark.parametrize("period", [2, 5, 7, 10])
def test_the_phase_is_in_the_order_and_not_in_the_bag(period: int) -> None:
    schema, batch, truth = periodic(4000, torch.Generator().manual_seed(period), period=period)
    click = batch.labels["click"]
    assert schema.sequence("past").max_length == 50
    assert past(batch).shape[1] == 50 // period * period
    best = area_under_curve(truth, click)
    assert best > 0.92
    assert area_under_curve(in_phase(batch, period), click) > best - 0.02
    assert abs(area_under_curve(hits(batch).sum(1), click) - 0.5) < 0.03
    popular = past(batch).flatten().bincount()[batch.categorical["category"].long()]
    assert abs(area_under_curve(popular.double(), click) - 0.5) < 0.03
    assert abs(area_under_curve(batch.categorical["device"].double(), click) - 0.5) < 0.03


def test_every_category_of_a_round_occurs_equally_often_without_noise() -> None:
    _, batch, truth = periodic(20, torch.Generator().manual_seed(0), noise=0.0, length=29)
    for row, target, p in zip(past(batch), batch.categorical["category"], truth, strict=True):
        assert sorted(row.unique(return_counts=True)[1].tolist()) == [4] * 7
        assert (row[:7].repeat(4) == row).all()
        assert (row[0] == target) == (p > 0.5)


def test_users_have_two_rows_with_one_past() -> None:
    _, batch, truth = periodic(7, torch.Generator().manual_seed(0))
    assert batch.group.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert (past(batch)[0:6:2] == past(batch)[1:6:2]).all()
    assert ((truth > 0.5) == torch.tensor([True, False] * 3 + [True])).all()


@pytest.mark.parametrize("off", [{"phase": "off"}, {"noise": 1.0}, {"strength": 0.0}])
def test_without_order_rhythm_or_strength_nothing_is_left(off: dict[str, str | float]) -> None:
    _, batch, truth = periodic(4000, torch.Generator().manual_seed(0), **off)  # type: ignore[arg-type]
    click = batch.labels["click"]
    assert abs(area_under_curve(in_phase(batch, 7), click) - 0.5) < 0.03
    assert (truth == 0.5).all()
    if "strength" not in off:  # and the past does not know which target was to be in phase
        first = torch.arange(len(batch)) % 2 == 0
        assert abs(area_under_curve(in_phase(batch, 7), first) - 0.5) < 0.03


def test_a_scattered_category_occurs_as_often_and_has_a_flatter_spectrum() -> None:
    def drawn(phase: str) -> Batch:
        g = torch.Generator().manual_seed(0)
        return periodic(2000, g, length=49, wrong="scattered", phase=phase)[1]  # type: ignore[arg-type]

    batch = drawn("on")
    click = batch.labels["click"]
    assert area_under_curve(-entropy(batch), click) > 0.7
    assert abs(area_under_curve(hits(batch).sum(1), click) - 0.5) < 0.04
    shuffled = drawn("off")
    chance = area_under_curve(-entropy(shuffled), shuffled.labels["click"])
    assert abs(chance - 0.5) < 0.04
    _, wrong_phase, _ = periodic(2000, torch.Generator().manual_seed(0), length=49)
    same = area_under_curve(-entropy(wrong_phase), wrong_phase.labels["click"])
    assert abs(same - 0.5) < 0.04  # a shift in time leaves the power spectrum as it is
