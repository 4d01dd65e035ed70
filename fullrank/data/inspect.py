"""A first guess of a Spec from a file, with the reasons for every guess."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from fullrank.data.datasets.tabular import COLUMNAR, data_files, read_columnar
from fullrank.data.text import BadRow, BadRows, Dialect
from fullrank.data.text.delimited import read_frames
from fullrank.data.text.lines import open_text, refuse_binary, refusing_damage
from fullrank.errors import DataFormatError

Role = Literal[
    "label", "time", "id", "category", "number", "tags", "history", "vector", "text", "constant"
]
_SKETCH = 4096  # smallest hashes kept for the count of distinct values; error about 1.6 %
_SEPARATORS = ("\t", "::", ", ", ",", ";", "|", "\x01", " ")
_TAG_SEPARATORS = ("|", ";", "^", ",", " ")
_LABEL = re.compile(
    r"^(is_?)?(label|click(ed)?|target|y|conversion|converted|purchase[ds]?|like[ds]?)$", re.I
)
_TIME = re.compile(r"(^|_)(time|timestamp|ts|date|datetime|unix)(_|$)", re.I)
_ID = re.compile(r"(^|_)(id|uid|iid|uuid|guid|user|item)$|Id$|^(user|item|ad|movie|app)$", re.I)
_UNIX = (5e8, 5e9)  # seconds: 1985 to 2128
_UNIX_REASON = "whole numbers in the range of unix seconds, 1985 to 2128"
_USER = re.compile(r"user|uid|device|gender|^sex$|^age", re.I)
_ITEM = re.compile(r"item|iid|movie|^ad_|^ad$|product|creative|app_id|^app$|video|song", re.I)


@dataclass
class Column:
    """What was counted in one column.

    Args:
        name: of the column.
        dtype: of the values as they are guessed to be.
        rows: counted.
        empty: rows without a value.
        distinct: number of values; exact up to 4,096, an estimate above.
        low: smallest number, or shortest list.
        high: largest number, or longest list.
        role: what the column seems to be.
        reason: why.
        examples: some values.
    """

    name: str
    dtype: str = ""
    rows: int = 0
    empty: int = 0
    distinct: int = 0
    low: float | None = None
    high: float | None = None
    role: Role = "category"
    reason: str = ""
    examples: tuple[str, ...] = ()
    separator: str = ""
    widths: tuple[int, int] = (0, 0)  # fewest and most values in a list
    numeric: bool = True
    whole: bool = True
    hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64), repr=False)


@dataclass(frozen=True)
class Guess:
    """What a file seems to hold.

    Args:
        path: of the file or folder.
        dialect: of text; None for Parquet and Arrow.
        rows: counted.
        bad_rows: left out.
        columns: in file order.
        source: Python text of the guessed Spec, to be pasted and corrected.
    """

    path: Path
    dialect: Dialect | None
    rows: int
    bad_rows: int
    columns: tuple[Column, ...]
    source: str


class _Counted(BadRows):
    """Counts bad rows and goes on: a look at a file should not stop at the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = "quarantine"  # nothing is written: `take` only counts

    def take(self, rows: list[BadRow]) -> None:
        self.count += len(rows)


def inspect(path: Path, max_rows: int | None = None) -> Guess:
    """Guesses a Spec from a file or folder in one pass with bounded memory.

    Args:
        path: CSV or other delimited text, Parquet, Arrow, or a folder of such files.
        max_rows: look at about so many rows only; all of them where None.

    Raises:
        DataMissingError: nothing is there.
        DataFormatError: the file is empty, truncated or binary, or is libfm (whose fields have no
            names; use `read_libfm`).

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "log.csv"
        ...     _ = file.write_text("click,price\\n1,0.5\\n0,2.5\\n")
        ...     [c.role for c in inspect(file).columns]
        ['label', 'number']
    """
    files = data_files(path)
    dialect = None if files[0].suffix in COLUMNAR else sniff(files[0])
    counted = _Counted()
    columns: dict[str, Column] = {}
    rows = 0
    for file in files:
        for frame in _frames(file, dialect, counted):
            for name in frame.columns:
                _count(columns.setdefault(name, Column(name)), frame[name])
            rows += frame.height
            if max_rows is not None and rows >= max_rows:
                break
        if max_rows is not None and rows >= max_rows:
            break
    for column in columns.values():
        _guess(column)
    _fallback_label(list(columns.values()))
    found = tuple(columns.values())
    return Guess(path, dialect, rows, counted.count, found, spec_source(found))


