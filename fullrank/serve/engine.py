"""Engine: one artefact, loaded, checked and warm; requests in, probabilities out.

A served score equals `Predictor.score` of the same row to the bit, whatever the request looks like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from fullrank.batch import Batch, Columns, Jagged
from fullrank.data.encode import Encoded
from fullrank.data.featurizer import Featurizer
from fullrank.data.spec import Column, History, Target
from fullrank.errors import DataFormatError, EmptyInputError
from fullrank.serve.artifact import Artifact, read_manifest, versions
from fullrank.serve.block_sizes import Score, score_in_sizes, try_blocks
from fullrank.serve.example import example_rank, example_rows, example_user
from fullrank.serve.forms import Form, make_form
from fullrank.serve.predictor import Predictor, calibrated
from fullrank.serve.values import ValueEncoder, side_by_side
from fullrank.serve.wire import Given, Wire

Rows: TypeAlias = Sequence[Mapping[str, Any]] | pa.Table | pl.DataFrame
MAX_ROWS = 5000  # of a request


@dataclass(frozen=True)
class _Part:
    """Some columns of the spec, encoded for all rows or, for the user, once."""

    columns: tuple[Column, ...]
    encoded: Encoded


class Engine:
    """Scores requests with one artefact.

    Args:
        predictor: of the artefact.
        fingerprint: of the artefact's manifest.
        score: logits of a batch; the model itself, or an exported form of it.
        max_rows: of one request.
    """

    def __init__(
        self, predictor: Predictor, fingerprint: str, score: Score, max_rows: int = MAX_ROWS
    ) -> None:
        self.predictor, self.fingerprint = predictor, fingerprint
        self.artifact = predictor.artifact
        self.featurizer = self.artifact.featurizer
        self.labels = tuple(label.name for label in self.artifact.schema.labels)
        self.wire = Wire(self.featurizer.spec, max_rows)
        self._score, self._values = score, ValueEncoder(self.featurizer)

        self.blocks = try_blocks(score, self.artifact.schema)
        self.score(self.encode_rows(self.schema_example()["score"]["rows"]))  # seen to work

    @classmethod
    def load(
        cls, folder: Path, threads: int = 1, form: Form = "eager", max_rows: int = MAX_ROWS
    ) -> Engine:
        """Loads, checks and warms an artefact folder.

        Args:
            folder: of the artefact.
            threads: of torch in this process.
            form: what runs the model; see `serve.forms`.
            max_rows: of one request.

        Raises:
            ArtifactError: the folder is no artefact, was changed, or scores otherwise in this form.
            ExtraMissingError: the form needs a library that is not installed.
        """
        torch.set_num_threads(threads)
        fingerprint: str = read_manifest(folder)["fingerprint"]
        predictor = Predictor(Artifact.load(folder))
        score = make_form(predictor.model, predictor.artifact.schema, form)
        return cls(predictor, fingerprint, score, max_rows)

    def encode_rows(self, rows: Rows | Given) -> Batch:
        """Encodes rows of a request.

        Raises:
            RequestError, SchemaError, DataFormatError: what is wrong with them, and where.
        """
        if isinstance(rows, pa.Table | pl.DataFrame):
            frame = _frame(rows)
            self._require_known(frame.columns, set())
            plain = self._values.plain(frame, self.featurizer.spec.columns)
            if plain is None:
                return self._sound(self.predictor.encode(frame))
            rows = Given(plain, len(frame))
        given = rows if isinstance(rows, Given) else self.wire.rows(rows)
        spec = self.featurizer.spec
        encoded = self._values.encode(given.columns, given.rows, spec.columns)
        return self._sound(encoded.batch(self.artifact.schema))

    def encode_rank(
        self, user: Mapping[str, Any] | Given | pl.DataFrame, candidates: Rows | Given
    ) -> Batch:
        """Encodes candidates of one user, whose columns are encoded once.

        Args:
            user: one row: properties of the user, histories, and context columns.
            candidates: properties of the items, and those context columns that the user lacks.

        Raises:
            RequestError, SchemaError, DataFormatError: what is wrong with them, and where.
        """
        if isinstance(user, pl.DataFrame):
            assert isinstance(candidates, pa.Table | pl.DataFrame)
            parts = self._frame_parts(user, _frame(candidates))
        else:
            parts = self._given_parts(user, candidates)
        columns = self.featurizer.spec.columns
        whole = side_by_side(
            [(p.columns, p.encoded) for p in parts], columns, parts[1].encoded.rows
        )
        return self._sound(whole.batch(self.artifact.schema))

    def score(self, batch: Batch) -> dict[str, np.ndarray]:
        """Returns label -> calibrated probabilities [B] float32; NaN where a model has none."""
        return self.probabilities(self.logits(batch))

    def logits(self, batch: Batch) -> dict[str, np.ndarray]:
        """Returns label -> logits [B] float32, before any calibration."""
        with torch.inference_mode():
            return score_in_sizes(self._score, batch.without_labels(), self.blocks)

    def probabilities(self, logits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns label -> calibrated probabilities [B] float32 of logits."""
        return calibrated(logits, self.artifact.calibration)

    @cached_property
    def blank(self) -> Batch:
        """One row in which every column is empty."""
        encoded = self._values.encode({}, 1, self.featurizer.spec.columns)
        return encoded.batch(self.artifact.schema)

    def seconds(self, rows: int) -> float:
        """Returns how long so many rows took, in seconds, when the engine was loaded."""
        return self.blocks.time(rows)

    @cached_property
    def _example(self) -> dict[str, Any]:
        rows = example_rows(self.featurizer, 8)
        sides = self.wire.sides
        return {
            "score": {"rows": rows},
            "rank": example_rank(rows, sides),
            "retrieve": example_user(rows[0], sides),
            "explain": {"row": rows[0]},
        }

    def schema_example(self) -> dict[str, Any]:
        """Returns endpoint -> a request that it answers, made of values seen in training."""
        return self._example

    def describe(self) -> dict[str, Any]:
        """Returns what GET /v1/model says: what goes in, what comes out, and where it is from."""
        artifact, sides = self.artifact, self.wire.sides
        side_of = {c.name: s for s in ("user", "item", "context") for c in getattr(sides, s)}
        return {
            "fingerprint": self.fingerprint,
            "model": artifact.model,
            "labels": [{"name": x.name, "given": x.given} for x in artifact.schema.labels],
            "columns": [
                _described(self.featurizer, c, side_of[c.name])
                for c in self.featurizer.spec.columns
                if not isinstance(c, Target)
            ],
            "calibrated": sorted(artifact.calibration),
            "metrics": dict(artifact.metrics),
            "provenance": dict(artifact.provenance),
            "versions": {name: str(version) for name, version in versions().items()},
            "schema_fingerprint": artifact.schema.fingerprint(),
            "rows_are_independent": self.blocks.independent,
            "max_rows": self.wire.max_rows,
            "example": self.schema_example(),
        }

    def _given_parts(self, user: Any, candidates: Any) -> list[_Part]:
        if not isinstance(user, Given):
            user, candidates = self.wire.rank(user, candidates)
        assert isinstance(user, Given)
        assert isinstance(candidates, Given)
        mine, theirs = self._split(set(user.columns))
        return [
            _Part(mine, self._values.encode(user.columns, 1, mine)),
            _Part(theirs, self._values.encode(candidates.columns, candidates.rows, theirs)),
        ]

    def _frame_parts(self, user: pl.DataFrame, candidates: pl.DataFrame) -> list[_Part]:
        if len(user) != 1:
            raise DataFormatError(
                "a ranking is for one user",
                where="the first stream",
                found=f"{len(user):,} rows",
                expected="1 row",
                fix="send one request per user",
            )
        self.wire.require_once(set(user.columns), set(candidates.columns))
        mine, theirs = self._split(set(user.columns))
        sides = self.wire.sides
        for frame, other in ((user, sides.item), (candidates, sides.user)):
            self._require_known(frame.columns, {c.name for c in other})
        return [
            _Part(mine, self._encoded(mine, user)),
            _Part(theirs, self._encoded(theirs, candidates)),
        ]

    def _split(self, given: set[str]) -> tuple[tuple[Column, ...], tuple[Column, ...]]:
        """Returns the columns that are encoded with the user, and those with the candidates."""
        sides = self.wire.sides
        with_user = {c.name for c in sides.context if c.name in given}
        mine = (*sides.user, *(c for c in sides.context if c.name in with_user))
        names = {c.name for c in mine}
        columns = [c for c in self.featurizer.spec.columns if not isinstance(c, Target)]
        return (
            tuple(c for c in columns if c.name in names),
            tuple(c for c in columns if c.name not in names),
        )

    def _encoded(self, columns: tuple[Column, ...], frame: pl.DataFrame) -> Encoded:
        whole = self.featurizer
        spec = replace(whole.spec, columns=(*columns, *whole.spec.targets()), item="")
        part = Featurizer(spec, whole.vocabularies, whole.numbers)
        frame = frame.drop([t.name for t in spec.targets()], strict=False)
        plain = self._values.plain(frame, columns)
        if plain is not None:
            return self._values.encode(plain, len(frame), columns)
        try:
            return part.encode(frame)
        except pl.exceptions.PolarsError as cause:
            raise DataFormatError(
                "raw rows cannot be encoded",
                where=", ".join(f"{n}: {t}" for n, t in frame.schema.items())[:300],
                found=str(cause).splitlines()[0][:300],
                expected="columns of the types that the spec says",
                fix="convert the column before it is scored",
            ) from cause

    def _require_known(self, names: Sequence[str], elsewhere: set[str]) -> None:
        for name in names:
            if name not in self.wire.known or name in elsewhere:
                raise self.wire.unknown(name, "the columns")

    def _sound(self, batch: Batch) -> Batch:
        """Refuses a batch without rows, and a number that became infinite in 32 bits."""
        if len(batch) == 0:
            raise EmptyInputError(
                "a request has no rows",
                where="the body",
                found="0 rows",
                expected="1 or more",
                fix="send none when there is nothing to score",
            )
        block = batch.numeric.block
        if bool(torch.isfinite(block).all()):
            return batch
        row, column = (int(i) for i in (~torch.isfinite(block)).nonzero()[0])
        raise DataFormatError(
            "a number is too large",
            where=f"column '{batch.numeric.names[column]}', row {row}",
            found="more than 32 bits hold after its transform",
            expected="a number of the size that training saw",
            fix="correct the value, or leave it empty",
        )


