"""Streams: rows of files of any size, a few megabytes at a time, for those who read them once."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from fullrank.data.datasets.tabular import (
    COLUMNAR,
    _kinds,
    _lists,
    _require_known,
    _sniffed,
    data_files,
    read_files,
)
from fullrank.data.spec import Category, History, Number, Spec, Vector
from fullrank.data.text import BadRow, BadRows
from fullrank.data.text.delimited import column_names, read_frames
from fullrank.data.text.lines import open_text
from fullrank.errors import DataFormatError

JSON_LINES = (".jsonl", ".ndjson")
_BLOCK = 8 << 20  # bytes of text in memory
_MOST_LINE = 64 << 20


def stream_rows(
    path: Path, spec: Spec, bad_rows: BadRows, chunk_rows: int
) -> Iterator[pl.DataFrame]:
    """Yields the rows of a file, or of all files of a folder in the order of their names.

    Text is parsed while it is read, and no copy of it is made. Labels are not needed, and columns
    that the spec does not know are let through.

    Args:
        path: CSV, JSON lines, Parquet or Arrow.
        spec: what the columns mean.
        bad_rows: what happens to rows that cannot be read.
        chunk_rows: the most rows of a frame.

    Raises:
        DataMissingError: nothing is there.
        SchemaError: a column is missing.
        DataFormatError: a file, or a row of it, cannot be read.
    """
    frames: Iterator[pl.DataFrame]
    for file in data_files(path):
        if file.suffix in COLUMNAR:
            rows = read_files(file, spec, bad_rows, labels=False, extra=True)
            frames = rows.collect_batches(chunk_size=chunk_rows, maintain_order=True)
        elif file.suffix in JSON_LINES:
            frames = _json_lines(file, spec, bad_rows)
        else:
            frames = _delimited(file, spec, bad_rows)
        for frame in frames:
            yield from frame.iter_slices(chunk_rows)


def count_rows(path: Path) -> int | None:
    """Returns about how many rows a path has, or None where only reading it would tell."""
    total = 0
    for file in data_files(path):
        if file.suffix in (".parquet", ".pq"):
            total += pl.scan_parquet(file).select(pl.len()).collect().item()
        elif file.suffix in COLUMNAR:
            return None
        else:
            with open_text(file) as text:
                if not isinstance(text, io.BufferedReader):
                    return None  # packed
                total += sum(part.count(b"\n") for part in iter(lambda: text.read(_BLOCK), b""))
    return total


def _delimited(file: Path, spec: Spec, bad_rows: BadRows) -> Iterator[pl.DataFrame]:
    how = _sniffed(file, spec)
    names = column_names(file, how)
    _require_known(names, spec, file, False, True)
    for frame in read_frames(file, _kinds(spec, names, False), bad_rows, how):
        yield frame.with_columns(_lists(spec, names))


def _json_lines(file: Path, spec: Spec, bad_rows: BadRows) -> Iterator[pl.DataFrame]:
    """Yields objects as rows; a key that an object lacks is an empty value.

    Types are those of the spec; those of other keys are what the first block shows.
    """
    schema: dict[str, Any] = {}
    for first, lines in _blocks(file):
        if not schema:
            found = _inferred(file, lines)
            _require_known(list(found), spec, file, False, True)
            schema = found | {n: t for n, t in _types(spec).items() if n in found}
        frames = list(_parsed(file, first, lines, schema, bad_rows))
        if frames:
            yield pl.concat(frames)


def _blocks(file: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Yields the number of a first line, from 1, and lines of a few megabytes."""
    with open_text(file) as text:
        first, lines, size = 1, list[bytes](), 0
        while line := text.readline(_MOST_LINE):
            if len(line) == _MOST_LINE:
                raise _odd(file, f"line {first + len(lines):,}", "no end of the line")
            lines.append(line if line.endswith(b"\n") else line + b"\n")
            size += len(line)
            if size >= _BLOCK:
                yield first, lines
                first, lines, size = first + len(lines), [], 0
        if lines:
            yield first, lines


def _inferred(file: Path, lines: list[bytes]) -> dict[str, Any]:
    for count in (len(lines), 1):  # a bad line further down is found, and named, later
        try:
            block = io.BytesIO(b"".join(lines[:count]))
            return dict(pl.read_ndjson(block, infer_schema_length=None).schema)
        except pl.exceptions.PolarsError as cause:
            reason = str(cause).splitlines()[0]
    raise _odd(file, "line 1", reason)


def _types(spec: Spec) -> dict[str, Any]:
    """Returns raw column -> type; ids are read as text, which the featurizer turns back."""
    types: dict[str, Any] = {spec.time: pl.Int64} if spec.time else {}
    for c in spec.columns:
        match c:
            case Category():
                types[c.name] = pl.String
            case Number():
                types[c.name] = pl.Float64
            case Vector():
                types[c.name] = pl.List(pl.Float64)
            case History():
                for e in c.events:
                    types[e.column] = pl.List(pl.String if e.table else pl.Int64)
            case _:
                pass
    return types


def _parsed(
    file: Path, first: int, lines: list[bytes], schema: dict[str, Any], bad_rows: BadRows
) -> Iterator[pl.DataFrame]:
    """Yields the good rows; halves what cannot be parsed until the bad lines stand alone."""
    try:
        yield pl.read_ndjson(io.BytesIO(b"".join(lines)), schema=schema)
    except pl.exceptions.PolarsError as cause:
        if len(lines) == 1:
            reason, text = str(cause).splitlines()[0], lines[0].decode("utf-8", "replace")
            expected = "one JSON object with values of the types that the spec says"
            bad_rows.take([BadRow(str(file), first, reason, text.rstrip(), expected, False)])
            return
        middle = len(lines) // 2
        yield from _parsed(file, first, lines[:middle], schema, bad_rows)
        yield from _parsed(file, first + middle, lines[middle:], schema, bad_rows)


def _odd(file: Path, where: str, found: str) -> DataFormatError:
    return DataFormatError(
        "a file of JSON lines cannot be read",
        where=f"{file}, {where}",
        found=found[:300],
        expected="one JSON object per line",
        fix="check the file, or get it again",
    )
