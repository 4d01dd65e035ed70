"""Replay: the rows of a shadow log encoded and scored again, and compared to the bit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fullrank.batch import Batch
from fullrank.data.encode import Encoded
from fullrank.data.featurizer import Featurizer
from fullrank.data.spec import Category, Column, History, Number, Tags, Target, Vector
from fullrank.errors import DataFormatError, FullrankError
from fullrank.serve.shadow import FORMAT, KIND, encoded_rows

Score = Callable[[Batch], dict[str, np.ndarray]]

BLOCK = 2048  # rows in memory
_MOST_BYTES = 64 << 20  # of a line
_HEADER = {"artifact": str, "threads": int, "versions": dict, "machine": str, "form": str}
_RECORD = {"raw": dict, "encoded": dict, "scores": dict}


@dataclass(frozen=True)
class Row:
    """A served row.

    Args:
        place: file and line, from 1.
        raw: raw column -> value, without the redacted ones.
        encoded: column of the spec -> what the featurizer made of it when the row was served.
        scores: label -> probability that was answered.
    """

    place: str
    raw: dict[str, Any]
    encoded: dict[str, Any]
    scores: dict[str, Any]


@dataclass
class Log:
    """One file of a log.

    Args:
        path: of the file.
        header: its first line; empty where the process was killed before it stood there.
        half: lines that ended before their end; of a killed process or a full disk, at most one.
    """

    path: Path
    header: dict[str, Any] = field(default_factory=dict)
    half: int = 0

    @classmethod
    def open(cls, path: Path) -> Log:
        """Reads the header.

        Raises:
            DataFormatError: the file is no shadow log of this format.
        """
        log = cls(path)
        for line, text in log._lines(0):
            log.header = _checked(log._parsed(line, text), _HEADER, f"{path}, line 1")
            if (log.header.get("fullrank"), log.header.get("format")) != (KIND, FORMAT):
                raise _odd(f"{path}, line 1", "another kind of file, or another format")
            break
        return log

    def rows(self) -> Iterator[Row]:
        """Yields every whole row.

        Raises:
            DataFormatError: a line, other than a half one at the end, is no row.
        """
        self.half = 0
        for line, text in self._lines(1):
            place = f"{self.path.name}, line {line}"
            yield Row(place, **_checked(self._parsed(line, text), _RECORD, place))

    def _lines(self, skip: int) -> Iterator[tuple[int, bytes]]:
        with self.path.open("rb") as file:
            line = 0
            while text := file.readline(_MOST_BYTES):
                line += 1
                if not text.endswith(b"\n"):
                    if len(text) == _MOST_BYTES:
                        raise _odd(f"{self.path}, line {line}", "a line without an end")
                    self.half += 1
                elif line > skip:
                    yield line, text

    def _parsed(self, line: int, text: bytes) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as cause:
            raise _odd(f"{self.path}, line {line}", str(cause)) from cause


@dataclass(frozen=True)
class Difference:
    """A row that does not replay.

    Args:
        row: that was served.
        encoded: column -> (served, replayed) of raw values that are encoded otherwise now.
        scores: label -> (served, replayed).
    """

    row: Row
    encoded: dict[str, tuple[Any, Any]]
    scores: dict[str, tuple[Any, Any]]


class Replay:
    """Compares served rows with what an artefact makes of them now.

    Args:
        featurizer: of the artefact.
        score: calibrated probabilities of a batch, label -> [B] float32.
    """

    def __init__(self, featurizer: Featurizer, score: Score) -> None:
        self.featurizer, self.spec, self._score = featurizer, featurizer.spec, score
        self.encoded = 0  # rows whose raw values were encoded again

    def check(self, rows: Sequence[Row]) -> list[Difference]:
        """Returns the rows whose encodings or scores differ in any bit.

        What was encoded when the row was served is scored; raw values are encoded again where the
        log has them and a data frame can hold them.

        Raises:
            DataFormatError: a row does not fit the artefact.
        """
        batch = self._batch(rows)
        found = self._score(batch)
        again = self._encoded_again(rows)
        self.encoded += len(again)
        differences = []
        for i, row in enumerate(rows):
            encoded = _unequal(row.encoded, again.get(i, {}))
            scores = _unequal(row.scores, {n: float(x[i]) for n, x in found.items()})
            scores |= {n: (v, None) for n, v in row.scores.items() if n not in found}
            if encoded or scores:
                differences.append(Difference(row, encoded, scores))
        return differences

    def _batch(self, rows: Sequence[Row]) -> Batch:
        """Returns what was scored, from untrusted numbers."""
        schema, spec = self.featurizer.schema, self.spec
        out = Encoded(len(rows))
        ids = [self._ids(c.table or c.name, _of(rows, c.name)) for c in spec.columns
               if isinstance(c, Category)]  # fmt: skip
        numbers = [_array(c.name, _of(rows, c.name), np.float32) for c in spec.columns
                   if isinstance(c, Number)]  # fmt: skip
        if ids:
            out.blocks["categorical"] = np.stack(ids, axis=1)
        if numbers:
            out.blocks["numeric"] = np.stack(numbers, axis=1)
        for c in spec.columns:
            if isinstance(c, Vector):
                block = _array(c.name, _of(rows, c.name), np.float32, ndim=2)
                if block.shape[1] != np.prod(c.shape):
                    raise _odd(f"column '{c.name}'", f"{block.shape[1]} numbers in a vector")
                out.blocks[f"dense.{c.name}"] = block.reshape(len(rows), *c.shape)
            elif isinstance(c, Tags):
                flat, offsets = _flat(c.name, _of(rows, c.name))
                out.jagged[c.name] = {"value": self._ids(c.table or c.name, flat)}, offsets
            elif isinstance(c, History):
                out.jagged[c.name] = self._history(c, _of(rows, c.name))
        return out.batch(schema).without_labels()

    def _history(self, c: History, given: list[Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        events: dict[str, np.ndarray] = {}
        ends: list[np.ndarray] = []
        for e in c.events:
            if not all(isinstance(past, dict) and e.name in past for past in given):
                raise _odd(f"history '{c.name}'", f"no '{e.name}'")
            flat, offsets = _flat(c.name, [past[e.name] for past in given])
            table = e.table
            events[e.name] = self._ids(table, flat) if table else _array(c.name, flat, np.int64)
            ends.append(offsets)
        if any(not np.array_equal(ends[0], other) for other in ends):
            raise _odd(f"history '{c.name}'", "columns of different lengths")
        return events, ends[0]

    def _ids(self, table: str, values: list[Any]) -> np.ndarray:
        rows = _array(table, values, np.int32)
        size = self.featurizer.vocabularies[table].size
        if len(rows) and not 0 <= rows.min() <= rows.max() < size:
            raise _odd(f"table '{table}'", f"rows {rows.min()} to {rows.max()} of {size:,}")
        return rows

    def _encoded_again(self, rows: Sequence[Row]) -> dict[int, dict[str, Any]]:
        """Returns place in `rows` -> column -> what its raw value is encoded as now."""
        found: dict[int, dict[str, Any]] = {}
        groups = _alike(rows)
        while groups:
            places = groups.pop()
            try:
                frame = self._frame([rows[i].raw for i in places])
                again = encoded_rows(self.featurizer(frame))
            except (pl.exceptions.PolarsError, TypeError, OverflowError):
                continue  # a list of texts and numbers, say: no data frame holds it
            except FullrankError as refused:
                if len(places) > 1:  # which of them is it?
                    groups += [[i] for i in places]
                    continue
                again = [{"the row": f"refused: {refused.what}"}]
            for i, encoded in zip(places, again, strict=True):
                found[i] = self._told(encoded)
        return found

    def _frame(self, raw: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
        """Returns raw values as a frame; what is redacted or was not given is empty."""
        columns: dict[str, pl.Series] = {}
        for c in self.spec.columns:
            if isinstance(c, Target):
                continue
            for name, kind in _raw_columns(c):
                values = [row.get(name) for row in raw]
                if isinstance(c, History) and name in self.spec.redacted():
                    values = self._as_long(c, raw)
                empty = all(v is None for v in values)
                columns[name] = pl.Series(name, values, dtype=kind if empty else None, strict=True)
        return pl.DataFrame(columns)

    def _as_long(self, c: History, raw: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Returns empty events for a redacted column, as many as the column beside it has."""
        beside = [e.column for e in c.events if e.column not in self.spec.redacted()]
        if not beside:
            return [None] * len(raw)
        return [[None] * len(row.get(beside[0]) or ()) for row in raw]

    def _told(self, encoded: dict[str, Any]) -> dict[str, Any]:
        """Leaves out what was encoded from nothing, because the raw value is redacted."""
        hidden = self.spec.redacted()
        told = {n: v for n, v in encoded.items() if n not in hidden}
        for h in self.spec.histories():
            if h.name in told:
                events = {e.name: e.column for e in h.events if e.column not in hidden}
                told[h.name] = {n: v for n, v in told[h.name].items() if n in events}
        return told


