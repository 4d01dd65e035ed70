"""Which columns of a history describe the same thing as the judged item.

A model that lets a target look at the past compares the two, so both must read one table: the
column `item` of a history and the field `item` do, `category` and `category` do. A column that no
field shares a table with, such as whether the user liked the item, is *feedback* on the event.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fullrank.batch import Batch, Jagged
from fullrank.config import require
from fullrank.embedding import Embeddings
from fullrank.errors import SchemaError
from fullrank.schema import Categorical, Schema


class Events(NamedTuple):
    """The events of a batch, one after the other, without any padding.

    Args:
        x: [S, P * D] what each event is, S the number of events in the batch.
        feedback: [S, E * D] what the user did, of width 0 where the log does not say.
        row: [S] int64, the row that each belongs to.
        within: [S] bool, True inside the window; only an exported program sees events beyond it.
        offsets: [B + 1] int64, where each row's events begin.
    """

    x: Tensor
    feedback: Tensor
    row: Tensor
    within: Tensor
    offsets: Tensor


class TargetHistory:
    """Pairs the fields of the judged item with the columns of a history.

    Args:
        schema: what the batches hold.
        name: of the sequence; "" is the only one there is.
        length: newest events to read; None is the sequence's `max_length`.

    Attributes:
        name: of the sequence.
        length: T, newest events that are read.
        columns: P columns that share a table with a field, in the schema's order of those fields.
        fields: those fields, the *target*.
        context: names of all other fields.
        feedback: E columns with a table that no field reads.

    Raises:
        SchemaError: there is no such sequence, or none of its columns shares a table with a field.
        ConfigError: `length` is not between 1 and the `max_length` of the sequence.
    """

    def __init__(self, schema: Schema, name: str = "", length: int | None = None) -> None:
        self.name = name or _only(schema)
        declared = schema.sequence(self.name)
        self.length = declared.max_length if length is None else length
        require(
            1 <= self.length <= declared.max_length,
            where=f"history '{self.name}'",
            found=f"a window of {self.length} events",
            expected=f"1 to {declared.max_length}, what the data keeps",
            fix=f"use {max(1, min(self.length, declared.max_length))}, or prepare longer histories",
        )
        tables = {table: column for column, table in reversed(declared.columns) if table}
        paired = [f for f in schema.fields if isinstance(f, Categorical) and f.table in tables]
        if not paired:
            raise SchemaError(
                "a history cannot be compared with a target",
                where=f"history '{self.name}'",
                found="tables " + (", ".join(sorted(tables)) or "none"),
                expected="a categorical field that reads one of them",
                fix="give the judged item and the column of its past events one table",
            )
        self.fields = tuple(f.name for f in paired)
        self.columns = tuple(tables[f.table] for f in paired)
        self.context = tuple(f.name for f in schema.fields if f.name not in self.fields)
        shared = {f.table for f in paired}
        self.feedback = tuple(c for c, table in declared.columns if table and table not in shared)
        places = {f.name: i for i, f in enumerate(schema.fields)}
        self._target = [places[n] for n in self.fields]
        self._context = [places[n] for n in self.context]

    def reads(self, schema: Schema, *, feedback: bool) -> Schema:
        """Returns the schema with no more of the history than the model reads.

        Args:
            schema: what the batches hold.
            feedback: keep the columns that say what the user did.
        """
        kept = {*self.columns, *(self.feedback if feedback else ())}
        trimmed = tuple(
            replace(s, columns=tuple(c for c in s.columns if c[0] in kept))
            if s.name == self.name
            else s
            for s in schema.sequences
        )
        return replace(schema, sequences=trimmed)

    def target(self, block: Tensor) -> Tensor:
        """Returns the target [B, P * D] of the embedded fields [B, F, D]."""
        return block[:, self._target].flatten(1)

    def others(self, block: Tensor) -> Tensor:
        """Returns the other fields [B, (F - P) * D] of the embedded fields [B, F, D]."""
        return block[:, self._context].flatten(1)

    def events(self, embeddings: Embeddings, batch: Batch) -> Events:
        """Embeds the events of a batch without padding.

        Args:
            embeddings: built with this sequence.
            batch: B rows.
        """
        past = self._recent(batch.sequences[self.name])
        size = next(iter(past.values.values())).shape[0]  # S
        rows = past.offsets.shape[0] - 1
        lengths = past.lengths()
        # An exported program is fed events that no row owns; they go to the last, never within.
        each_row = torch.arange(rows, device=lengths.device)
        owned = lengths + (each_row == rows - 1) * (size - past.offsets[-1])  # [B]
        row = torch.repeat_interleave(each_row, owned, output_size=size)
        from_newest = past.offsets[1:][row] - 1 - torch.arange(size, device=lengths.device)
        each = [embeddings.events(past, self.name, c) for c in self.columns]
        told = [embeddings.events(past, self.name, c) for c in self.feedback]
        none = each[0].new_zeros(size, 0)
        return Events(
            x=torch.cat(each, 1) if len(each) > 1 else each[0],
            feedback=torch.cat([none, *told], 1),
            row=row,
            within=(from_newest >= 0) & (from_newest < self.length),
            offsets=past.offsets,
        )

    def padded(
        self,
        embeddings: Embeddings,
        batch: Batch,
        side: Literal["left", "right"] = "left",
        columns: tuple[str, ...] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embeds the events of a batch as a rectangle.

        Args:
            embeddings: built with this sequence.
            batch: B rows.
            side: where the padding goes; "left" puts the newest event last.
            columns: to embed; those that describe the target when None.

        Returns:
            [B, T, P * D] with zeros at padding, and [B, T] bool, True where an event is real.
        """
        each = [
            embeddings.sequence(batch, self.name, c, self.length, side)
            for c in (self.columns if columns is None else columns)
        ]
        return torch.cat([x for x, _ in each], dim=2), each[0][1]

    def match(self, embeddings: Embeddings, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns how alike each event and the target are: c_j = h_j . t / sqrt(P * D).

        FEDIN, arXiv:2605.01726: what the spectral analysis of interest looks at.

        Returns:
            [B, T] with zeros at padding, the newest event last, and [B, T] bool, True where real.
        """
        h, valid = self.padded(embeddings, batch)  # [B, T, P * D]
        t = self.target(embeddings.fields(batch))  # [B, P * D]
        return torch.einsum("btd,bd->bt", h, t) * h.shape[2] ** -0.5, valid

    def _recent(self, past: Jagged) -> Jagged:
        # An export cannot follow a size that depends on data: there `Events.within` cuts instead.
        return past if torch.compiler.is_compiling() else past.newest(self.length)


def _only(schema: Schema) -> str:
    names = [s.name for s in schema.sequences]
    if len(names) == 1:
        return names[0]
    raise SchemaError(
        "the history to read is not clear",
        where="schema",
        found=", ".join(names) or "no sequence",
        expected="one sequence, or the name of one in the config",
        fix="name it: history='...'" if names else "add a History to the spec of the data",
    )