def sniff(path: Path) -> Dialect:
    """Guesses separator, header and encoding of a text file from its first 200 lines.

    Raises:
        DataFormatError: it is binary, empty or libfm.
    """
    with open_text(path) as file, refusing_damage(str(path)):
        head = file.read(1 << 18)
    refuse_binary(path, head)
    encoding = "utf-8"
    try:
        head[: head.rfind(b"\n") + 1].decode()
    except UnicodeDecodeError:
        encoding = "latin-1"
    lines = [x for x in head.decode(encoding, "replace").splitlines()[:200] if x]
    if not lines:
        raise DataFormatError(
            "a file has no rows",
            where=str(path),
            found="blank lines alone",
            expected="delimited text, Parquet or Arrow",
            fix="get the file again, or name another one",
        )
    if len(lines) > 2 and len(head) == 1 << 18:
        lines = lines[:-1]  # may be cut
    if re.match(r"^[+-]?\d+( \d+:\S+)+\s*$", lines[-1]):
        raise DataFormatError(
            "this is a libfm file, whose fields have no names",
            where=str(path),
            found=lines[-1][:100],
            expected="delimited text, Parquet or Arrow",
            fix="read it with fullrank.data.text.read_libfm and your own names",
        )
    separator = max(_SEPARATORS, key=lambda s: _regularity(lines, s))
    if _regularity(lines, separator) == (0.0, 0):
        separator = ","
    first, second = (lines[i].split(separator) for i in (0, min(1, len(lines) - 1)))
    names_first = not any(_is_number(v) or not v.strip('" ') for v in first)
    header = names_first and len(set(first)) == len(first) and first != second
    quote = '"' if separator != "::" and _quotes_balance(lines) else ""
    return Dialect(separator=separator, quote=quote, header=header, encoding=encoding)


def _quotes_balance(lines: list[str]) -> bool:
    return all(line.count('"') % 2 == 0 for line in lines)


def _regularity(lines: list[str], separator: str) -> tuple[float, int]:
    """Returns (share of lines with the usual number of values, that number - 1)."""
    bare = [re.sub(r'"[^"]*"', "", line) for line in lines]
    counts = np.array([line.count(separator) for line in bare])
    usual = int(np.bincount(counts).argmax())
    return (0.0, 0) if usual == 0 else (float((counts == usual).mean()), usual)


def _is_number(text: str) -> bool:
    return re.fullmatch(r'\s*"?[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"?\s*', text) is not None


def _frames(file: Path, dialect: Dialect | None, bad_rows: BadRows) -> Iterator[pl.DataFrame]:
    if dialect is not None:
        yield from read_frames(file, None, bad_rows, dialect)
        return
    rows = read_columnar(file, {}, bad_rows)
    if file.suffix in (".parquet", ".pq"):
        for batch in pq.ParquetFile(file).iter_batches(batch_size=65_536):
            yield pl.DataFrame(pa.Table.from_batches([batch]))
    else:
        yield from rows.collect_batches(chunk_size=65_536)


