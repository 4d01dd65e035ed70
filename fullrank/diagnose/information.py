"""Mutual information between tokens, and between a representation and the label.

Vectors are quantised by k-means: fitted on one half of the rows, counted on the other. The plug-in
estimate of two *independent* variables is about (K_a - 1)(K_b - 1) / 2N nats, which is larger than
many effects; so the corrected value and the value after shuffling are reported with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fullrank.diagnose.accumulate import JointCounts
from fullrank.errors import EmptyInputError, MetricUndefinedError
from fullrank.ops.ranking import area_under_curve

SEEDS = (0, 1, 2)
SHUFFLES = 5
ENOUGH = 50  # rows per cell of the joint table


@dataclass(frozen=True)
class Information:
    """Mutual information in nats, averaged over k-means seeds.

    Args:
        plug_in: from the counts as they are.
        corrected: Miller-Madow: the bias (K_a - 1)(K_b - 1) / 2N of occupied clusters removed.
        shuffled: plug-in after the rows of one side were shuffled; what chance gives.
        std: of the corrected value over seeds.
        n: rows counted.
        clusters: (K_a, K_b).
    """

    plug_in: float
    corrected: float
    shuffled: float
    std: float
    n: int
    clusters: tuple[int, int]


def plug_in(counts: Tensor) -> float:
    """Returns sum P(a, b) log[P(a, b) / P(a) P(b)] in nats for a table of counts [K_a, K_b].

    Raises:
        EmptyInputError: the table is empty.
    """
    total = counts.sum()
    if total == 0:
        raise EmptyInputError(
            "mutual information was asked of no rows",
            where="plug_in",
            found="a table of zeros",
            expected="at least one row",
            fix="let the probe see at least one batch first",
        )
    p = counts.double() / total
    expected = p.sum(1, keepdim=True) * p.sum(0, keepdim=True)
    ratio = torch.where(p > 0, p / expected.clamp(min=1e-300), 1.0)
    return float((p * ratio.log()).sum())


def miller_madow(counts: Tensor) -> float:
    """Returns the plug-in estimate less its bias, counting only clusters that occur."""
    a, b = int((counts.sum(1) > 0).sum()), int((counts.sum(0) > 0).sum())
    return plug_in(counts) - (a - 1) * (b - 1) / (2 * int(counts.sum()))


def clusters_for(n: int, labels: int | None = None, most: int = 48) -> int:
    """Returns the largest K in {8, 16, 32, 48, 64} that leaves 50 rows per cell, at least 8.

    Args:
        n: rows that will be counted.
        labels: values of the other side; None when it has K clusters too.
        most: the largest K wanted.
    """
    fits = [k for k in (8, 16, 32, 48, 64) if k <= most and n >= ENOUGH * k * (labels or k)]
    return max(fits, default=8)


class KMeans:
    """Seeded k-means++ and Lloyd's iterations on z-scored columns.

    Args:
        k: clusters.
        seed: of the first centres.
        iterations: of Lloyd at most; it stops earlier when no row moves.
    """

    def __init__(self, k: int, seed: int = 0, iterations: int = 25) -> None:
        self.k, self.seed, self.iterations = k, seed, iterations

    def fit(self, x: Tensor) -> KMeans:
        """Finds centres for rows [n, d]."""
        generator = torch.Generator().manual_seed(self.seed)
        x = x.float()
        self.shift = x.mean(0)
        spread = x.std(0, correction=0)
        self.scale = torch.where(spread > 1e-6, spread, torch.inf)  # constant columns count 0
        x = (x - self.shift) / self.scale
        centres = self._first(x, generator)
        before = None
        for _ in range(self.iterations):
            nearest = _nearest(x, centres)
            if before is not None and torch.equal(nearest, before):
                break
            before = nearest
            counts = torch.bincount(nearest, minlength=len(centres)).float()
            sums = torch.zeros_like(centres).index_add_(0, nearest, x)
            moved = sums / counts.clamp(min=1)[:, None]
            centres = torch.where(counts[:, None] > 0, moved, centres)
        self.centres = centres
        return self

    def assign(self, x: Tensor) -> Tensor:
        """Returns the cluster [n] of every row [n, d]."""
        return _nearest((x.float() - self.shift) / self.scale, self.centres)

    def _first(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """k-means++: each next centre is drawn in proportion to its squared distance."""
        chosen = [int(torch.randint(len(x), (1,), generator=generator))]
        distance = (x - x[chosen[0]]).square().sum(1)
        while len(chosen) < min(self.k, len(x)):
            total = distance.sum()
            if total <= 0:  # fewer distinct rows than clusters
                break
            chosen.append(int(torch.multinomial(distance / total, 1, generator=generator)))
            distance = torch.minimum(distance, (x - x[chosen[-1]]).square().sum(1))
        return x[chosen].clone()


def label_information(
    x: Tensor, label: Tensor, *, k: int, seeds: Sequence[int] = SEEDS
) -> Information:
    """Measures I(Z; Y) of k-means clusters Z of a representation and a binary label Y.

    Args:
        x: [n, d]; the first half fits, the second half is counted.
        label: [n] in {0, 1}.
        k: clusters.
        seeds: of k-means.
    """
    half = len(x) // 2
    y = label[half:].long()
    codes = [KMeans(k, seed).fit(x[:half]).assign(x[half:]) for seed in seeds]
    return _measured([(code, y) for code in codes], k, 2)


def token_information(x: Tensor, *, k: int, seeds: Sequence[int] = SEEDS) -> dict[str, Tensor]:
    """Measures the mutual information of every pair of tokens.

    Args:
        x: [B, T, D]; the first half of the rows fits, the second is counted.
        k: clusters per token.
        seeds: of k-means.

    Returns:
        "plug_in", "corrected" and "shuffled", each [T, T] in nats, averaged over seeds. The
        diagonal is NaN.
    """
    half, tokens = len(x) // 2, x.shape[1]
    names = ("plug_in", "corrected", "shuffled")
    sums = {name: torch.full((tokens, tokens), torch.nan) for name in names}
    codes = [
        [KMeans(k, seed).fit(x[:half, t]).assign(x[half:, t]) for seed in seeds]
        for t in range(tokens)
    ]
    for i in range(tokens):
        for j in range(i + 1, tokens):
            found = _measured(list(zip(codes[i], codes[j], strict=True)), k, k)
            for name in names:
                sums[name][i, j] = sums[name][j, i] = getattr(found, name)
    return sums


def _measured(pairs: Sequence[tuple[Tensor, Tensor]], ka: int, kb: int) -> Information:
    plain, corrected, shuffled = [], [], []
    generator = torch.Generator().manual_seed(0)
    for a, b in pairs:
        counts = _table(a, b, ka, kb)
        plain.append(plug_in(counts))
        corrected.append(miller_madow(counts))
        for _ in range(SHUFFLES):
            order = torch.randperm(len(b), generator=generator)
            shuffled.append(plug_in(_table(a, b[order], ka, kb)))
    values = torch.tensor(corrected, dtype=torch.float64)
    return Information(
        plug_in=sum(plain) / len(plain),
        corrected=float(values.mean()),
        shuffled=sum(shuffled) / len(shuffled),
        std=float(values.std(correction=0)),
        n=len(pairs[0][0]),
        clusters=(ka, kb),
    )


def _table(a: Tensor, b: Tensor, ka: int, kb: int) -> Tensor:
    table = JointCounts(ka, kb)
    table.update(a, b)
    return table.counts


def _nearest(x: Tensor, centres: Tensor) -> Tensor:
    # |x|^2 is the same for every centre and is left out.
    return (centres.square().sum(1) - 2 * x @ centres.T).argmin(1)


def auc(score: Tensor, label: Tensor) -> float:
    """Returns the area under the ROC curve, ties counting half.

    Raises:
        MetricUndefinedError: all labels are equal.
    """
    positive = label > 0.5
    n1 = int(positive.sum())
    n0 = len(label) - n1
    if n1 == 0 or n0 == 0:
        raise MetricUndefinedError(
            "AUC has no value when all labels are equal",
            where=f"{len(label):,} diagnostic rows",
            found=f"{n1:,} positive and {n0:,} negative",
            expected="at least one of each",
            fix="measure on a split that has both, or on more rows",
        )
    return area_under_curve(score, positive.double(), (~positive).double())


def probe_auc(x: Tensor, label: Tensor, *, rows: int = 5000, l2: float = 1e-3) -> float:
    """Fits a logistic regression on frozen vectors and returns its AUC on the other half.

    Args:
        x: [n, d]; at most `rows` rows train and as many test.
        label: [n] in {0, 1}, both values in both halves.
        rows: see `x`.
        l2: weight of ||w||^2 / 2 beside the mean log-loss.

    Raises:
        MetricUndefinedError: all labels of the test half are equal.
    """
    half = min(rows, len(x) // 2)
    x, y = x[: 2 * half].double(), label[: 2 * half].double()
    shift, scale = x[:half].mean(0), x[:half].std(0, correction=0).clamp(min=1e-6)
    x = torch.cat([(x - shift) / scale, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    w = torch.zeros(x.shape[1], dtype=torch.float64)
    ridge = torch.full_like(w, l2)
    ridge[-1] = 1e-9  # the intercept is free
    for _ in range(25):  # Newton's method; the loss is convex and the ridge keeps it bounded
        p = torch.sigmoid(x[:half] @ w)
        gradient = x[:half].T @ (p - y[:half]) / half + ridge * w
        curve = (x[:half] * (p * (1 - p))[:, None]).T @ x[:half] / half + ridge.diag()
        step = torch.linalg.solve(curve, gradient)
        w = w - step.clamp(-5, 5)
        if step.abs().max() < 1e-8:
            break
    return auc(x[half:] @ w, y[half:])


def separation(x: Tensor, label: Tensor) -> float:
    """Returns tr(S_between) / tr(S_within) of positive and negative rows [n, d]."""
    x = x.double()
    mean = x.mean(0)
    between = within = 0.0
    for side in (label > 0.5, label <= 0.5):
        if side.any():
            centre = x[side].mean(0)
            between += float(side.sum() * (centre - mean).square().sum())
            within += float((x[side] - centre).square().sum())
    return between / within if within > 0 else 0.0


def attention_mass(probability: Tensor, static: int) -> float:
    """Returns the mean attention on the first `static` keys, in percent.

    Args:
        probability: [B, H, Q, S], rows sum to 1; only the queries of sequence positions.
        static: M, how many leading keys are static tokens.
    """
    return 100.0 * float(probability[..., :static].sum(-1).double().mean())
