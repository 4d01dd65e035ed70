"""Leaks that show only across rows: a field that equals the label, a row in two splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from math import lgamma, log

import polars as pl

from fullrank.data.spec import Category, History, Number, Spec, Tags, Target
from fullrank.errors import LeakError

SAMPLE = 50_000  # rows on which most fields are seen not to equal the label
MIN_ROWS_PER_VALUE = 20
MIN_BITS = 30.0  # a field equals the label by chance less than once in 10^9


def known_rows(target: Target, spec: Spec) -> pl.Expr:
    """Returns where a label is defined and known."""
    known = pl.col(target.name).is_not_null()
    if target.observed:
        known = known & pl.col(target.observed).fill_null(False)
    if target.given in {t.name for t in spec.targets()}:
        known = known & (pl.col(target.given).cast(pl.Float64) == 1).fill_null(False)
    return known


def refuse_fields_that_equal_labels(train: pl.LazyFrame, spec: Spec, where: str) -> None:
    """Refuses a field each of whose values, or whose being empty, stands for one label.

    A field is refused where its values tell every label, where a value stands for
    MIN_ROWS_PER_VALUE rows on average, and where telling the labels one by one takes MIN_BITS
    more than telling which values mean 1: so an identifier that is new in almost every row, or a
    handful of clicks that happen to share a rare value, is no alarm.

    Args:
        train: rows that the checks of single rows have passed.
        spec: what the columns mean.
        where: the split and the dataset, for messages.

    Raises:
        LeakError: names the field and what its values mean.
    """
    for target in spec.targets():
        rows = train.filter(known_rows(target, spec)).with_columns(
            pl.col(target.name).cast(pl.Float64).alias("label of the check")
        )
        fields = list(_fields(spec, set(train.collect_schema().names())))
        columns = {name for name, _, _ in fields}
        sample = rows.select(*columns, "label of the check").head(SAMPLE)
        head = sample.collect(engine="streaming").lazy()
        for name, meaning, value in fields:
            if _statistics(head, value)["impure"] == 0 and _equals_label(rows, value):
                raise _leak(rows, name, meaning, value, target, where)


def _fields(spec: Spec, present: set[str]) -> Iterator[tuple[str, str, pl.Expr]]:
    """Yields column, what of it is looked at, and the expression of that."""
    for column in spec.columns:
        name = column.events[0].column if isinstance(column, History) else column.name
        if name not in present:
            continue
        match column:
            case Category() | Number():
                yield name, "value", pl.col(name)
                yield name, "being empty", pl.col(name).is_null()
            case Tags():
                yield name, "being empty", pl.col(name).is_null()
            case History():
                # An array has a fixed length and so is never empty.
                yield name, "being empty", pl.col(name).is_null()


def _statistics(rows: pl.LazyFrame, value: pl.Expr) -> dict[str, int]:
    """Counts values, those with both labels, those with label 1, rows and rows with label 1."""
    groups = rows.group_by(value.alias("value of the check")).agg(
        pl.len().cast(pl.Int64).alias("n"),
        pl.col("label of the check").sum().cast(pl.Int64).alias("ones"),
    )
    n, ones = pl.col("n"), pl.col("ones")
    counted = groups.select(
        values=pl.len(),
        impure=((ones > 0) & (ones < n)).sum(),
        positive=(ones > 0).sum(),
        rows=n.sum(),
        ones=ones.sum(),
    )
    return counted.collect(engine="streaming").row(0, named=True)


def _equals_label(rows: pl.LazyFrame, value: pl.Expr) -> bool:
    sizes = rows.select(pl.len().alias("rows"), value.approx_n_unique().alias("values"))
    size = sizes.collect(engine="streaming").row(0, named=True)
    # The estimate is a few percent off; it only saves memory where values are many.
    if size["rows"] < 0.75 * MIN_ROWS_PER_VALUE * size["values"]:
        return False
    found = _statistics(rows, value)
    if found["impure"] > 0 or found["rows"] < MIN_ROWS_PER_VALUE * found["values"]:
        return False
    if found["ones"] in (0, found["rows"]):
        return False
    labels = _bits_of_choice(found["rows"], found["ones"])
    values = _bits_of_choice(found["values"], found["positive"]) + log(found["values"], 2)
    return labels - values > MIN_BITS


def _bits_of_choice(n: int, k: int) -> float:
    """Returns the logarithm to base 2 of n choose k."""
    return (lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)) / log(2)


def _leak(
    rows: pl.LazyFrame, name: str, meaning: str, value: pl.Expr, target: Target, where: str
) -> LeakError:
    label = pl.col("label of the check")
    examples = rows.select(
        one=value.filter(label == 1).first(), zero=value.filter(label == 0).first()
    ).collect(engine="streaming")
    one, zero = examples.row(0)
    return LeakError(
        f"a field equals the label: column '{name}'",
        where=f"column '{name}' and label '{target.name}' of {where}",
        found=f"its {meaning} tells the label in every row: {one!r} means 1, {zero!r} means 0",
        expected="values that occur with both labels",
        fix=f"if '{name}' is known only after the event, put it into `ignore`",
    )


def refuse_rows_in_two_splits(
    splits: Mapping[str, pl.LazyFrame], sizes: Mapping[str, int], spec: Spec, name: str
) -> None:
    """Refuses an impression that stands in two splits, by `Spec.identity`.

    Memory holds the identities of the smaller split of each pair.

    Args:
        splits: name -> rows.
        sizes: name -> number of rows.
        spec: with an identity.
        name: of the dataset, for messages.

    Raises:
        LeakError: shows the first such impression.
    """
    keys, number = list(spec.identity), "row number for the message"
    for pair in combinations(splits, 2):
        small, large = sorted(pair, key=lambda part: sizes[part])
        numbered = splits[large].select(keys).with_row_index(number)
        shared = numbered.join(splits[small].select(keys), on=keys, how="semi")
        found = shared.select(pl.len().alias("rows"), pl.col(number).min()).collect(
            engine="streaming"
        )
        count, first = found.row(0)
        if count == 0:
            continue
        row = splits[large].select(keys).slice(first, 1).collect(engine="streaming").row(0)
        values = ", ".join(f"{k} = {v!r}" for k, v in zip(keys, row, strict=True))
        raise LeakError(
            "a row is in two splits",
            where=f"row {first} of '{large}' of {name}, also in '{small}'",
            found=f"{values} ({count:,} such rows)",
            expected="each impression in one split",
            fix="split again, or remove the copies before splitting",
        )
