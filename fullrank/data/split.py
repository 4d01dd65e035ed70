"""Splits of a log into training, validation and test: by time, by group, or at random.

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
    splits = {}
    for i, name in enumerate(names):
        after = pl.col(column) >= bounds[i - 1] if i > 0 else pl.lit(True)
        before = pl.col(column) < bounds[i] if i < len(bounds) else pl.lit(True)
        splits[name] = rows.filter(after & before)
    _refuse_empty(rows, _number_between(column, bounds), names, f"split by time '{column}'")
    return splits


def by_group(
    rows: pl.LazyFrame, column: str, *, fractions: Mapping[str, float] = PARTS, seed: int = 0
) -> Splits:
    """Splits so that all rows of a group, such as a user, fall into one split.

    The split of a group depends on its value and the seed alone: new rows and new groups move no
    old one. The empty value is one group.

    Args:
        rows: the log, in any order.
        column: integers or text; other types are hashed as text.
        fractions: name -> expected share of the groups, together 1.
        seed: another seed, another split.

    Raises:
        ConfigError: the fractions do not make 1.
        SplitError: a split has no rows.
    """
    key = pl.col(column).map_batches(
        lambda s: pl.Series(s.name, stable_hash(s, seed)), pl.UInt64, is_elementwise=True
    )
    return _by_key(rows, key, fractions, f"split by group '{column}', seed {seed}")


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
    number = "row number for the split"
    key = pl.col(number).map_batches(
        lambda s: pl.Series(s.name, stable_hash(s, seed)), pl.UInt64, is_elementwise=True
    )
    numbered = rows.with_row_index(number)
    splits = _by_key(numbered, key, fractions, f"split at random, seed {seed}")
    return {name: part.drop(number) for name, part in splits.items()}


def require_order(splits: Mapping[str, pl.LazyFrame], time_column: str) -> None:
    """Checks that each split ends before the next one begins.

    Args:
        splits: name -> rows, oldest first.
        time_column: the time of a row.

    Raises:
        SplitError: a split has no rows, or a row of it is not older than all of the next split.
    """
    spans = {name: _span(part, time_column) for name, part in splits.items()}
    require_order_of_spans(spans, time_column)


def require_order_of_spans(spans: Mapping[str, tuple[Any, Any]], time_column: str) -> None:
    """Checks the same as `require_order` from the oldest and newest time of each split.

    Raises:
        SplitError: as for `require_order`.
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


def stable_hash(values: pl.Series, seed: int) -> NDArray[np.uint64]:
    """Hashes values to uniform 64-bit numbers that no library version changes.

    Args:
        values: [n] integers or text; other types are hashed as text. Empty values share a hash.
        seed: another seed, another hash.

    Returns:
        [n] uint64.
    """
    if values.dtype.is_integer():
        number = values.fill_null(0).to_numpy().astype(np.uint64)
    else:
        number = _polynomial(values.cast(pl.String))
    # fill_null(0) would let the empty value share the hash of 0.
    empty = values.is_null().to_numpy()
    salt = _mix(np.array([seed % 2**64], dtype=np.uint64))[0]
    return np.asarray(_mix(np.where(empty, ~salt, number) ^ salt), dtype=np.uint64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), dtype=np.uint64)


def _polynomial(text: pl.Series) -> NDArray[np.uint64]:
    """Hashes text by its UTF-8 bytes: sum of mix(byte, place) modulo 2^64, plus its length."""
    arrow = text.fill_null("").to_arrow()
    offsets = np.frombuffer(arrow.buffers()[1], dtype=np.int64)
    offsets = offsets[arrow.offset : arrow.offset + len(arrow) + 1]
    length = np.diff(offsets)
    data = arrow.buffers()[2]
    if len(arrow) == 0 or data is None or offsets[-1] == offsets[0]:
        return length.astype(np.uint64)
    raw = np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]].astype(np.uint64)
    begin = offsets[:-1] - offsets[0]
    place = (np.arange(len(raw)) - np.repeat(begin, length)).astype(np.uint64)
    mixed = _mix(place * np.uint64(256) + raw)
    # Sums of a running total give empty texts their 0, which reduceat would not.
    total = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    return np.asarray(total[begin + length] - total[begin] + length.astype(np.uint64))


def _by_key(rows: pl.LazyFrame, key: pl.Expr, fractions: Mapping[str, float], where: str) -> Splits:
    _require_fractions(fractions, "fractions")
    names, share = list(fractions), np.cumsum(list(fractions.values()))[:-1]
    bounds = [min(int(s * 2.0**64), 2**64 - 1) for s in share]
    column = "key of the split"
    keyed = rows.with_columns(key.alias(column))
    splits = {}
    for i, name in enumerate(names):
        part = keyed
        if i > 0:
            part = part.filter(pl.col(column) >= pl.lit(bounds[i - 1], dtype=pl.UInt64))
        if i < len(bounds):
            part = part.filter(pl.col(column) < pl.lit(bounds[i], dtype=pl.UInt64))
        splits[name] = part.drop(column)
    number = pl.sum_horizontal(
        pl.lit(0), *(pl.col(column) >= pl.lit(b, dtype=pl.UInt64) for b in bounds)
    )
    _refuse_empty(keyed, number, names, where)
    return splits


def _number_between(column: str, bounds: list[Any]) -> pl.Expr:
    return pl.sum_horizontal(pl.lit(0), *(pl.col(column) >= b for b in bounds))


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


def _span(part: pl.LazyFrame, column: str) -> tuple[Any, Any]:
    low, high = pl.col(column).min().alias("low"), pl.col(column).max().alias("high")
    row = part.select(low, high).collect(engine="streaming").row(0)
    return row[0], row[1]


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
            fix="remove these rows, or split by group or at random",
        )


def _refuse_empty(rows: pl.LazyFrame, number: pl.Expr, names: list[str], where: str) -> None:
    counted = rows.group_by(number.alias("split")).agg(pl.len()).collect(engine="streaming")
    sizes = dict(counted.iter_rows())
    counts = {name: int(sizes.get(i, 0)) for i, name in enumerate(names)}
    for name, count in counts.items():
        if count == 0:
            raise _empty(name, where, ", ".join(f"{n} {c}" for n, c in counts.items()) + " rows")


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
