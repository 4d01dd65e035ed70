"""Text files as blocks of whole rows whose bytes are good."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import polars as pl

from fullrank.data.text.bad_rows import BadRow, BadRows, Finding
from fullrank.errors import DataFormatError, DataMissingError

MAX_VALUE = 1 << 20  # bytes in one value; longer ones are a broken file more often than data
MAX_ROW = 64 << 20  # bytes without a line end before we stop looking for one
_BLOCK = 8 << 20  # bytes read at a time
PRIVATE = "\x1f"  # stands for a separator of several characters while Arrow parses
_MAGIC = (
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
)


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a text file is written.

    Args:
        separator: between values; more than one character is allowed ("::").
        quote: around a value that holds the separator; "" turns quoting off.
        header: the first line names the columns.
        encoding: any encoding that contains ASCII, such as "utf-8" or "latin-1".
        null: texts that mean "no value".
        newlines: a quoted value may go on over a line end.
        words: texts that stand for 0 and 1 in label columns; none: the digits.
    """

    separator: str = ","
    quote: str = '"'
    header: bool = True
    encoding: str = "utf-8"
    null: tuple[str, ...] = ("",)
    newlines: bool = False
    words: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Block:
    """Rows of one stretch of a file.

    Args:
        frame: the parsed rows.
        rows: [frame.height] place of each row in `ends`.
        text: the bytes of the stretch.
        ends: [M] offset of the line end of every row in `text`.
        lines: [M] line number of every row, counted from 1.
    """

    frame: pl.DataFrame
    rows: np.ndarray
    text: bytes
    ends: np.ndarray
    lines: np.ndarray

    def bad(self, path: Path, at: int, why: Finding) -> BadRow:
        """Returns the row at place `at` of `ends` as a bad row."""
        line = int(self.lines[at])
        return BadRow(str(path), line, why.reason, self.raw(at), why.expected, why.label)

    def without(self, path: Path, found: dict[int, Finding], bad_rows: BadRows) -> Block:
        """Hands rows of the frame (row -> finding) to `bad_rows` and returns the others."""
        if not found:
            return self
        bad_rows.take([self.bad(path, int(self.rows[i]), found[i]) for i in sorted(found)])
        keep = np.ones(self.frame.height, dtype=bool)
        keep[list(found)] = False
        return replace(self, frame=self.frame.filter(pl.Series(keep)), rows=self.rows[keep])

    def raw(self, at: int) -> str:
        """Returns the text of the row at place `at` of `ends`."""
        start = int(self.ends[at - 1]) + 1 if at else 0
        return self.text[start : int(self.ends[at])].decode("utf-8", "replace").rstrip("\r")


def open_text(path: Path) -> BinaryIO:
    """Opens a file for reading bytes, unpacking gzip by its first two bytes.

    Raises:
        DataMissingError: there is no such file.
        DataFormatError: it is empty or a folder.
    """
    if not path.exists():
        raise DataMissingError(
            "a file is missing",
            where=str(path),
            found="nothing",
            expected="a text file",
            fix="check the path, or get the data set with `fullrank data get NAME`",
        )
    if path.is_dir() or path.stat().st_size == 0:
        raise DataFormatError(
            "a file is empty" if path.is_file() else "a folder stands where a file is expected",
            where=str(path),
            found="0 bytes" if path.is_file() else "a folder",
            expected="a text file with rows",
            fix="get the file again, or name another one",
        )
    file = path.open("rb")
    if file.read(2) == b"\x1f\x8b":
        file.close()
        return cast(BinaryIO, gzip.open(path))
    file.seek(0)
    return file


