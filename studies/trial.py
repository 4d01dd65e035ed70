"""A trial: one claimed behaviour, measured once per seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fullrank.config import require, require_positive
from fullrank.evaluate.interval import Interval, student_interval

Verdict = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A claim with a sign: every seed gives a gain, above zero where it agrees with the claim.

    Args:
        name: number of the claim within its study, such as "B1"; unique there.
        claim: one sentence, with the direction that is claimed.
        reference: figures of the paper or of earlier measurements; "-" where there are none.
        measure: seed -> named figures; it draws all its randomness from that seed.
        gain: those figures -> one number.
        seeds: how many.
        comment: what must be said beside the result.
    """

    name: str
    claim: str
    reference: str
    measure: Callable[[int], dict[str, float]]
    gain: Callable[[dict[str, float]], float]
    seeds: int = 5
    comment: str = ""

    def __post_init__(self) -> None:
        require_positive(self, "seeds")
        require(
            bool(self.name) and "/" not in self.name,
            where="Trial.name",
            found=self.name,
            expected="a short name without a slash",
            fix="take the number of the claim, such as B1",
        )


@dataclass(frozen=True)
class Outcome:
    """What the seeds of a trial say together.

    Args:
        gains: one per seed.
        interval: Student's, of the mean gain at 95 %; None with one seed.
    """

    gains: tuple[float, ...]
    interval: Interval | None

    @property
    def verdict(self) -> Verdict:
        """Whether the whole interval lies on the claimed side of zero."""
        if self.interval is None:
            return "undecided"
        if self.interval.low > 0:
            return "holds"
        return "does not hold" if self.interval.high <= 0 else "undecided"


def outcome(gains: list[float]) -> Outcome:
    """Judges the gains of all seeds."""
    return Outcome(tuple(gains), student_interval(gains, 0.95) if len(gains) > 1 else None)