def concatenated(batches: Sequence[Batch]) -> Batch:
    """Returns the rows of several batches of one schema, one after the other."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    return Batch(
        categorical=_columns([b.categorical for b in batches]),
        numeric=_columns([b.numeric for b in batches]),
        labels=_columns([b.labels for b in batches]),
        observed=_columns([b.observed for b in batches]),
        weight=torch.cat([b.weight for b in batches]),
        group=torch.cat([b.group for b in batches]),
        time=torch.cat([b.time for b in batches]),
        bags={n: _jagged([b.bags[n] for b in batches]) for n in first.bags},
        dense={n: torch.cat([b.dense[n] for b in batches]) for n in first.dense},
        sequences={n: _jagged([b.sequences[n] for b in batches]) for n in first.sequences},
    )


def _columns(parts: Sequence[Columns]) -> Columns:
    return Columns(parts[0].names, torch.cat([p.block for p in parts]))


def _jagged(parts: Sequence[Jagged]) -> Jagged:
    lengths = torch.cat([p.lengths() for p in parts])
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    torch.cumsum(lengths, 0, out=offsets[1:])
    values = {n: torch.cat([p.values[n] for p in parts]) for n in parts[0].values}
    return Jagged(values, offsets)


def _frame(rows: pa.Table | pl.DataFrame) -> pl.DataFrame:
    frame = pl.from_arrow(rows) if isinstance(rows, pa.Table) else rows
    assert isinstance(frame, pl.DataFrame)
    return frame


def _described(featurizer: Featurizer, column: Column, side: str) -> dict[str, Any]:
    assert not isinstance(column, Target)
    kind = type(column).__name__.lower()
    said: dict[str, Any] = {
        "name": column.name, "kind": kind, "side": side, "optional": column.optional,
    }  # fmt: skip
    if isinstance(column, History):
        said |= {"fields": [e.column for e in column.events], "max_length": column.max_length}
    table = getattr(column, "table", None)
    if table is not None:
        said["known_values"] = featurizer.vocabularies[table or column.name].size - 1
    return said
