"""Values: the columns of a request, as Python lists, to the blocks that the featurizer makes.

A data frame costs a tenth of a millisecond per column before it does anything; a request has a few
hundred rows. Here a value is looked up in a dictionary. Every block equals the featurizer's to the
bit; a value of an unusual type, such as the text "7" for the number 7, goes the featurizer's way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np
import polars as pl

from fullrank.data.encode import Encoded
from fullrank.data.featurizer import Featurizer
from fullrank.data.numbers import encode_finite, encode_number
from fullrank.data.spec import Category, Column, History, Number, Tags, Target, Vector
from fullrank.data.vocab import Vocabulary
from fullrank.errors import DataFormatError

Values = Sequence[Any]
_INTEGERS = (pl.Int64, pl.Int32, pl.Int16, pl.Int8, pl.UInt32, pl.UInt16, pl.UInt8)
_FLOATS = (pl.Float64, pl.Float32)
_MOST_WORDS = 1 << 20  # of a dictionary, about 150 bytes each; a larger table is searched


class ValueEncoder:
    """Encodes columns of Python values with the vocabularies and statistics of a featurizer.

    Args:
        featurizer: fitted.
    """

    def __init__(self, featurizer: Featurizer) -> None:
        self.featurizer = featurizer
        self._words = {
            table: _dictionary(v)
            for table, v in featurizer.vocabularies.items()
            if len(v.values) <= _MOST_WORDS
        }

    def encode(
        self, columns: Mapping[str, Values], rows: int, spec_columns: Sequence[Column]
    ) -> Encoded:
        """Encodes some columns of the spec.

        Args:
            columns: raw column -> B values; one that is absent reads as empty.
            rows: B.
            spec_columns: which columns of the spec to encode, in its order.

        Raises:
            DataFormatError: a number is not finite, or the lists of a history differ in length.
        """
        out, empty = Encoded(rows), [None] * rows
        ids: list[np.ndarray] = []
        numbers: list[np.ndarray] = []
        for c in spec_columns:
            match c:
                case Category():
                    table = c.table or c.name
                    ids.append(self._rows(table, columns.get(c.name, empty)))
                case Number():
                    numbers.append(self._number(c, columns.get(c.name, empty)))
                case Tags():
                    out.jagged[c.name] = self._bag(c, columns.get(c.name, empty))
                case Vector():
                    out.blocks[f"dense.{c.name}"] = _vectors(c, columns.get(c.name, empty))
                case History():
                    out.jagged[c.name] = self._history(c, columns, empty)
        if ids:
            out.blocks["categorical"] = np.stack(ids, axis=1)
        if numbers:
            out.blocks["numeric"] = np.stack(numbers, axis=1)
        time = self.featurizer.spec.time
        if time in columns:
            out.blocks["time"] = _whole_numbers(time, columns[time])
        return out

    def plain(
        self, frame: pl.DataFrame, spec_columns: Sequence[Column]
    ) -> dict[str, Values] | None:
        """Returns the values of a data frame, if `encode` is sure to read them as the featurizer.

        Args:
            frame: raw columns; others than those of the spec are left out.
            spec_columns: which columns of the spec to encode.

        Returns:
            Raw column -> values; None where a column is missing or of an unusual type.
        """
        spec, wanted = self.featurizer.spec, dict[str, tuple[Any, ...]]()
        for c in spec_columns:
            if not isinstance(c, Target):
                wanted |= self._usual_types(c)
        if spec.time in frame.columns:
            wanted[spec.time] = _INTEGERS
        may_be_empty = spec.raw_columns(labels=False)
        for name, types in wanted.items():
            needed = not may_be_empty.get(name, False)
            if name not in frame.columns:
                if needed:
                    return None
            elif frame.schema[name] not in types or (needed and frame[name].null_count()):
                return None
        return {name: frame[name].to_list() for name in wanted if name in frame.columns}

    def _usual_types(self, column: Column) -> dict[str, tuple[Any, ...]]:
        """Returns raw column -> types whose values are read alike in a list and in a frame."""
        match column:
            case Category():
                return {column.name: self._names(column.table or column.name)}
            case Number():
                return {column.name: _INTEGERS + _FLOATS}
            case Tags():
                lists = _lists(self._names(column.table or column.name))
                return {column.name: (*lists, pl.String) if column.separator else lists}
            case History():
                return {
                    e.column: _lists(self._names(e.table) if e.table else _INTEGERS)
                    for e in column.events
                }
            case Vector():
                return {column.name: _lists(_FLOATS)}
        raise AssertionError(column)

    def _names(self, table: str) -> tuple[Any, ...]:
        text = self.featurizer.vocabularies[table].values.dtype == pl.String
        return (pl.String,) if text else _INTEGERS

    def _rows(self, table: str, values: Values) -> np.ndarray:
        """Returns [M] int32 row numbers, as Vocabulary.rows does."""
        vocabulary = self.featurizer.vocabularies[table]
        kind = str if vocabulary.values.dtype == pl.String else int
        words = self._words.get(table)
        if words is None:
            usual = [v if type(v) is kind else None for v in values]
            rows = vocabulary.rows(_series(usual, kind))
        else:
            rows = np.fromiter(map(words.get, values, repeat(0)), np.int32, len(values))
        if set(map(type, values)) <= {kind, type(None)}:
            return rows
        rows = rows.copy()  # polars hands out read-only views
        for i, v in enumerate(values):
            if type(v) is not kind and v is not None:
                rows[i] = vocabulary.rows(_one(v))[0]
        return rows

    def _number(self, column: Number, values: Values) -> np.ndarray:
        stats = self.featurizer.numbers.get(column.name)
        if stats is None:
            return np.zeros(len(values), dtype=np.float32)
        x = np.array(values, dtype=np.float64)  # None becomes NaN
        if np.isfinite(x).all():
            return encode_finite(column, x, None, stats)
        missing = np.fromiter((v is None for v in values), np.bool_, len(values))
        if not np.isfinite(x[~missing]).all():
            return encode_number(column, pl.Series(values, dtype=pl.Float64), stats)  # it refuses
        x[missing] = 0.0
        return encode_finite(column, x, missing, stats)

    def _bag(self, column: Tags, values: Values) -> tuple[dict[str, np.ndarray], np.ndarray]:
        lists = [_tags(column, v)[: column.max_length] for v in values]
        flat = list(chain.from_iterable(lists))
        return {"value": self._rows(column.table or column.name, flat)}, _offsets(lists)

    def _history(
        self, history: History, columns: Mapping[str, Values], empty: Values
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        found: dict[str, np.ndarray] = {}
        offsets: np.ndarray | None = None
        for e in history.events:
            given = columns.get(e.column, empty)
            lists = [v[-history.max_length :] if v else () for v in given]
            own, flat = _offsets(lists), list(chain.from_iterable(lists))
            if offsets is not None and not np.array_equal(offsets, own):
                raise _uneven(history, e.column, offsets, own)
            offsets = own
            found[e.name] = self._rows(e.table, flat) if e.table else _whole_numbers(e.column, flat)
        assert offsets is not None
        return found, offsets


def _lists(types: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(pl.List(kind) for kind in types)


def _dictionary(vocabulary: Vocabulary) -> dict[Any, int]:
    return dict(zip(vocabulary.values.to_list(), range(1, vocabulary.size), strict=True))


def _series(values: Values, kind: type) -> pl.Series:
    if kind is str:
        return pl.Series(values, dtype=pl.String)
    held = [v if v is not None and -(2**63) <= v < 2**63 else None for v in values]
    return pl.Series(held, dtype=pl.Int64)


def _one(value: Any) -> pl.Series:
    """Returns a single value as the featurizer would be given it."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # the same text as polars writes, also beyond 64 bits
    return pl.Series([value])


