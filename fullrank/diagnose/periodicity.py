"""Periodicity: does a user return to what is clicked with a rhythm?

    found = entropies(model, batch)          # H of every (history, target), and how long they are
    entropy_auc(found.entropy, label, length=found.length)

FEDIN, arXiv:2605.01726, reports that the scores of a target against the events of a history, read
in order, have a concentrated spectrum where the target is clicked and a flat one where it is not.
Its normalisation is not public: ours is in `spectral_entropy`. How concentrated a short history can
look depends on its length, and so may the label; hence everything is also measured between
histories of equal length, where length can say nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.diagnose.recorder import Place, Recorder
from fullrank.embedding import Embeddings
from fullrank.errors import MetricUndefinedError
from fullrank.target import TargetHistory

LEAST = 3  # events; two with their mean removed are +x and -x, whatever they are
BINS = 50  # of the histograms, over [0, 1]
CELLS = 2**22  # of an embedded history at once: 16 MiB
NORMAL = 1.959964  # two-sided 95 %


class Entropies(NamedTuple):
    """What the histories of a batch look like to its targets.

    Args:
        entropy: [B] float64 in [0, 1], NaN where a history has no spectrum.
        length: [B] int64, valid events in the window.
    """

    entropy: Tensor
    length: Tensor


@dataclass(frozen=True)
class EntropyAUC:
    """How often the clicked target of two has the lower entropy, ties counting half.

    Args:
        value: AUC of -H.
        low: lower end of its 95 % interval.
        high: upper end.
        pairs: of a positive and a negative that were compared.
    """

    value: float
    low: float
    high: float
    pairs: int


def spectral_entropy(match: Tensor, valid: Tensor) -> Tensor:
    """Measures how flat the spectrum of a match over time is.

    The mean over valid places is removed, padding is zero, and with F = L // 2 + 1 and c the
    transform of all L places, p_f = |c_f|^2 / sum |c|^2 over f = 1 .. F - 1 (our choice: without
    the constant part) and H = -sum p ln p / ln(F - 1): 0 for one pure frequency, 1 for equal power
    at all of them. White noise has about 1 - 0.42 / ln(F - 1).

    Args:
        match: [B, L], how alike event and target are, in the order of the events. The side of the
            padding changes nothing.
        valid: [B, L] bool, True where an event is real.

    Returns:
        H [B] float64. NaN where there is no spectrum: fewer than 3 events, a window of fewer than
        4 places (one frequency), or events that all match alike.
    """
    x = torch.where(valid, match.detach().double(), 0.0)
    count = valid.sum(1)
    mean = x.sum(1) / count.clamp(min=1)
    varied = torch.where(valid, x - mean[:, None], 0.0)
    power = torch.fft.rfft(varied, dim=1).abs().square()[:, 1:]  # [B, F - 1]
    frequencies = power.shape[1]
    if frequencies < 2:
        return torch.full_like(mean, torch.nan)
    # Below a millionth of the match itself a variation is rounding, whose spectrum is flat.
    exists = (count >= LEAST) & (varied.square().sum(1) > 1e-12 * x.square().sum(1))
    p = power / power.sum(1, keepdim=True).clamp(min=1e-300)
    return torch.where(exists, -torch.xlogy(p, p).sum(1) / math.log(frequencies), torch.nan)


def entropies(model: nn.Module, batch: Batch) -> Entropies:
    """Measures every (history, target) of a batch, by what the tables of a model hold alike.

    Args:
        model: with `history`, a `TargetHistory`, and `embeddings` that hold its tables.
        batch: B rows, on the device of the model.
    """
    history, embeddings = model.history, model.embeddings
    assert isinstance(history, TargetHistory)
    assert isinstance(embeddings, Embeddings)
    cells = history.length * len(history.columns) * embeddings.dim
    at_once = max(1, CELLS // cells)
    measured, lengths = [], []
    for start in range(0, len(batch), at_once):
        index = torch.arange(start, min(start + at_once, len(batch)), device=batch.weight.device)
        with torch.no_grad():
            match, valid = history.match(embeddings, batch.rows(index))
        measured.append(spectral_entropy(match, valid))
        lengths.append(valid.sum(1))
    return Entropies(torch.cat(measured), torch.cat(lengths))


def entropy_auc(
    entropy: Tensor, label: Tensor, *, length: Tensor | None = None, group: Tensor | None = None
) -> EntropyAUC:
    """Measures how well a low spectral entropy alone tells clicked targets from others.

    The interval is DeLong's (1988), summed over groups (Obuchowski, 1997): rows of one user are not
    independent.

    Args:
        entropy: [n], NaN where it has no value: such rows are left out.
        label: [n] in {0, 1}.
        length: [n] integers; only rows of equal length are compared, so that length itself, whose
            label rate may differ, says nothing. All rows are compared when None.
        group: [n] integers, the user of each row; every row is its own when None or all are equal.

    Raises:
        MetricUndefinedError: no positive can be compared with a negative.

    Example:
        >>> entropy_auc(torch.tensor([0.2, 0.3, 0.9]), torch.tensor([1, 0, 0])).value
        1.0
    """
    score, positive, block, group = _kept(entropy, label, length, group)
    wins, pairs = _wins(score, positive, block)
    total = pairs[positive].sum()
    if total == 0:
        raise MetricUndefinedError(
            "the AUC of the spectral entropy has no value",
            where=f"{len(score):,} rows whose histories have a spectrum",
            found="no clicked beside a not clicked target"
            + ("" if length is None else " with as many events"),
            expected="at least one pair",
            fix="measure more rows, or without length matching",
        )
    value = wins[positive].sum() / total
    excess = wins - value * pairs  # [n]
    owners, owner = torch.unique(group, return_inverse=True)
    if len(owners) > 1:
        excess = excess.new_zeros(len(owners)).index_add_(0, owner, excess)
    reach = NORMAL * float(excess.square().sum().sqrt() / total)
    middle = float(value)
    return EntropyAUC(middle, max(0.0, middle - reach), min(1.0, middle + reach), int(total))


def record_periodicity(out: Recorder, model: nn.Module, batch: Batch) -> None:
    """Records the spectral entropy of positives and negatives, for every label.

    A model without `history` and `embeddings` has nothing to record.

    Args:
        out: where the records go.
        model: in evaluation mode.
        batch: the diagnostic rows.
    """
    history = getattr(model, "history", None)
    if not isinstance(history, TargetHistory) or not hasattr(model, "embeddings"):
        return
    device = next(model.parameters()).device
    entropy, length = (x.cpu() for x in entropies(model, batch.to(device)))
    for label in batch.labels.names:
        seen = batch.observed[label].bool()
        known = seen & entropy.isfinite()
        n = int(known.sum())
        place = Place(
            hook=f"history:{history.name}",
            kind=f"spectral_entropy:{label}",
            n=n,
            d=history.length,
            bounds=(1.0, 1.0),
            row_filter="valid",
        )
        out.add(place, "entropy_left_out", float(seen.sum() - n))
        if n:
            y = batch.labels[label][known] > 0.5
            _record_label(out, place, entropy[known], y, length[known], batch.group[known])


def _record_label(
    out: Recorder, place: Place, entropy: Tensor, y: Tensor, length: Tensor, group: Tensor
) -> None:
    _, pairs = _wins(-entropy, y, length)  # [n], rows of the other side with as many events
    for match, weight in (("", torch.ones_like(pairs)), ("_matched", pairs)):
        for side, rows in (("positive", y), ("negative", ~y)):
            w, h = weight[rows], entropy[rows]
            at = replace(place, n=int((w > 0).sum()))
            mean = float(w @ h / w.sum()) if at.n else None
            bins = torch.zeros(BINS, dtype=torch.float64)
            bins.index_add_(0, (h * BINS).long().clamp(max=BINS - 1), w)
            out.add(at, f"entropy_{side}{match}", mean, array=bins / bins.sum().clamp(min=1.0))
        try:
            found = entropy_auc(entropy, y, length=length if match else None, group=group)
        except MetricUndefinedError:
            out.add(place, f"entropy_auc{match}", None)
            continue
        out.add(place, f"entropy_auc{match}", found.value)
        out.add(place, f"entropy_auc{match}_low", found.low)
        out.add(place, f"entropy_auc{match}_high", found.high)
        out.add(place, f"entropy_pairs{match}", float(found.pairs))


def _kept(
    entropy: Tensor, label: Tensor, length: Tensor | None, group: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns score, label, length and group of the rows that have an entropy."""
    known = entropy.isfinite()
    none = torch.zeros(len(entropy), dtype=torch.int64, device=entropy.device)
    block, owner = (none if x is None else x for x in (length, group))
    return -entropy[known].double(), label[known] > 0.5, block[known], owner[known]


def _wins(score: Tensor, positive: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """Compares every row with those of the other label in its block.

    Returns:
        [n] how many of them the row beats, a positive by a higher score, a negative by a lower
        one, ties counting half; and [n] how many there are. Both float64.
    """
    wins, pairs = torch.zeros(2, len(score), dtype=torch.float64, device=score.device)
    order = torch.argsort(block, stable=True)
    _, sizes = torch.unique_consecutive(block[order], return_counts=True)
    for rows in torch.split(order, sizes.tolist()):
        sides = rows[positive[rows]], rows[~positive[rows]]
        for own, other, sign in ((*sides, 1.0), (*sides[::-1], -1.0)):
            ranked, mine = (sign * score[other]).sort().values, sign * score[own]
            below = torch.searchsorted(ranked, mine) + torch.searchsorted(ranked, mine, right=True)
            wins[own] = below.double() / 2
            pairs[own] = float(len(other))
    return wins, pairs
