"""Columns: raw rows to .npy files, one column after the other, in bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import polars as pl

from fullrank.data.encode import Encoded, encode_rest
from fullrank.data.numbers import encode_number
from fullrank.data.spec import Category, Number, Spec
from fullrank.errors import DataFormatError

if TYPE_CHECKING:
    from fullrank.data.featurizer import Featurizer

_CHUNK_ROWS = 1 << 18  # rows of a single column in memory: a few megabytes, near the cache
_REST_ROWS = 1 << 20  # rows of all other columns: amortises a hash table per list column
_STEPS = ("Parquet SCAN [", "IPC SCAN [", "DF [", "PROJECT ", "simple π ", "ESTIMATED ROWS: ")
_CONDITIONS = ("SELECTION: ", "FILTER ", "FROM")
_CALLS = {"col", "cast", "strict_cast", "is_null", "is_not_null", "is_between"}


@contextmanager
def one_pass(frame: pl.LazyFrame, copy: Path, spec: Spec) -> Iterator[pl.LazyFrame]:
    """Gives the columns that a spec reads, as a frame that is cheap to read column by column.

    A table in memory and a scan of a Parquet or Arrow file, filtered or not, are so already. Any
    other plan may be dear, or give other rows the next time: it is run once, into `copy`.
    """
    names = frame.collect_schema()
    wanted = frame.select([c for c in spec.raw_columns() if c in names])
    if _is_plain(wanted):
        yield wanted
        return
    wanted.sink_ipc(copy, compression="lz4", maintain_order=True)
    yield pl.scan_ipc(copy)
    copy.unlink()


def _is_plain(frame: pl.LazyFrame) -> bool:
    steps = [line.strip() for line in frame.explain().splitlines()]
    calls = {c for s in steps if s.startswith(_CONDITIONS) for c in re.findall(r"(\w+)\(", s)}
    return all(s.startswith(_STEPS + _CONDITIONS) for s in steps) and calls <= _CALLS


class SplitWriter:
    """Encodes a split and writes it.

    Args:
        folder: of the files; it exists.
        featurizer: fitted.
        rows: of the split.
    """

    def __init__(self, folder: Path, featurizer: Featurizer, rows: int) -> None:
        self.folder, self.featurizer, self.rows = folder, featurizer, rows
        self._writers: dict[str, _BlockWriter] = {}

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()

    def files(self) -> dict[str, list[Any]]:
        """Returns name -> type and lengths of every file."""
        return {n: [str(w.dtype), *w.shape] for n, w in self._writers.items()}

    def write(self, frame: pl.LazyFrame) -> Iterator[int]:
        """Writes all columns; yields how many rows' worth of work is done.

        Raises:
            SchemaError, DataFormatError, LabelError: as a Featurizer does.
        """
        names = frame.collect_schema().names()
        has_labels = self.featurizer.require(names)
        arrays = self._arrays(frame)
        for number, (name, chunks) in enumerate(arrays.items()):
            for chunk in chunks:
                self._append(name, chunk)
                yield (number * self.rows + self._writers[name].shape[0]) // (len(arrays) + 1)
            self._require_all(name, self._writers[name].shape[0])
        rest = [c for c in self._rest_columns(has_labels) if c in names]
        if rest:
            done = 0
            for part in frame.select(rest).collect_batches(
                chunk_size=_REST_ROWS, maintain_order=True
            ):
                self._append_rest(encode_rest(self.featurizer, part, has_labels))
                done += len(part)
            self._require_all("other columns", done)
        yield self.rows

    def _arrays(self, frame: pl.LazyFrame) -> dict[str, Iterator[np.ndarray]]:
        """Returns file name -> the values of a Category or a Number, chunk by chunk."""
        columns = self.featurizer.spec.columns
        categorical = [self._categorical(frame, c) for c in columns if isinstance(c, Category)]
        numeric = [self._numeric(frame, c) for c in columns if isinstance(c, Number)]
        arrays = {f"categorical-{i}": chunks for i, chunks in enumerate(categorical)}
        return arrays | {f"numeric-{i}": chunks for i, chunks in enumerate(numeric)}

    def _rest_columns(self, has_labels: bool) -> list[str]:
        spec = self.featurizer.spec
        columns = tuple(c for c in spec.columns if not isinstance(c, Category | Number))
        return list(replace(spec, columns=columns, item="").raw_columns(labels=has_labels))

    def _categorical(self, frame: pl.LazyFrame, column: Category) -> Iterator[np.ndarray]:
        if column.name not in frame.collect_schema():
            return self._constant(0, np.dtype(np.uint8))
        single = frame.select(column.name)
        return self.featurizer.table_of(column).column_rows(single, _CHUNK_ROWS)

    def _numeric(self, frame: pl.LazyFrame, column: Number) -> Iterator[np.ndarray]:
        stats = self.featurizer.numbers.get(column.name)
        if stats is None or column.name not in frame.collect_schema():
            yield from self._constant(stats.fill if stats else 0.0, np.dtype(np.float32))
            return
        first, single = 0, frame.select(column.name)
        for chunk in single.collect_batches(chunk_size=_CHUNK_ROWS, maintain_order=True):
            yield encode_number(column, chunk[column.name], stats, first)
            first += len(chunk)

    def _constant(self, value: float, dtype: np.dtype[Any]) -> Iterator[np.ndarray]:
        for start in range(0, self.rows, _CHUNK_ROWS):
            yield np.full(min(_CHUNK_ROWS, self.rows - start), value, dtype=dtype)

    def _append(self, name: str, array: np.ndarray) -> None:
        if name not in self._writers:
            self._writers[name] = _BlockWriter(self.folder / f"{name}.npy", array)
        self._writers[name].append(array)

    def _append_rest(self, part: Encoded) -> None:
        writers, arrays = self._writers, dict(part.blocks)
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
            self._append("observed", np.ones(earlier, dtype=np.bool_))
        for name, array in arrays.items():
            self._append(name, array)

    def _require_all(self, name: str, found: int) -> None:
        if found != self.rows:
            raise DataFormatError(
                "the rows changed while they were read",
                where=f"split '{self.folder.name}', {name}",
                found=f"{found:,} rows",
                expected=f"{self.rows:,} rows, as counted before",
                fix="prepare again when nothing writes to the raw files",
            )


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
