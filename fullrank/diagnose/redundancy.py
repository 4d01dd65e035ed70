"""Redundancy: how much of one token, expert or operand can be read off another, by correlation.

Correlation is Pearson's, over samples. It does not change when a unit is shifted or scaled, but it
does when an expert is rotated; linear CKA is the other way round. Dead units, which have no
correlation, are left out of every mean and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fullrank.diagnose.accumulate import CrossMoments, Moments
from fullrank.errors import EmptyInputError

WIDEST_MAP = 768  # units that are correlated with one another; more are sampled
DEAD = 1e-6  # standard deviation under which a unit says nothing


@dataclass(frozen=True)
class ExpertCorrelation:
    """The Cross-Expert Correlation of D-MoE (arXiv:2505.17925) and its companions.

    Args:
        cec: mean over pairs of experts of the mean |correlation| of their units.
        matrix: [E, E] mean |correlation|; within an expert, over pairs of different units.
        rowmax: mean over units of the largest |correlation| with a unit of another expert.
        squared: as `cec`, with squares instead of magnitudes.
        cka: mean linear CKA over pairs of experts.
        dead: share of units whose standard deviation is under 1e-6.
    """

    cec: float
    matrix: Tensor
    rowmax: float
    squared: float
    cka: float
    dead: float


class GroupCorrelation:
    """Correlations between the units of G tokens or experts, streamed.

    Args:
        groups: G.
        d: units per group, D.
        seed: of the sample of units that is taken when G * D exceeds 768; the same units of every
            group.
    """

    def __init__(self, groups: int, d: int, seed: int = 0) -> None:
        self.groups = groups
        self.units = min(d, max(1, WIDEST_MAP // groups))
        self.approx = "" if self.units == d else f"units:{self.units}"
        generator = torch.Generator().manual_seed(seed)
        self.chosen = torch.randperm(d, generator=generator)[: self.units].sort().values
        self.moments = Moments(groups * self.units)

    @property
    def n(self) -> int:
        """Rows seen."""
        return self.moments.n

    def update(self, x: Tensor) -> None:
        """Adds samples [B, G, D]."""
        self.moments.update(x[:, :, self.chosen].flatten(1))

    def merge(self, other: GroupCorrelation) -> None:
        """Adds everything that another accumulator has seen."""
        self.moments.merge(other.moments)

    def blocks(self) -> Tensor:
        """Returns [G, U, G, U] correlations, NaN for dead units and of a unit with itself."""
        rho = self.moments.correlation()[0].clamp(-1.0, 1.0)
        dead = self._deviation() < DEAD
        rho[dead], rho[:, dead] = torch.nan, torch.nan
        rho.fill_diagonal_(torch.nan)
        return rho.reshape(self.groups, self.units, self.groups, self.units)

    def map(self) -> Tensor:
        """Returns [G, G]: mean |correlation| between the units of two groups."""
        return self.blocks().abs().nanmean((1, 3))

    def experts(self) -> ExpertCorrelation:
        """Returns the Cross-Expert Correlation and its companions.

        Raises:
            EmptyInputError: there is one expert only; the metric needs a pair.
        """
        if self.groups < 2:
            raise EmptyInputError(
                "the correlation between experts was asked of one expert",
                where="GroupCorrelation.experts",
                found="1 expert",
                expected="at least 2",
                fix="leave the metric out for a single expert",
            )
        rho, g = self.blocks(), self.groups
        first, second = torch.triu_indices(g, g, offset=1)
        pairs = rho[first, :, second]  # [P, U, U]
        magnitude = pairs.abs()
        sides = [magnitude.nan_to_num(0.0).amax(2), magnitude.nan_to_num(0.0).amax(1)]
        alive = (self._deviation() >= DEAD).reshape(g, self.units)
        best = [s[a] for s, a in zip(sides, (alive[first], alive[second]), strict=True)]
        return ExpertCorrelation(
            cec=float(magnitude.nanmean((1, 2)).nanmean()),
            matrix=rho.abs().nanmean((1, 3)),
            rowmax=float(torch.cat(best).mean()),
            squared=float(pairs.square().nanmean((1, 2)).nanmean()),
            cka=self._cka(first, second),
            dead=float((~alive).double().mean()),
        )

    def _cka(self, first: Tensor, second: Tensor) -> float:
        shape = (self.groups, self.units, self.groups, self.units)
        m2 = self.moments.m2[0].reshape(shape)
        energy = m2.square().sum((1, 3))  # [G, G], ||X_i^T X_j||_F^2
        own = energy.diagonal().clamp(min=1e-300).sqrt()
        return float((energy[first, second] / (own[first] * own[second])).mean())

    def _deviation(self) -> Tensor:
        n = max(1, self.moments.n)
        return (self.moments.m2[0].diagonal().clamp(min=0.0) / n).sqrt()


class Redundancy:
    """Pearson redundancy between the two operands of an interaction (GE4Rec, section 6.1).

    Args:
        fields: F.
        d: width of one field on either side.
    """

    def __init__(self, fields: int, d: int) -> None:
        self.shape = (fields, d, fields, d)
        self.moments = CrossMoments(fields * d, fields * d)

    def update(self, left: Tensor, right: Tensor) -> None:
        """Adds rows [B, F*D] of both operands."""
        self.moments.update(left, right)

    def correlation(self) -> Tensor:
        """Returns R [F*D, F*D]; 0 for constant columns, as the published script does."""
        return self.moments.correlation().nan_to_num(0.0)

    def summary(self) -> dict[str, float]:
        """Returns `red_mean` over all entries, `red_diag` within a field, `red_off` between."""
        return block_summary(self.correlation().abs().reshape(self.shape))

    def map(self) -> Tensor:
        """Returns [F, F]: mean |R| of every block."""
        return self.correlation().abs().reshape(self.shape).mean((1, 3))


def block_summary(magnitude: Tensor) -> dict[str, float]:
    """Returns the means of |R| [F, D, F, D]: over all, within a field, and between fields.

    NaN entries, such as a unit with itself, count nowhere.
    """
    within = magnitude.diagonal(dim1=0, dim2=2)  # [D, D, F]
    total, count = magnitude.nansum(), magnitude.isfinite().sum()
    own, inside = within.nansum(), within.isfinite().sum()
    return {
        "red_mean": float(total / count.clamp(min=1)),
        "red_diag": float(own / inside.clamp(min=1)),
        "red_off": float((total - own) / (count - inside).clamp(min=1)),
    }


def off_diagonal_mean(square: Tensor) -> float:
    """Returns the mean of a [G, G] map without its diagonal and without NaN."""
    away = ~torch.eye(len(square), dtype=torch.bool)
    return float(square[away].nanmean())
