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


def decorrelation(
    h: Tensor,
    *,
    reduction: Reduction = "abs_mean",
    pairs: Pairs = "distinct",
    stop_gradient: bool = False,
    eps: float = EPS,
) -> Tensor:
    """Measures how much of one expert can be read off another, as a loss to minimise.

    With R the Pearson correlations [D, D] of a pair of experts, over the rows, the mean over pairs
    of:

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

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 1.0], [3.0, 0.0]])  # two uncorrelated units
        >>> round(decorrelation(torch.stack([x, x], dim=1)).item(), 3)
        0.5
    """
    numbers = range(h.shape[1])
    chosen = [(p, q) for p in numbers for q in numbers if pairs == "all" or p < q]
    over = (0, 2) if reduction == "pooled" else (0,)
    x = h - h.mean(over, keepdim=True)  # [B, E, D]
    deviation = (x.square().mean(over) + eps).sqrt()  # [E, D]; pooled [E]
    fixed = (x.detach(), deviation.detach()) if stop_gradient else (x, deviation)
    terms = [
        _term(fixed[0][:, p], x[:, q], fixed[1][p], deviation[q], reduction, eps) for p, q in chosen
    ]
    total = torch.stack(terms).sum()
    return total if reduction == "cov_l1" else total / len(chosen)


def _term(x: Tensor, y: Tensor, sx: Tensor, sy: Tensor, reduction: Reduction, eps: float) -> Tensor:
    """Returns the term of one pair of centred experts [B, D] with their deviations."""
    # cost: deviations divide what was summed up, [D, D], which is less to pass over than [B, D]
    rows = x.shape[0]
    match reduction:
        case "abs_mean":
            return (x.T @ y / rows / torch.outer(sx, sy)).abs().mean()
        case "sq_mean":
            return (x.T @ y / rows / torch.outer(sx, sy)).square().mean()
        case "diag_abs":
            return ((x * y).mean(0) / (sx * sy)).abs().mean()
        case "pooled":
            return ((x * y).mean() / (sx * sy)).abs()
        case "cka":
            own = (_energy(x, x) + eps**2).sqrt() * (_energy(y, y) + eps**2).sqrt()
            return _energy(x, y) / own
        case "cov_l1":
            return (x.T @ y).abs().mean()


def _energy(x: Tensor, y: Tensor) -> Tensor:
    """Returns the squared Frobenius norm of the covariance of two centred experts."""
    return (x.T @ y / x.shape[0]).square().sum()


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
