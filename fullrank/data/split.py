"""Splits of a log into training, validation and test: by time, in order, or at random.

The rows stay lazy; what is collected is one column of times, or one count per split.
Splits do not depend on the library version, the number of threads or the order of hashing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fullrank.config import require
from fullrank.errors import DataFormatError, SplitError

Splits = dict[str, pl.LazyFrame]
_SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")
PARTS: Mapping[str, float] = {"train": 0.8, "valid": 0.1, "test": 0.1}


def by_time(
    rows: pl.LazyFrame,
    column: str,
    *,
    fractions: Mapping[str, float] = PARTS,
    starts: Mapping[str, float] | None = None,
) -> Splits:
    """Splits by time, so that no split reaches into the next one.

    Rows of equal time stay together, so the sizes can differ from the fractions.

    Args:
        rows: the log, in any order.
        column: numbers or dates, never empty.
        fractions: name -> share of the rows, oldest first, together 1.
        starts: name -> first moment of each split, rising; the first split also takes what lies
            before its start. Replaces `fractions`.

    Raises:
        ConfigError: the fractions do not make 1, or the starts do not rise.
        SplitError: a split has no rows.
        DataFormatError: a time is empty or NaN.

    Example:
        >>> rows = pl.LazyFrame({"time": [3, 1, 2, 2]})
        >>> parts = by_time(rows, "time", fractions={"train": 0.75, "test": 0.25})
        >>> parts["train"].collect()["time"].to_list()
        [1, 2, 2]
    """
    _refuse_missing(rows, column)
    if starts is None:
        _require_fractions(fractions, "fractions")
        names, bounds = list(fractions), _boundaries(rows, column, list(fractions.values()))
    else:
        values = list(starts.values())
        require(
            len(values) > 0 and all(a < b for a, b in pairwise(values)),
            where="starts",
            found=dict(starts),
            expected="moments that rise from each split to the next",
            fix="put the splits in order of time",
        )
        names, bounds = list(starts), values[1:]
    splits = _between(rows, column, names, bounds)
    _refuse_empty(rows, column, bounds, names, f"split by time '{column}'")
    return splits


def at_random(
    rows: pl.LazyFrame, *, fractions: Mapping[str, float] = PARTS, seed: int = 0
) -> Splits:
    """Splits row by row at random; the split of a row depends on its number and the seed.

    Args:
        rows: the log; its order must be the same each time it is read.
        fractions: name -> expected share of the rows, together 1.
        seed: another seed, another split.

    Raises:
        ConfigError: the fractions do not make 1.
        SplitError: a split has no rows.
    """
    _require_fractions(fractions, "fractions")
    names, share = list(fractions), np.cumsum(list(fractions.values()))[:-1]
    bounds = [pl.lit(min(int(s * 2.0**64), 2**64 - 1), dtype=pl.UInt64) for s in share]
    number, key = "row number for the split", "key of the split"
    hashed = pl.col(number).map_batches(
        lambda s: pl.Series(s.name, stable_hash(s.to_numpy(), seed)), pl.UInt64, is_elementwise=True
    )
    keyed = rows.with_row_index(number).with_columns(hashed.alias(key))
    splits = _between(keyed, key, names, bounds)
    _refuse_empty(keyed, key, bounds, names, f"split at random, seed {seed}")
    return {name: part.drop(number, key) for name, part in splits.items()}


def in_order(rows: pl.LazyFrame, *, fractions: Mapping[str, float] = PARTS) -> Splits:
    """Cuts by file order, for logs that were written in time order without a time.

    Args:
        rows: the log, oldest first.
        fractions: name -> share of the rows, oldest first, together 1.

    Raises:
        ConfigError: the fractions do not make 1.
        SplitError: a split has no rows.
    """
    _require_fractions(fractions, "fractions")
    total = int(rows.select(pl.len()).collect(engine="streaming").item())
    shares = list(fractions.values())
    edges = [round(total * sum(shares[:i])) for i in range(len(shares))] + [total]
    sizes = dict(zip(fractions, (b - a for a, b in pairwise(edges)), strict=True))
    _refuse_zero(sizes, "split by file order")
    return {
        name: rows.slice(start, size)
        for start, (name, size) in zip(edges, sizes.items(), strict=False)
    }


def require_order(spans: Mapping[str, tuple[Any, Any]], time_column: str) -> None:
    """Checks that each split ends before the next one begins.

    Args:
        spans: name -> oldest and newest time, oldest split first; None where there is no time.
        time_column: the time of a row.

    Raises:
        SplitError: a split has no rows, or a row of it is not older than all of the next split.
    """
    for name, (oldest, newest) in spans.items():
        if oldest is None or newest is None:
            raise _empty(name, f"column '{time_column}'", "no row with a time")
    pairs = list(spans.items())
    for (name, (_, newest)), (later, (oldest, _)) in pairwise(pairs):
        if not newest < oldest:
            raise SplitError(
                "a split looks ahead in time",
                where=f"'{name}' and '{later}', column '{time_column}'",
                found=f"'{name}' ends at {newest} and '{later}' begins at {oldest}",
                expected=f"every time of '{name}' before every time of '{later}'",
                fix="split with fullrank.data.split.by_time, which keeps equal times together",
            )


def stable_hash(numbers: NDArray[Any], seed: int) -> NDArray[np.uint64]:
    """Hashes integers [n] to uniform 64-bit numbers [n] that no library version changes."""
    salt = _mix(np.array([seed % 2**64], dtype=np.uint64))[0]
    return _mix(numbers.astype(np.uint64) ^ salt)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), dtype=np.uint64)


def _between(rows: pl.LazyFrame, column: str, names: list[str], bounds: list[Any]) -> Splits:
    """Cuts by a column; every boundary belongs to the split after it."""
    splits = {}
    for i, name in enumerate(names):
        after = pl.col(column) >= bounds[i - 1] if i > 0 else pl.lit(True)
        before = pl.col(column) < bounds[i] if i < len(bounds) else pl.lit(True)
        splits[name] = rows.filter(after & before)
    return splits


def _boundaries(rows: pl.LazyFrame, column: str, fractions: list[float]) -> list[Any]:
    """Returns the first time of every split but the first, nearest to the asked shares."""
    times = rows.select(column).collect(engine="streaming").to_series().sort()
    if len(times) == 0:
        raise _empty("every split", f"column '{column}'", "a log without rows")
    bounds = []
    for share in np.cumsum(fractions)[:-1]:
        wanted = float(share) * len(times)  # rows that should be older than the boundary
        time = times[min(int(wanted), len(times) - 1)]
        older, next_ = (int(times.search_sorted(time, s)) for s in _SIDES)
        after = next_ < len(times) and next_ - wanted < wanted - older
        bounds.append(times[next_] if after else time)
    return bounds


def _refuse_missing(rows: pl.LazyFrame, column: str) -> None:
    missing = pl.col(column).is_null()
    if rows.collect_schema()[column].is_float():
        missing = missing | pl.col(column).is_nan()
    count = int(rows.select(missing.sum()).collect(engine="streaming").item())
    if count > 0:
        raise DataFormatError(
            "a row has no time, so it belongs to no split",
            where=f"column '{column}'",
            found=f"{count} empty or NaN values",
            expected="a time in every row",
            fix="remove these rows, or split at random",
        )


def _refuse_empty(
    rows: pl.LazyFrame, column: str, bounds: list[Any], names: list[str], where: str
) -> None:
    number = pl.sum_horizontal(pl.lit(0), *(pl.col(column) >= b for b in bounds))
    counted = rows.group_by(number.alias("split")).agg(pl.len()).collect(engine="streaming")
    found = dict(counted.iter_rows())
    _refuse_zero({name: int(found.get(i, 0)) for i, name in enumerate(names)}, where)


def _refuse_zero(sizes: Mapping[str, int], where: str) -> None:
    for name, size in sizes.items():
        if size == 0:
            raise _empty(name, where, ", ".join(f"{n} {c}" for n, c in sizes.items()) + " rows")


def _empty(name: str, where: str, found: str) -> SplitError:
    return SplitError(
        f"a split is empty: {name}",
        where=where,
        found=found,
        expected="at least one row in every split",
        fix="use more rows, other fractions or boundaries, or fewer splits",
    )


def _require_fractions(fractions: Mapping[str, float], where: str) -> None:
    values = list(fractions.values())
    require(
        len(values) > 0 and all(v > 0 for v in values) and math.isclose(sum(values), 1.0),
        where=where,
        found=dict(fractions),
        expected="shares above zero that make 1 together",
        fix="correct the shares; a split of no rows is left out, not 0",
    )
