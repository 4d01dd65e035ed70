"""Streaming estimators with bounded memory: A1 to A6 of the diagnostics contract.

All state is float64 on the CPU. `update` takes chunks of any size; `merge` adds another
accumulator, so that the result does not depend on how rows were cut. `stages.Spectrum` chooses.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from fullrank.errors import EmptyInputError
from fullrank.ops.spectrum import FLOOR, SCALARS

SQUARED_FLOOR = 3.5e-8  # sigma / sigma_1 accurate to 1 % through a float64 Gram matrix


class Gram:
    """A1: n, column sums s and G = X^T X. Memory 8 (d^2 + d) bytes.

    trap: G - s s^T / n cancels when the mean is large; `Moments` does not.

    Args:
        d: columns.
        dtype: float64, or a smaller one to show what it loses.
    """

    name = "A1"
    floor = SQUARED_FLOOR

    def __init__(self, d: int, dtype: torch.dtype = torch.float64) -> None:
        self.n = 0
        self.sum = torch.zeros(d, dtype=dtype)
        self.gram = torch.zeros(d, d, dtype=dtype)

    def update(self, x: Tensor) -> None:
        """Adds rows [n, d]."""
        x = x.detach().to("cpu", self.gram.dtype)
        self.n += x.shape[0]
        self.sum += x.sum(0)
        self.gram += x.T @ x

    def merge(self, other: Gram) -> None:
        """Adds everything that another accumulator has seen."""
        self.n += other.n
        self.sum += other.sum
        self.gram += other.gram

    def singular_values(self, *, center: bool) -> Tensor:
        """Returns [d], largest first."""
        require_rows(self.n, "Gram")
        gram = self.gram
        if center:
            gram = gram - torch.outer(self.sum, self.sum) / self.n
        return _root_eigenvalues(gram)


class Moments:
    """A2: n, mean and M2 = X_c^T X_c by the update of Chan et al. (1983), for G matrices at once.

    The uncentred spectrum comes from M2 + n mu mu^T: a sum of two positive parts, nothing cancels.

    Args:
        d: columns.
        groups: G independent matrices of one width, such as the tokens of a layer.
    """

    name = "A2"
    floor = SQUARED_FLOOR

    def __init__(self, d: int, groups: int = 1) -> None:
        self.n = 0
        self.mean = torch.zeros(groups, d, dtype=torch.float64)
        self.m2 = torch.zeros(groups, d, d, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Adds rows: [n, d], or [G, n, d]."""
        x = x.detach().to("cpu", torch.float64).reshape(len(self.mean), -1, self.mean.shape[1])
        if x.shape[1] == 0:
            return
        mean = x.mean(1)  # [G, d]
        x = x - mean[:, None]
        self._add(x.shape[1], mean, x.transpose(1, 2) @ x)

    def merge(self, other: Moments) -> None:
        """Adds everything that another accumulator has seen."""
        if other.n:
            self._add(other.n, other.mean, other.m2)

    def _add(self, n: int, mean: Tensor, m2: Tensor) -> None:
        total = self.n + n
        delta = mean - self.mean  # [G, d]
        self.m2 += m2 + delta[:, :, None] * delta[:, None, :] * (self.n * n / total)
        self.mean += delta * (n / total)
        self.n = total

    def singular_values(self, *, center: bool) -> Tensor:
        """Returns [G, d], largest first; [d] when G is 1."""
        require_rows(self.n, "Moments")
        m2 = self.m2
        if not center:
            m2 = m2 + self.n * self.mean[:, :, None] * self.mean[:, None, :]
        s = torch.stack([_root_eigenvalues(part) for part in m2])
        return s[0] if len(s) == 1 else s

    def correlation(self) -> Tensor:
        """Returns Pearson correlations [G, d, d]; NaN in the rows of constant columns."""
        require_rows(self.n, "Moments")
        scale = deviations(self.m2.diagonal(dim1=1, dim2=2), self.mean, self.n)
        return self.m2 / (scale[:, :, None] * scale[:, None, :])


