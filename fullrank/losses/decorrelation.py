"""De-correlation of experts: a loss that is zero when no unit of one expert predicts another's.

D-MoE, arXiv:2505.17925, gives its loss in words; the formulas are our reading of them. The
covariance form is that of its predecessor Crocodile, arXiv:2405.12706.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fullrank.config import require, require_between

Reduction = Literal["abs_mean", "sq_mean", "diag_abs", "cov_l1", "pooled", "cka"]
Pairs = Literal["distinct", "all"]

EPS = 1e-6  # added to variances, so that a constant unit has a value and a gradient


@dataclass(frozen=True, kw_only=True)
class Decorrelation:
    """The loss that keeps experts apart.

    Args:
        weight: lambda; the reported loss is already multiplied by it.
        reduction, pairs, stop_gradient: see `decorrelation`.
        hook: what is compared: "z", the interactions, which must have one width; "h", the
            projected outputs; "ah", those times their gate.
        rows: compare the first rows of each batch only; None compares all.
        warmup_steps: the weight rises linearly over so many training steps, because correlations
            at the start are noise.
    """

    weight: float = 0.1
    reduction: Reduction = "abs_mean"
    hook: Literal["z", "h", "ah"] = "h"
    rows: int | None = None
    stop_gradient: bool = False
    warmup_steps: int = 500
    pairs: Pairs = "distinct"

    def __post_init__(self) -> None:
        require(
            self.weight > 0,
            where="Decorrelation.weight",
            found=self.weight,
            expected="above zero",
            fix="raise it, or leave the loss out with decorrelation=None",
        )
        require_between(self, 0, 10**9, "warmup_steps")
        require(
            self.rows is None or self.rows >= 2,
            where="Decorrelation.rows",
            found=self.rows,
            expected="at least 2: one row has no correlation",
            fix="set 32 or more, or None for all rows",
        )
        require(
            self.pairs == "distinct" or not self.stop_gradient,
            where="Decorrelation.stop_gradient",
            found="True with pairs='all'",
            expected="False: both orders of a pair are there, so no side is spared",
            fix="set pairs='distinct', or stop_gradient=False",
        )


def cross_correlation(left: Tensor, right: Tensor, eps: float = EPS) -> Tensor:
    """Correlates every unit of one expert with every unit of another, over the rows.

    Args:
        left: [B, D] floating point.
        right: [B, D], of the other expert.
        eps: added to each variance.

    Returns:
        [D, D] Pearson correlations, rows from `left`; 0 for constant units.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 1.0], [3.0, 0.0]])
        >>> cross_correlation(x, x).round(decimals=3).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    return _standard(left, eps).T @ _standard(right, eps) / left.shape[0]


def decorrelation(
    h: Tensor,
    *,
    reduction: Reduction = "abs_mean",
    pairs: Pairs = "distinct",
    stop_gradient: bool = False,
    eps: float = EPS,
) -> Tensor:
    """Measures how much of one expert can be read off another, as a loss to minimise.

    With R the correlations [D, D] of a pair of experts, the mean over pairs of:

        abs_mean   mean |R|
        sq_mean    mean R^2
        diag_abs   mean |R_aa|, unit a with unit a only
        pooled     |Pearson| of the two outputs, each laid out as B * D numbers
        cka        linear centred kernel alignment, ||X'Y||^2 / (||X'X|| ||Y'Y||)
        cov_l1     sum over pairs of mean |X'Y|, centred but neither scaled nor divided by B: the
                   predecessor's, whose published weights (2e-5 and more) hold for one batch size

    trap: |R| of independent units is sqrt(2 / (pi B)), not zero: 0.035 at 512 rows, 0.14 at 32.
    trap: units have no order, so `diag_abs` and `pooled` are blind to an expert that is copied
    and permuted.

    Args:
        h: [B, E, D] outputs of at least two experts.
        reduction: which of the above.
        pairs: "distinct" takes every pair of different experts once; "all" every ordered pair
            and each expert with itself, which shrinks the variance of `cov_l1`.
        stop_gradient: the earlier expert of a pair stays, the later one moves away.
        eps: added to variances.

    Returns:
        A scalar.
    """
    numbers = range(h.shape[1])
    chosen = [(p, q) for p in numbers for q in numbers if pairs == "all" or p < q]
    first = (h.detach() if stop_gradient else h).unbind(1)
    second = h.unbind(1)
    terms = torch.stack([_term(first[p], second[q], reduction, eps) for p, q in chosen])  # [P]
    return terms.sum() if reduction == "cov_l1" else terms.mean()


def _term(left: Tensor, right: Tensor, reduction: Reduction, eps: float) -> Tensor:
    match reduction:
        case "abs_mean":
            return cross_correlation(left, right, eps).abs().mean()
        case "sq_mean":
            return cross_correlation(left, right, eps).square().mean()
        case "diag_abs":
            return (_standard(left, eps) * _standard(right, eps)).mean(0).abs().mean()
        case "pooled":
            flat = left.reshape(-1, 1), right.reshape(-1, 1)  # [B * D, 1]
            return cross_correlation(*flat, eps).abs().squeeze()
        case "cka":
            own = _energy(left, left).sqrt() + eps, _energy(right, right).sqrt() + eps
            return _energy(left, right) / (own[0] * own[1])
        case "cov_l1":
            return (_centred(left).T @ _centred(right)).abs().mean()


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def _standard(x: Tensor, eps: float) -> Tensor:
    x = _centred(x)
    return x * torch.rsqrt(x.square().mean(0) + eps)


def _energy(left: Tensor, right: Tensor) -> Tensor:
    """Squared Frobenius norm of the covariance of two experts; its root has a gradient at zero."""
    covariance = _centred(left).T @ _centred(right) / left.shape[0]  # [D, D]
    return covariance.square().sum() + EPS**2


class DecorrelationLoss(nn.Module):
    """The loss with its weight and its warm-up, whose step counter is part of the state.

    Args:
        config: settings.
        widths: Q of each kind of interaction.

    Raises:
        ConfigError: interactions are to be compared, and differ in width.
    """

    steps: Tensor  # training calls so far

    def __init__(self, config: Decorrelation, widths: Mapping[str, int]) -> None:
        super().__init__()
        require(
            config.hook != "z" or len(set(widths.values())) == 1,
            where="Decorrelation.hook",
            found="'z' with " + ", ".join(f"{kind} {q} wide" for kind, q in widths.items()),
            expected="interactions of one width",
            fix="set hook='h', which is behind the projections, or take experts of one width",
        )
        self.config = config
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, z: list[Tensor], h: Tensor, a: Tensor) -> Tensor:
        """Returns the weighted loss; a training call also counts a step.

        Args:
            z: E interactions [B, Q].
            h: [B, E, D], projected.
            a: [B, E, 1] or [B, E, D], gate.
        """
        c = self.config
        if self.training:
            self.steps.add_(1)
        compared = torch.stack(z, dim=1) if c.hook == "z" else a * h if c.hook == "ah" else h
        term = decorrelation(
            compared[: c.rows], reduction=c.reduction, pairs=c.pairs,
            stop_gradient=c.stop_gradient,
        )  # fmt: skip
        share = (self.steps / c.warmup_steps).clamp(max=1.0) if c.warmup_steps else 1.0
        return c.weight * share * term
