"""Staging: rows that are too many for memory become a Parquet file that is read lazily."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from gzip import GzipFile
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from fullrank.data.home import cache_folder
from fullrank.data.text.bad_rows import BadRows
from fullrank.data.text.lines import open_text
from fullrank.disk import written_whole

IN_MEMORY = 64 << 20  # bytes of text up to which rows stay in memory
_FORMAT = "1"  # part of the name of a staged file; changes when what readers yield changes


def lazy_rows(
    frames: Iterator[pl.DataFrame], source: Path, key: str, bad_rows: BadRows, folder: Path | None
) -> pl.LazyFrame:
    """Returns frames as one lazy frame, in memory or, for a big source, staged on disk.

    A staged file is used again while the source keeps its size and time; one from which bad rows
    were left out is written anew every time, so that they are reported every time.

    Args:
        frames: rows in order; consumed once, and not at all where a staged file can be used.
        source: the file that the rows come from.
        key: everything else that decides what the rows are.
        bad_rows: the counter that `frames` reports to.
        folder: for staged files; the platform's cache folder where None.

    Raises:
        DiskFullError: no room for the staged file; nothing half-written is kept.
    """
    size = _text_bytes(source)
    if size <= IN_MEMORY:
        return pl.concat(list(frames)).lazy()
    stat = source.stat()
    facts = f"{_FORMAT} {source.resolve()} {stat.st_size} {stat.st_mtime_ns} {key}"
    digest = hashlib.sha256(facts.encode()).hexdigest()[:16]
    folder = folder or cache_folder() / "staged"
    clean = folder / f"{source.name}-{digest}.parquet"
    if clean.exists():
        return pl.scan_parquet(clean)
    before = bad_rows.count
    partial = clean.with_suffix(".partial.parquet")
    with written_whole(partial) as draft:
        write_parquet(frames, draft)
    if bad_rows.count > before:
        return pl.scan_parquet(partial)
    with suppress(FileNotFoundError):  # another process that staged the same took it there
        os.replace(partial, clean)
    return pl.scan_parquet(clean)


def write_parquet(frames: Iterator[pl.DataFrame], path: Path) -> None:
    """Writes frames of one schema to a Parquet file, one row group each."""
    first = next(frames).to_arrow()
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for frame in frames:
            writer.write_table(frame.to_arrow().cast(first.schema))


def _text_bytes(source: Path) -> int:
    with open_text(source) as file:  # refuses a file that is missing or empty
        packed = isinstance(file, GzipFile)
    return source.stat().st_size * (8 if packed else 1)  # text rarely packs better than 1 : 8
