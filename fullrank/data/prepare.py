"""Prepared data: memory-mapped columns on disk, written once, read in shuffled order.

folder/manifest.json            what is there, and what it was made from
folder/featurizer/              the fitted featurizer
folder/train/categorical-0.npy  [rows] uint8, uint16 or int32, one file per categorical field
folder/train/numeric-0.npy      [rows] float32, one file per numeric field
folder/train/labels.npy         [rows, Y] float32, and one file per other block
folder/train/history.item.npy   flat values; history.offsets.npy [rows + 1] int64

Reading lays the columns side by side: batches hold contiguous [rows, C] int32 and float32.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from fullrank.batch import Batch
from fullrank.data.columns import SplitWriter, one_pass
from fullrank.data.encode import Encoded, side_by_side
from fullrank.data.featurizer import Featurizer
from fullrank.data.spec import Spec
from fullrank.disk import written_whole
from fullrank.errors import ArtifactError, SplitError
from fullrank.schema import Bag, Schema

_FORMAT = 2
_STACKED: dict[str, tuple[tuple[str, ...], np.dtype[Any]]] = {  # types on disk, type in memory
    "categorical": (("uint8", "uint16", "int32"), np.dtype(np.int32)),
    "numeric": (("float32",), np.dtype(np.float32)),
}

Progress = Callable[[str, int, int], None]  # what, rows done, rows in all


@dataclass(frozen=True, eq=False)
class Split:
    """One split on disk.

    Args:
        folder: where its blocks lie.
        schema: of the rows.
        rows: how many.
        columns: "categorical", "numeric" -> one memory map [rows] per field.
        blocks: name of another block -> memory map [rows, ...].
        flat: name -> column -> memory map of flat values.
        offsets: name -> memory map [rows + 1].
    """

    folder: Path
    schema: Schema
    rows: int
    columns: dict[str, tuple[np.ndarray, ...]]
    blocks: dict[str, np.ndarray]
    flat: dict[str, dict[str, np.ndarray]]
    offsets: dict[str, np.ndarray]

    def __len__(self) -> int:
        return self.rows

    def row_bytes(self) -> int:
        """Returns the mean bytes of one row in memory, offsets included."""
        parts = [*self.blocks.values(), *self.offsets.values()]
        parts += [v for columns in self.flat.values() for v in columns.values()]
        stacked = sum(len(c) * _STACKED[n][1].itemsize for n, c in self.columns.items())
        return max(1, stacked + sum(p.nbytes for p in parts) // max(self.rows, 1))

    def read(self, *spans: tuple[int, int]) -> Encoded:
        """Copies rows into memory.

        Args:
            spans: first row, and the row after the last, of stretches that are read in this order.
        """
        total = sum(stop - start for start, stop in spans)
        out = Encoded(total)
        for name, columns in self.columns.items():
            block = np.empty((total, len(columns)), dtype=_STACKED[name][1])
            row = 0
            for start, stop in spans:
                side_by_side([c[start:stop] for c in columns], block[row : row + stop - start])
                row += stop - start
            out.blocks[name] = block
        for name, stored in self.blocks.items():
            out.blocks[name] = np.concatenate([stored[a:b] for a, b in spans])
        for name, offsets in self.offsets.items():
            values = {
                c: np.concatenate([v[int(offsets[a]) : int(offsets[b])] for a, b in spans])
                for c, v in self.flat[name].items()
            }
            lengths = np.concatenate([np.diff(offsets[a : b + 1]) for a, b in spans])
            out.jagged[name] = (values, np.concatenate([[0], np.cumsum(lengths)]))
        return out

    def batch(self, start: int, stop: int) -> Batch:
        """Returns consecutive rows as a Batch."""
        return self.read((start, min(stop, self.rows))).batch(self.schema)

    def batches(self, size: int = 8192, limit: int | None = None) -> Iterator[Batch]:
        """Yields the rows in order, `limit` at most."""
        last = self.rows if limit is None else min(limit, self.rows)
        for start in range(0, last, size):
            yield self.batch(start, min(start + size, last))


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared dataset: its featurizer and its splits, opened without reading the rows."""

    folder: Path
    featurizer: Featurizer
    splits: dict[str, Split]
    notes: tuple[str, ...]
    seconds: float

    @property
    def schema(self) -> Schema:
        """The schema of every batch."""
        return self.featurizer.schema

    def counts(self, table: str) -> torch.Tensor:
        """Returns [V] int64: how often training saw each row of a table."""
        return torch.from_numpy(self.featurizer.counts(table))

    @classmethod
    def open(cls, folder: Path) -> Prepared:
        """Opens what `prepare` wrote.

        Raises:
            ArtifactError: a file is missing, has the wrong size or does not match the manifest.
        """
        path = folder / "manifest.json"
        try:
            manifest = json.loads(path.read_text())
            if manifest["format"] != _FORMAT:
                raise ValueError(f"format {manifest['format']!r}, not {_FORMAT}")
            featurizer = Featurizer.load(folder / "featurizer")
            splits = {
                name: _open_split(folder / name, featurizer.schema, stated)
                for name, stated in manifest["splits"].items()
            }
            notes, seconds = tuple(manifest["notes"]), float(manifest["seconds"])
        except (OSError, KeyError, TypeError, ValueError) as cause:
            raise ArtifactError(
                "prepared data cannot be read",
                where=str(path),
                found=f"{type(cause).__name__}: {cause}",
                expected="what prepare() writes",
                fix="delete the folder and prepare again",
            ) from cause
        if featurizer.fingerprint() != manifest["featurizer"]:
            raise ArtifactError(
                "prepared data and its featurizer do not belong together",
                where=str(folder),
                found=f"featurizer {featurizer.fingerprint()}",
                expected=f"featurizer {manifest['featurizer']}",
                fix="delete the folder and prepare again",
            )
        return cls(folder, featurizer, splits, notes, seconds)


