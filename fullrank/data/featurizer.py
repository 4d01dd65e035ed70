"""Featurizer: raw values to row numbers and floats. The only code that knows raw values.

It is fitted on the training split alone and is the same object in training and in serving, so that
a served row and a prepared row are equal to the bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from fullrank.batch import Batch
from fullrank.data import encode
from fullrank.data.encode import Encoded
from fullrank.data.numbers import NumberStats, fit_numbers
from fullrank.data.spec import Category, Column, History, Number, Spec, Tags, Target, Vector
from fullrank.data.spec_json import spec_from_dict, spec_to_dict
from fullrank.data.vocab import Vocabulary
from fullrank.errors import ArtifactError, ConfigError, SchemaError, nearest
from fullrank.schema import (
    Bag,
    Categorical,
    Dense,
    Field,
    Label,
    Numeric,
    Schema,
    Sequence,
    Table,
)

_MALFORMED = (
    *(OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError),
    ConfigError,
)


@dataclass(frozen=True, eq=False)
class Featurizer:
    """A fitted spec.

    Args:
        spec: what the raw columns mean.
        vocabularies: table -> values.
        numbers: column -> training statistics of its transform.
        schema: what the batches hold; follows from the others.
    """

    spec: Spec
    vocabularies: dict[str, Vocabulary]
    numbers: dict[str, NumberStats]
    schema: Schema = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", _schema(self.spec, self.vocabularies))

    @classmethod
    def fit(cls, spec: Spec, train: pl.LazyFrame) -> Featurizer:
        """Learns vocabularies and statistics in one streaming pass over each column.

        Memory is bounded by the largest vocabulary, not by the rows.

        Args:
            spec: what the raw columns mean.
            train: the rows of the training split, and of no other.

        Raises:
            SchemaError: a column that the spec needs is missing.
            DataFormatError: a number is NaN or infinite.
        """
        known = train.collect_schema()
        spec_columns = spec.raw_columns()
        for name, optional in spec_columns.items():
            if name not in known and not optional:
                raise _missing(name, set(known.names()), "training rows")
        vocabularies = {
            table: Vocabulary.fit(
                [_values(train, c, source) for c, source in owners if source in known],
                max(getattr(c, "min_count", 1) for c, _ in owners),
            )
            for table, owners in _tables(spec).items()
        }
        numbers = [c for c in spec.columns if isinstance(c, Number) and c.name in known]
        return cls(spec, vocabularies, fit_numbers(train, numbers))

    def __call__(self, rows: pa.Table | pl.DataFrame) -> Batch:
        """Encodes raw rows; labels may be absent, as in serving.

        Values never seen in training read row 0. A missing optional column reads as unknown,
        extra columns are ignored.

        Raises:
            SchemaError: a column that is not optional is missing; the nearest name is suggested.
            DataFormatError: a number is NaN or infinite, or a list has the wrong length.
            LabelError: a label is outside {0, 1}.
        """
        frame = pl.from_arrow(rows) if isinstance(rows, pa.Table) else rows
        assert isinstance(frame, pl.DataFrame)
        return self.encode(frame).batch(self.schema)

    def encode(self, frame: pl.DataFrame) -> Encoded:
        """Encodes raw rows into contiguous blocks; see `__call__` for what is refused."""
        return encode.encode(self, frame, self.require(frame.columns))

    def require(self, names: list[str]) -> bool:
        """Refuses rows that lack a column; returns whether they have their labels.

        Raises:
            SchemaError: a column that is not optional is missing.
        """
        present = set(names)
        has_labels = all(t.name in present for t in self.spec.targets())
        for name, optional in self.spec.raw_columns(labels=has_labels).items():
            if name not in present and not optional:
                raise _missing(name, present, "rows")
        return has_labels

    def table_of(self, column: Category | Tags) -> Vocabulary:
        """Returns the vocabulary that a column reads."""
        return self.vocabularies[column.table or column.name]

    def counts(self, table: str) -> np.ndarray:
        """Returns [V] int64: how often training saw each row; row 0 is the unknown value."""
        vocabulary = self.vocabularies[table]
        return np.concatenate([[vocabulary.unknown], vocabulary.counts])

    def fingerprint(self) -> str:
        """Returns 16 hex digits that change with the spec, any value or any statistic."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self._plain(), sort_keys=True).encode())
        for table in sorted(self.vocabularies):
            values = self.vocabularies[table].values
            digest.update(f"{table}:{values.dtype}:{len(values)}:".encode())
            text = values.cast(pl.String)
            digest.update(text.str.len_bytes().to_numpy().tobytes())
            digest.update(text.str.join("").item().encode())
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Writes featurizer.json and one Arrow file per vocabulary."""
        folder.mkdir(parents=True, exist_ok=True)
        plain = self._plain() | {"fingerprint": self.fingerprint()}
        (folder / "featurizer.json").write_text(json.dumps(plain, indent=1))
        for i, vocabulary in enumerate(self.vocabularies.values()):
            vocabulary.save(folder / f"vocabulary-{i}.arrow")

    @classmethod
    def load(cls, folder: Path) -> Featurizer:
        """Reads what `save` wrote.

        Raises:
            ArtifactError: a file is missing or was changed after it was written.
        """
        path = folder / "featurizer.json"
        try:
            plain = json.loads(path.read_text())
            json.dumps(plain, ensure_ascii=False).encode()  # half a character is no name
            spec = spec_from_dict(plain["spec"])
            numbers = {name: _statistics(row) for name, row in plain["numbers"].items()}
            unknown = {table: operator.index(n) for table, n in plain["unknown"].items()}
            if not unknown.keys() >= set(_tables(spec)):
                raise KeyError(*set(_tables(spec)) - unknown.keys())
        except _MALFORMED as cause:
            raise ArtifactError(
                "a featurizer cannot be read",
                where=str(path),
                found=f"{type(cause).__name__}: {cause}"[:200],
                expected="what Featurizer.save writes",
                fix="restore the folder, or prepare the data again",
            ) from cause
        vocabularies = {
            table: Vocabulary.load(folder / f"vocabulary-{i}.arrow", rows)
            for i, (table, rows) in enumerate(unknown.items())
        }
        loaded = cls(spec, vocabularies, numbers)
        if loaded.fingerprint() != plain.get("fingerprint"):
            raise ArtifactError(
                "a featurizer was changed after it was written",
                where=str(folder),
                found=f"fingerprint {loaded.fingerprint()}",
                expected=f"fingerprint {plain.get('fingerprint')}",
                fix="restore the folder, or prepare the data again",
            )
        return loaded

    def _plain(self) -> dict[str, Any]:
        return {
            "spec": spec_to_dict(self.spec),
            "numbers": {n: [s.mean, s.deviation, s.fill] for n, s in self.numbers.items()},
            "unknown": {t: v.unknown for t, v in self.vocabularies.items()},
        }


def _statistics(row: Any) -> NumberStats:
    mean, deviation, fill = map(float, row)
    if not (math.isfinite(mean + fill) and 0 < deviation < math.inf):
        raise ValueError(f"statistics {row}")
    return NumberStats(mean, deviation, fill)


def _tables(spec: Spec) -> dict[str, list[tuple[Column, str]]]:
    """Returns table -> the (spec column, raw column) pairs that fill it."""
    owners: dict[str, list[tuple[Column, str]]] = {}
    for c in spec.columns:
        if isinstance(c, Category | Tags):
            owners.setdefault(c.table or c.name, []).append((c, c.name))
        elif isinstance(c, History):
            for e in c.events:
                if e.table:
                    owners.setdefault(e.table, []).append((c, e.column))
    return owners


def _values(train: pl.LazyFrame, column: Column, source: str) -> pl.LazyFrame:
    """Returns the single values of a raw column, lists taken apart."""
    single = train.select(pl.col(source).alias("value"))
    if isinstance(column, Tags):
        single = single.select(encode.tag_lists(pl.col("value"), single, column))
    if isinstance(column, Tags | History):
        # An empty list explodes to a null that nobody ever saw.
        single = single.filter(pl.col("value").list.len() > 0).explode("value")
    return single


def _schema(spec: Spec, vocabularies: dict[str, Vocabulary]) -> Schema:
    growing = {c.table or c.name for c in spec.columns if isinstance(c, Category) and c.grows}
    tables = tuple(Table(t, v.size, t in growing) for t, v in vocabularies.items())
    return Schema(
        tables=tables,
        fields=tuple(_fields(spec)),
        sequences=tuple(
            Sequence(h.name, tuple((e.name, e.table or None) for e in h.events), h.max_length)
            for h in spec.histories()
        ),
        labels=tuple(Label(t.name, t.given) for t in spec.targets()),
        item=spec.item or None,
        group=spec.group or None,
    )


def _fields(spec: Spec) -> Iterator[Field]:
    for c in spec.columns:
        match c:
            case Category():
                yield Categorical(c.name, c.table or c.name, c.side)
            case Number():
                yield Numeric(c.name, c.side)
            case Tags():
                yield Bag(c.name, c.table or c.name, c.side, c.max_length)
            case Vector():
                yield Dense(c.name, c.shape, c.side)
            case History() | Target():
                pass


def _missing(name: str, present: set[str], where: str) -> SchemaError:
    return SchemaError(
        "a column that the spec needs is missing",
        where=f"column '{name}' of the {where}",
        found="columns " + ", ".join(sorted(present)),
        expected=f"'{name}'",
        fix=nearest(name, present) + "; or mark the column as optional in the spec",
    )
