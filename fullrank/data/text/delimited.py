"""Delimited text and libfm lines as lazy frames."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv

from fullrank.data.text.bad_rows import BadRows, Finding, Kind, find_bad
from fullrank.data.text.lines import (
    MAX_ROW,
    PRIVATE,
    Block,
    Dialect,
    open_text,
    refuse_binary,
    refusing_damage,
    screened,
    without_first,
)
from fullrank.data.text.staged import lazy_rows
from fullrank.errors import DataFormatError, SchemaError, nearest

_ARROW: dict[Kind, Any] = {
    "int": pa.int64(),
    "float": pa.float64(),
    "text": pa.string(),
}
_LABELS = ("label", "late_label")

_TEXT: Kind = "text"


def read_delimited(
    path: Path,
    columns: Mapping[str, Kind],
    bad_rows: BadRows,
    *,
    dialect: Dialect = Dialect(),  # noqa: B008  frozen
    staging: Path | None = None,
) -> pl.LazyFrame:
    """Reads delimited text, plain or gzipped.

    Args:
        path: the file.
        columns: name -> kind. With a header, columns of the file that are not named here are read
            as text; without one, these are all columns in order.
        bad_rows: what happens to ragged rows, values of the wrong kind, NaN, infinity, labels
            outside {0, 1}, bytes that are not text, and values longer than a megabyte.
        dialect: how the file is written.
        staging: folder for the Parquet copy of a file that is too big for memory; the platform's
            cache folder by default. A copy is used again as long as the file does not change.

    Returns:
        Rows in file order; "int" is Int64, "float" Float64, "label" Int8, "text" String.

    Raises:
        DataMissingError: there is no such file.
        DataFormatError: it is empty, truncated or binary, or has a bad row and the policy is
            "refuse". Read on with `BadRows("quarantine", path)`.
        LabelError: the same for a label.
        SchemaError: the header lacks a column.
        DiskFullError: no room for the staged copy.
    """
    key = f"delimited {sorted(columns.items())} {dialect}"
    frames = read_frames(path, columns, bad_rows, dialect)
    return lazy_rows(frames, path, key, bad_rows, staging)


def read_libfm(
    path: Path, fields: Sequence[str], bad_rows: BadRows, *, staging: Path | None = None
) -> pl.LazyFrame:
    """Reads libfm lines `label index:1 index:1 ...` with the same fields in every line.

    Args:
        path: the file, plain or gzipped.
        fields: names of the features of a line, in order.
        bad_rows: what happens to rows of another form.
        staging: as for `read_delimited`.

    Returns:
        Columns `label` (Int8; -1 reads as 0) and every field (Int32, the index).

    Raises:
        DataFormatError: as for `read_delimited`.
    """
    dialect = Dialect(separator=" ", quote="", header=False)
    kinds: dict[str, Kind] = {"label": "text", **dict.fromkeys(fields, _TEXT)}

    def frames() -> Iterator[pl.DataFrame]:
        for block in read_blocks(path, kinds, bad_rows, dialect):
            yield _libfm(block, path, fields, bad_rows)

    return lazy_rows(frames(), path, f"libfm {list(fields)}", bad_rows, staging)


def read_frames(
    path: Path, columns: Mapping[str, Kind] | None, bad_rows: BadRows, dialect: Dialect
) -> Iterator[pl.DataFrame]:
    """Yields the rows of delimited text block by block; `columns=None` reads all as text."""
    if columns is None:
        columns = dict.fromkeys(column_names(path, dialect), _TEXT)
    for block in read_blocks(path, columns, bad_rows, dialect):
        yield block.frame


def read_blocks(
    path: Path, columns: Mapping[str, Kind], bad_rows: BadRows, dialect: Dialect
) -> Iterator[Block]:
    """Yields blocks of good rows with what is needed to name their lines."""
    kinds = _kinds(path, columns, dialect)
    seen = good = 0
    skip = dialect.header
    for block in screened(path, bad_rows, dialect):
        if skip:
            block, skip = without_first(block), False
        if len(block.ends) == 0:
            continue
        before = bad_rows.count
        parsed = _checked(
            _parse(block, kinds, path, bad_rows, dialect), kinds, path, bad_rows, dialect
        )
        seen += bad_rows.count - before
        good += parsed.frame.height
        if seen > max(100, good):
            raise DataFormatError(
                "more than half of the rows are bad",
                where=str(path),
                found=f"{seen:,} bad rows beside {good:,} good ones so far",
                expected=f"{len(kinds)} values in a row, separated by {dialect.separator!r}",
                fix="check the separator, the quoting and the column types",
            )
        yield parsed
    if good == 0:
        raise DataFormatError(
            "a file has no rows",
            where=str(path),
            found="a header and nothing else" if dialect.header and not seen else "no good row",
            expected="at least one row",
            fix="get the file again, or name another one",
        )


def column_names(path: Path, dialect: Dialect) -> list[str]:
    """Returns the header of a file, or c0, c1, ... where it has none."""
    with open_text(path) as file, refusing_damage(str(path)):
        head = file.readline(MAX_ROW)
        refuse_binary(path, head + file.read(4096))
    line = head.decode(dialect.encoding, "replace").removeprefix("\ufeff").rstrip("\r\n")
    if not dialect.quote or len(dialect.separator) > 1:
        values = line.split(dialect.separator)
    else:
        csv.field_size_limit(MAX_ROW)
        values = next(csv.reader([line], delimiter=dialect.separator, quotechar=dialect.quote))
    return values if dialect.header else [f"c{i}" for i in range(len(values))]


def _kinds(path: Path, columns: Mapping[str, Kind], dialect: Dialect) -> dict[str, Kind]:
    if not dialect.header:
        return dict(columns)
    names = column_names(path, dialect)
    absent = [c for c in columns if c not in names]
    twice = sorted({n for n in names if names.count(n) > 1})
    if absent or twice:
        raise SchemaError(
            "a file lacks a column" if absent else "a file names a column twice",
            where=f"{path}, line 1",
            found=", ".join(names)[:300],
            expected=", ".join(absent or ["every name once"]),
            fix=nearest(absent[0], names) if absent else f"rename {twice[0]!r}",
        )
    return {name: columns.get(name, "text") for name in names}


def _parse(
    block: Block, kinds: dict[str, Kind], path: Path, bad_rows: BadRows, dialect: Dialect
) -> Block:
    """Fills the frame: typed where every value allows it, else as text; ragged rows are taken."""
    text, separator = block.text, dialect.separator
    if len(separator) > 1:
        text, separator = text.replace(separator.encode(), PRIVATE.encode()), PRIVATE
    if separator == " ":  # libfm writers like to end a line with a blank
        text = text.replace(b" \r\n", b"\n").replace(b" \n", b"\n")
    ragged: dict[int, Finding] = {}

    def skip(row: Any) -> str:
        reason, expected = f"{row.actual_columns} values", f"{row.expected_columns} values"
        ragged[row.number - 1] = Finding(reason, expected)
        return "skip"

    def parsed(types: dict[str, Any]) -> pl.DataFrame:
        ragged.clear()
        table = pa.csv.read_csv(
            pa.py_buffer(text),
            pa.csv.ReadOptions(
                use_threads=False, block_size=len(text) + 1, column_names=list(kinds)
            ),
            pa.csv.ParseOptions(
                delimiter=separator,
                quote_char=dialect.quote or False,
                newlines_in_values=dialect.newlines,
                invalid_row_handler=skip,
            ),
            pa.csv.ConvertOptions(
                column_types=types,
                null_values=list(dialect.null),
                strings_can_be_null=True,
                check_utf8=False,
            ),
        )
        return cast(pl.DataFrame, pl.from_arrow(table))

    try:
        labels = pa.string() if dialect.words else pa.int8()
        frame = parsed({n: labels if k in _LABELS else _ARROW[k] for n, k in kinds.items()})
    except pa.ArrowInvalid:  # a value does not fit its type; as text we can tell which
        frame = parsed(dict.fromkeys(kinds, pa.string()))
    bad_rows.take([block.bad(path, i, why) for i, why in ragged.items()])
    keep = np.ones(len(block.ends), dtype=bool)
    keep[list(ragged)] = False
    return replace(block, frame=frame, rows=block.rows[keep])


def _checked(
    block: Block, kinds: dict[str, Kind], path: Path, bad_rows: BadRows, dialect: Dialect
) -> Block:
    """Returns the block with typed columns and without rows whose values are bad."""
    frame, found = block.frame, {}
    texts = [n for n, k in kinds.items() if k != "text" and frame.schema[n] == pl.String]
    for name in texts:
        text, is_label = frame[name].str.strip_chars(), kinds[name] in _LABELS
        if is_label and dialect.words:
            number = text.replace_strict(dict(dialect.words), default=None, return_dtype=pl.Int8)
        else:
            number = text.cast(pl.Int64 if kinds[name] == "int" else pl.Float64, strict=False)
        if is_label:
            expected = " or ".join(repr(word) for word, _ in dialect.words) or "0 or 1"
        else:
            expected = "a whole number" if kinds[name] == "int" else "a number"
        for row in (text.is_not_null() & number.is_null()).arg_true():
            found[row] = Finding(f"{name} is {text[row]!r}", expected, is_label)
        frame = frame.with_columns(number)
    found = {**find_bad(frame, kinds), **found}
    good = replace(block, frame=frame).without(path, found, bad_rows)
    labels = [n for n in texts if kinds[n] in _LABELS]
    return replace(good, frame=good.frame.with_columns(pl.col(labels).cast(pl.Int8)))


def _libfm(block: Block, path: Path, fields: Sequence[str], bad_rows: BadRows) -> pl.DataFrame:
    """Turns text columns `label`, `index:1`, ... into numbers."""
    signs = {"1": 1, "+1": 1, "-1": 0, "0": 0}
    text = block.frame
    frame = text.select(
        pl.col("label").replace_strict(signs, default=None, return_dtype=pl.Int8),
        pl.col(fields).str.strip_suffix(":1").cast(pl.Int32, strict=False),
    )
    fits = text.select(pl.col(fields).str.ends_with(":1")) if fields else text.select()
    found: dict[int, Finding] = {}
    for name in fields:
        for row in (frame[name].is_null() | ~fits[name]).arg_true():
            found[row] = Finding(f"{name} is {text[name][row]!r}", "index:1")
    for row in frame["label"].is_null().arg_true():
        found[row] = Finding(f"label is {text['label'][row]!r}", "1, 0 or -1", label=True)
    return replace(block, frame=frame).without(path, found, bad_rows).frame