class StreamingQR:
    """A3: the triangular factor R of the rows seen so far (TSQR). Nothing is squared.

    Rows are stored as [1, x - reference] with a fixed reference, the mean of the first chunk. The
    column of ones makes one pass give both spectra exactly: the trailing block of R is the factor
    of the centred matrix, and adding the reference back gives the uncentred one.

    Args:
        d: columns.
    """

    name = "A3"
    floor = FLOOR

    def __init__(self, d: int) -> None:
        self.n = 0
        self.reference: Tensor | None = None
        self.r = torch.zeros(0, d + 1, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Adds rows [n, d]."""
        x = x.detach().to("cpu", torch.float64)
        if x.shape[0] == 0:
            return
        if self.reference is None:
            self.reference = x.mean(0)
        ones = torch.ones(x.shape[0], 1, dtype=torch.float64)
        self._fold(torch.cat([ones, x - self.reference], 1))
        self.n += x.shape[0]

    def merge(self, other: StreamingQR) -> None:
        """Adds everything that another accumulator has seen."""
        if other.reference is None:
            return
        if self.reference is None:
            self.reference = other.reference
        shift = other.reference - self.reference
        moved = other.r.clone()
        moved[:, 1:] += other.r[:, :1] * shift
        self._fold(moved)
        self.n += other.n

    def _fold(self, rows: Tensor) -> None:
        self.r = torch.linalg.qr(torch.cat([self.r, rows]), mode="r").R

    def factor(self, *, center: bool) -> Tensor:
        """Returns a matrix [<= d + 1, d] with the singular values and row space of X or X_c."""
        require_rows(self.n, "StreamingQR")
        assert self.reference is not None
        if center:
            return self.r[1:, 1:]
        return self.r[:, 1:] + self.r[:, :1] * self.reference

    def singular_values(self, *, center: bool) -> Tensor:
        """Returns [d], largest first; zeros where there were fewer rows than columns."""
        d = self.r.shape[1] - 1
        out = torch.zeros(d, dtype=torch.float64)
        factor = self.factor(center=center)
        if factor.shape[0]:
            s = torch.linalg.svdvals(factor)[:d]
            out[: len(s)] = s
        return out


class TokenSpectra:
    """A4: measures of the T x D matrix of every single sample, as sums and a histogram.

    The singular values come from the smaller Gram matrix, so that one sample costs min(T, D)^3;
    what lies under 1e-8 of the largest is rounding.

    Args:
        tokens: T.
        d: D.
        center: subtract the token mean of each sample, which leaves min(T - 1, D) directions. A
            sample whose tokens are then under a millionth of what they were has measure 0.
    """

    name = "A4"
    floor = SQUARED_FLOOR
    measures = ("erank", "stable_rank", "ia")
    bins = 256

    def __init__(self, tokens: int, d: int, *, center: bool = False) -> None:
        self.n, self.center = 0, center
        self.bound = min(tokens - center, d)
        self.total = torch.zeros(len(self.measures), dtype=torch.float64)
        self.square = torch.zeros_like(self.total)
        self.histogram = torch.zeros(len(self.measures), self.bins, dtype=torch.int64)

    def update(self, x: Tensor) -> None:
        """Adds samples [B, T, D]."""
        values = self.of_samples(x)  # [measures, B]
        self.n += values.shape[1]
        self.total += values.sum(1)
        self.square += values.square().sum(1)
        width = max(self.bound - 1, 1e-9) / self.bins
        place = ((values - 1) / width).floor().clamp(0, self.bins - 1).long()
        self.histogram += torch.stack([torch.bincount(p, minlength=self.bins) for p in place])

    def of_samples(self, x: Tensor) -> Tensor:
        """Returns the measures [measures, B] of samples [B, T, D]."""
        x = x.detach().to("cpu", torch.float64)
        if self.center:
            whole, x = x, x - x.mean(1, keepdim=True)
            left, energy = (v.square().sum((1, 2), keepdim=True) for v in (x, whole))
            x = torch.where(left > 1e-12 * energy, x, 0.0)  # else rounding, which has full rank
        gram = x @ x.transpose(1, 2) if x.shape[1] <= x.shape[2] else x.transpose(1, 2) @ x
        s = _root_eigenvalues(gram)  # [B, min(T, D)]
        return torch.stack([SCALARS[name](s) for name in self.measures])

    def merge(self, other: TokenSpectra) -> None:
        """Adds everything that another accumulator has seen."""
        self.n += other.n
        self.total += other.total
        self.square += other.square
        self.histogram += other.histogram

    def mean(self, measure: str) -> float:
        """Returns the mean over samples."""
        require_rows(self.n, "TokenSpectra")
        return float(self.total[self.measures.index(measure)] / self.n)

    def std(self, measure: str) -> float:
        """Returns the population standard deviation over samples."""
        spread = float(self.square[self.measures.index(measure)] / self.n)
        return math.sqrt(max(0.0, spread - self.mean(measure) ** 2))

    def quantile(self, measure: str, q: float) -> float:
        """Returns a quantile, to the width of a bin: (bound - 1) / 256."""
        counts = self.histogram[self.measures.index(measure)]
        place = int(torch.searchsorted(counts.cumsum(0), q * self.n).clamp(max=self.bins - 1))
        return 1 + (place + 0.5) * (self.bound - 1) / self.bins


class CrossMoments:
    """A5: Pearson correlation of every column of A with every column of B, by Chan's update.

    Args:
        left: columns of A.
        right: columns of B.
    """

    name = "A5"
    floor = 0.0

    def __init__(self, left: int, right: int) -> None:
        self.n = 0
        self.mean = torch.zeros(left, dtype=torch.float64), torch.zeros(right, dtype=torch.float64)
        self.square = tuple(torch.zeros_like(m) for m in self.mean)
        self.cross = torch.zeros(left, right, dtype=torch.float64)

    def update(self, a: Tensor, b: Tensor) -> None:
        """Adds aligned rows [n, left] and [n, right]."""
        if a.shape[0] == 0:
            return
        pair = [x.detach().to("cpu", torch.float64) for x in (a, b)]
        mean = [x.mean(0) for x in pair]
        pair = [x - m for x, m in zip(pair, mean, strict=True)]
        square = [x.square().sum(0) for x in pair]
        self._add(a.shape[0], mean, square, pair[0].T @ pair[1])

    def merge(self, other: CrossMoments) -> None:
        """Adds everything that another accumulator has seen."""
        if other.n:
            self._add(other.n, list(other.mean), list(other.square), other.cross)

    def _add(self, n: int, mean: list[Tensor], square: list[Tensor], cross: Tensor) -> None:
        total = self.n + n
        weight = self.n * n / total
        delta = [new - old for new, old in zip(mean, self.mean, strict=True)]
        self.cross += cross + torch.outer(delta[0], delta[1]) * weight
        for i in range(2):
            self.square[i].add_(square[i] + delta[i].square() * weight)
            self.mean[i].add_(delta[i] * (n / total))
        self.n = total

    def correlation(self) -> Tensor:
        """Returns [left, right] in [-1, 1]; NaN in the row or column of a constant one."""
        require_rows(self.n, "CrossMoments")
        left, right = (
            deviations(s, m, self.n) for s, m in zip(self.square, self.mean, strict=True)
        )
        return (self.cross / (left[:, None] * right[None, :])).clamp(-1.0, 1.0)


class JointCounts:
    """A6: how often cluster a of one variable meets cluster b of another.

    Args:
        left: K_a clusters.
        right: K_b clusters.
    """

    name = "A6"
    floor = 0.0

    def __init__(self, left: int, right: int) -> None:
        self.counts = torch.zeros(left, right, dtype=torch.int64)

    def update(self, a: Tensor, b: Tensor) -> None:
        """Adds aligned cluster numbers [n]."""
        k = self.counts.shape[1]
        flat = torch.bincount(a.cpu().long() * k + b.cpu().long(), minlength=self.counts.numel())
        self.counts += flat.reshape_as(self.counts)

    def merge(self, other: JointCounts) -> None:
        """Adds everything that another accumulator has seen."""
        self.counts += other.counts


def _root_eigenvalues(gram: Tensor) -> Tensor:
    try:
        values: Tensor = torch.linalg.eigvalsh(gram)
    except RuntimeError as cause:  # no convergence: a ridge far below the floor decides it
        warnings.warn(f"eigenvalues with a ridge of 1e-12 tr(G)/d: {cause}", stacklevel=3)
        size = gram.shape[-1]
        ridge = 1e-12 * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        values = torch.linalg.eigvalsh(gram + ridge * torch.eye(size, dtype=gram.dtype))
    return values.clamp(min=0.0).sqrt().flip(-1)


def deviations(m2: Tensor, mean: Tensor, n: int) -> Tensor:
    """Returns sqrt(m2), and NaN where what is left is the rounding error of a constant column.

    Args:
        m2: [...] sums of squared deviations.
        mean: [...] means of the same columns.
        n: rows.
    """
    noise = n * (1e-6 * mean.abs().clamp(min=1e-6)).square()
    return torch.where(m2 > noise, m2, torch.nan).sqrt()


def require_rows(n: int, where: str) -> None:
    """Raises an EmptyInputError when nothing was accumulated."""
    if n == 0:
        raise EmptyInputError(
            "a measurement was asked of no rows",
            where=where,
            found="0 rows",
            expected="at least one",
            fix="let the probe see at least one batch first",
        )