def _count(column: Column, values: pl.Series) -> None:
    """Adds the values of one block to the counts of a column."""
    column.rows += values.len()
    column.dtype = str(values.dtype) if not column.dtype else column.dtype
    filled = values.drop_nulls()
    column.empty += values.len() - filled.len()
    if filled.is_empty():
        return
    if not column.examples:
        column.examples = tuple(str(v)[:60] for v in filled.unique(maintain_order=True)[:5])
    if isinstance(filled.dtype, (pl.List, pl.Array)):
        _count_list(column, filled)
        return
    fresh = filled.unique().hash(seed=0).to_numpy()
    column.hashes = np.union1d(column.hashes, fresh)[:_SKETCH]
    column.distinct = min(_distinct(column.hashes), column.rows - column.empty)
    numbers: Any = filled
    if filled.dtype == pl.String:
        column.separator = column.separator or _tag_separator(filled)
        numbers = filled.cast(pl.Float64, strict=False)
    elif filled.dtype == pl.Boolean:
        numbers = filled.cast(pl.Int8)
    elif not filled.dtype.is_numeric():
        column.numeric = False
        return
    if not column.numeric or numbers.null_count():
        column.numeric = column.whole = False
        column.low = column.high = None
        return
    low, high = float(numbers.min()), float(numbers.max())
    column.whole &= bool((numbers == numbers.floor()).all())
    column.low = low if column.low is None else min(column.low, low)
    column.high = high if column.high is None else max(column.high, high)


def _count_list(column: Column, filled: pl.Series) -> None:
    lengths = filled.list.len() if isinstance(filled.dtype, pl.List) else filled.arr.len()
    low, high = int(lengths.min()), int(lengths.max())  # type: ignore[arg-type]
    first = column.high is None
    column.widths = (low if first else min(low, column.widths[0]), max(high, column.widths[1]))
    column.low, column.high = float(column.widths[0]), float(column.widths[1])
    inner = filled.explode().drop_nulls()
    column.numeric = inner.dtype.is_numeric()
    column.whole = inner.dtype.is_integer()
    column.hashes = np.union1d(column.hashes, inner.unique().hash(seed=0).to_numpy())[:_SKETCH]
    column.distinct = _distinct(column.hashes)


def _distinct(smallest: np.ndarray) -> int:
    """Estimates distinct values from the smallest hashes (Bar-Yossef et al., RANDOM 2002)."""
    if len(smallest) < _SKETCH:
        return len(smallest)
    return int((_SKETCH - 1) / (float(smallest[-1]) / 2.0**64))


