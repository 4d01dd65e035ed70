"""Calibrators against slow twins; planted miscalibration is healed, and health left alone."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from fullrank.errors import ConfigError, EmptyInputError, MetricUndefinedError
from fullrank.evaluate.calibrate import (
    Calibrator,
    choose,
    fit,
    losses,
    pool_adjacent_violators,
)
from fullrank.evaluate.calibration import ReliabilityTable, equal_mass
from fullrank.evaluate.metric import Rows
from tests.evaluate.small_logs import few

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5)), min_size=1, max_size=7)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def clicks(truth: np.ndarray, score: np.ndarray, seed: int) -> Rows:
    """Rows whose label is drawn from the true logit, while the model says another one."""
    label = np.random.default_rng(seed).random(len(truth)) < sigmoid(truth)
    return Rows.of(torch.from_numpy(score.astype(np.float32)), torch.from_numpy(label))


def world(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(-1.0, 1.5, rows)


def gap(calibrator: Calibrator, rows: Rows) -> float:
    """Calibration error in buckets of equal mass."""
    z = torch.from_numpy(calibrator.logits(rows.score.numpy()))
    moved = Rows(z, rows.label, rows.weight)
    return ReliabilityTable.of(moved, equal_mass(moved, 10), 10).error()


def kink(z: np.ndarray) -> np.ndarray:
    """Rising, and no straight line in logits: flat for low scores, steep for high ones."""
    return np.where(z < -1, 0.25 * (z + 1) - 1, 3 * (z + 1) - 1)


# ---- oracles


@few
@given(POINTS)
def test_blocks_are_the_least_squares_of_all_rising_steps(points):
    """Brute force: of every way to cut the points into blocks that rise, the best is found."""
    mass = np.array([float(w) for _, w in points])
    hits = np.array([min(h, w) for h, w in points], dtype=np.float64)

    def steps(starts):
        return [(a, b) for a, b in pairwise([*starts, len(mass)])]

    def cost(blocks):
        return sum(
            mass[i] * (hits[i] / mass[i] - hits[a:b].sum() / mass[a:b].sum()) ** 2
            for a, b in blocks
            for i in range(a, b)
        )

    ways = []
    for cut in range(2 ** (len(mass) - 1)):
        blocks = steps([0] + [i + 1 for i in range(len(mass) - 1) if cut >> i & 1])
        rates = [hits[a:b].sum() / mass[a:b].sum() for a, b in blocks]
        if all(low < high for low, high in pairwise(rates)):
            ways.append(cost(blocks))
    found = pool_adjacent_violators(hits, mass)
    rates = [hits[a:b].sum() / mass[a:b].sum() for a, b in found]
    assert all(low < high for low, high in pairwise(rates))
    assert cost(found) == pytest.approx(min(ways), abs=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_isotonic_knots_are_the_centres_of_scikit_learns_blocks(weighted):
    rng = np.random.default_rng(0)
    score = np.round(rng.normal(size=400), 1).astype(np.float32)  # many ties
    label = rng.random(400) < sigmoid(2 * score)
    weight = rng.integers(1, 5, 400).astype(np.float32) if weighted else np.ones(400, np.float32)
    ours = fit("isotonic", Rows.of(*map(torch.from_numpy, (score, label, weight))))

    rate = float(weight[label].sum() / weight.sum())  # the row of doubt, half at either end
    x = np.r_[score.min(), score, score.max()].astype(float)
    y = np.r_[1.0, label.astype(float), 0.0]
    w = np.r_[rate, weight.astype(float), 1 - rate]
    theirs = IsotonicRegression().fit(x, y, sample_weight=w).predict(score)
    knots = sorted(set(np.round(theirs, 9)))
    centres = [
        np.average(score[m], weights=weight[m]) for k in knots for m in [np.isclose(theirs, k)]
    ]
    assert len(ours.x) == len(knots) > 5
    assert np.allclose(sigmoid(np.array(ours.y)), knots, atol=1e-6)
    assert np.allclose(ours.x, centres, atol=1e-6)


def newton(score, label, weight):
    """Platt's own targets, by plain steps down the gradient of a 2 x 2 problem, from afar."""
    up, down = weight[label].sum(), weight[~label].sum()
    target = np.where(label, (up + 1) / (up + 2), 1 / (down + 2))
    a, b = 0.5, 0.5
    for _ in range(200):
        p = sigmoid(a * score + b)
        g = [sum(weight * (p - target) * score), sum(weight * (p - target))]
        h = weight * p * (1 - p)
        haa, hab, hbb = sum(h * score * score), sum(h * score), sum(h)
        det = haa * hbb - hab * hab
        a -= 0.5 * (hbb * g[0] - hab * g[1]) / det
        b -= 0.5 * (haa * g[1] - hab * g[0]) / det
    return a, b


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_platt_is_the_fit_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    score = rng.normal(0.3, 1.0 + seed, 150)
    label = rng.random(150) < sigmoid(0.7 * score - 0.4)
    weight = rng.integers(1, 4, 150).astype(float)
    found = fit("platt", Rows.of(*map(torch.from_numpy, (score, label, weight))))
    a, b = newton(score, label, weight)
    assert found.slope == pytest.approx(a, rel=1e-6)
    assert found.y[0] == pytest.approx(b, rel=1e-6, abs=1e-6)
    assert found.x == (0.0,)


