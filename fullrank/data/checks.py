"""Checks of a log at load time: leaks, labels, numbers, columns, order.

Every check is an expression over lazy rows and is counted by the streaming engine; rows are
fetched only to show the first offender. A row number counts from 0 within its split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from fullrank.data.leaks import (
    known_rows,
    refuse_fields_that_equal_labels,
    refuse_rows_in_two_splits,
)
from fullrank.data.rules import Rule, is_list, rules
from fullrank.data.spec import Category, History, Number, Spec, Tags, Target, Vector
from fullrank.data.split import require_order
from fullrank.errors import (
    FullrankError,
    LabelError,
    SchemaError,
    SplitError,
    nearest,
)


def check(splits: Mapping[str, pl.LazyFrame], spec: Spec, *, name: str) -> list[str]:
    """Refuses a log that cannot be trusted.

    Args:
        splits: "train" first, then the others, oldest first where the spec has a time.
        spec: what the columns mean.
        name: of the dataset, for messages.

    Returns:
        Remarks on what is odd but no error.

    Raises:
        SchemaError: a column is unknown, missing, of the wrong type, or has one value only.
        SplitError: a split is empty, or without `Spec.identity` looks ahead in time.
        DataFormatError: NaN or infinity, lists of the wrong length, a weight that is not above
            zero, a row without time.
        LabelError: a label outside {0, 1}, or all training labels equal.
        LeakError: the target in its own history, an event not before its impression, a history
            out of order, a row in two splits, a field that equals the label.
    """
    facts = {}
    for part, rows in splits.items():
        where = f"'{part}' of {name}"
        types = rows.collect_schema()
        _require_columns(types, spec, where)
        found = list(rules(spec, types))
        facts[part] = _facts(rows, spec, types, found)
        if facts[part]["rows"] == 0:
            raise SplitError(
                f"a split is empty: {part}",
                where=where,
                found="0 rows",
                expected="at least one row in every split",
                fix="split elsewhere, or give more rows",
            )
        for i, rule in enumerate(found):
            if facts[part][f"rule {i}"] > 0:
                raise _offence(rows, rule, facts[part][f"rule {i}"], where)
    train = next(iter(splits))
    notes = _constants(facts[train], spec, splits[train].collect_schema(), f"'{train}' of {name}")
    notes += list(_labels(facts, spec, train, name))
    refuse_fields_that_equal_labels(splits[train], spec, f"'{train}' of {name}")
    notes += list(_separate(splits, facts, spec, name))
    return notes


# ---- columns


def _require_columns(types: pl.Schema, spec: Spec, where: str) -> None:
    known = spec.accounted()
    for column in types:
        if column not in known:
            raise SchemaError(
                "a column is not in the spec",
                where=f"column '{column}' in {where}",
                found=f"'{column}' ({types[column]})",
                expected="a column that the spec reads or names in `ignore`",
                fix=f"{nearest(column, known)} Else add it to the spec or to `ignore`",
            )
    for column in (
        *(c for c, optional in spec.raw_columns().items() if not optional),
        *spec.identity,
    ):
        if column not in types:
            raise SchemaError(
                "a column of the spec is missing",
                where=f"column '{column}' in {where}",
                found="no such column",
                expected="every column that is not optional",
                fix=f"{nearest(column, set(types) - spec.accounted() or set(types))} "
                "Else mark it optional",
            )
    for column, kind, fits in _wanted_types(spec):
        if column in types and not fits(types[column]):
            raise SchemaError(
                "a column has a type that cannot be used",
                where=f"column '{column}' in {where}",
                found=str(types[column]),
                expected=kind,
                fix="convert the column, or correct the spec",
            )


def _wanted_types(spec: Spec) -> Iterator[tuple[str, str, Any]]:
    for column in spec.columns:
        match column:
            case Category():
                yield column.name, "single values", lambda t: not t.is_nested()
            case Number():
                yield (
                    column.name,
                    "numbers",
                    lambda t: t.is_numeric() or t in (pl.Boolean, pl.String),
                )
            case Tags():
                yield column.name, "lists, or text", lambda t: is_list(t) or t == pl.String
            case Vector():
                yield column.name, "a list of numbers", is_list
            case History():
                for e in column.events:
                    raw = not e.table  # kept as it is, such as a time
                    wanted = "a list of numbers" if raw else "a list"
                    yield e.column, wanted, _is_list_of_numbers if raw else is_list
            case Target():
                yield column.name, "0 and 1", lambda t: t.is_numeric() or t == pl.Boolean
                if column.observed:
                    yield column.observed, "true and false", lambda t: t == pl.Boolean
    if spec.weight:
        yield spec.weight, "numbers", lambda t: t.is_numeric()
    if spec.time:
        yield spec.time, "unix seconds", lambda t: t.is_numeric()


def _is_list_of_numbers(kind: Any) -> bool:
    return is_list(kind) and (kind.inner.is_numeric() or kind.inner == pl.Null)


# ---- verdicts on whole splits


def _constants(facts: dict[str, Any], spec: Spec, types: pl.Schema, where: str) -> list[str]:
    notes = []
    for column in spec.columns:
        if not isinstance(column, Category | Number | Tags) or column.name not in types:
            continue
        value, empty = facts[f"min {column.name}"], facts[f"null {column.name}"]
        if value != facts[f"max {column.name}"] or (value is not None and empty > 0):
            continue
        found = "no value at all" if value is None else f"{_short(value)} in every row"
        if isinstance(column, Number):
            notes.append(f"number '{column.name}' of {where} is constant: {found}")
            continue
        raise SchemaError(
            f"a vocabulary of one: column '{column.name}'",
            where=f"column '{column.name}' of {where}",
            found=found,
            expected="at least two values; a constant tells a model nothing",
            fix=f"put '{column.name}' into `ignore` with the reason",
        )
    return notes


def _labels(facts: dict[str, dict[str, Any]], spec: Spec, train: str, name: str) -> Iterator[str]:
    for target in spec.targets():
        for part, fact in facts.items():
            known, ones = fact[f"known {target.name}"], int(fact[f"ones {target.name}"])
            if 0 < ones < known:
                continue
            found = f"{known:,} known labels, {ones:,} of them 1"
            if part != train:
                yield f"label '{target.name}' of '{part}': {found}; its AUC has no value there"
                continue
            raise LabelError(
                f"all training labels are equal: column '{target.name}'",
                where=f"label '{target.name}' of '{part}' of {name}",
                found=found,
                expected="both labels among the rows where it is known",
                fix="check how the label was made, or remove it from the spec",
            )


def _separate(
    splits: Mapping[str, pl.LazyFrame], facts: dict[str, dict[str, Any]], spec: Spec, name: str
) -> Iterator[str]:
    """Checks that splits share no row, or, where rows have no name, that they follow in time."""
    if spec.identity:
        sizes = {part: fact["rows"] for part, fact in facts.items()}
        refuse_rows_in_two_splits(splits, sizes, spec, name)
    if spec.time:
        spans = {part: (fact["oldest"], fact["newest"]) for part, fact in facts.items()}
        try:
            require_order(spans, spec.time)
        except SplitError as error:
            if not spec.identity:
                raise
            yield f"the splits of {name} overlap in time ({error.found}): scores may look ahead"


# ---- counting and showing


def _facts(rows: pl.LazyFrame, spec: Spec, types: pl.Schema, found: list[Rule]) -> dict[str, Any]:
    """Collects in one pass: offenders per rule, extremes per field, label counts, the time span."""
    wanted = [pl.len().alias("rows")]
    wanted += [r.bad.fill_null(False).sum().alias(f"rule {i}") for i, r in enumerate(found)]
    for column in spec.columns:
        if isinstance(column, Category | Number | Tags) and column.name in types:
            value = pl.col(column.name)
            if types[column.name] in (pl.Categorical, pl.Enum):
                value = value.cast(pl.String)
            elif is_list(types[column.name]):
                value = value.explode()  # an empty list becomes an empty value
            wanted.append(value.min().alias(f"min {column.name}"))
            wanted.append(value.max().alias(f"max {column.name}"))
            wanted.append(value.null_count().alias(f"null {column.name}"))
        if isinstance(column, Target):
            label = pl.col(column.name).filter(known_rows(column, spec))
            wanted.append(label.len().alias(f"known {column.name}"))
            wanted.append(label.cast(pl.Float64).sum().alias(f"ones {column.name}"))
    if spec.time:
        wanted.append(pl.col(spec.time).min().alias("oldest"))
        wanted.append(pl.col(spec.time).max().alias("newest"))
    return rows.select(wanted).collect(engine="streaming").row(0, named=True)


def _offence(rows: pl.LazyFrame, rule: Rule, count: int, where: str) -> FullrankError:
    number = "row number for the message"
    shown = list(dict.fromkeys(rule.show))
    first = rows.with_row_index(number).filter(rule.bad.fill_null(False)).head(1)
    row = first.select(number, *shown).collect(engine="streaming").row(0, named=True)
    values = ", ".join(f"{c} = {_short(row[c])}" for c in shown)
    return rule.error(
        rule.what,
        where=f"row {row[number]} of {where}",
        found=f"{values} ({count:,} such rows)",
        expected=rule.expected,
        fix=rule.fix,
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:57] + " ... " + text[-57:]