def prepare(
    splits: Mapping[str, pl.LazyFrame],
    spec: Spec,
    out: Path,
    *,
    notes: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Prepared:
    """Fits the featurizer on "train" and writes every split as memory-mapped blocks.

    The folder appears whole or not at all.

    Args:
        splits: raw rows; "train" is the only one that the featurizer learns from.
        spec: what the raw columns mean.
        out: the folder to make; it must not exist.
        notes: kept in the manifest and shown in reports.
        progress: called with the split, the rows done and the rows in all.

    Raises:
        SplitError: a split has no rows.
        DiskFullError: the disk is full; nothing is left behind.
    """
    began = time.perf_counter()
    with written_whole(out) as draft:
        draft.mkdir()
        with one_pass(splits["train"], draft / "raw-train.arrow", spec) as train:
            featurizer = Featurizer.fit(spec, train)
            stated = {"train": _write_split(draft, "train", train, featurizer, progress)}
        featurizer.save(draft / "featurizer")
        for name in [n for n in splits if n != "train"]:
            with one_pass(splits[name], draft / f"raw-{name}.arrow", spec) as frame:
                stated[name] = _write_split(draft, name, frame, featurizer, progress)
        manifest = {
            "format": _FORMAT,
            "featurizer": featurizer.fingerprint(),
            "schema": featurizer.schema.fingerprint(),
            "splits": {name: stated[name] for name in splits},
            "notes": list(notes),
            "seconds": round(time.perf_counter() - began, 3),
        }
        (draft / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return Prepared.open(out)


def _write_split(
    draft: Path,
    name: str,
    frame: pl.LazyFrame,
    featurizer: Featurizer,
    progress: Progress | None,
) -> dict[str, Any]:
    rows = int(frame.select(pl.len()).collect(engine="streaming").item())
    if rows == 0:
        raise SplitError(
            "a split is empty",
            where=f"split '{name}'",
            found="0 rows",
            expected="at least one row",
            fix="move the boundaries of the split, or check the filter that made it",
        )
    (draft / name).mkdir()
    with SplitWriter(draft / name, featurizer, rows) as writer:
        for done in writer.write(frame):
            if progress is not None:
                progress(name, done, rows)
    return {"rows": rows, "files": writer.files()}


def _open_split(folder: Path, schema: Schema, stated: dict[str, Any]) -> Split:
    maps = {}
    for name, (dtype, *shape) in stated["files"].items():
        if "/" in name or "\\" in name or name.startswith("."):
            raise ValueError(f"file name {name!r}")
        path = folder / f"{name}.npy"
        # An empty file cannot be mapped.
        mapped = np.load(path, mmap_mode="r" if 0 not in shape else None, allow_pickle=False)
        if str(mapped.dtype) != dtype or list(mapped.shape) != shape:
            raise ValueError(f"{path.name} is {mapped.dtype}{mapped.shape}, not {dtype}{shape}")
        maps[name] = mapped
    counts = {"categorical": len(schema.categorical()), "numeric": len(schema.numeric())}
    columns = {
        kind: tuple(maps.pop(f"{kind}-{i}") for i in range(count))
        for kind, count in counts.items()
        if count
    }
    for kind, mapped in ((k, m) for k, group in columns.items() for m in group):
        if mapped.shape != (stated["rows"],) or str(mapped.dtype) not in _STACKED[kind][0]:
            raise ValueError(f"a {kind} column is {mapped.dtype}{mapped.shape}")
    jagged = [s.name for s in schema.sequences]
    jagged += [f.name for f in schema.fields if isinstance(f, Bag)]
    offsets = {n: maps.pop(f"{n}.offsets") for n in jagged}
    flat: dict[str, dict[str, np.ndarray]] = {n: {} for n in jagged}
    for name in list(maps):
        owner, _, column = name.rpartition(".")
        if owner in flat:
            flat[owner][column] = maps.pop(name)
    return Split(folder, schema, stated["rows"], columns, maps, flat, offsets)