def test_scores_far_apart_and_labels_they_part_are_fitted():
    score = torch.tensor([-3e4, -2e4, 1e4, 5e4])
    for method in ("platt", "isotonic"):
        found = fit(method, Rows.of(score, torch.tensor([0, 0, 1, 1])))
        z = found.logits(score.numpy())
        assert np.all(np.diff(z) > 0)
        assert z[0] < z[1] < 0 < z[2] < z[3]
        assert np.abs(z).max() < 10


# ---- planted truth


def line(z: np.ndarray) -> np.ndarray:
    return (z - 0.8) / 0.4  # the model is too sure of itself, and promises too much


@pytest.mark.parametrize(
    ("ill", "method", "heals"),
    [
        (line, "platt", True),
        (line, "isotonic", True),
        (kink, "isotonic", True),
        (kink, "platt", False),  # a line cannot straighten a kink
    ],
)
def test_planted_illness_is_healed_on_rows_not_fitted_on(ill, method, heals):
    seen, unseen = world(20_000, 1), world(20_000, 2)
    # The model's logit is ill(z): the truth is its inverse, which is what must be found.
    found = fit(method, clicks(seen, ill(seen), 3))
    fresh = clicks(unseen, ill(unseen), 4)
    noise = gap(Calibrator(), clicks(unseen, unseen, 4))  # of a perfect model on as many rows
    assert gap(Calibrator(), fresh) > 5 * noise
    assert (gap(found, fresh) < 2 * noise) == heals
    assert losses(found, fresh).mean() < losses(Calibrator(), fresh).mean()


def test_the_line_of_platt_is_the_one_that_was_planted():
    z = world(50_000, 1)
    found = fit("platt", clicks(z, line(z), 2))
    assert found.slope == pytest.approx(0.4, abs=0.02)
    assert found.y[0] == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("seed", range(4))
def test_choice_finds_illness_and_leaves_health_alone(seed):
    z = world(8000, seed)
    assert choose(clicks(z, z, seed)) == Calibrator()
    assert choose(clicks(z, line(z), seed)).method == "platt"
    assert choose(clicks(z, kink(z), seed)).method == "isotonic"


def test_fitting_a_healthy_model_changes_little():
    z = world(20_000, 5)
    rows, fresh = clicks(z, z, 6), clicks(world(20_000, 7), world(20_000, 7), 8)
    for method in ("platt", "isotonic"):
        found = fit(method, rows)
        worse = losses(found, fresh).mean() - losses(Calibrator(), fresh).mean()
        assert abs(worse) < 1e-3
        assert 0.8 < found.slope < 1.25  # beyond the knots candidates stay as far apart
    assert fit("none", rows) == Calibrator()


# ---- negative sampling


def test_sampling_is_corrected_to_the_planted_base_rate():
    """One negative in twenty is kept; the right logit among the kept rows is higher by log 20."""
    truth = world(200_000, 9)
    rng = np.random.default_rng(10)
    label = rng.random(len(truth)) < sigmoid(truth - 2)
    kept = label | (rng.random(len(truth)) < 0.05)
    sampled = Rows.of(torch.from_numpy(truth[kept].astype(np.float32)), torch.tensor(label[kept]))
    found = fit("platt", sampled)
    mean = {rate: sigmoid(found.correct_sampling(rate).logits(truth)).mean() for rate in (1, 0.05)}
    assert mean[0.05] == pytest.approx(label.mean(), rel=0.03)
    assert mean[1] > 3 * label.mean()
    p = sigmoid(found.logits(truth[:50]))
    corrected = sigmoid(found.correct_sampling(0.05).logits(truth[:50]))
    assert np.allclose(corrected, p / (p + (1 - p) / 0.05))


