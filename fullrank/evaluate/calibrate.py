"""Calibrators: turn the logits of a model into logits whose probabilities come true.

All of them are one thing, an increasing curve of straight pieces from logit to logit, so that an
artefact stores plain numbers and the order of rows never changes:

    none       the line x
    platt      the line a x + b (Platt 1999, fitted as by Lin, Lin & Weng, 2007)
    isotonic   through the centres of the blocks of an isotonic regression
               (Zadrozny & Elkan, KDD 2002; centres: Oron & Flournoy, arXiv:1701.05964)

A model that was trained on all positives and a share of the negatives promises too much; what was
fitted on such rows is moved back by the logarithm of that share (He et al., ADKDD 2014).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fullrank.config import from_dict, require, to_dict
from fullrank.errors import MetricUndefinedError
from fullrank.evaluate.metric import Rows, refuse_one_class

Method = Literal["none", "platt", "isotonic"]
Floats = NDArray[np.float64]

_FOLDS = 5  # of `choose`
_STEPS = 100  # of Newton's method; it takes fewer than ten


@dataclass(frozen=True, kw_only=True)
class Calibrator:
    """An increasing curve of straight pieces from a model's logit to a calibrated one.

    Args:
        method: what fitted it.
        x: [K] logits of the model at the knots, increasing.
        y: [K] calibrated logits there, increasing.
        slope: of the curve outside of the knots, above zero.
        negative_rate: share of the negatives that were kept when the rows were sampled, in (0, 1].

    Raises:
        ConfigError: a number is not finite, the curve falls or is flat somewhere, or the rate is
            no share.

    Example:
        >>> half = Calibrator(slope=0.5)
        >>> half.logits(np.array([-4.0, 0.0, 2.0])).tolist()
        [-2.0, 0.0, 1.0]
    """

    method: Method = "none"
    x: tuple[float, ...] = (0.0,)
    y: tuple[float, ...] = (0.0,)
    slope: float = 1.0
    negative_rate: float = 1.0

    def __post_init__(self) -> None:
        knots = list(zip(self.x, self.y, strict=False))
        rising = [a < c and b < d for (a, b), (c, d) in pairwise(knots)]
        steep = [(d - b) / (c - a) for (a, b), (c, d) in pairwise(knots) if c > a]
        numbers = (*self.x, *self.y, *steep, self.slope)
        require(
            self.method in get_args(Method)
            and all(map(math.isfinite, numbers))
            and all(rising)
            and min(*steep, self.slope, 1.0) > 0
            and len(self.x) == len(self.y) >= 1,
            where="Calibrator",
            found=f"method '{self.method}', {len(self.x)} and {len(self.y)} knots, "
            f"slope {self.slope}",
            expected="a known method and a curve of finite numbers that rises everywhere",
            fix="fit it again",
        )
        require_rate(self.negative_rate, "Calibrator.negative_rate")

    def logits(self, raw: NDArray[Any]) -> Floats:
        """Returns calibrated logits, [B] float64; equal inputs give equal bits at any place."""
        x = raw.astype(np.float64)
        knots, values, slopes, most = self._curve
        piece = np.searchsorted(knots, x, side="right")  # [B] in 0..K: pieces lie between knots
        start = np.maximum(piece - 1, 0)
        curve = values[start] + slopes[piece] * (x - knots[start])
        # Rounding must not lift the end of a piece above the start of the next one.
        return np.minimum(curve, most[piece]) + math.log(self.negative_rate)

    @cached_property
    def _curve(self) -> tuple[Floats, Floats, Floats, Floats]:
        x, y = np.array(self.x), np.array(self.y)
        inner = np.diff(y) / np.diff(x)  # [K - 1]
        slopes = np.concatenate([[self.slope], inner, [self.slope]])
        return x, y, slopes, np.append(y, np.inf)

    def correct_sampling(self, negative_rate: float) -> Calibrator:
        """Returns the curve for a world in which all the negatives are there.

        A probability p among sampled rows is p / (p + (1 - p) / rate) there.

        Args:
            negative_rate: share of the negatives that were kept, in (0, 1]. Leave it at 1 where
                the rows carry weights of 1 / sampling rate: training has then corrected for it.
        """
        return replace(self, negative_rate=negative_rate)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        plain: dict[str, Any] = to_dict(self)
        return plain

    @classmethod
    def from_dict(cls, data: Any, where: str = "calibration") -> Calibrator:
        """Reads what `to_dict` returned.

        Raises:
            ConfigError: it is something else.
        """
        return from_dict(cls, data, where)


def require_rate(rate: float, where: str) -> None:
    """Raises a ConfigError unless a share of kept negatives lies in (0, 1]."""
    require(
        0 < rate <= 1,
        where=where,
        found=rate,
        expected="a share of the negatives above 0 and at most 1",
        fix="give 0.1 where one negative in ten was kept, 1 where all were",
    )


def fit(method: Method, rows: Rows) -> Calibrator:
    """Fits a calibrator on rows that the model was not trained on.

    Args:
        method: what to fit.
        rows: logits, labels and weights of a held-out split.

    Raises:
        EmptyInputError: no row has weight.
        MetricUndefinedError: all labels are equal, or higher logits do not mean more positives, so
            that no increasing curve heals them.
    """
    if method == "none":
        return Calibrator()
    positive, negative = (mass.numpy() for mass in rows.masses())
    where = f"calibration by '{method}'"
    refuse_one_class(
        float(positive.sum()), float(negative.sum()), len(rows), where, "a calibration curve"
    )
    score = rows.score.double().numpy()
    return (_platt if method == "platt" else _isotonic)(score, positive, negative)


def choose(rows: Rows) -> Calibrator:
    """Fits what heals rows that it was not fitted on, and nothing where nothing is ill.

    Platt scaling and isotonic regression are fitted on four fifths of the rows and measured on the
    fifth, five times. The one with the lower log-loss is taken if it gains more than two standard
    errors over the bare logits. The rule is our choice.

    Raises:
        EmptyInputError, MetricUndefinedError: as `fit`.
    """
    at = np.arange(len(rows)) % _FOLDS
    bare = losses(Calibrator(), rows)
    best, best_gain = fit("none", rows), 0.0
    for method in ("platt", "isotonic"):
        whole = fit(method, rows)
        gain = np.empty(len(rows))
        for fold in range(_FOLDS):
            held, rest = at == fold, at != fold
            gain[held] = bare[held] - losses(fit(method, _part(rows, rest)), _part(rows, held))
        if gain.mean() > max(best_gain, 2 * gain.std() / math.sqrt(len(gain))):
            best, best_gain = whole, float(gain.mean())
    return best


def losses(calibrator: Calibrator, rows: Rows) -> Floats:
    """Returns the weighted log-loss of each row, [n] in nats."""
    z = calibrator.logits(rows.score.numpy())
    positive, negative = (mass.numpy() for mass in rows.masses())
    loss: Floats = positive * np.logaddexp(0.0, -z) + negative * np.logaddexp(0.0, z)
    return loss


def _part(rows: Rows, kept: NDArray[np.bool_]) -> Rows:
    return Rows(rows.score[kept], rows.label[kept], rows.weight[kept])


def _platt(score: Floats, positive: Floats, negative: Floats) -> Calibrator:
    """Fits sigmoid(a x + b) to labels drawn in a little, by Newton's method on unit scores."""
    total = positive + negative
    middle = float(np.average(score, weights=total))
    spread = math.sqrt(np.average((score - middle) ** 2, weights=total))
    if spread == 0:
        raise _against("one score for all rows")
    unit = (score - middle) / spread
    high = (positive.sum() + 1) / (positive.sum() + 2)  # Platt's targets: one row of doubt each
    low = 1 / (negative.sum() + 2)
    hoped = high * positive + low * negative  # [n] weight times target

    def loss(ab: Floats) -> float:
        z = ab[0] * unit + ab[1]
        return float(total @ np.logaddexp(0.0, z) - hoped @ z)

    best = np.array([0.0, math.log(positive.sum() / negative.sum())])
    for _ in range(_STEPS):
        p = np.exp(-np.logaddexp(0.0, -best[0] * unit - best[1]))
        gap, curve = total * p - hoped, total * p * (1 - p)
        gradient = np.array([gap @ unit, gap.sum()])
        mixed = curve @ unit
        hessian = np.array([[curve @ unit**2, mixed], [mixed, curve.sum()]])
        step = np.linalg.solve(hessian + 1e-12 * np.trace(hessian) * np.eye(2), gradient)
        moved = _downhill(loss, best, step, float(gradient @ step))
        if np.array_equal(moved, best):
            break
        best = moved
    slope = float(best[0]) / spread
    if slope <= 0:
        raise _against(f"a slope of {slope:.3g}")
    return Calibrator(method="platt", y=(float(best[1]) - slope * middle,), slope=slope)