@contextmanager
def refusing_damage(where: str) -> Iterator[None]:
    """Turns what a truncated or damaged gzip stream raises into a DataFormatError."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataFormatError(
            "a gzip file is truncated or damaged",
            where=where,
            found=str(error),
            expected="a complete gzip stream",
            fix="get the file again",
        ) from error


def refuse_binary(path: Path, head: bytes) -> None:
    """Raises DataFormatError where the first bytes of a file are not those of text."""
    kinds = [kind for magic, kind in _MAGIC if head.startswith(magic)]
    head = head[:4096]
    control = sum(head.count(bytes([b])) for b in (*range(9), *range(14, 32)))
    if kinds or (b"\0" in head and control > len(head) // 20):
        raise DataFormatError(
            "a binary file stands where text is expected",
            where=str(path),
            found=kinds[0] if kinds else f"{control} control bytes at the beginning",
            expected="text in UTF-8 or another encoding that contains ASCII",
            fix="name the text file, or give a Parquet or Arrow file its usual ending",
        )


def _stretches(path: Path, dialect: Dialect) -> Iterator[tuple[bytes, int]]:
    """Yields (bytes that end with a whole row, number of the first line)."""
    rest, line, first = b"", 1, True
    with open_text(path) as file:
        while True:
            with refusing_damage(f"{path}, after line {line:,}"):
                data = file.read(_BLOCK)
            if first:
                refuse_binary(path, data)
                data, first = data.removeprefix(b"\xef\xbb\xbf"), False
            if not data:
                break
            data = rest + data
            ends = _row_ends(data, dialect)
            if len(ends):
                cut = int(ends[-1]) + 1
                yield data[:cut], line
                line += data.count(b"\n", 0, cut)
                data = data[cut:]
            rest = data
            if len(rest) > MAX_ROW:
                raise DataFormatError(
                    "a row does not end",
                    where=f"{path}, line {line:,}",
                    found=f"{len(rest):,} bytes",
                    expected=f"a line end within {MAX_ROW:,} bytes",
                    fix="check that the file is text, and that every quote is closed",
                )
    if rest:
        yield rest.removesuffix(b"\n") + b"\n", line


def _row_ends(data: bytes, dialect: Dialect) -> np.ndarray:
    """Returns the offsets of the line ends that end a row (not those inside quotes)."""
    array = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(array == 10)
    if dialect.newlines and dialect.quote.encode() in data:
        quotes = np.flatnonzero(array == ord(dialect.quote))
        ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
    return ends


def screened(path: Path, bad_rows: BadRows, dialect: Dialect) -> Iterator[Block]:
    """Yields unparsed blocks of UTF-8 without blank rows and rows whose bytes are bad."""
    for raw, first in _stretches(path, dialect):
        data, wrong_bytes = _to_utf8(raw, dialect)
        ends = _row_ends(data, dialect)
        if len(ends) == 0 or ends[-1] != len(data) - 1:  # a quote that is never closed
            ends = np.append(ends, len(data) - 1)
        lines = np.arange(first, first + len(ends))
        if dialect.newlines:
            breaks = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == 10)
            lines = first + np.append(0, np.searchsorted(breaks, ends[:-1]) + 1)
        block = Block(pl.DataFrame(), np.arange(len(ends)), data, ends, lines)
        length = np.diff(ends, prepend=-1) - 1
        blank = (length == 0) | ((length == 1) & (np.frombuffer(data, np.uint8)[ends - 1] == 13))
        bad = {**_bad_bytes(block, length, dialect), **wrong_bytes}
        bad_rows.take([block.bad(path, i, bad[i]) for i in sorted(bad)])
        keep = ~blank
        keep[list(bad)] = False
        yield block if keep.all() else _subset(block, keep, length)


def _to_utf8(raw: bytes, dialect: Dialect) -> tuple[bytes, dict[int, Finding]]:
    """Returns the block in UTF-8, and the rows that are not text."""
    if raw.isascii():
        return raw, {}
    try:
        text = raw.decode(dialect.encoding)
        return (raw if dialect.encoding == "utf-8" else text.encode()), {}
    except UnicodeDecodeError:
        found, start = {}, 0
        for row, end in enumerate(_row_ends(raw, dialect)):
            try:
                raw[start:end].decode(dialect.encoding)
            except UnicodeDecodeError as error:
                reason = f"byte 0x{error.object[error.start]:02x} is not {dialect.encoding}"
                found[row] = Finding(reason, f"text in {dialect.encoding}")
            start = int(end) + 1
        return raw.decode(dialect.encoding, "replace").encode(), found


def _bad_bytes(block: Block, length: np.ndarray, dialect: Dialect) -> dict[int, Finding]:
    """Returns rows with zero bytes, a huge value, or a quote that is not closed."""
    found: dict[int, Finding] = {}
    array = np.frombuffer(block.text, dtype=np.uint8)
    for byte in (0, ord(PRIVATE)) if len(dialect.separator) > 1 else (0,):
        if bytes([byte]) in block.text:
            for row in np.unique(np.searchsorted(block.ends, np.flatnonzero(array == byte))):
                found[int(row)] = Finding(f"a byte 0x{byte:02x}", "text without control bytes")
    for row in np.flatnonzero(length > MAX_VALUE):
        size = max(len(v.encode()) for v in block.raw(int(row)).split(dialect.separator))
        if size > MAX_VALUE:
            reason = f"a value of {size:,} bytes"
            found[int(row)] = Finding(reason, f"at most {MAX_VALUE:,} bytes")
    if dialect.quote and dialect.quote.encode() in block.text:
        quotes = np.flatnonzero(array == ord(dialect.quote))
        count = np.bincount(np.searchsorted(block.ends, quotes), minlength=len(length))
        for row in np.flatnonzero(count % 2):
            expected = "every quote closed in its row; Dialect(quote='') reads quotes as text"
            found[int(row)] = Finding("a quote is opened and not closed", expected)
    return found


def _subset(block: Block, keep: np.ndarray, length: np.ndarray) -> Block:
    array = np.frombuffer(block.text, dtype=np.uint8)
    text = array[np.repeat(keep, length + 1)].tobytes()
    ends = np.cumsum(length[keep] + 1) - 1
    return Block(block.frame, np.arange(len(ends)), text, ends, block.lines[keep])


def without_first(block: Block) -> Block:
    """Returns an unparsed block without its first row, the header."""
    length = np.diff(block.ends, prepend=-1) - 1
    keep = np.ones(len(length), dtype=bool)
    keep[:1] = False
    return _subset(block, keep, length)
