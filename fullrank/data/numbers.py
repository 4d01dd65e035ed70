"""Numbers: raw numeric columns to scaled float32. In tiles that stay in the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from fullrank.data.spec import Number
from fullrank.errors import DataFormatError

_TILE_ROWS = 1 << 14
_CHUNK_ROWS = 1 << 18  # of a column while its statistics are learnt; a few megabytes


@dataclass(frozen=True)
class NumberStats:
    """Training statistics of a numeric column: (x - mean) / deviation; empty becomes `fill`."""

    mean: float
    deviation: float
    fill: float


def fit_numbers(train: pl.LazyFrame, columns: list[Number]) -> dict[str, NumberStats]:
    """Learns mean and deviation of every numeric column, one streaming pass per column.

    Raises:
        DataFormatError: a number is NaN or infinite.
    """
    stats = {}
    for c in columns:
        mean, deviation = _moments(train, c)
        if c.transform == "none":
            stats[c.name] = NumberStats(0.0, 1.0, mean)
        else:  # a constant column stays at zero rather than being divided by zero
            stats[c.name] = NumberStats(mean, deviation or 1.0, 0.0)
    return stats


def encode_number(column: Number, raw: pl.Series, stats: NumberStats, first: int = 0) -> np.ndarray:
    """Encodes one column, every value by itself.

    Args:
        column: what it means.
        raw: [B] raw values, of any type that reads as a number.
        stats: of training.
        first: row number of the first value, for the text of an error.

    Returns:
        [B] float32.

    Raises:
        DataFormatError: a number is NaN or infinite.
    """
    x, missing = _finite(column, raw, first)
    return encode_finite(column, x, missing, stats)


def encode_finite(
    column: Number, x: np.ndarray, missing: np.ndarray | None, stats: NumberStats
) -> np.ndarray:
    """Encodes numbers that are known to be finite.

    Args:
        column: what it means.
        x: [B] float64, anything where a value is empty.
        missing: [B] bool, True where a value is empty; None for nowhere.
        stats: of training.

    Returns:
        [B] float32.
    """
    out = np.empty(len(x), dtype=np.float32)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        for start, tile in _transformed(column, x):
            tile -= stats.mean
            tile /= stats.deviation
            out[start : start + len(tile)] = tile
    if missing is not None:
        out[missing] = stats.fill
    return out


def _moments(train: pl.LazyFrame, column: Number) -> tuple[float, float]:
    """Returns mean and deviation of the transformed values that are not empty."""
    count, mean, squares, first = 0, 0.0, 0.0, 0  # squares: of the distances from the mean
    single = train.select(pl.col(column.name))
    # Chunks of equal length, whatever the threads do, so that equal data gives equal statistics.
    for chunk in single.collect_batches(chunk_size=_CHUNK_ROWS, maintain_order=True):
        x, missing = _finite(column, chunk[column.name], first)
        first += len(x)
        for _, tile in _transformed(column, x if missing is None else x[~missing]):
            own = float(tile.mean())
            tile -= own
            # Chan et al. (1983): moments of two parts to moments of the whole.
            total, apart = count + len(tile), own - mean
            # trap: np.dot hands so long a tile to the threads of BLAS, which wait by spinning
            squares += float(np.square(tile, out=tile).sum())
            squares += apart * apart * count * len(tile) / total
            mean += apart * len(tile) / total
            count = total
    return mean, math.sqrt(squares / count) if count else 0.0


def _transformed(column: Number, x: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields tiles of the transformed values in one buffer, each with its first row."""
    buffer = np.empty(min(len(x), _TILE_ROWS))
    for start in range(0, len(x), _TILE_ROWS):
        part = x[start : start + _TILE_ROWS]
        tile = buffer[: len(part)]
        if column.transform == "log":
            np.abs(part, out=tile)
            np.log1p(tile, out=tile)
            np.copysign(tile, part, out=tile)
        else:
            tile[:] = part
        yield start, tile


def _finite(column: Number, raw: pl.Series, first: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns [B] float64 with 0 for empty values, and where those are, None for nowhere."""
    x = raw.cast(pl.Float64, strict=False)
    missing = x.is_null().to_numpy() if x.null_count() else None
    values = x.fill_null(0.0).to_numpy()
    finite = np.isfinite(values)
    if not finite.all():
        row = int(finite.argmin())
        raise DataFormatError(
            "a number is not finite",
            where=f"column '{column.name}', row {first + row}",
            found=f"{raw[row]!r} ({int((~finite).sum()):,} such rows)",
            expected="a finite number, or nothing at all",
            fix="leave the value empty, or filter the rows",
        )
    return values, missing