def _downhill(loss: Callable[[Floats], float], at: Floats, step: Floats, decrease: float) -> Floats:
    """Returns the point after a step that lowers the loss, halved as needed, or the same point."""
    before, size = loss(at), 1.0
    while size > 1e-10 and decrease > 1e-14 * max(abs(before), 1.0):
        moved = at - size * step
        if loss(moved) <= before - 1e-4 * size * decrease:
            return moved
        size /= 2
    return at


def _isotonic(score: Floats, positive: Floats, negative: Floats) -> Calibrator:
    """Draws straight pieces, from logit to logit, through the centres of isotonic blocks.

    A step for each block would give many candidates of a request the same probability; lines
    between the centres keep their order. Beyond the outer centres the curve goes on with its
    mean slope. One row of doubt, shared out between a positive below all scores and a negative
    above them, keeps the outer blocks from 0 and 1. Both are our choice.
    """
    kept = positive + negative > 0
    values, at = np.unique(score[kept], return_inverse=True)  # equal scores are one point
    hits: Floats = np.bincount(at, positive[kept], len(values)).astype(np.float64)
    mass: Floats = np.bincount(at, (positive + negative)[kept], len(values)).astype(np.float64)
    centre = mass * values
    rate = hits.sum() / mass.sum()
    hits[0] += rate
    doubt = mass.copy()
    doubt[0] += rate
    doubt[-1] += 1 - rate
    knots = []
    for start, stop in pool_adjacent_violators(hits, doubt):
        p = hits[start:stop].sum() / doubt[start:stop].sum()
        knots.append((centre[start:stop].sum() / mass[start:stop].sum(), math.log(p / (1 - p))))
    knots = _rising(knots)
    if len(knots) < 2:
        raise _against("one block for all scores")
    x, y = zip(*((float(a), float(b)) for a, b in knots), strict=True)
    return Calibrator(method="isotonic", x=x, y=y, slope=(y[-1] - y[0]) / (x[-1] - x[0]))