def _tags(column: Tags, value: Any) -> Values:
    if not isinstance(value, str):
        return value or ()
    if not column.separator:
        return list(value)
    return value.split(column.separator) if value else ()


def _offsets(lists: Sequence[Values]) -> np.ndarray:
    offsets = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum([len(v) for v in lists], out=offsets[1:])
    return offsets


def _whole_numbers(name: str, values: Values) -> np.ndarray:
    """Returns [M] int64, 0 where a value is empty."""
    if all(type(v) is int for v in values):
        return np.array(values, dtype=np.int64)
    try:
        return pl.Series(values, strict=True).cast(pl.Int64).fill_null(0).to_numpy()
    except (TypeError, OverflowError, pl.exceptions.PolarsError) as cause:
        raise DataFormatError(
            "a value is no whole number",
            where=f"column '{name}'",
            found=str(cause).splitlines()[0],
            expected="whole numbers of 64 bits",
            fix="convert the column before it is scored",
        ) from cause


def _vectors(column: Vector, values: Values) -> np.ndarray:
    width = int(np.prod(column.shape))
    out = np.zeros((len(values), width), dtype=np.float32)
    given = [i for i, v in enumerate(values) if v is not None]
    for i in given:
        if len(values[i]) != width:
            raise _odd_vector(column, i, f"{len(values[i])} numbers", f"{width} numbers")
    if given:
        wide = np.array([values[i] for i in given], dtype=np.float64)  # None becomes NaN
        with np.errstate(over="ignore"):
            out[given] = wide
    if not np.isfinite(out).all():
        row = int(np.argmin(np.isfinite(out).all(axis=1)))
        raise _odd_vector(column, row, "NaN, infinity or an empty entry", "finite numbers")
    return out.reshape(len(values), *column.shape)


