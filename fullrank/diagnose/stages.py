"""Stages: what each tap of a model passes on, reduced to spectra while it streams by.

Which matrix is taken where follows from the axes that a tap declares:

    B F D   one field over the batch (M2), all fields flattened (M3), the fields of a sample (M4)
    B N D   the tokens of a sample (M4), one token over the batch (M5)
    B T D   the newest 32 sequence positions of every sample, pooled (M6); a tap `<name>_valid` with
            axes "B T" masks padding; a tap `nlir` or `gate` holds the values of a gate
    B E D   one expert over the batch (M7), correlation between experts
    B D     the batch as it is: M8 for `head_in`, else M3; a tap `gate` holds weights of experts
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fullrank.batch import Batch
from fullrank.diagnose.accumulate import Moments, TokenSpectra
from fullrank.diagnose.recorder import Place, Recorder, Spectrum
from fullrank.diagnose.records import Record
from fullrank.diagnose.redundancy import (
    GroupCorrelation,
    Redundancy,
    block_summary,
    off_diagonal_mean,
)
from fullrank.diagnose.sequences import (
    MOST_EVENTS,
    GateValues,
    is_gate,
    newest,
    pooled,
    record_gates,
)

CORE = ("erank", "ia", "stable_rank", "pr", "dead_fraction@1e-3")
"""Measures of matrices that come by the dozen: one per field, token or expert."""


class GateUse:
    """How a gate shares its weight among E experts, and whether it looks at the row at all.

    Args:
        experts: E.
    """

    def __init__(self, experts: int) -> None:
        self.n = 0
        self.weight, self.square, self.share = torch.zeros(3, experts, dtype=torch.float64)
        self.entropy = 0.0

    def update(self, a: Tensor) -> None:
        """Adds weights [n, E]; where they do not sum to one, their shares are of magnitudes."""
        a = a.detach().to("cpu", torch.float64)
        share = a.abs() / a.abs().sum(1, keepdim=True).clamp(min=1e-300)
        self.n += a.shape[0]
        self.weight += a.sum(0)
        self.square += a.square().sum(0)
        self.share += share.sum(0)
        self.entropy += float(-torch.xlogy(share, share).sum())

    def weights(self) -> tuple[Tensor, Tensor]:
        """Returns the mean over samples [E] and the population standard deviation [E]."""
        mean = self.weight / self.n
        return mean, (self.square / self.n - mean.square()).clamp(min=0.0).sqrt()

    def entropies(self) -> tuple[float, float]:
        """Returns the mean entropy of a sample's shares and that of the mean shares, in nats.

        Both are at most log E. The first is low where the gate picks an expert, the second where
        it always picks the same one.
        """
        mean = self.share / self.n
        return self.entropy / self.n, float(-torch.xlogy(mean, mean).sum())


class Stages:
    """A probe on every tap. Give it to `watch`, score the subset, then call `report`.

    Args:
        out: where the records go.
        fields: names of the fields in the order of "B F D" taps.
        ranks: field -> (uncentred, centred) rank that its values allow.
        row_norms: "none", "l2" or both; "l2" scales every row to length one first.
        keep: names of taps whose activations are kept as they are, float32.
    """

    taps = "*"

    def __init__(
        self,
        out: Recorder,
        fields: Sequence[str],
        ranks: Mapping[str, tuple[float, float]],
        row_norms: Sequence[str] = ("none",),
        keep: Sequence[str] = (),
    ) -> None:
        self.out = out
        self.fields, self.ranks = list(fields), dict(ranks)
        self.row_norms, self.keep = tuple(row_norms), frozenset(keep)
        self.kept: dict[str, list[Tensor]] = {}
        self.axes: dict[str, str] = {}
        self.shape: dict[str, tuple[int, ...]] = {}
        self.rows: dict[str, int] = {}
        self.mixed: dict[str, set[str]] = {}  # tap -> fields that other fields move
        self.gates: dict[str, GateUse] = {}
        self.gate_values: dict[str, GateValues] = {}
        self.pooled: dict[str, list[Tensor]] = {}  # tap -> mean sequence tokens [B, D], float32
        self.cut: set[str] = set()  # taps with samples of more sequence tokens than are pooled
        self.samples: dict[tuple[str, str, bool], TokenSpectra] = {}  # (tap, row norm, centred)
        self.columns: dict[tuple[str, str], Moments] = {}
        self.flat: dict[tuple[str, str], Spectrum] = {}
        self.related: dict[str, GroupCorrelation] = {}
        self.pair: Redundancy | None = None
        self._left_hook = ""
        self._left: Tensor | None = None
        self._valid: dict[str, Tensor] = {}

    def observe(self, name: str, x: Tensor, axes: str, batch: Batch | None) -> None:
        """Adds one tensor to everything that is measured at this tap."""
        if axes == "B T":
            self._valid[name.removesuffix("_valid")] = x.bool()
            return
        if axes == "B D" and name.rpartition(".")[2] == "gate":
            self.gates.setdefault(name, GateUse(x.shape[1])).update(x)
            return
        if axes == "B T D":
            valid = self._valid.get(name, x.new_ones(x.shape[:2], dtype=torch.bool))
            if is_gate(name):
                self.gate_values.setdefault(name, GateValues()).update(x[newest(valid)])
                return
            self.pooled.setdefault(name, []).append(pooled(x, valid).float())
        self.axes[name], self.shape[name] = axes, tuple(x.shape[1:])
        if name in self.keep:
            self.kept.setdefault(name, []).append(x.float())
        if axes == "B T D":
            recent = newest(valid)
            if bool((recent != valid).any()):
                self.cut.add(name)
            x = x[recent]
        if axes == "B F D" and name not in self.mixed:
            self.mixed[name] = self._moved_by_others(x, batch)
        self.rows[name] = self.rows.get(name, 0) + x.shape[0]
        for norm in self.row_norms:
            self._spectra(name, x, axes, norm)
        if axes in ("B F D", "B N D", "B E D") and x.shape[1] > 1:
            self.related.setdefault(name, GroupCorrelation(*x.shape[1:])).update(x)
        self._operands(name, x)

    def _spectra(self, name: str, x: Tensor, axes: str, norm: str) -> None:
        at, d = (name, norm), x.shape[-1]
        if axes in ("B F D", "B N D"):
            for centred in (False, True)[: x.shape[1]]:  # one token is its own mean
                seen = TokenSpectra(*x.shape[1:], center=centred)
                self.samples.setdefault((*at, centred), seen).update(_scaled(x, norm))
        if axes in ("B F D", "B N D", "B E D"):
            columns = self.columns.setdefault(at, Moments(d, groups=x.shape[1]))
            columns.update(_scaled(x, norm).transpose(0, 1))
        if axes in ("B F D", "B T D", "B D"):
            flat = x.flatten(1)  # [n, F*D]
            self.flat.setdefault(at, Spectrum(flat.shape[1], tail=True)).update(_scaled(flat, norm))

    def _moved_by_others(self, x: Tensor, batch: Batch | None) -> set[str]:
        """Returns the fields whose vectors differ between rows with the same value of the field.

        Their values then say nothing about their rank, as in a generated operand or behind an
        interaction. Only ids repeat: the other fields are taken to be mixed where an id is.
        """
        if batch is None or x.shape[1] != len(self.fields):
            return set()
        ids = {f: batch.categorical[f].long() for f in self.fields if f in batch.categorical}
        moved = set()
        for f, own in ids.items():
            v = x[:, self.fields.index(f)].double()  # [B, D]
            sums = v.new_zeros(int(own.max()) + 1, v.shape[1]).index_add_(0, own, v)
            mean = sums / torch.bincount(own).clamp(min=1)[:, None]
            if float((v - mean[own]).square().sum()) > 1e-6 * float(v.square().sum()):
                moved.add(f)
        return moved | (set(self.fields) - ids.keys() if moved else set())

    def _operands(self, name: str, x: Tensor) -> None:
        """Pairs the taps `left` and `right`: the operands of the first interaction."""
        leaf = name.rpartition(".")[2]
        if leaf == "left" and self._left is None:
            self._left_hook, self._left = name, x
        elif leaf == "right" and self._left is not None:
            left, self._left = self._left.flatten(1), None
            right, groups = x.flatten(1), len(self.fields)
            if left.shape != right.shape or right.shape[1] % groups:
                return
            if self.pair is None:
                self.pair = Redundancy(groups, right.shape[1] // groups)
            self.pair.update(left, right)

    def report(self) -> list[Record]:
        """Writes everything that was measured to `out`, and returns it."""
        out, before = self.out, len(self.out.findings.records)
        for name, axes in self.axes.items():
            for norm in self.row_norms:
                if (name, norm) in self.flat and self.rows[name]:  # histories may all be empty
                    out.both(self._flat_place(name, axes, norm), self.flat[name, norm])
                for centred in (False, True):
                    if (name, norm, centred) in self.samples:
                        self._record_samples(out, name, norm, centred)
                if (name, norm) in self.columns:
                    self._record_columns(out, name, axes, norm)
            if name in self.related:
                self._record_related(out, name, axes)
        for name, gate in self.gates.items():
            _record_gate(out, name, gate)
        for name, values in self.gate_values.items():
            record_gates(out, name, values)
        if self.pair is not None:
            place = self._related_place(
                self._left_hook, "redundancy:left x right", self.pair.moments.n
            )
            out.add(
                place, "red_map", None, accumulator="A5", array=self.pair.map(), labels=self.fields
            )
            for metric, value in self.pair.summary().items():
                out.add(place, metric, value, centred=True, accumulator="A5")
        return out.findings.records[before:]

    def names(self, name: str, axes: str) -> list[str]:
        """Returns what the fields, tokens or experts at a tap are called."""
        count = self.shape[name][0]
        if axes == "B F D" and count == len(self.fields):
            return self.fields
        return [str(i) for i in range(count)]

    def _rank(self, name: str, axes: str, column: str, d: int) -> tuple[float, float]:
        """Returns the largest (uncentred, centred) rank of one field, token or expert."""
        n = self.rows[name]
        alone = axes == "B F D" and column not in self.mixed.get(name, ())
        most = self.ranks.get(column, (d, d)) if alone else (d, d)
        return min(n, d, most[0]), min(n - 1, d, most[1])

    def _flat_place(self, name: str, axes: str, norm: str) -> Place:
        n, d = self.rows[name], self.flat[name, norm].d
        raw, centred = float(d), float(d)
        if axes == "B F D":
            each = [self._rank(name, axes, f, self.shape[name][1]) for f in self.names(name, axes)]
            centred = sum(r[1] for r in each)
            raw = min(sum(r[0] for r in each), centred + 1)  # all means together are one direction
        kind = f"seq_tokens:{name}" if axes == "B T D" else f"batch_flat:{name}"
        if axes == "B D" and name.rpartition(".")[2] == "head_in":
            kind = "head_in"
        cut = f"newest {MOST_EVENTS} of a sample" if name in self.cut else ""
        return Place(
            hook=name,
            kind=kind,
            n=n,
            d=d,
            bounds=(min(n, d, raw), min(n - 1, d, centred)),
            row_norm=norm,
            row_filter="valid" if name in self._valid else "all",
            approx=self.flat[name, norm].approx or cut,
        )

    def _record_samples(self, out: Recorder, name: str, norm: str, centred: bool) -> None:
        seen = self.samples[name, norm, centred]
        tokens, d = self.shape[name]
        bound = float(seen.bound)
        place = Place(
            hook=name,
            kind=f"sample_tokens:{name}",
            n=tokens,
            d=d,
            bounds=(bound, bound),
            row_norm=norm,
        )
        common: dict[str, Any] = {"centred": centred, "accumulator": "A4", "floor": seen.floor}
        for i, metric in enumerate(seen.measures):
            counts = seen.histogram[i]
            out.add(place, metric, seen.mean(metric), array=counts, **common)
            out.add(place, f"{metric}_std", seen.std(metric), **common)
            for q in (0.05, 0.5, 0.95):
                out.add(place, f"{metric}_q{q}", seen.quantile(metric, q), **common)
        out.add(place, "nerank", seen.mean("erank") / bound, **common)

    def _record_columns(self, out: Recorder, name: str, axes: str, norm: str) -> None:
        seen, d = self.columns[name, norm], self.shape[name][1]
        kind = {
            "B F D": "batch_field:{1}",
            "B N D": "token_batch:{0}:{1}",
            "B E D": "expert_out:{1}",
        }
        for i, column in enumerate(self.names(name, axes)):
            place = Place(
                hook=name,
                kind=kind[axes].format(name, column),
                n=seen.n,
                d=d,
                bounds=self._rank(name, axes, column, d),
                row_norm=norm,
            )
            for centred in (False, True):
                s = seen.singular_values(center=centred).reshape(-1, d)[i]
                out.spectrum(
                    place, s, centred=centred, accumulator="A2", floor=seen.floor, measures=CORE
                )

    def _record_related(self, out: Recorder, name: str, axes: str) -> None:
        seen, labels = self.related[name], self.names(name, axes)
        common: dict[str, Any] = {"centred": True, "accumulator": "A5"}
        place = self._related_place(name, f"correlation:{name}", seen.n, seen.approx)
        out.add(place, "correlation_map", None, array=seen.map(), labels=labels, **common)
        out.add(place, "correlation_mean", off_diagonal_mean(seen.map()), **common)
        if axes == "B E D":
            found = seen.experts()
            for metric in ("cec", "rowmax", "squared", "cka", "dead"):
                out.add(place, metric, getattr(found, metric), **common)
        if name == "embed" and self.pair is None:
            place = self._related_place(name, "redundancy:embed x embed", seen.n, seen.approx)
            out.add(place, "red_map", None, array=seen.map(), labels=labels, **common)
            for metric, value in block_summary(seen.blocks().abs()).items():
                out.add(place, metric, value, **common)

    def _related_place(self, name: str, kind: str, n: int, approx: str = "") -> Place:
        groups, d = self.shape[name] if len(self.shape[name]) == 2 else (1, self.shape[name][0])
        return Place(hook=name, kind=kind, n=n, d=groups * d, bounds=(1.0, 1.0), approx=approx)


def _record_gate(out: Recorder, name: str, gate: GateUse) -> None:
    """Mean weights of experts over the batch, and the entropy of how they are shared."""
    experts = len(gate.weight)
    for k, values in enumerate(zip(*gate.weights(), strict=True)):
        place = Place(hook=name, kind=f"gate:{k}", n=gate.n, d=experts, bounds=(1.0, 1.0))
        for metric, value in zip(("gate_weight", "gate_weight_std"), values, strict=True):
            out.add(place, metric, float(value))
    most = math.log(experts)
    place = Place(hook=name, kind="gate", n=gate.n, d=experts, bounds=(most, most))
    for metric, value in zip(("entropy", "entropy_of_mean"), gate.entropies(), strict=True):
        out.add(place, f"gate_{metric}", value)


def _scaled(x: Tensor, row_norm: str) -> Tensor:
    if row_norm == "none":
        return x
    length = x.square().sum(-1, keepdim=True).sqrt()
    return x / length.clamp(min=1e-300)