def _rising(knots: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Drops knots that rounding has put level with the one before."""
    kept = knots[:1]
    for x, y in knots[1:]:
        if x > kept[-1][0] and y > kept[-1][1]:
            kept.append((x, y))
    return kept


def pool_adjacent_violators(hits: Floats, mass: Floats) -> list[tuple[int, int]]:
    """Returns the blocks of the isotonic regression of hits / mass: [start, stop) in order.

    Ayer et al., Annals of Mathematical Statistics 1955. Rates rise from block to block.

    Args:
        hits: [n] weight of the positive rows at each point, in rising order of score.
        mass: [n] weight of all rows there, above zero.

    Example:
        >>> pool_adjacent_violators(np.array([0.0, 1.0, 0.0, 1.0]), np.ones(4))
        [(0, 1), (1, 3), (3, 4)]
    """
    blocks: list[tuple[int, float, float]] = []  # first point, hits, mass
    for i, (hit, weight) in enumerate(zip(hits.tolist(), mass.tolist(), strict=True)):
        first = i
        while blocks and blocks[-1][1] * weight >= hit * blocks[-1][2]:
            first, more, heavier = blocks.pop()
            hit, weight = hit + more, weight + heavier
        blocks.append((first, hit, weight))
    starts = [first for first, _, _ in blocks]
    return list(zip(starts, [*starts[1:], len(hits)], strict=True))


def _against(found: str) -> MetricUndefinedError:
    return MetricUndefinedError(
        "scores cannot be calibrated because higher ones do not mean more positives",
        where="calibration",
        found=found,
        expected="an AUC above one half on the rows to fit on",
        fix="leave this label as it is, or give more rows or a better model",
    )
