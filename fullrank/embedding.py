"""Embeddings: Batch -> [B, F, D] and [B, T, D]. The only holder of tables.

All tables of one `Embeddings` have one width and lie behind one another in one parameter, so that
every categorical field of a batch is one look-up, whatever the number of fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.batch import Batch, Jagged
from fullrank.errors import BatchError, SchemaError
from fullrank.schema import Bag, Categorical, Dense, Numeric, Schema


class Embeddings(nn.Module):
    """Turns row numbers, numbers, bags and vectors into D-wide vectors.

    A categorical value reads its row. A bag is the mean of its rows, zero when empty. A number x
    becomes x * w + b with a vector w and b per field. A dense field is projected linearly.

    Args:
        schema: what the batches hold.
        dim: D.
        fields: names to embed, in schema order whatever the order given; None means all.
        sequences: names of the sequences whose columns will be asked for.
        std: standard deviation of the initial rows. Row 0, unknown, starts at zero.

    Raises:
        SchemaError: nothing to embed was asked for.
    """

    _starts: Tensor  # [C] int32, where the table of each categorical field begins in `rows`
    _limits: Tensor  # [C] int32, its size

    def __init__(
        self,
        schema: Schema,
        dim: int,
        *,
        fields: Iterable[str] | None = None,
        sequences: Iterable[str] = (),
        std: float = 0.01,
    ) -> None:
        super().__init__()
        names = [f.name for f in schema.fields] if fields is None else list(fields)
        wanted = schema.select([f.name for f in schema.fields if f.name in set(names)], sequences)
        for name in names:
            schema.field(name)  # refuses an unknown name
        if not wanted.fields and not wanted.sequences:
            raise SchemaError(
                "there is nothing to embed",
                where="Embeddings",
                found="no field and no sequence",
                expected="at least one",
                fix="name a field, or pass fields=None for all of them",
            )
        self.schema, self.dim = wanted, dim
        self.sparse = False  # set by the optimiser when it updates only the rows of a batch
        self._place_tables(std)
        self._place_fields(schema)

    def _place_tables(self, std: float) -> None:
        sizes = [t.size for t in self.schema.tables]
        self._start = dict(
            zip((t.name for t in self.schema.tables), accumulate([0, *sizes]), strict=False)
        )
        rows = torch.randn(sum(sizes), self.dim) * std
        rows[list(self._start.values())] = 0.0
        if sizes:
            self.rows = nn.Parameter(rows)  # [sum of V, D]

    def _place_fields(self, schema: Schema) -> None:
        wanted, dim = self.schema.fields, self.dim
        categorical = [f for f in wanted if isinstance(f, Categorical)]
        numeric = [f for f in wanted if isinstance(f, Numeric)]
        dense = [f for f in wanted if isinstance(f, Dense)]
        blocks = [f.name for f in schema.categorical()], [f.name for f in schema.numeric()]
        self._columns = [blocks[0].index(f.name) for f in categorical]
        self._all_columns = self._columns == list(range(len(blocks[0])))
        self._numbers = [blocks[1].index(f.name) for f in numeric]
        tables = [self.schema.table(f.table) for f in categorical]
        starts = torch.tensor([self._start[t.name] for t in tables], dtype=torch.int32)
        self.register_buffer("_starts", starts, persistent=False)
        limits = torch.tensor([t.size for t in tables], dtype=torch.int32)
        self.register_buffer("_limits", limits, persistent=False)
        self._growing = [t.grows for t in tables]
        if numeric:
            self.number_weight = nn.Parameter(torch.randn(len(numeric), dim) * dim**-0.5)
            self.number_bias = nn.Parameter(torch.zeros(len(numeric), dim))
        self.projections = nn.ModuleDict(
            {f.name: nn.Linear(math.prod(f.shape), dim) for f in dense}
        )
        # Parts are computed kind by kind; this puts them back into schema order.
        kinds = [*categorical, *numeric, *(f for f in wanted if isinstance(f, Bag)), *dense]
        order = [kinds.index(f) for f in wanted]
        self._order = None if order == sorted(order) else order

    def fields(self, batch: Batch) -> Tensor:
        """Returns [B, F, D], F in schema order.

        Raises:
            BatchError: a row number lies outside a table that does not grow.
        """
        parts = []
        if self._columns:
            parts.append(self._look_up(self._shifted(batch)))  # [B, C, D]
        if self._numbers:
            x = batch.numeric.block
            if len(self._numbers) != x.shape[1]:
                x = x[:, self._numbers]
            parts.append(x.unsqueeze(-1) * self.number_weight + self.number_bias)  # [B, N, D]
        for f in self.schema.fields:
            if isinstance(f, Bag):
                parts.append(self._pooled(batch.bags[f.name], f).unsqueeze(1))  # [B, 1, D]
        for name, projection in self.projections.items():
            parts.append(projection(batch.dense[name].flatten(1)).unsqueeze(1))  # [B, 1, D]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)  # [B, F, D]
        return out if self._order is None else out[:, self._order]

    def sequence(
        self,
        batch: Batch,
        name: str,
        column: str,
        length: int | None = None,
        side: Literal["left", "right"] = "right",
    ) -> tuple[Tensor, Tensor]:
        """Embeds one column of a sequence as a rectangle, newest events kept.

        Args:
            batch: B rows.
            name: of the sequence.
            column: one that points to a table.
            length: T; the sequence's `max_length` when None.
            side: where the padding goes. "right" puts event 0 at place 0.

        Returns:
            [B, T, D] with zeros at padding, and [B, T] bool, True where an event is real.
        """
        declared = self.schema.sequence(name)
        table = declared.table(column)
        assert table is not None, f"{name}.{column} holds raw numbers, not row numbers"
        past = batch.sequences[name]
        ids, valid = past.padded(column, length or declared.max_length, side)
        ids = self._inside(ids, table, f"{name}.{column}") + self._start[table]
        return self._look_up(ids) * valid.unsqueeze(-1), valid  # [B, T, D], [B, T]

    def events(self, past: Jagged, name: str, column: str) -> Tensor:
        """Embeds one column of a sequence, event by event, without padding.

        Args:
            past: the events of a batch of the sequence, or some of them; S in total.
            name: of the sequence.
            column: one that points to a table.

        Returns:
            [S, D].
        """
        table = self.schema.sequence(name).table(column)
        assert table is not None, f"{name}.{column} holds raw numbers, not row numbers"
        ids = self._inside(past.values[column], table, f"{name}.{column}") + self._start[table]
        return self._look_up(ids)

    def weight(self, table: str) -> Tensor:
        """Returns the rows [V, D] of one table: a view, for tied outputs and for probes."""
        start = self._start[table]
        return self.rows[start : start + self.schema.table(table).size]

    def table_of(self, field: str) -> str | None:
        """Returns the table that a field reads, or None for numbers and dense fields."""
        f = self.schema.field(field)
        return f.table if isinstance(f, Categorical | Bag) else None

    def _look_up(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.rows, sparse=self.sparse)

    def _shifted(self, batch: Batch) -> Tensor:
        """Row numbers of one field become row numbers of the fused table."""
        ids = batch.categorical.block
        if not self._all_columns:
            ids = ids[:, self._columns]
        outside = ids >= self._limits  # [B, C]
        if any(self._growing):
            grows = torch.tensor(self._growing, device=ids.device)
            ids = torch.where(outside & grows, 0, ids)
            outside = outside & ~grows
        if not torch.compiler.is_compiling() and bool((outside | (ids < 0)).any()):
            self._refuse(batch, outside | (ids < 0))
        return ids + self._starts

    def _inside(self, ids: Tensor, table: str, where: str) -> Tensor:
        declared = self.schema.table(table)
        if declared.grows:
            return torch.where(ids >= declared.size, 0, ids)
        if not torch.compiler.is_compiling() and bool(((ids >= declared.size) | (ids < 0)).any()):
            raise _outside(where, table, int(ids.max()), declared.size)
        return ids

    def _pooled(self, bag: Jagged, field: Bag) -> Tensor:
        ids = self._inside(bag.values["value"], field.table, field.name) + self._start[field.table]
        if ids.numel() == 0:
            first = torch.zeros(1, dtype=torch.int64, device=ids.device)
            # A look-up of no weight keeps the table in the graph, with a sparse gradient if asked.
            return self.rows.new_zeros(len(bag), self.dim) + 0.0 * self._look_up(first)
        return F.embedding_bag(
            ids.to(torch.int64), self.rows, bag.offsets[:-1], mode="mean", sparse=self.sparse
        )

    def _refuse(self, batch: Batch, outside: Tensor) -> None:
        row, column = (int(i) for i in outside.nonzero()[0])
        name = [f.name for f in self.schema.categorical()][column]
        table = self.table_of(name)
        assert table is not None
        raise _outside(
            name, table, int(batch.categorical[name][row]), self.schema.table(table).size
        )

    def extra_repr(self) -> str:
        """Returns the sizes for `print(model)`."""
        return f"tables={len(self.schema.tables)}, fields={len(self.schema.fields)}, dim={self.dim}"


class FieldViews(nn.Module):
    """Lets further consumers read fields, beside the main one that reads all of them.

    RankUp, arXiv:2604.17878, section on multi-embedding: token types that do not share one
    embedding space.

    Args:
        schema: what the batches hold.
        dim: D, width of every view.
        readers: consumer -> names of the fields that it reads.
        multi: "on": tables of its own for every consumer; "off": those of the main one;
            "single_wide": slices of the main tables, which are wider.
        std: of the initial rows of further tables.

    Attributes:
        width: of the main tables, D or more.
        seen: consumer -> numbers of its fields, in schema order.

    Raises:
        SchemaError: a field does not exist.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int,
        readers: Mapping[str, Iterable[str]],
        *,
        multi: Literal["on", "off", "single_wide"],
        std: float = 0.01,
    ) -> None:
        super().__init__()
        places = {f.name: i for i, f in enumerate(schema.fields)}
        self.seen = {
            reader: sorted({places[schema.field(name).name] for name in names})
            for reader, names in readers.items()
        }
        self.dim, self.multi = dim, multi
        self.width = dim * (1 + len(self.seen)) if multi == "single_wide" else dim
        self.sets = nn.ModuleDict()
        if multi == "on":
            for reader, names in readers.items():
                self.sets[reader] = Embeddings(schema, dim, fields=names, std=std)

    def forward(self, main: Embeddings, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns [B, F, D] of the main consumer, and [B, F_seen, D] of every further one."""
        block = main.fields(batch)  # [B, F, width]
        own, *slices = torch.split(block, self.dim, dim=2)
        views = {}
        for i, (reader, seen) in enumerate(self.seen.items()):
            if reader in self.sets:
                views[reader] = self.table_set(reader, main).fields(batch)
            else:
                view = slices[i] if slices else own
                views[reader] = view if len(seen) == view.shape[1] else view[:, seen]
        return own, views

    def table_set(self, reader: str, main: Embeddings) -> Embeddings:
        """Returns the tables that a consumer reads."""
        if reader not in self.sets:
            return main
        own = self.sets[reader]
        assert isinstance(own, Embeddings)
        return own


def _outside(where: str, table: str, row: int, size: int) -> BatchError:
    return BatchError(
        "a row number lies outside its table",
        where=f"field '{where}' in table '{table}'",
        found=f"row {row:,}",
        expected=f"0 to {size - 1:,}",
        fix="the rows were encoded by another featurizer: use the one saved with the model",
    )
