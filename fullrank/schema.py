"""Schema: what the data is. Frozen, hashable, and the same object for training and serving.

A table is an embedding table; fields and the columns of a sequence point to it. Row 0 of every
table means *unknown value*; known values are rows 1 and up; padding has no row and is only a mask.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from fullrank.errors import SchemaError, nearest

Side = Literal["user", "item", "context"]


@dataclass(frozen=True)
class Table:
    """An embedding table.

    Args:
        name: what fields point to.
        size: number of rows V, row 0 (unknown) included.
        grows: rows may be appended after training; a model trained on fewer rows reads row 0.
    """

    name: str
    size: int
    grows: bool = False


@dataclass(frozen=True)
class Categorical:
    """A field with one value per row: [B] int32 row numbers of `table`."""

    name: str
    table: str
    side: Side = "context"


@dataclass(frozen=True)
class Numeric:
    """A field with one number per row: [B] float32, already transformed by the featurizer."""

    name: str
    side: Side = "context"


@dataclass(frozen=True)
class Bag:
    """A field with several values and no order, such as genres; at most `max_length` are kept."""

    name: str
    table: str
    side: Side = "context"
    max_length: int = 32


@dataclass(frozen=True)
class Dense:
    """A field that is an array of fixed shape: [B, *shape] float32, such as a text vector."""

    name: str
    shape: tuple[int, ...]
    side: Side = "context"


Field = Categorical | Numeric | Bag | Dense


@dataclass(frozen=True)
class Sequence:
    """Past events, oldest first, columns aligned.

    Args:
        name: of the sequence.
        columns: (column, table) pairs. A table of None marks raw int64 values, such as unix
            seconds.
        max_length: the newest events that are kept.
    """

    name: str
    columns: tuple[tuple[str, str | None], ...]
    max_length: int

    def table(self, column: str) -> str | None:
        """Returns the table that a column points to."""
        return dict(self.columns)[column]


@dataclass(frozen=True)
class Label:
    """A target in {0, 1}. `given` names what must have happened for it to be defined."""

    name: str
    given: str = "impression"


@dataclass(frozen=True)
class Schema:
    """Tables, fields, sequences and labels, in order.

    Args:
        tables: the embedding tables.
        fields: in the order in which models stack them.
        sequences: event histories.
        labels: targets; the first is the main one.
        item: name of the field that is the judged item, if there is one.
        group: the raw column that groups rows for GAUC (user or request), if there is one.

    Raises:
        SchemaError: a name occurs twice, or a field points to a table that does not exist.
    """

    tables: tuple[Table, ...] = ()
    fields: tuple[Field, ...] = ()
    sequences: tuple[Sequence, ...] = ()
    labels: tuple[Label, ...] = ()
    item: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        for kind, names in (
            ("table", [t.name for t in self.tables]),
            ("field", [f.name for f in self.fields] + [s.name for s in self.sequences]),
            ("label", [label.name for label in self.labels]),
        ):
            _refuse_duplicates(kind, names)
        known = {t.name for t in self.tables}
        for owner, table in self._pointers():
            if table not in known:
                raise SchemaError(
                    "a field points to a table that does not exist",
                    where=f"'{owner}'",
                    found=f"table '{table}'",
                    expected="one of: " + ", ".join(sorted(known)),
                    fix=nearest(table, known),
                )
        for table_ in self.tables:
            if table_.size < 1:
                raise SchemaError(
                    "a table has no room for the unknown value",
                    where=f"table '{table_.name}'",
                    found=f"size {table_.size}",
                    expected="size 1 or more; row 0 is the unknown value",
                    fix="count the unknown row in the size",
                )
        if self.item is not None and self.item not in {f.name for f in self.fields}:
            raise SchemaError(
                "the item field does not exist",
                where="Schema.item",
                found=f"'{self.item}'",
                expected="the name of a field",
                fix=nearest(self.item, (f.name for f in self.fields)),
            )

    def _pointers(self) -> Iterable[tuple[str, str]]:
        for field in self.fields:
            if isinstance(field, Categorical | Bag):
                yield field.name, field.table
        for sequence in self.sequences:
            for column, table in sequence.columns:
                if table is not None:
                    yield f"{sequence.name}.{column}", table

    def table(self, name: str) -> Table:
        """Returns the table of this name."""
        for table in self.tables:
            if table.name == name:
                return table
        raise SchemaError(
            "there is no such table",
            where="schema",
            found=f"'{name}'",
            expected="the name of a table",
            fix=nearest(name, (t.name for t in self.tables)),
        )

    def field(self, name: str) -> Field:
        """Returns the field of this name."""
        for field in self.fields:
            if field.name == name:
                return field
        raise SchemaError(
            "there is no such field",
            where="schema",
            found=f"'{name}'",
            expected="the name of a field",
            fix=nearest(name, (f.name for f in self.fields)),
        )

    def sequence(self, name: str) -> Sequence:
        """Returns the sequence of this name."""
        for sequence in self.sequences:
            if sequence.name == name:
                return sequence
        raise SchemaError(
            "there is no such sequence",
            where="schema",
            found=f"'{name}'",
            expected="the name of a sequence",
            fix=nearest(name, (s.name for s in self.sequences)),
        )

    def categorical(self) -> tuple[Categorical, ...]:
        """Returns the categorical fields in schema order: the columns of `Batch.categorical`."""
        return tuple(f for f in self.fields if isinstance(f, Categorical))

    def numeric(self) -> tuple[Numeric, ...]:
        """Returns the numeric fields in schema order: the columns of `Batch.numeric`."""
        return tuple(f for f in self.fields if isinstance(f, Numeric))

    def select(self, fields: Iterable[str], sequences: Iterable[str] = ()) -> Schema:
        """Returns a schema with only these fields and sequences, and the tables they need."""
        kept_fields = tuple(self.field(name) for name in fields)
        kept_sequences = tuple(self.sequence(name) for name in sequences)
        part = replace(
            self,
            fields=kept_fields,
            sequences=kept_sequences,
            item=self.item if self.item in {f.name for f in kept_fields} else None,
        )
        needed = {table for _, table in part._pointers()}
        return replace(part, tables=tuple(t for t in self.tables if t.name in needed))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types; `from_dict` is the inverse."""
        return {
            "tables": [[t.name, t.size, t.grows] for t in self.tables],
            "fields": [_field_to_list(f) for f in self.fields],
            "sequences": [
                [s.name, [list(pair) for pair in s.columns], s.max_length] for s in self.sequences
            ],
            "labels": [[label.name, label.given] for label in self.labels],
            "item": self.item,
            "group": self.group,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Schema:
        """Builds a schema from what `to_dict` returned."""
        try:
            return cls(
                tables=tuple(Table(*row) for row in data["tables"]),
                fields=tuple(_field_from_list(row) for row in data["fields"]),
                sequences=tuple(
                    Sequence(name, tuple((column, table) for column, table in columns), length)
                    for name, columns, length in data["sequences"]
                ),
                labels=tuple(Label(*row) for row in data["labels"]),
                item=data["item"],
                group=data["group"],
            )
        except (KeyError, TypeError, ValueError) as cause:
            raise SchemaError(
                "a stored schema cannot be read",
                where="schema JSON",
                found=f"{type(cause).__name__}: {cause}",
                expected="what Schema.to_dict writes",
                fix="write it again from the data, or restore the file",
            ) from cause

    def fingerprint(self) -> str:
        """Returns 16 hex digits that change with any part of the schema."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_KINDS: dict[str, type[Field]] = {
    "categorical": Categorical,
    "numeric": Numeric,
    "bag": Bag,
    "dense": Dense,
}


def _field_to_list(field: Field) -> list[Any]:
    match field:
        case Categorical(name, table, side):
            return ["categorical", name, table, side]
        case Numeric(name, side):
            return ["numeric", name, side]
        case Bag(name, table, side, max_length):
            return ["bag", name, table, side, max_length]
        case Dense(name, shape, side):
            return ["dense", name, list(shape), side]


def _field_from_list(row: list[Any]) -> Field:
    kind, *rest = row
    if kind == "dense":
        name, shape, side = rest
        return Dense(name, tuple(shape), side)
    return _KINDS[kind](*rest)


def _refuse_duplicates(kind: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SchemaError(
            f"a {kind} name occurs twice",
            where="schema",
            found=", ".join(twice),
            expected=f"each {kind} named once",
            fix="rename one of them",
        )
