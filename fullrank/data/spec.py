"""Spec: what each raw column of a log means. Fitted to data it becomes a Schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fullrank.errors import SchemaError, nearest
from fullrank.schema import Side


@dataclass(frozen=True, kw_only=True)
class Category:
    """A column with one value per row.

    Args:
        name: raw column and field name.
        table: values of columns with the same table share rows; the column's name by default.
        side: whose property it is.
        min_count: values seen less often in training become unknown (row 0).
        grows: the table may get rows after training.
        optional: a missing column reads as unknown instead of an error.
        redact: no log of served rows keeps a raw value, only its row number; see `Spec.redacted`.
    """

    name: str
    table: str = ""
    side: Side = "context"
    min_count: int = 1
    grows: bool = False
    optional: bool = False
    redact: bool = False


@dataclass(frozen=True, kw_only=True)
class Number:
    """A numeric column; empty becomes the training mean, which is 0 after "standard" and "log".

    `transform`: "standard" subtracts the training mean and divides by the deviation; "log" does
    the same to sign(x) * log(1 + |x|), as for counts; "none" keeps the number.
    `redact`: no log of served rows keeps the raw number; not with "none", where the model reads it.
    """

    name: str
    side: Side = "context"
    transform: Literal["standard", "log", "none"] = "standard"
    optional: bool = False
    redact: bool = False

    def __post_init__(self) -> None:
        if self.redact and self.transform == "none":
            raise _not_hidden(self.name, 'transform="none"', 'transform="standard" or "log"')


@dataclass(frozen=True, kw_only=True)
class Tags:
    """A column with several values, no order: a list, or text with a separator."""

    name: str
    table: str = ""
    side: Side = "context"
    separator: str = "|"
    max_length: int = 32
    min_count: int = 1
    optional: bool = False
    redact: bool = False


@dataclass(frozen=True, kw_only=True)
class Vector:
    """A column of numbers of fixed shape: a list per row."""

    name: str
    shape: tuple[int, ...]
    side: Side = "context"
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Event:
    """One aligned list column of a history; table "" keeps raw int64 values such as times."""

    name: str
    column: str
    table: str = ""
    redact: bool = False

    def __post_init__(self) -> None:
        if self.redact and not self.table:
            raise _not_hidden(self.column, "an event without a table", "a table")


@dataclass(frozen=True, kw_only=True)
class History:
    """Past events of the user, oldest first, newest `max_length` kept.

    Args:
        name: of the sequence.
        events: aligned list columns; one of them may be named "time" (unix seconds).
        max_length: events kept.
        repeats: the judged item may rightly stand in its own past (songs, shops); without this
            it counts as a leak.
        optional: a missing column reads as an empty history.
    """

    name: str
    events: tuple[Event, ...]
    max_length: int = 50
    repeats: bool = False
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Target:
    """A label column in {0, 1}. `observed` names a boolean column: is it known yet?"""

    name: str
    given: str = "impression"
    observed: str = ""


Column = Category | Number | Tags | Vector | History | Target


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Every column of a log and what it means.

    Args:
        columns: fields and labels, in the order in which models stack the fields.
        item: the Category that is the judged item.
        group: raw column whose equal values form a group for GAUC (user or request).
        time: raw column with unix seconds of the impression.
        weight: raw column with 1 / sampling rate.
        identity: raw columns that together name an impression; no two splits share one.
        ignore: raw columns that are known and left out, each with the reason.
    """

    columns: tuple[Column, ...]
    item: str = ""
    group: str = ""
    time: str = ""
    weight: str = ""
    identity: tuple[str, ...] = ()
    ignore: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        names = [c.name for c in self.columns]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise SchemaError(
                "a spec names a column twice",
                where="Spec.columns",
                found=", ".join(twice),
                expected="each column once",
                fix="remove one of them",
            )
        lists = {e.column for h in self.histories() for e in h.events}
        single = {c.name for c in self.columns if not isinstance(c, History | Tags)}
        if "" in {*names, *lists} or not all(h.events for h in self.histories()) or lists & single:
            raise SchemaError(
                "a column of a spec cannot be read",
                where="Spec.columns",
                found=", ".join(sorted(lists & single)) or "no name, or a history without events",
                expected="names, and lists of events that no column of single values reads",
                fix="correct the names",
            )
        if self.item and self.item not in names:
            raise SchemaError(
                "the item column is not part of the spec",
                where="Spec.item",
                found=f"'{self.item}'",
                expected="the name of a Category",
                fix=nearest(self.item, names),
            )

    def targets(self) -> tuple[Target, ...]:
        """Returns the label columns."""
        return tuple(c for c in self.columns if isinstance(c, Target))

    def histories(self) -> tuple[History, ...]:
        """Returns the event histories."""
        return tuple(c for c in self.columns if isinstance(c, History))

    def raw_columns(self, *, labels: bool = True) -> dict[str, bool]:
        """Returns every raw column that is read -> whether it may be missing."""
        needed: dict[str, bool] = {}
        for c in self.columns:
            if isinstance(c, History):
                needed.update({e.column: c.optional for e in c.events})
            elif isinstance(c, Target):
                if labels:
                    needed[c.name] = False
                    if c.observed:
                        needed[c.observed] = False
            else:
                needed[c.name] = c.optional
        for name in (self.group, self.time, self.weight):
            if name:
                needed.setdefault(name, not labels)
        return needed

    def redacted(self) -> frozenset[str]:
        """Returns the raw columns whose values no log of served rows may keep.

        Such a log holds what the featurizer makes of them. That is not anonymous: whoever has the
        artefact can look up the value of a row number, if training saw it, and undo a transform.
        """
        parts = [e for h in self.histories() for e in h.events if e.redact]
        single = [c for c in self.columns if isinstance(c, Category | Number | Tags) and c.redact]
        return frozenset({e.column for e in parts} | {c.name for c in single})

    def accounted(self) -> set[str]:
        """Returns every raw column that the spec knows, read or ignored."""
        return {*self.raw_columns(), *self.identity, *(name for name, _ in self.ignore)}


def _not_hidden(name: str, found: str, expected: str) -> SchemaError:
    return SchemaError(
        "a column that the model reads as it is cannot be redacted",
        where=f"column '{name}'",
        found=f"redact=True with {found}",
        expected=expected,
        fix="turn it into rows of a table or scale it, or leave it out of the spec",
    )
