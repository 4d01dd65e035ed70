"""What no single row of a log may be, as expressions that a streaming engine can count."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from fullrank.data.spec import Category, History, Number, Spec, Target, Vector
from fullrank.errors import DataFormatError, FullrankError, LabelError, LeakError


@dataclass(frozen=True)
class Rule:
    """What no row may be: a condition that is True for an offender, and what to say of it."""

    bad: pl.Expr
    show: tuple[str, ...]  # columns whose values make the offence plain
    error: type[FullrankError]
    what: str
    expected: str
    fix: str


def rules(spec: Spec, types: pl.Schema) -> Iterator[Rule]:
    """Yields the rules that follow from a spec, for columns of these types."""
    for column in spec.columns:
        match column:
            case Number() if column.name in types:
                yield _finite(column.name, _is_not_finite(pl.col(column.name), types[column.name]))
            case Vector() if column.name in types:
                yield from _vector_rules(column, types)
            case Target():
                yield _label_rule(column)
            case History() if all(e.column in types for e in column.events):
                yield from _history_rules(column, spec, types)
            case _:
                pass
    if spec.weight:
        bad = ~(pl.col(spec.weight) > 0).fill_null(False) | ~pl.col(spec.weight).is_finite()
        yield Rule(
            bad,
            (spec.weight,),
            DataFormatError,
            f"a weight cannot be used: column '{spec.weight}'",
            "a finite number above zero, 1 / sampling rate",
            "correct the weight, or remove `weight` from the spec",
        )
    if spec.time:
        bad = pl.col(spec.time).is_null() | ~pl.col(spec.time).is_finite()
        yield Rule(
            bad,
            (spec.time,),
            DataFormatError,
            f"a row has no time: column '{spec.time}'",
            "unix seconds in every row",
            "remove these rows, or remove `time` from the spec",
        )


def _is_not_finite(value: pl.Expr, kind: pl.DataType) -> pl.Expr:
    if kind.is_float():
        return ~value.is_finite()  # empty is allowed and stays empty here
    if kind == pl.String:
        return ~value.cast(pl.Float64, strict=False).is_finite()
    return pl.lit(False)


def _finite(name: str, bad: pl.Expr) -> Rule:
    return Rule(
        bad,
        (name,),
        DataFormatError,
        f"a number is NaN or infinite: column '{name}'",
        "finite numbers, or empty",
        "write empty (null) where the number is not known",
    )


def _vector_rules(column: Vector, types: pl.Schema) -> Iterator[Rule]:
    size, values = math.prod(column.shape), pl.col(column.name)
    if isinstance(types[column.name], pl.Array):
        values = values.arr.to_list()
    yield Rule(
        values.list.len() != size,
        (column.name,),
        DataFormatError,
        f"a vector has the wrong length: column '{column.name}'",
        f"{size} numbers, for shape {column.shape}",
        "correct the rows, or the shape in the spec",
    )
    # A sum in float64 is finite exactly if every float32 in it is.
    total = values.list.eval(pl.element().cast(pl.Float64)).list.sum()
    yield _finite(column.name, ~total.is_finite())


def _label_rule(target: Target) -> Rule:
    value = pl.col(target.name).cast(pl.Float64)
    bad = ~value.is_in([0.0, 1.0])  # empty stays empty
    known = pl.col(target.observed).fill_null(False) if target.observed else pl.lit(True)
    return Rule(
        bad.fill_null(known),
        (target.name, *([target.observed] if target.observed else [])),
        LabelError,
        f"a label is outside {{0, 1}}: column '{target.name}'",
        "0 or 1" + (f"; empty only where '{target.observed}' is false" if target.observed else ""),
        "turn the label into 0 and 1 (a rating: at least 4), or remove these rows",
    )


def _history_rules(history: History, spec: Spec, types: pl.Schema) -> Iterator[Rule]:
    lists = {
        e.name: pl.col(e.column).arr.to_list()
        if isinstance(types[e.column], pl.Array)
        else pl.col(e.column)
        for e in history.events
    }
    shown = tuple(e.column for e in history.events)
    first, *others = (x.list.len().fill_null(0) for x in lists.values())
    if others:
        yield Rule(
            pl.any_horizontal(*(first != x for x in others)),
            shown,
            DataFormatError,
            f"the columns of a history differ in length: '{history.name}'",
            "one value per event in each of them",
            "correct the rows",
        )
    for event in (e for e in history.events if not e.table):
        kind = types[event.column].inner  # type: ignore[attr-defined]
        element = pl.element()
        wrong = element.is_null() | ~element.is_finite() if kind.is_float() else element.is_null()
        yield Rule(
            lists[event.name].list.eval(wrong).list.any().fill_null(False),
            (event.column,),
            DataFormatError,
            f"an event lacks a value that cannot be unknown: history '{history.name}'",
            f"a number in '{event.column}' for every event",
            "leave these events out of every column of the history",
        )
    if "time" in lists and spec.time:
        yield Rule(
            (lists["time"].list.max() >= pl.col(spec.time)).fill_null(False),
            (spec.time, *shown),
            LeakError,
            f"an event is not earlier than its impression: history '{history.name}'",
            f"every event before '{spec.time}' of its row",
            "cut each history at the time of its impression",
        )
    if "time" in lists:
        yield Rule(
            (lists["time"].list.diff().list.min() < 0).fill_null(False),
            shown,
            LeakError,
            f"time runs backwards in a history: '{history.name}'",
            "events oldest first",
            "sort each history by time; the newest must be last",
        )
    if spec.item and not history.repeats:
        yield from _target_rules(history, spec, types, lists)


def _target_rules(
    history: History, spec: Spec, types: pl.Schema, lists: dict[str, pl.Expr]
) -> Iterator[Rule]:
    item = next(c for c in spec.columns if c.name == spec.item)
    table = (item.table if isinstance(item, Category) else "") or spec.item
    for event in history.events:
        if event.table != table:
            continue
        past, target = lists[event.name], pl.col(spec.item)
        inner = types[event.column].inner  # type: ignore[attr-defined]
        if inner != types[spec.item]:
            past, target = past.cast(pl.List(pl.String)), target.cast(pl.String)
        yield Rule(
            past.list.contains(target).fill_null(False),
            (spec.item, event.column),
            LeakError,
            f"the judged item stands in its own history: '{history.name}'",
            f"no '{spec.item}' among its own past events",
            "end each history before its impression; where items rightly return, set repeats=True",
        )


def is_list(kind: pl.DataType) -> bool:
    """Returns whether a column holds several values per row."""
    return isinstance(kind, pl.List | pl.Array)
