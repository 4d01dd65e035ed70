"""Scalar measures of a spectrum: how many directions a set of vectors really uses.

All but `effective_rank` take singular values `s` [..., R], in any order, zeros allowed, and return
[...] in float64. All are unchanged by the scale of `s`, except `svs`. A spectrum of zeros has
measure 0: there is no direction at all.

For every spectrum with r non-zero values, and for none in another order:

    1 <= stable_rank <= information_abundance <= erank <= r
         stable_rank <= participation_ratio   <= erank2 <= erank
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fullrank.errors import EmptyInputError

FLOOR = 1e-10  # sigma / sigma_1 down to which streaming QR in float64 is accurate to 1 %


def effective_rank(x: Tensor, *, center: bool = True) -> Tensor:
    """Measures how many directions a set of vectors really uses.

    The exponential of the entropy of the normalised singular values (Roy & Vetterli, 2007).
    Between 1, all vectors on one line, and min(M, D), equal spread. Rotation and scale change
    nothing.

    Args:
        x: [M, D] floating point; M should exceed D, or M is the ceiling.
        center: subtract the mean row first, so that a common offset is not counted as a direction.

    Returns:
        A scalar in [1, min(M, D)], float64; 0 when x, centred, is all zeros.

    Raises:
        EmptyInputError: x has no rows. Let the probe see at least one batch before asking for a
            report.

    Example:
        >>> round(effective_rank(torch.eye(4), center=False).item(), 4)
        4.0
    """
    return erank(singular_values(x, center=center))


def singular_values(x: Tensor, *, center: bool) -> Tensor:
    """Returns the singular values [..., min(M, D)] of [..., M, D], largest first, in float64.

    Raises:
        EmptyInputError: x has no rows or no columns.
    """
    if 0 in x.shape[-2:]:
        raise EmptyInputError(
            "a spectrum was asked of nothing",
            where="singular_values",
            found=f"a matrix of shape {tuple(x.shape)}",
            expected="at least one row and one column",
            fix="let the probe see at least one batch first",
        )
    x = x.double()
    if center:
        x = x - x.mean(-2, keepdim=True)
    s: Tensor = torch.linalg.svdvals(x)
    return s


def erank(s: Tensor) -> Tensor:
    """Returns exp(-sum p log p) with p = s / sum s: the effective rank (Roy & Vetterli, 2007)."""
    return _exp_entropy(_shares(s.double()), s)


def erank2(s: Tensor) -> Tensor:
    """Returns exp(-sum q log q) with q = s^2 / sum s^2: the effective rank of the energy."""
    return _exp_entropy(_shares(_unit(s).square()), s)


def rankme(s: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Returns the effective rank with eps added to every share after normalising.

    For like-for-like comparison with published scripts only: on a spectrum of 4,096 directions the
    epsilon alone adds up to 6.6e-3 nats.
    """
    p = _shares(s.double()) + eps
    return torch.where(_alive(s), (-(p * p.log()).sum(-1)).exp(), 0.0)


def information_abundance(s: Tensor) -> Tensor:
    """Returns sum s / max s (Guo et al., arXiv:2310.04400)."""
    return _unit(s).sum(-1)


def stable_rank(s: Tensor) -> Tensor:
    """Returns sum s^2 / max s^2, the squared Frobenius norm over the squared spectral norm."""
    return _unit(s).square().sum(-1)


def participation_ratio(s: Tensor) -> Tensor:
    """Returns (sum s^2)^2 / sum s^4."""
    squares = _unit(s).square()
    fourth = squares.square().sum(-1)
    return torch.where(_alive(s), squares.sum(-1).square() / fourth.clamp(min=1e-300), 0.0)


def svs(s: Tensor) -> Tensor:
    """Returns sum s, the nuclear norm; it grows with the scale of the matrix."""
    return s.double().sum(-1)


def dead_fraction(s: Tensor, tau: float) -> Tensor:
    """Returns the share of the R directions with s < tau * max s; 1 when all are zero."""
    unit = _unit(s)
    return torch.where(_alive(s), (unit < tau).double().mean(-1), 1.0)


def top_energy(s: Tensor, m: int) -> Tensor:
    """Returns the share of the energy sum s^2 held by the m largest singular values."""
    return _shares(_unit(s).square()).sort(-1, descending=True).values[..., :m].sum(-1)


def nerank(s: Tensor, bound: float) -> Tensor:
    """Returns the effective rank over what is attainable.

    Args:
        s: [..., R].
        bound: min(n, d); d - 1 for rows that leave a LayerNorm with constant gain.
    """
    return erank(s) / bound


def log_spectrum(s: Tensor, *, floor: float = FLOOR) -> Tensor:
    """Returns log(s / max s), largest first, never below log(floor).

    Values at log(floor) mean "at or below the floor of the estimator", not that number.

    Args:
        s: [..., R].
        floor: s / max s down to which the estimator can be trusted.

    Returns:
        [..., R] natural logarithms, at most 0.
    """
    return _unit(s).sort(-1, descending=True).values.clamp(min=floor).log()


def covariance_log_spectrum(s: Tensor, *, floor: float = FLOOR) -> Tensor:
    """Returns log of the covariance's singular values over the largest: twice `log_spectrum`.

    Args:
        s: [..., R] singular values of the *centred data matrix*. The covariance has s^2 / n.
        floor: on s / max s, not on its square.
    """
    return 2.0 * log_spectrum(s, floor=floor)


SCALARS: dict[str, Callable[[Tensor], Tensor]] = {
    "erank": erank,
    "rankme": rankme,
    "ia": information_abundance,
    "stable_rank": stable_rank,
    "pr": participation_ratio,
    "erank2": erank2,
    "svs": svs,
    "top_energy@1": lambda s: top_energy(s, 1),
    "top_energy@10": lambda s: top_energy(s, 10),
    "dead_fraction@1e-2": lambda s: dead_fraction(s, 1e-2),
    "dead_fraction@1e-3": lambda s: dead_fraction(s, 1e-3),
    "dead_fraction@1e-5": lambda s: dead_fraction(s, 1e-5),
}
"""Name in a record -> measure. `nerank` and `log_spectrum` need more than the values."""

TAIL = frozenset({"dead_fraction@1e-5", "log_spectrum", "cov_log_spectrum"})
"""Measures that need singular values below 1e-4 of the largest: streaming QR only."""


def _alive(s: Tensor) -> Tensor:
    return s.amax(-1) > 0


def _unit(s: Tensor) -> Tensor:
    """Returns s / max s; dividing first keeps squares of tiny or huge spectra in range."""
    s = s.double()
    top = s.amax(-1, keepdim=True)
    return torch.where(top > 0, s / top.clamp(min=torch.finfo(s.dtype).tiny), 0.0)


def _shares(s: Tensor) -> Tensor:
    unit = _unit(s)
    total = unit.sum(-1, keepdim=True)
    return torch.where(total > 0, unit / total.clamp(min=1e-300), 0.0)


def _exp_entropy(p: Tensor, s: Tensor) -> Tensor:
    return torch.where(_alive(s), (-torch.special.xlogy(p, p).sum(-1)).exp(), 0.0)
