"""Records: one number with everything that must match before it may be compared with another.

`records.jsonl` holds one record per line. Arrays (spectra, maps, histograms) lie beside it in
`arrays.safetensors` as float32, under the name that the record gives in `array`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fullrank.disk import raise_if_full, write_text, written_whole
from fullrank.errors import DataFormatError, IncomparableError

RECORDS, ARRAYS = "records.jsonl", "arrays.safetensors"
LIKE = ("matrix_kind", "metric", "centred", "n", "d", "row_norm", "row_filter")
FULL_SPECTRUM = 1024  # wider spectra keep 256 log-spaced indices


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What all records of one pass share.

    Args:
        run_id: of the run.
        variant: name of the model or setting, as a reader knows it.
        seed: of the training run.
        epoch: passes over the training data so far; fractions within an epoch.
        split: where the diagnostic rows came from.
    """

    run_id: str
    variant: str
    seed: int = 0
    epoch: float = 0.0
    split: str = "valid"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measurement.

    Args:
        run_id: see `RunContext`, as are `variant`, `seed`, `epoch` and `split`.
        hook: the tap or table that was looked at.
        matrix_kind: such as "table:user", "sample_tokens:block0.ffn", "token_batch:tokens:3".
        metric: such as "erank".
        value: None where only an array was stored, or where the metric is undefined.
        n: rows of the matrix: T for the mean over samples of a T x D matrix.
        d: columns.
        bound: the largest value that the matrix allows, as far as it is known.
        centred: was the mean row removed?
        row_norm: "none", or "l2" where every row was scaled to length one first.
        row_filter: which rows: "all", "seen", "freq" or "valid".
        accumulator: "A1" to "A6", or "" for a plain sum.
        dtype: of the estimator.
        floor: sigma / sigma_1 under which values are not data.
        subset_hash: of the diagnostic rows.
        approx: "" or what was approximated, such as "projected".
        array: name in arrays.safetensors, or "".
    """

    run_id: str
    variant: str
    seed: int
    epoch: float
    hook: str
    matrix_kind: str
    metric: str
    value: float | None
    n: int
    d: int
    bound: float
    centred: bool
    row_norm: str
    row_filter: str
    accumulator: str
    dtype: str
    floor: float
    split: str
    subset_hash: str
    approx: str = ""
    array: str = ""

    def key(self) -> str:
        """Returns a name that no other record of the same pass has."""
        centre = "centred" if self.centred else "raw"
        parts = (self.matrix_kind, self.metric, centre, self.row_norm, self.row_filter)
        return "|".join((f"{self.epoch:g}", *parts))


def difference(a: Record, b: Record) -> float:
    """Returns a.value - b.value.

    Raises:
        IncomparableError: the two differ in matrix, metric, centring, shape, row norm or filter,
            or one of them has no value. Measure both the same way, on as many rows.
    """
    unlike = [name for name in LIKE if getattr(a, name) != getattr(b, name)]
    if unlike or a.value is None or b.value is None:
        unlike = unlike or ["value"]
        raise IncomparableError(
            "two measurements cannot be subtracted: they differ in " + ", ".join(unlike),
            where=f"{a.variant}: {a.key()} and {b.variant}: {b.key()}",
            found="; ".join(f"{k}: {getattr(a, k)!r} and {getattr(b, k)!r}" for k in unlike),
            expected="the same " + ", ".join(LIKE) + ", and two values",
            fix="measure both with the same metric, centring and row filter, on as many rows",
        )
    return a.value - b.value


@dataclass
class Findings:
    """Everything that one diagnostic pass, or several over training time, found.

    Args:
        records: in the order in which they were measured.
        arrays: name -> values, float32.
        labels: name of an array -> names of its rows and columns, such as fields.
    """

    records: list[Record] = field(default_factory=list)
    arrays: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)

    def add(self, record: Record, array: Tensor | None = None) -> None:
        """Adds a record, and the array it names."""
        if array is not None:
            assert record.array, "a record with an array must name it"
            self.arrays[record.array] = array.detach().to("cpu", torch.float32).contiguous()
        self.records.append(record)

    def find(self, **wanted: Any) -> list[Record]:
        """Returns the records whose attributes equal what is asked for.

        Example: `findings.find(metric="erank", centred=True)`.
        """
        return [r for r in self.records if all(getattr(r, k) == v for k, v in wanted.items())]

    def value(self, **wanted: Any) -> float | None:
        """Returns the value of the newest record that matches, or None."""
        found = self.find(**wanted)
        return found[-1].value if found else None

    def array(self, **wanted: Any) -> Tensor | None:
        """Returns the array of the newest record that matches, or None."""
        found = [r for r in self.find(**wanted) if r.array]
        return self.arrays[found[-1].array] if found else None

    def epochs(self) -> list[float]:
        """Returns the epochs that were measured, in order."""
        return sorted({r.epoch for r in self.records})

    def latest(self) -> Findings:
        """Returns the findings of the last epoch that has any array or score, else of the last."""
        full = [r.epoch for r in self.records if r.array] or self.epochs()
        last = max(full, default=0.0)
        return Findings([r for r in self.records if r.epoch == last], self.arrays, self.labels)

    def extend(self, other: Findings) -> None:
        """Adds the findings of another pass, such as a later epoch."""
        self.records.extend(other.records)
        self.arrays.update(other.arrays)
        self.labels.update(other.labels)

    def save(self, folder: Path) -> None:
        """Writes records.jsonl and arrays.safetensors, each whole or not at all.

        Raises:
            DiskFullError: there is no room; what was there before is kept.
        """
        from safetensors.torch import save

        names = {name: json.dumps(value) for name, value in self.labels.items()}
        # Arrays first: a reader never finds a record whose array is not there yet.
        with written_whole(folder / ARRAYS) as draft:
            draft.write_bytes(save(self.arrays, metadata=names))
        lines = "".join(json.dumps(_plain(r)) + "\n" for r in self.records)
        write_text(folder / RECORDS, lines)

    @classmethod
    def load(cls, folder: Path) -> Findings:
        """Reads what `save` wrote, or a records.jsonl that stands alone.

        Raises:
            DataFormatError: a line is not a record, or an array is missing.
        """
        found = cls(records=read_records(folder / RECORDS))
        if (folder / ARRAYS).exists():
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(folder / ARRAYS, framework="pt") as stored:
                    found.arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                    names = stored.metadata() or {}
            except SafetensorError as cause:
                raise _unreadable(folder / ARRAYS, 0, str(cause)) from cause
            found.labels = {name: json.loads(text) for name, text in names.items()}
        missing = {r.array for r in found.records if r.array} - set(found.arrays)
        if missing:
            raise _unreadable(folder / ARRAYS, 0, "no array " + ", ".join(sorted(missing)))
        return found


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Appends lines to a records.jsonl, in one write.

    Raises:
        DiskFullError: there is no room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(_plain(r)) + "\n" for r in records)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as cause:
        raise_if_full(cause, path)
        raise


def read_records(path: Path) -> list[Record]:
    """Reads a records.jsonl.

    Raises:
        DataFormatError: the file is absent, or a line is not a record.
    """
    known = {f.name for f in fields(Record)}
    out = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError) as cause:
        raise _unreadable(path, 0, str(cause)) from cause
    for i, line in enumerate(lines, start=1):
        try:
            data = json.loads(line)
            out.append(Record(**{k: v for k, v in data.items() if k in known}))
        except (ValueError, TypeError, AttributeError) as cause:
            raise _unreadable(path, i, str(cause)) from cause
    return out


def kept_spectrum(s: Tensor) -> Tensor:
    """Returns a spectrum as it is stored: all of it, or 256 log-spaced indices of a wide one."""
    return s[kept_indices(len(s))]


def kept_indices(d: int) -> Tensor:
    """Returns the indices [min(d, 256)] of a spectrum that are stored, all when d <= 1024."""
    if d <= FULL_SPECTRUM:
        return torch.arange(d)
    return torch.logspace(0, math.log10(d), 256, dtype=torch.float64).round().long() - 1


def _plain(record: Record) -> dict[str, Any]:
    data = asdict(record)
    if data["value"] is not None and not math.isfinite(data["value"]):
        data["value"] = None  # JSON has no NaN
    return data


def _unreadable(path: Path, line: int, found: str) -> DataFormatError:
    return DataFormatError(
        "diagnostic records cannot be read",
        where=f"{path}, line {line}" if line else str(path),
        found=found,
        expected="what `fullrank diagnose` writes",
        fix="measure again; the file was cut or edited",
    )
