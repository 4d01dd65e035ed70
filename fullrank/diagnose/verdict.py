"""Verdicts: what the numbers mean, in words, where a user's real complaint is collapse.

Effective rank is judged against a healthy ceiling: that of Gaussian noise of the same shape, which
is measured here and is below the algebraic bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median
from typing import Literal

import numpy as np
import torch

from fullrank.diagnose.accumulate import TokenSpectra
from fullrank.diagnose.records import Findings, Record
from fullrank.ops import spectrum

ALIKE = 1e-3  # share of a table's energy beyond its mean row
ONE_SCORE = 0.02  # standard deviation of logits: 2 % of the odds
POOR = 0.25  # of a table's healthy ceiling
# A table's share of its ceiling over the median of its peers, by contrast on trained models. With
# a planted field of two values (`simulated_collapse` at 8 and 16; five models): users 0.51 to 0.70
# (at width 5, which leaves little to lose, 0.71 and 0.78), the other tables 0.75 and more, 0.84 up
# to width 16. Nothing planted: 0.94 at dial 0, 0.81 and more for crosses and token mixing on
# Frappe, MovieLens and Census, 0.74 with the strongest weight decay and on the demo's log, 0.98
# before training. FM and SFG around FM fall to 0.47 on MovieLens, and to 2 to 5 directions of 10.
# The dial at 4 has 0.78 and is not named: the line spares what is healthy.
FALLEN = 0.72
MANY = 50  # values of a field; of fewer, a handful that are frequent make up the table
LOST = 0.55  # of the rank that reached a stage
FEW = 2.0  # effective rank of a stage of eight directions or more
LARGEST_REFERENCE = 1024  # columns of a Gaussian reference; the share of the bound barely changes

PULLED_DOWN = (
    "An interaction with a field of few values can pull a table down: compare with a projected "
    "interaction (PFL), tables of its own for each expert (D-MoE) or generated operands (SFG), "
    "each beside a control of as many parameters"
)

Level = Literal["collapse", "warning", "healthy"]


@dataclass(frozen=True)
class Verdict:
    """One judgement.

    Args:
        level: "collapse" breaks the model, "warning" costs quality, "healthy" is neither.
        what: one clause.
        where: score, table, field or tap.
        measured: the numbers, with what they were measured on.
        advice: what to do next.
    """

    level: Level
    what: str
    where: str
    measured: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what} ({self.where}): {self.measured}. {self.advice}"


@dataclass(frozen=True)
class Stage:
    """The effective rank of one tap, next to what a healthy one would have.

    Args:
        name: of the tap.
        erank: mean over fields or tokens; of the whole matrix otherwise.
        ceiling: the same for Gaussian noise of the same shape and attainable rank.
        bound: the attainable rank.
        leaving: what the next stage receives: of all fields together where it stacks them.
        n: rows.
    """

    name: str
    erank: float
    ceiling: float
    bound: float
    leaving: float
    n: int

    @property
    def share(self) -> float:
        """What is left of the ceiling."""
        return self.erank / self.ceiling


def judge(findings: Findings) -> list[Verdict]:
    """Returns the verdicts on the newest pass, the worst first; at least one."""
    newest = findings.latest()
    found = [
        *_scores(newest),
        *_tables(newest),
        *_stages(newest),
        *_head(newest),
        *_experts(newest),
    ]
    order = {"collapse": 0, "warning": 1, "healthy": 2}
    if not found:
        found = [_healthy(newest)]
    return sorted(found, key=lambda v: order[v.level])


@lru_cache(maxsize=256)
def gaussian_ceiling(n: int, d: int, metric: str = "erank") -> float:
    """Returns a measure of an n x d Gaussian matrix: the healthy ceiling of that shape.

    cost: one d x d decomposition whatever n, by Bartlett's triangular factor. Beyond 1,024 columns
    the share of the bound is taken from a matrix of 1,024 with the same n / d.

    Args:
        n: rows.
        d: columns.
        metric: a name of `spectrum.SCALARS`.
    """
    n, d = max(1, n), max(1, d)
    k, m = min(n, d), max(n, d)
    if k > LARGEST_REFERENCE:
        small = gaussian_ceiling(round(m * LARGEST_REFERENCE / k), LARGEST_REFERENCE, metric)
        return small * k / LARGEST_REFERENCE
    rng = np.random.default_rng(0)
    lower = np.tril(rng.standard_normal((k, k)), -1)
    lower[np.diag_indices(k)] = np.sqrt(rng.chisquare(m - np.arange(k)))
    return float(spectrum.SCALARS[metric](torch.linalg.svdvals(torch.from_numpy(lower))))


@lru_cache(maxsize=64)
def gaussian_tokens(tokens: int, d: int, metric: str = "erank") -> float:
    """Returns the mean measure of Gaussian T x D samples: the healthy ceiling of M4."""
    generator = torch.Generator().manual_seed(0)
    seen = TokenSpectra(tokens, d)
    seen.update(torch.randn(64, tokens, d, generator=generator, dtype=torch.float64))
    return seen.mean(metric)


def stage_ranks(findings: Findings, *, centred: bool = True) -> list[Stage]:
    """Returns the taps in the order in which the model passes them, without branches."""
    rows: dict[str, list[Record]] = {}
    for r in findings.find(metric="erank", centred=centred, row_norm="none"):
        kind = r.matrix_kind.partition(":")[0]
        if kind in ("batch_field", "token_batch", "batch_flat", "seq_tokens", "head_in"):
            rows.setdefault(r.hook, []).append(r)
    out = []
    for hook, found in rows.items():
        if hook.endswith("_branch"):
            continue
        many = [r for r in found if r.matrix_kind.startswith(("batch_field", "token_batch"))]
        # A field with two values has one direction whatever the model does: it says nothing.
        each = [r for r in many or found if r.bound > 1 and r.value is not None]
        if not each:
            continue
        rank = _mean([r.value or 0.0 for r in each])
        stacked = [r.value for r in found if r.matrix_kind.startswith("batch_flat") and r.value]
        out.append(
            Stage(
                name=hook,
                erank=rank,
                ceiling=_mean([gaussian_ceiling(r.n, int(r.bound)) for r in each]),
                bound=_mean([r.bound for r in each]),
                leaving=stacked[0] if stacked else rank,
                n=each[0].n,
            )
        )
    # A stage of tokens gets its fields one group at a time, not all of them stacked.
    for i, (a, b) in enumerate(itertools.pairwise(out)):
        if any(r.matrix_kind.startswith("token_batch") for r in rows[b.name]):
            out[i] = replace(a, leaving=a.erank)
    return out


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _scores(findings: Findings) -> Iterator[Verdict]:
    for std in findings.find(metric="score_std"):
        label = std.matrix_kind.partition(":")[2]
        where = f"score of '{label}', {std.n:,} rows of {std.split}"
        kind = {"matrix_kind": std.matrix_kind}
        same = findings.value(metric="top_score_share", **kind) or 0.0
        if std.value is not None and (std.value < ONE_SCORE or same > 0.9):
            yield Verdict(
                "collapse",
                "Everybody gets one score",
                where,
                f"the standard deviation of the logits is {std.value:.2g}, and {same:.1%} of the "
                "rows share one value",
                "Look for a dead last layer, a learning rate so high that only the bias is left, "
                "or a weight decay that has eaten the tables",
            )
        yield from _ranking(findings, kind, where)


def _ranking(findings: Findings, kind: dict[str, str], where: str) -> Iterator[Verdict]:
    records = findings.find(metric="auc", **kind)
    rate = findings.value(metric="positive_rate", **kind)
    if not records or rate is None:
        return
    found, n = records[-1].value, records[-1].n
    if found is None:
        yield Verdict(
            "warning", "AUC has no value", where, f"all labels are {rate:.0f}",
            "Diagnose a split with both labels",
        )  # fmt: skip
        return
    positives = max(1.0, rate * n)
    error = math.sqrt((n + 1) / (12 * positives * max(1.0, n - positives)))
    text = f"AUC {found:.4f}, where chance alone gives 0.5 ± {2 * error:.4f}"
    if found < 0.5 - max(0.01, 3 * error):
        yield Verdict(
            "collapse", "The model ranks backwards", where, text,
            "Check that label 1 means what you think in training and in validation",
        )  # fmt: skip
    elif abs(found - 0.5) <= max(0.01, 3 * error):
        yield Verdict(
            "collapse", "The model cannot tell the rows apart", where, text,
            "Check that labels and fields belong to the same rows, that ids of this split are not "
            "all unknown, and that training lowered the loss at all",
        )  # fmt: skip


@dataclass(frozen=True)
class _Table:
    """The rows of a table that training saw, centred, next to Gaussian noise of their shape."""

    name: str
    record: Record
    rank: float
    ceiling: float

    @property
    def share(self) -> float:
        return self.rank / self.ceiling

    @property
    def shape(self) -> str:
        return f"{self.record.n:,} x {self.record.d} ({self.record.row_filter} rows)"


def _tables(findings: Findings) -> Iterator[Verdict]:
    judged: list[_Table] = []
    for r in findings.find(metric="spread"):
        if not r.matrix_kind.startswith("table:") or r.n < 3:
            continue
        if r.row_filter == "all" and findings.find(
            metric="spread", matrix_kind=r.matrix_kind, row_filter="seen"
        ):
            continue  # rows that training never saw hide collapse
        name = r.matrix_kind.partition(":")[2]
        assert r.value is not None
        if r.value < ALIKE:
            yield Verdict(
                "collapse",
                "All rows of a table are alike",
                f"table '{name}'",
                f"only {r.value:.1e} of the energy of its {r.n:,} rows ({r.row_filter}) sets them "
                "apart",
                "The field cannot tell its values apart: lower the table's L2 penalty, raise its "
                "learning rate or initial scale, or check that its ids vary in training",
            )
            continue
        like = {"matrix_kind": r.matrix_kind, "row_filter": r.row_filter, "centred": True}
        (found,) = findings.find(metric="erank", **like)
        if found.value is not None and found.bound >= 4:
            judged.append(_Table(name, r, found.value, gaussian_ceiling(r.n - 1, r.d)))
    yield from [*_fallen(judged)] or _poor(judged)


def _fallen(judged: list[_Table]) -> Iterator[Verdict]:
    """Yields what fell far below the other tables of its set of embeddings."""
    below: list[tuple[_Table, list[float]]] = []
    for t in judged:
        own = t.name.rpartition("/")[0]
        peers = [o.share for o in judged if o is not t and o.name.rpartition("/")[0] == own]
        # One other table is no norm: either of two may be the odd one.
        if t.record.n >= MANY and len(peers) >= 2 and t.share < FALLEN * median(peers):
            below.append((t, peers))
    below.sort(key=lambda found: found[0].share)
    for worst, peers in below[:1]:
        also = "".join(f", and '{t.name}' has {t.share:.0%}" for t, _ in below[1:])
        yield Verdict(
            "warning",
            "A table lost directions that others kept",
            f"table '{worst.name}'",
            f"centred effective rank {worst.rank:.1f}, {worst.share:.0%} of the healthy ceiling "
            f"{worst.ceiling:.1f} for {worst.shape}, where {len(peers)} other tables of this model "
            f"have {median(peers):.0%} of theirs (median){also}",
            PULLED_DOWN,
        )


def _poor(judged: list[_Table]) -> Iterator[Verdict]:
    poor = sorted((t for t in judged if t.share < POOR), key=lambda t: t.share)
    if poor:
        others = f", and {len(poor) - 1} more tables are under {POOR:.0%}" if len(poor) > 1 else ""
        yield Verdict(
            "warning",
            "A table uses few of its directions",
            f"table '{poor[0].name}'",
            f"centred effective rank {poor[0].rank:.1f}, {poor[0].share:.0%} of the healthy "
            f"ceiling for {poor[0].shape}{others}",
            PULLED_DOWN,
        )


def _stages(findings: Findings) -> Iterator[Verdict]:
    stages = stage_ranks(findings)
    worst = min(_losses(stages), key=lambda found: found[0], default=None)
    if worst is not None and worst[0] < LOST:
        share, a, b = worst
        at_once = stages.index(b) == stages.index(a) + 1
        yield Verdict(
            "warning",
            "A layer loses most of its rank" if at_once else "Rank fades from layer to layer",
            f"between '{a.name}' and '{b.name}'",
            f"centred effective rank falls from {a.leaving:.1f} to {b.erank:.1f}, {share:.0%} of "
            f"what was there, where a healthy stage of this shape has {b.ceiling:.1f} "
            f"(n = {b.n:,})",
            "Try a residual around "
            + ("that layer" if at_once else "each of these layers, fewer of them")
            + ", another activation, or less weight decay",
        )
    for s in stages:
        if s.bound >= 8 and s.erank < FEW:
            yield Verdict(
                "warning",
                "A stage lives in almost one direction",
                f"'{s.name}'",
                f"centred effective rank {s.erank:.2f} where a healthy stage of this shape has "
                f"{s.ceiling:.1f} (n = {s.n:,})",
                "Nothing after it can tell more apart: look at the first such stage",
            )
            return


def _losses(stages: list[Stage]) -> Iterator[tuple[float, Stage, Stage]]:
    """Yields (share kept, from, to) for every stage and the fullest one before it.

    A stage cannot be blamed for a bound of its own: what it keeps is taken of the smaller of what
    was there and its healthy ceiling.
    """
    fullest = stages[0] if stages else None
    for stage in stages[1:]:
        assert fullest is not None
        yield stage.erank / min(stage.ceiling, fullest.leaving), fullest, stage
        if stage.leaving >= fullest.leaving:
            fullest = stage


def _head(findings: Findings) -> Iterator[Verdict]:
    for r in findings.find(metric="dead_fraction@1e-3", matrix_kind="head_in", centred=True):
        if r.value is not None and r.value > 0.3 and r.row_norm == "none":
            yield Verdict(
                "warning",
                "Directions before the head are dead",
                f"'{r.hook}'",
                f"{r.value:.0%} of {min(r.n, r.d)} directions carry under a thousandth of the "
                f"largest (centred, n = {r.n:,})",
                "The last hidden layer is wider than what reaches it: narrow it, or lower the "
                "weight decay and check for units that never fire",
            )


def _experts(findings: Findings) -> Iterator[Verdict]:
    for r in findings.find(metric="cec"):
        if r.value is not None and r.value > 0.5:
            yield Verdict(
                "warning",
                "Experts say the same",
                f"'{r.hook}'",
                f"mean correlation between units of different experts is {r.value:.2f} "
                f"(chance gives {math.sqrt(2 / (math.pi * r.n)):.3f} at n = {r.n:,})",
                "Give every expert its own tables, another architecture, or a decorrelation loss",
            )


def _healthy(findings: Findings) -> Verdict:
    found = findings.find(metric="auc")
    value = f"AUC {found[0].value:.4f}" if found and found[0].value is not None else "no AUC"
    stages = stage_ranks(findings)
    if stages:
        last = stages[-1]
        value += (
            f"; the last stage, '{last.name}', has centred effective rank {last.erank:.1f}, where "
            f"noise of this shape has {last.ceiling:.1f}"
        )
    return Verdict("healthy", "No sign of collapse", "whole model", value, "Nothing to repair")
