"""Monitor: effective rank during training, cheap enough to leave on.

    train(model, batches, config, monitor=RankMonitor(context))

Once per epoch (and every `monitor_every` steps where asked for) it scores one part of one batch and
takes the spectra of a few hundred rows. Random state, modes and weights stay as they are, so that
training with it and without it is the same to the bit.
"""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.diagnose.probe import tap_names, watch
from fullrank.diagnose.records import Record, RunContext, append_records
from fullrank.diagnose.sequences import is_gate
from fullrank.ops import spectrum


class EffectiveRank:
    """A probe: centred effective rank of every matching tap over the rows it has seen.

    Fields, tokens and experts are measured one by one over the batch and averaged.

    Args:
        taps: glob over dotted names, such as "*tokens*".
        context: of the records.
        rows: the most that are kept per tap; n of every record.

    Example:
        with watch(model, EffectiveRank("block*", context)) as seen: seen.score(batch)
    """

    def __init__(self, taps: str, context: RunContext, rows: int = 512) -> None:
        self.taps, self.context, self.rows = taps, context, rows
        self._seen: dict[str, Tensor] = {}
        self._valid: dict[str, Tensor] = {}

    def observe(self, name: str, x: Tensor, axes: str, batch: Batch | None) -> None:
        """Keeps the first rows; of sequences real events, evenly from all rows of the batch."""
        if axes == "B T":
            self._valid[name.removesuffix("_valid")] = x
            return
        if axes == "B T D":
            if is_gate(name):
                return
            x = x[self._valid[name]] if name in self._valid else x.flatten(0, 1)
            x = x[:: max(1, len(x) // self.rows)]
        kept = self._seen.get(name, x[:0])
        if len(kept) < self.rows:
            self._seen[name] = torch.cat([kept, x[: self.rows - len(kept)]])

    def report(self) -> list[Record]:
        """Returns one record per tap: the mean over fields, tokens or experts."""
        return [self._record(name, x) for name, x in self._seen.items() if len(x)]

    def _record(self, name: str, x: Tensor) -> Record:
        stacked = x.unsqueeze(1) if x.ndim == 2 else x  # [n, G, D]
        centred = (stacked - stacked.mean(0)).transpose(0, 1)  # [G, n, D]
        n, d = centred.shape[1:]
        # cost: min(n, D)^3 per group; the smaller Gram matrix is exact enough for an entropy
        gram = centred @ centred.mT if n <= d else centred.mT @ centred
        s = torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt()
        value = float(spectrum.erank(s).mean())
        c = self.context
        return Record(
            run_id=c.run_id, variant=c.variant, seed=c.seed, epoch=c.epoch, split=c.split,
            hook=name, matrix_kind=f"monitor:{name}", metric="erank", value=value, n=n, d=d,
            bound=float(min(n - 1, d)), centred=True, row_norm="none", row_filter="all",
            accumulator="A1", dtype="float64", floor=3.5e-8, subset_hash="",
        )  # fmt: skip


class RankMonitor:
    """What `train` calls between steps.

    Args:
        context: what the records say about the run; its epoch is overwritten.
        taps: glob over dotted names.
        rows: of the batch that are scored; also n of every record, so that calls compare.
        path: of a records.jsonl to append to, or None.
    """

    def __init__(
        self, context: RunContext, *, taps: str = "*", rows: int = 512, path: Path | None = None
    ) -> None:
        self.context, self.taps, self.rows, self.path = context, taps, rows, path
        self.records: list[Record] = []

    def __call__(self, model: nn.Module, batch: Batch, step: int, epoch: int) -> dict[str, float]:
        """Measures once.

        Args:
            model: in any mode; it is left as it was.
            batch: rows of training; the first `rows` are scored.
            step: optimiser steps so far; not read, the epoch dates the records.
            epoch: the running epoch, from 0.

        Returns:
            "rank/<tap>" -> centred effective rank, and "score_std" per label.
        """
        context = replace(self.context, epoch=float(epoch + 1), split="train")
        probe = EffectiveRank(self.taps, context, self.rows)
        part = batch.rows(torch.arange(min(self.rows, len(batch)), device=batch.weight.device))
        watched = any(fnmatchcase(name, self.taps) for name in tap_names(model))
        with watch(model, *([probe] if watched else [])) as seen:
            scores = seen.score(part)
        found = probe.report()
        self.records += found
        if self.path is not None:
            append_records(self.path, found)
        ranks = {f"rank/{r.hook}": r.value for r in found if r.value is not None}
        spread = {f"score_std/{k}": float(v.double().std(correction=0)) for k, v in scores.items()}
        return ranks | spread
