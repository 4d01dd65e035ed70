"""Recorder: from the state of an estimator to records with everything the contract asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fullrank.diagnose.accumulate import Moments, StreamingQR
from fullrank.diagnose.records import Findings, Record, RunContext, kept_spectrum
from fullrank.ops import spectrum

WIDEST = 4096  # columns beyond which a d x d state is not kept
PROJECTED = 2048  # columns after the random projection


class Projection:
    """A fixed random orthonormal map from d to fewer columns, for matrices too wide for d x d.

    Ratios such as effective rank survive it; statements about the tail do not.

    Args:
        d: columns before.
        k: columns after.
        seed: of the map; the same for everything that is compared.
    """

    def __init__(self, d: int, k: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        gauss = torch.randn(d, k, generator=generator, dtype=torch.float64)
        self.basis = torch.linalg.qr(gauss).Q  # [d, k], orthonormal columns

    def __call__(self, x: Tensor) -> Tensor:
        """Returns [n, k] for rows [n, d]."""
        projected: Tensor = x.detach().to("cpu", torch.float64) @ self.basis
        return projected


class Spectrum:
    """Chooses the estimator for one matrix and remembers what was chosen.

    Args:
        d: columns.
        tail: singular values below 1e-4 of the largest will be asked for.
    """

    def __init__(self, d: int, *, tail: bool) -> None:
        self.d = d
        self.project = Projection(d, PROJECTED) if d > WIDEST else None
        self.approx = "" if self.project is None else "projected"
        width = d if self.project is None else PROJECTED
        self.rows: StreamingQR | Moments
        self.rows = StreamingQR(width) if tail and self.project is None else Moments(width)

    @property
    def n(self) -> int:
        """Rows seen."""
        return self.rows.n

    def update(self, x: Tensor) -> None:
        """Adds rows [n, d]."""
        self.rows.update(x if self.project is None else self.project(x))

    def merge(self, other: Spectrum) -> None:
        """Adds everything that another accumulator of the same kind has seen."""
        if isinstance(self.rows, StreamingQR):
            assert isinstance(other.rows, StreamingQR)
            self.rows.merge(other.rows)
        else:
            assert isinstance(other.rows, Moments)
            self.rows.merge(other.rows)

    def singular_values(self, *, center: bool) -> Tensor:
        """Returns [min(d, 2048)], largest first."""
        return self.rows.singular_values(center=center)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a matrix was taken and how its rows were treated; the constant part of its records.

    Args:
        hook: dotted name of the tap, or of the table.
        kind: matrix kind of the contract, such as "batch_field:user".
        n: rows.
        d: columns.
        bounds: (uncentred, centred): the largest rank that the matrix allows.
        row_norm: "none" or "l2".
        row_filter: "all", "seen", "freq" or "valid".
        approx: "" or what was approximated.
    """

    hook: str
    kind: str
    n: int
    d: int
    bounds: tuple[float, float]
    row_norm: str = "none"
    row_filter: str = "all"
    approx: str = ""


class Recorder:
    """Turns what estimators know into records.

    Args:
        context: of the run.
        subset_hash: of the diagnostic rows.
    """

    def __init__(self, context: RunContext, subset_hash: str) -> None:
        self.context, self.subset_hash = context, subset_hash
        self.findings = Findings()

    def add(
        self,
        place: Place,
        metric: str,
        value: float | None,
        *,
        centred: bool = False,
        accumulator: str = "",
        floor: float = 0.0,
        array: Tensor | None = None,
        labels: Sequence[str] = (),
    ) -> None:
        """Adds one record, with an array and the names of its rows where there are any."""
        c = self.context
        record = Record(
            run_id=c.run_id, variant=c.variant, seed=c.seed, epoch=c.epoch, split=c.split,
            hook=place.hook, matrix_kind=place.kind, metric=metric, value=value,
            n=place.n, d=place.d, bound=place.bounds[centred], centred=centred,
            row_norm=place.row_norm, row_filter=place.row_filter, accumulator=accumulator,
            dtype="float64", floor=floor, subset_hash=self.subset_hash, approx=place.approx,
        )  # fmt: skip
        if array is not None:
            record = replace(record, array=record.key())
            if labels:
                self.findings.labels[record.array] = list(labels)
        self.findings.add(record, array)

    def spectrum(
        self,
        place: Place,
        s: Tensor,
        *,
        centred: bool,
        accumulator: str,
        floor: float,
        measures: Sequence[str] = tuple(spectrum.SCALARS),
    ) -> None:
        """Adds the scalars of one spectrum [k] and, from streaming QR, the spectrum itself."""
        exact = accumulator == "A3"
        rank = int(min(place.n, place.d))  # the estimator may hold more zeros than there can be
        s = s[: max(1, rank)]
        bound = max(1.0, place.bounds[centred])
        common: dict[str, Any] = {"centred": centred, "accumulator": accumulator, "floor": floor}
        for name in measures:
            if exact or name not in spectrum.TAIL:
                self.add(place, name, float(spectrum.SCALARS[name](s)), **common)
        self.add(place, "nerank", float(spectrum.nerank(s, bound)), **common)
        if exact:
            kept = kept_spectrum(spectrum.log_spectrum(s, floor=floor))
            self.add(place, "log_spectrum", None, array=kept, **common)

    def both(self, place: Place, rows: Spectrum, *, measures: Sequence[str] = ()) -> None:
        """Adds the uncentred and the centred spectrum of a matrix, and its `spread`.

        `spread` is the share of ||X||^2 that is left when the mean row is removed: near 0 when
        all rows are alike.
        """
        kept = {}
        for centred in (False, True):
            kept[centred] = rows.singular_values(center=centred)
            self.spectrum(
                place,
                kept[centred],
                centred=centred,
                accumulator=rows.rows.name,
                floor=rows.rows.floor,
                measures=measures or tuple(spectrum.SCALARS),
            )
        energy = float(kept[False].square().sum())
        share = float(kept[True].square().sum()) / energy if energy > 0 else 0.0
        self.add(place, "spread", share, accumulator=rows.rows.name)
