"""Vocabulary: raw values to row numbers of a table. Row 0 is unknown; known rows are 1 and up."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from fullrank.data.arrow_ipc import decoded_bytes, file_messages
from fullrank.errors import ArtifactError

# Below this share of the vocabulary a batch is looked up by binary search; above it a hash join
# pays for building its table. Measured: the join costs about 60 ns per vocabulary value once,
# the search about 200 ns per value looked up and doubling of the vocabulary.
_JOIN_FROM = 0.02
# What a file may say that it holds, in bytes: the larger of the two. Our choice: a million made-up
# names in a row are packed 70 times, and a bomb a thousand times and more.
_MOST_DECODED, _MOST_RATIO = 64 << 20, 256
_VALUE_TYPES = (pa.int64(), pa.string(), pa.large_string(), pa.string_view())
_FAILURES = (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException)


class Vocabulary:
    """The values of one table, most frequent first.

    Args:
        values: String or Int64, distinct, no nulls; value i has row i + 1.
        counts: how often each value was seen in training, same order.
        unknown: how often training saw a missing value, or one below the frequency floor.
    """

    def __init__(self, values: pl.Series, counts: np.ndarray, unknown: int = 0) -> None:
        self.values, self.counts, self.unknown = values, counts, unknown
        rows = np.arange(1, len(values) + 1, dtype=np.int32)
        self._table = pl.DataFrame({"value": values, "row": rows})

    @property
    def size(self) -> int:
        """Rows of the table, the unknown row included."""
        return len(self.values) + 1

    @cached_property
    def _sorted(self) -> tuple[pl.Series, np.ndarray]:
        ordered = self._table.sort("value")  # only a search needs it, and preparing never searches
        return ordered["value"], ordered["row"].to_numpy()

    @classmethod
    def fit(cls, columns: Iterable[pl.LazyFrame], min_count: int) -> Vocabulary:
        """Counts values in one streaming pass per column.

        Args:
            columns: one-column frames, values not yet cast; together they fill the table.
            min_count: values seen less often become unknown.

        Returns:
            Rows ordered by falling count, then by value, so that equal data gives equal rows.
        """
        frames = list(columns)
        kind = vocabulary_type([f.collect_schema().dtypes()[0] for f in frames])
        counted = [
            f.select(_as(pl.all(), kind).alias("value"))
            .group_by("value")
            .len("count")
            .collect(engine="streaming")
            for f in frames
        ]
        total = counted[0]
        if len(counted) > 1:
            total = pl.concat(counted).group_by("value").agg(pl.col("count").sum())
        kept = total.filter(pl.col("value").is_not_null() & (pl.col("count") >= min_count))
        kept = kept.sort(["count", "value"], descending=[True, False])
        unknown = int(total["count"].sum()) - int(kept["count"].sum())
        return cls(kept["value"], kept["count"].to_numpy().astype(np.int64), unknown)

    def rows(self, raw: pl.Series) -> np.ndarray:
        """Returns [len(raw)] int32 row numbers; missing and unseen values are row 0."""
        raw = _as_series(raw, self.values.dtype)
        if len(self.values) == 0:
            return np.zeros(len(raw), dtype=np.int32)
        if len(raw) < _JOIN_FROM * len(self.values):
            return self._searched(raw)
        found = raw.to_frame("value").join(
            self._table, on="value", how="left", maintain_order="left"
        )["row"]
        return found.fill_null(0).to_numpy()

    def _searched(self, raw: pl.Series) -> np.ndarray:
        values, rows = self._sorted
        place = values.search_sorted(raw).to_numpy()
        place = np.minimum(place, len(values) - 1)
        same = values.gather(place).eq_missing(raw).to_numpy()  # [M] bool
        return np.where(same, rows[place], np.int32(0))

    def column_rows(self, column: pl.LazyFrame, chunk_rows: int) -> Iterator[np.ndarray]:
        """Yields what `rows` returns for a whole column, in order, in the narrowest type.

        One hash table serves all chunks, and no more than a few chunks are in memory.

        Args:
            column: one column of raw values.
            chunk_rows: rows of every yielded array but the last.
        """
        raw = column.collect_schema().dtypes()[0]
        narrow = (
            pl.UInt8 if self.size <= 1 << 8 else pl.UInt16 if self.size <= 1 << 16 else pl.Int32
        )
        values = column.select(_as(_whole(pl.all(), raw, self.values.dtype), self.values.dtype))
        table = self._table.lazy().with_columns(pl.col("row").cast(narrow))
        found = values.select(pl.all().alias("value")).join(
            table, on="value", how="left", maintain_order="left"
        )
        rows = found.select(pl.col("row").fill_null(0))
        for chunk in rows.collect_batches(chunk_size=chunk_rows, maintain_order=True):
            yield chunk["row"].to_numpy()

    def save(self, path: Path) -> None:
        """Writes an Arrow IPC file."""
        frame = pl.DataFrame({"value": self.values, "count": self.counts})
        frame.write_ipc(path, compression="zstd")
        if _decoded(path.read_bytes()) > _allowed(path.stat().st_size):  # it would not be read
            frame.write_ipc(path, compression="uncompressed")

    @classmethod
    def load(cls, path: Path, unknown: int) -> Vocabulary:
        """Reads what `save` wrote.

        Raises:
            ArtifactError: the file is something else, or claims to be far larger than it is.
        """
        try:
            content = path.read_bytes()
            if (claimed := _decoded(content)) > _allowed(len(content)):
                raise ValueError(f"{claimed:,} bytes that are packed into {len(content):,}")
            frame = _frame(content)
            return cls(frame["value"], frame["count"].to_numpy().astype(np.int64), unknown)
        except (*_FAILURES, OSError, EOFError, ValueError, struct.error) as cause:
            raise ArtifactError(
                "a vocabulary cannot be read",
                where=str(path),
                found=(str(cause).splitlines() or [type(cause).__name__])[0][:200],
                expected="an Arrow file with the columns value and count",
                fix="restore the folder from where it was saved, or prepare the data again",
            ) from cause


def _decoded(content: bytes) -> int:
    """Returns how large an IPC file says that its buffers are."""
    return sum(map(decoded_bytes, file_messages(content)))


def _allowed(size: int) -> int:
    return max(_MOST_DECODED, _MOST_RATIO * size)


def _frame(content: bytes) -> pl.DataFrame:
    """Reads a file whose claims are sound; nothing that it points to is trusted yet."""
    with pa.ipc.open_file(content) as reader:
        types = {f.name: f.type for f in reader.schema}
        plain = types.get("value") in _VALUE_TYPES and types.get("count") == pa.int64()
        if not plain or len(reader.schema) != len(types) or len(types) != 2:
            raise ValueError(f"columns {str(types)[:120]}")
        table = reader.read_all()
    table.validate(full=True)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    if any(frame.null_count().row(0)) or not frame["value"].is_unique().all():
        raise ValueError("a value that is empty or stands twice")
    return frame.rechunk()


def vocabulary_type(dtypes: list[pl.DataType]) -> pl.DataType:
    """Returns Int64 when every column is integer, else String."""
    integer = all(d.is_integer() and d != pl.UInt64 for d in dtypes)
    return pl.Int64() if integer else pl.String()


def _as(expression: pl.Expr, kind: pl.DataType) -> pl.Expr:
    cast = expression.cast(kind, strict=False)
    # An empty text is a missing value, as in every CSV.
    return pl.when(cast != "").then(cast) if kind == pl.String else cast


def _whole(expression: pl.Expr, raw: pl.DataType, kind: pl.DataType) -> pl.Expr:
    if kind == pl.Int64 and raw.is_float():  # JSON writes 7 as 7.0; 7.5 is no id
        return pl.when(expression.round() == expression).then(expression)
    return expression


def _as_series(raw: pl.Series, kind: pl.DataType) -> pl.Series:
    frame = raw.rename("value").to_frame()
    value = _as(_whole(pl.col("value"), raw.dtype, kind), kind)
    return frame.select(value.alias("value"))["value"]