def _tag_separator(texts: pl.Series) -> str:
    """Returns the separator of a column of tags: short pieces that repeat between rows."""
    head = texts.head(2_000)
    for separator in _TAG_SEPARATORS:
        several = head.str.contains(separator, literal=True)
        if several.mean() < 0.2:  # type: ignore[operator]
            continue
        pieces = head.str.split(separator).explode()
        if separator in " ," and head.n_unique() < 2 * pieces.n_unique():
            continue  # words of a phrase, such as United States, not tags
        if pieces.n_unique() <= max(2, pieces.len() // 4) and pieces.str.len_chars().mean() <= 20:  # type: ignore[operator]
            return separator
    return ""


def _guess(column: Column) -> None:
    """Sets role and reason."""
    c = column
    filled = c.rows - c.empty
    low, high = c.low or 0.0, c.high or 0.0
    not_an_id = bool(_TIME.search(c.name)) or not _ID.search(c.name)
    if c.widths != (0, 0) or c.dtype.startswith(("List", "Array")):
        if c.widths[0] == c.widths[1] and c.numeric and not c.whole:
            c.role, c.reason = "vector", f"lists of always {c.widths[1]} fractions"
        else:
            c.role, c.reason = "history", f"lists of {c.widths[0]} to {c.widths[1]} values"
    elif c.distinct <= 1:
        c.role, c.reason = "constant", "one value in all rows"
    elif c.numeric and c.distinct == 2 and (c.low, c.high) == (0, 1) and _LABEL.search(c.name):
        c.role, c.reason = "label", "0 and 1, and the name of a label"
    elif c.numeric and c.whole and _UNIX[0] <= low < high < _UNIX[1] and not_an_id:
        c.role, c.reason = "time", _UNIX_REASON
    elif _TIME.search(c.name) and (not c.numeric or low >= _UNIX[1]):
        c.role, c.reason = "time", "the name of a time; turn it into unix seconds"
    elif _ID.search(c.name) and (c.whole or not c.numeric):
        c.role, c.reason = "id", "the name of an identifier"
    elif (
        not c.numeric
        and c.separator in ("", " ", ",")
        and c.distinct > 0.9 * filled
        and max(map(len, c.examples)) > 30
    ):
        c.role, c.reason = "text", "long and almost all different"
    elif c.separator and not c.numeric:
        c.role, c.reason = "tags", f"short pieces between {c.separator!r} that repeat"
    elif c.numeric and not c.whole:
        c.role, c.reason = "number", "fractions"
    elif c.numeric and c.distinct > 30:
        c.role, c.reason = "number", f"{c.distinct:,} whole numbers; a Category if they are codes"
    else:
        c.role, c.reason = "category", f"{c.distinct:,} values"


def _fallback_label(columns: list[Column]) -> None:
    """Without a named label, takes the last column of 0 and 1 for one."""
    binary = [c for c in columns if c.numeric and c.distinct == 2 and (c.low, c.high) == (0, 1)]
    if binary and not any(c.role == "label" for c in columns):
        binary[-1].role, binary[-1].reason = "label", "the last column of 0 and 1; check it"


def spec_source(columns: tuple[Column, ...]) -> str:
    """Returns Python text that makes the guessed Spec."""
    time = next((c.name for c in columns if c.reason == _UNIX_REASON), "")
    item = next((c.name for c in columns if c.role == "id" and _ITEM.search(c.name)), "")
    user = next((c.name for c in columns if c.role == "id" and _USER.search(c.name)), "")
    lines, used = [], {"Spec"}
    ignored = []
    for c in columns:
        call = _call(c, item)
        if call is None:
            if c.name != time:
                ignored.append((c.name, c.reason))
            continue
        used |= set(re.findall(r"\b(Category|Number|Tags|Vector|History|Event|Target)\(", call))
        lines.append(f"        {call},  # {c.reason}")
    text = [f"from fullrank.data.spec import {', '.join(sorted(used))}", "", "SPEC = Spec("]
    text += ["    columns=(", *lines, "    ),"]
    named = {"item": item, "group": user, "time": time}
    text += [f"    {key}={value!r}," for key, value in named.items() if value]
    if ignored:
        text += ["    ignore=(", *(f"        ({n!r}, {r!r})," for n, r in ignored), "    ),"]
    return "\n".join([*text, ")", ""])


def _call(c: Column, item: str) -> str | None:
    side = "item" if _ITEM.search(c.name) else "user" if _USER.search(c.name) else "context"
    where = "" if side == "context" else f", side={side!r}"
    if c.role == "label":
        return f"Target(name={c.name!r})"
    if c.role in ("id", "category"):
        return f"Category(name={c.name!r}{where})"
    if c.role == "number":
        skewed = c.low is not None and c.high is not None and c.low >= 0 and c.high > 1_000
        return f"Number(name={c.name!r}{where}{', transform=' + repr('log') if skewed else ''})"
    if c.role == "tags":
        return f"Tags(name={c.name!r}{where}, separator={c.separator!r})"
    if c.role == "vector":
        return f"Vector(name={c.name!r}, shape=({c.widths[1]},){where})"
    if c.role == "history":
        name = f"{c.name}_events"
        event = f"Event(name={c.name!r}, column={c.name!r}, table={item or c.name!r})"
        return (
            f"History(name={name!r}, events=({event},), max_length={min(50, max(1, c.widths[1]))})"
        )
    return None
