"""Sequences: what joint modelling with the fields does to the tokens of a history, layer by layer.

Sequential Collapse Propagation (TokenFormer, arXiv:2604.13737): fields of few values live in few
dimensions, and a sequence that attends to them is pulled into few dimensions as well. Four numbers
per layer show it: the effective rank of the sequence tokens (M6, in `stages`), how much attention
they pay to static tokens, what their gates do, and what they still say about the label.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.diagnose.recorder import Place, Recorder

MOST_EVENTS = 32  # per sample in M6, so that a few long histories do not fill the matrix
ATTENTION_ROWS = 512  # of the subset: a mean over all their tokens moves little with more
ATTENTION_CELLS = 2**24  # queries times keys at once
SATURATED = 0.45  # distance from one half beyond which a gate is open or shut


class GateValues:
    """What an elementwise gate in (0, 1) does, over all its units and the rows it has seen."""

    def __init__(self) -> None:
        self.n = self.d = self.saturated = 0
        self.total = self.square = 0.0  # of g - 1/2

    def update(self, g: Tensor) -> None:
        """Adds values [n, D]."""
        self.n, self.d = self.n + g.shape[0], g.shape[1]
        off = (g - 0.5).flatten()
        self.total += float(off.sum())
        self.square += float(off @ off)
        self.saturated += int((off.abs() > SATURATED).sum())

    def summary(self) -> dict[str, float]:
        """Returns `mean`, population `std`, and `saturation`, the share |g - 0.5| > 0.45."""
        count = max(1, self.n * self.d)
        mean = self.total / count
        variance = self.square / count - mean**2
        return {
            "mean": 0.5 + mean,
            "std": max(0.0, variance) ** 0.5,
            "saturation": self.saturated / count,
        }


def is_gate(name: str) -> bool:
    """Says whether a tap of axes "B T D" holds the values of a gate rather than states."""
    return name.rpartition(".")[2] in ("gate", "nlir")


def newest(valid: Tensor, most: int = MOST_EVENTS) -> Tensor:
    """Returns [B, T] bool, True at the last `most` valid places of each row, wherever it is padded.

    Args:
        valid: [B, T] bool, True where an event is real.
        most: events to keep.
    """
    not_older = valid.flip(1).cumsum(1).flip(1)  # [B, T] valid places from here on
    return valid & (not_older <= most)


def pooled(x: Tensor, valid: Tensor) -> Tensor:
    """Returns the mean over valid places [B, D] of [B, T, D]; NaN where a row has none."""
    total = torch.einsum("btd,bt->bd", x, valid.to(x.dtype))
    return total / valid.sum(1, keepdim=True)


def record_gates(out: Recorder, hook: str, gate: GateValues) -> None:
    """Records mean, spread and saturation of the gate at one tap."""
    place = Place(
        hook=hook,
        kind=f"gate_values:{hook}",
        n=gate.n,
        d=gate.d,
        bounds=(1.0, 1.0),
        row_filter="valid",
    )
    for name, value in gate.summary().items():
        out.add(place, f"gate_{name}", value if gate.n else None)


def record_attention(out: Recorder, model: nn.Module, batch: Batch) -> None:
    """Records the attention mass of sequence tokens on static ones, in percent, layer by layer.

    A model without `attention_to_static(batch) -> [L]`, shares in [0, 1] of `block0` and on, has
    nothing to record.

    Args:
        out: where the records go.
        model: in evaluation mode.
        batch: the diagnostic rows, of which at most 512 are looked at.
    """
    measure: Callable[[Batch], Tensor] | None = getattr(model, "attention_to_static", None)
    if measure is None:
        return
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    history: Any = getattr(model, "history", None)
    rows = min(len(batch), ATTENTION_ROWS)
    at_once = rows if history is None else max(1, ATTENTION_CELLS // history.length**2)
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for start in range(0, rows, at_once):
        part = batch.rows(torch.arange(start, min(start + at_once, rows)))
        queries = float(len(part))
        if history is not None:  # a mean over sequence tokens: parts count by their events
            lengths = part.sequences[history.name].lengths()
            queries = float(lengths.clamp(max=history.length).sum())
        if queries:
            total = total + queries * measure(part.to(device)).detach().cpu().double()
            weight += queries
    if weight:
        for layer, share in enumerate((total / weight).tolist()):
            place = Place(
                hook=f"block{layer}.attention",
                kind=f"attention:static:{layer}",
                n=rows,
                d=0,
                bounds=(100.0, 100.0),
                row_filter="valid",
            )
            out.add(place, "attention_static", 100.0 * share)