def _odd_vector(column: Vector, row: int, found: str, expected: str) -> DataFormatError:
    return DataFormatError(
        "a vector cannot be read",
        where=f"column '{column.name}', row {row}",
        found=found,
        expected=f"{expected}, for shape {column.shape}",
        fix="correct the vector, or leave it empty",
    )


def _uneven(history: History, column: str, offsets: np.ndarray, own: np.ndarray) -> DataFormatError:
    row = int(np.argmax(np.diff(offsets) != np.diff(own)))
    return DataFormatError(
        "the columns of a history have different lengths",
        where=f"history '{history.name}', column '{column}', row {row}",
        found=f"{np.diff(own)[row]} events",
        expected=f"{np.diff(offsets)[row]}, as in column '{history.events[0].column}'",
        fix="write one entry per event into every column",
    )


def side_by_side(
    parts: Sequence[tuple[Sequence[Column], Encoded]], spec_columns: Sequence[Column], rows: int
) -> Encoded:
    """Joins blocks of different columns of the same rows; a part of one row stands for all rows.

    Args:
        parts: columns of the spec, each in one part only, with their blocks of B rows or of one.
        spec_columns: all columns of the spec, in its order.
        rows: B.
    """
    out = Encoded(rows)
    places = {
        "categorical": [c.name for c in spec_columns if isinstance(c, Category)],
        "numeric": [c.name for c in spec_columns if isinstance(c, Number)],
    }
    for columns, part in parts:
        repeats = 1 if part.rows == rows else rows
        for name, block in part.blocks.items():
            if name not in places:
                out.blocks[name] = np.repeat(block, repeats, axis=0)
                continue
            kind = Category if name == "categorical" else Number
            at = [places[name].index(c.name) for c in columns if isinstance(c, kind)]
            whole = out.blocks.setdefault(name, np.empty((rows, len(places[name])), block.dtype))
            whole[:, at] = block  # one row is broadcast
        for name, (values, offsets) in part.jagged.items():
            out.jagged[name] = _repeated(values, offsets, repeats)
    return out


def _repeated(
    values: dict[str, np.ndarray], offsets: np.ndarray, times: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the only row of a bag or history, several times; or, for 1, what was given."""
    if times == 1:
        return values, offsets
    longer = np.arange(times + 1, dtype=np.int64) * offsets[-1]
    return {name: np.tile(flat, times) for name, flat in values.items()}, longer
