"""Example requests, made of values that training saw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fullrank.data.featurizer import Featurizer
from fullrank.data.spec import Category, Column, History, Number, Tags, Target, Vector

if TYPE_CHECKING:
    from fullrank.serve.wire import Sides

_TAGS, _EVENTS = 2, 3  # of an example row
_NOON = 1_700_000_000  # unix seconds; an example of a time


def example_rows(featurizer: Featurizer, count: int) -> list[dict[str, Any]]:
    """Returns rows with the most frequent values of every column; row i has the i-th of them."""
    rows: list[dict[str, Any]] = []
    for i in range(count):
        row: dict[str, Any] = {}
        for c in featurizer.spec.columns:
            row |= _values(featurizer, c, i)
        if featurizer.spec.time:
            row.setdefault(featurizer.spec.time, _NOON)
        rows.append(row)
    return rows


def example_user(row: dict[str, Any], sides: Sides) -> dict[str, Any]:
    """Returns a retrieval: what a row says of its user and context."""
    items = {name for c in sides.item for name in _raw(c)}
    return {"user": {k: v for k, v in row.items() if k not in items}}


def example_rank(rows: Sequence[dict[str, Any]], sides: Sides) -> dict[str, Any]:
    """Returns a ranking: the user of the first row, and the items of all of them.

    Where no column is said to be an item's, the candidates give the context.
    """
    items = {name for c in sides.item or sides.context for name in _raw(c)}
    user = {k: v for k, v in rows[0].items() if k not in items}
    return {
        "user": user,
        "candidates": [{k: v for k, v in row.items() if k in items} for row in rows],
    }


def _raw(column: Column) -> list[str]:
    return [e.column for e in column.events] if isinstance(column, History) else [column.name]


def _values(featurizer: Featurizer, column: Column, place: int) -> dict[str, Any]:
    def word(table: str, i: int) -> Any:
        known = featurizer.vocabularies[table].values
        return known[i % len(known)] if len(known) else None

    match column:
        case Category():
            return {column.name: word(column.table or column.name, place)}
        case Number():
            return {column.name: _number(featurizer, column)}
        case Tags():
            table = column.table or column.name
            return {column.name: [word(table, place + i) for i in range(_TAGS)]}
        case Vector():
            return {column.name: [0.0] * math.prod(column.shape)}
        case History():
            return {
                e.column: [
                    word(e.table, place + i) if e.table else _NOON - 3600 * (_EVENTS - i)
                    for i in range(_EVENTS)
                ]
                for e in column.events
            }
        case Target():
            return {}


def _number(featurizer: Featurizer, column: Number) -> float | None:
    """Returns the mean of training, to four digits."""
    stats = featurizer.numbers.get(column.name)
    if stats is None:
        return None
    mean = stats.fill if column.transform == "none" else stats.mean
    if column.transform == "log":
        mean = math.copysign(math.expm1(min(abs(mean), 700.0)), mean)  # e**710 is no float
    return float(f"{mean:.4g}")