def _raw_columns(column: Column) -> list[tuple[str, Any]]:
    """Returns the raw columns of a column of the spec, with a type that fits nothing but nulls."""
    match column:
        case History():
            return [(e.column, pl.List(pl.String if e.table else pl.Int64)) for e in column.events]
        case Vector():
            return [(column.name, pl.List(pl.Float64))]
        case Number():
            return [(column.name, pl.Float64)]
        case _:
            return [(column.name, pl.String)]


def _alike(rows: Sequence[Row]) -> list[list[int]]:
    """Returns the rows in groups, each of which has one type of value per column."""
    kinds: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.raw.items():
            kinds.setdefault(name, set()).update(_kind(value))
    mixed = [name for name, found in kinds.items() if len(found) > 1]
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, row in enumerate(rows):
        key = tuple(",".join(sorted(_kind(row.raw.get(name)))) for name in mixed)
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _kind(value: Any) -> set[str]:
    if isinstance(value, list):
        inner = {f"list of {type(v).__name__}" for v in value if v is not None}
        return inner
    return set() if value is None else {type(value).__name__}


def _unequal(served: Mapping[str, Any], replayed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns name -> (served, replayed) of what is not the same to the bit, sign of 0 included."""
    found = {}
    for name, value in replayed.items():
        before = served.get(name)
        if isinstance(value, dict) and isinstance(before, dict):  # events that are not redacted
            before = {n: v for n, v in before.items() if n in value}
        if json.dumps(before) != json.dumps(value):
            found[name] = (before, value)
    return found


def _of(rows: Sequence[Row], name: str) -> list[Any]:
    try:
        return [row.encoded[name] for row in rows]
    except KeyError as cause:
        raise _odd(f"column '{name}'", "a row without it") from cause


def _flat(name: str, lists: Sequence[Any]) -> tuple[list[Any], np.ndarray]:
    if not all(isinstance(part, list) for part in lists):
        raise _odd(f"column '{name}'", "a row without its list")
    offsets = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in lists], out=offsets[1:])
    return [v for part in lists for v in part], offsets


def _array(name: str, values: Sequence[Any], dtype: Any, ndim: int = 1) -> np.ndarray:
    kinds = Counter(type(v) for part in values for v in (part if ndim == 2 else (part,)))
    allowed = {int, float} if dtype is np.float32 else {int}
    try:
        if not set(kinds) <= allowed:
            raise TypeError("a value that is no number")
        with np.errstate(over="ignore"):
            found = np.array(values, dtype=np.float64 if dtype is np.float32 else dtype)
            found = found.astype(dtype)
    except (TypeError, ValueError, OverflowError) as cause:
        raise _odd(f"column '{name}'", str(cause)) from cause
    return found if values else found.reshape((0,) * ndim)


def _checked(found: Any, kinds: Mapping[str, type], where: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise _odd(where, f"a {type(found).__name__}")
    for name, kind in kinds.items():
        if not isinstance(found.get(name), kind):
            raise _odd(where, f"'{name}' is a {type(found.get(name)).__name__}")
    return found if "fullrank" in found else {name: found[name] for name in kinds}


def _odd(where: str, found: str) -> DataFormatError:
    return DataFormatError(
        "a shadow log cannot be read",
        where=where,
        found=found[:200],
        expected="lines that `fullrank serve` wrote for this artefact",
        fix="copy the log again from the machine that served",
    )