# ---- laws


@st.composite
def calibrators(draw):
    numbers = st.floats(-30, 30, allow_nan=False)
    size = draw(st.integers(1, 6))
    x = sorted(draw(st.lists(numbers, min_size=size, max_size=size, unique=True)))
    y = sorted(draw(st.lists(numbers, min_size=size, max_size=size, unique=True)))
    assume(all(b - a > 1e-6 for v in (x, y) for a, b in pairwise(v)))
    return Calibrator(
        method="isotonic",
        x=tuple(x),
        y=tuple(y),
        slope=draw(st.floats(0.01, 5)),
        negative_rate=draw(st.floats(0.001, 1)),
    )


@few
@given(calibrators(), st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=40))
def test_a_curve_rises_and_equal_logits_stay_equal_bits(calibrator, raw):
    x = np.sort(np.array([*raw, *calibrator.x], dtype=np.float64))
    y = calibrator.logits(x)
    assert np.all(np.diff(y) >= 0)
    apart = np.diff(x) > 1e-6
    assert np.all(np.diff(y)[apart] > 0)
    assert np.array_equal(y[::-1], calibrator.logits(x[::-1]))
    assert np.array_equal(
        y, np.concatenate([calibrator.logits(x[i : i + 1]) for i in range(len(x))])
    )
    at_knots = calibrator.logits(np.array(calibrator.x)) - math.log(calibrator.negative_rate)
    assert np.allclose(at_knots, calibrator.y)


def test_rounding_does_not_lift_the_end_of_a_piece_above_the_next():
    rng, lifted = np.random.default_rng(0), 0
    for _ in range(500):
        x, y = np.sort(rng.normal(size=2)), np.sort(10 * rng.normal(size=2))
        near = np.array([np.nextafter(x[1], -9.0), x[1]])
        found = Calibrator(x=tuple(x), y=tuple(y)).logits(near)
        assert found[0] <= found[1]
        lifted += y[0] + (y[1] - y[0]) / (x[1] - x[0]) * (near[0] - x[0]) > y[1]
    assert lifted > 10  # the plain formula does


@few
@given(calibrators())
def test_a_calibrator_survives_json_to_the_bit(calibrator):
    assert Calibrator.from_dict(json.loads(json.dumps(calibrator.to_dict()))) == calibrator


def test_the_bare_one_changes_no_bit():
    x = np.random.default_rng(0).normal(size=100).astype(np.float32) * 9
    assert np.array_equal(Calibrator().logits(x), x.astype(np.float64))


# ---- refusals


@pytest.mark.parametrize(
    "change",
    [
        {"method": "spline"},
        {"x": (0.0, 1.0), "y": (0.0,)},
        {"x": (), "y": ()},
        {"x": (0.0, 0.0), "y": (0.0, 1.0)},
        {"x": (0.0, 1.0), "y": (1.0, 0.0)},
        {"x": (0.0, 1.0), "y": (1.0, 1.0)},
        {"x": (0.0, 5e-324), "y": (0.0, 1.0)},
        {"x": (-1e308, 1e308), "y": (0.0, 5e-324)},
        {"x": (math.nan,)},
        {"y": (math.inf,)},
        {"slope": 0.0},
        {"slope": -1.0},
        {"slope": math.inf},
        {"negative_rate": 0.0},
        {"negative_rate": 1.5},
        {"negative_rate": math.nan},
        {"shift": 1.0},
        {"slope": "steep"},
    ],
)
def test_a_broken_curve_is_refused(change):
    with pytest.raises(ConfigError):
        Calibrator.from_dict({**Calibrator().to_dict(), **change})


def test_rows_without_both_labels_or_against_them_cannot_be_fitted():
    score = torch.linspace(-2, 2, 50)
    for method in ("platt", "isotonic"):
        with pytest.raises(MetricUndefinedError, match="all labels are equal"):
            fit(method, Rows.of(score, torch.zeros(50)))
        with pytest.raises(MetricUndefinedError, match="do not mean more positives"):
            fit(method, Rows.of(score, score < 0))
        with pytest.raises(EmptyInputError):
            fit(method, Rows.of(score[:0], score[:0]))
