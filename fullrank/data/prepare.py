"""Prepared data: memory-mapped blocks on disk, written once, read in shuffled order.

folder/manifest.json           what is there, and what it was made from
folder/featurizer/             the fitted featurizer
folder/train/categorical.npy   [rows, C] int32, and one file per other block
folder/train/history.item.npy  flat values; history.offsets.npy [rows + 1] int64
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import torch

from fullrank.batch import Batch
from fullrank.data.encode import Encoded
from fullrank.data.featurizer import Featurizer
from fullrank.data.spec import Spec
from fullrank.disk import written_whole
from fullrank.errors import ArtifactError, SplitError
from fullrank.schema import Bag, Schema

_CHUNK_ROWS = 1 << 20  # rows encoded at a time: bounds memory, amortises a hash table per column

Progress = Callable[[str, int, int], None]  # what, rows done, rows in all


@dataclass(frozen=True, eq=False)
class Split:
    """One split on disk.

    Args:
        folder: where its blocks lie.
        schema: of the rows.
        rows: how many.
        blocks: name -> memory map [rows, ...].
        flat: name -> column -> memory map of flat values.
        offsets: name -> memory map [rows + 1].
    """

    folder: Path
    schema: Schema
    rows: int
    blocks: dict[str, np.ndarray]
    flat: dict[str, dict[str, np.ndarray]]
    offsets: dict[str, np.ndarray]

    def __len__(self) -> int:
        return self.rows

    def row_bytes(self) -> int:
        """Returns the mean bytes of one row, offsets included."""
        parts = [*self.blocks.values(), *self.offsets.values()]
        parts += [v for columns in self.flat.values() for v in columns.values()]
        return max(1, sum(p.nbytes for p in parts) // max(self.rows, 1))

    def read(self, start: int, stop: int) -> Encoded:
        """Copies consecutive rows into memory."""
        out = Encoded(stop - start)
        for name, block in self.blocks.items():
            out.blocks[name] = np.array(block[start:stop])
        for name, offsets in self.offsets.items():
            first, last = int(offsets[start]), int(offsets[stop])
            values = {c: np.array(v[first:last]) for c, v in self.flat[name].items()}
            out.jagged[name] = (values, np.array(offsets[start : stop + 1]) - first)
        return out

    def batch(self, start: int, stop: int) -> Batch:
        """Returns consecutive rows as a Batch."""
        return self.read(start, min(stop, self.rows)).batch(self.schema)

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
        featurizer = Featurizer.fit(spec, splits["train"])
        featurizer.save(draft / "featurizer")
        stated = {
            name: _write_split(draft / name, name, frame, featurizer, progress)
            for name, frame in splits.items()
        }
        manifest = {
            "format": 1,
            "featurizer": featurizer.fingerprint(),
            "schema": featurizer.schema.fingerprint(),
            "splits": stated,
            "notes": list(notes),
            "seconds": round(time.perf_counter() - began, 3),
        }
        (draft / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return Prepared.open(out)


def _write_split(
    folder: Path,
    name: str,
    frame: pl.LazyFrame,
    featurizer: Featurizer,
    progress: Progress | None,
) -> dict[str, Any]:
    folder.mkdir()
    writers: dict[str, _BlockWriter] = {}
    columns = [c for c in featurizer.spec.raw_columns() if c in frame.collect_schema()]
    wanted = frame.select(columns)
    total = int(frame.select(pl.len()).collect(engine="streaming").item())
    rows = 0
    try:
        for chunk in wanted.collect_batches(chunk_size=_CHUNK_ROWS, maintain_order=True):
            for start in range(0, len(chunk), _CHUNK_ROWS):
                part = chunk.slice(start, _CHUNK_ROWS)
                _append(folder, writers, featurizer.encode(part))
                rows += len(part)
                if progress is not None:
                    progress(name, rows, total)
    finally:
        for writer in writers.values():
            writer.close()
    if rows == 0:
        raise SplitError(
            "a split is empty",
            where=f"split '{name}'",
            found="0 rows",
            expected="at least one row",
            fix="move the boundaries of the split, or check the filter that made it",
        )
    return {"rows": rows, "files": {n: [str(w.dtype), *w.shape] for n, w in writers.items()}}


def _append(folder: Path, writers: dict[str, _BlockWriter], part: Encoded) -> None:
    arrays = dict(part.blocks)
    for name, (values, offsets) in part.jagged.items():
        seen = writers.get(f"{name}.offsets")
        shift = seen.last if seen is not None else 0
        arrays[f"{name}.offsets"] = offsets[1:] + shift
        if seen is None:
            arrays[f"{name}.offsets"] = np.concatenate([[0], offsets[1:]])
        arrays.update({f"{name}.{c}": v for c, v in values.items()})
    if "observed" in writers and "observed" not in arrays:
        arrays["observed"] = np.ones_like(arrays["labels"], dtype=np.bool_)
    if "observed" in arrays and "observed" not in writers and "labels" in writers:
        earlier = writers["labels"].shape  # all of them were observed, so nothing was stored
        writers["observed"] = _BlockWriter(folder / "observed.npy", arrays["observed"])
        writers["observed"].append(np.ones(earlier, dtype=np.bool_))
    for name, array in arrays.items():
        if name not in writers:
            writers[name] = _BlockWriter(folder / f"{name}.npy", array)
        writers[name].append(array)


class _BlockWriter:
    """Appends to an .npy file; numpy leaves room in the header for the length to grow."""

    def __init__(self, path: Path, like: np.ndarray) -> None:
        self.dtype, self.shape, self.last = like.dtype, (0, *like.shape[1:]), 0
        self._file: BinaryIO = path.open("wb")
        self._header()

    def append(self, array: np.ndarray) -> None:
        """Writes rows at the end."""
        assert (array.dtype, array.shape[1:]) == (self.dtype, self.shape[1:])
        self._file.write(np.ascontiguousarray(array).data)
        self.shape = (self.shape[0] + len(array), *self.shape[1:])
        if array.ndim == 1 and len(array) and self.dtype == np.int64:
            self.last = int(array[-1])

    def close(self) -> None:
        """Writes the final length into the header."""
        self._file.seek(0)
        self._header()
        self._file.close()

    def _header(self) -> None:
        described = {"descr": self.dtype.str, "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self._file, described)


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
    jagged = [s.name for s in schema.sequences]
    jagged += [f.name for f in schema.fields if isinstance(f, Bag)]
    offsets = {n: maps.pop(f"{n}.offsets") for n in jagged}
    flat: dict[str, dict[str, np.ndarray]] = {n: {} for n in jagged}
    for name in list(maps):
        owner, _, column = name.rpartition(".")
        if owner in flat:
            flat[owner][column] = maps.pop(name)
    return Split(folder, schema, stated["rows"], maps, flat, offsets)
