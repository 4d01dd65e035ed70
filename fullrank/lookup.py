"""Lookup: a frozen table of anything that can be derived from an id, with its provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import require
from fullrank.errors import SchemaError, nearest
from fullrank.schema import Schema


@dataclass(frozen=True)
class Provenance:
    """Where the values of a lookup came from: what made them, hash of its weights, date."""

    made_by: str
    weights: str = ""
    date: str = ""


class Lookup(nn.Module):
    """Values per row of a table; a buffer, never trained.

    Args:
        key: the table whose row numbers index `values`.
        values: [V, ...], a row for every row of the table; row 0 stands for unknown.
        source: where the values came from.
    """

    values: Tensor

    def __init__(self, key: str, values: Tensor, source: Provenance) -> None:
        super().__init__()
        self.key, self.source = key, source
        self.register_buffer("values", values)

    def forward(self, rows: Tensor) -> Tensor:
        """Returns [..., *values.shape[1:]] for row numbers of any shape."""
        return self.values[rows.long()]

    def require_rows(self, size: int) -> None:
        """Raises a SchemaError unless there is a value for every row of the table."""
        if self.values.shape[0] < size:
            raise SchemaError(
                "a lookup is shorter than its table",
                where=f"lookup for table '{self.key}'",
                found=f"{self.values.shape[0]:,} rows",
                expected=f"at least {size:,}",
                fix="append a row for every new value of the table",
            )


class FieldVectors(nn.Module):
    """Reads a frozen vector for the value of one categorical field, the first of its table.

    Args:
        schema: what the batches hold.
        assets: lookups by name.
        name: of the lookup, whose values are [V, P].

    Raises:
        ConfigError: there is no such lookup, no field reads its table, or no row has a vector.
        SchemaError: the lookup is shorter than its table.
    """

    def __init__(self, schema: Schema, assets: Mapping[str, Lookup], name: str) -> None:
        super().__init__()
        require(
            name in assets,
            where="assets",
            found=", ".join(sorted(assets)) or "none",
            expected=f"a lookup '{name}'",
            fix=f"pass assets={{'{name}': Lookup(...)}}, or build the model without vectors",
        )
        self.lookup = assets[name]
        fields = {f.table: f.name for f in reversed(schema.categorical())}
        require(
            self.lookup.key in fields,
            where=f"lookup '{name}'",
            found=f"table '{self.lookup.key}', which no categorical field reads",
            expected="the table of a categorical field",
            fix=nearest(self.lookup.key, fields),
        )
        self.field = fields[self.lookup.key]
        self.lookup.require_rows(schema.table(self.lookup.key).size)
        values = self.lookup.values
        require(
            values.ndim == 2 and bool(values[1:].any()) and bool(values.isfinite().all()),
            where=f"lookup '{name}'",
            found=f"values of shape {tuple(values.shape)}, {int((values != 0).any(-1).sum())} "
            "places not zero",
            expected="one finite vector per row, and one that is not zero for at least one value",
            fix="export the vectors again, or build the model without them",
        )
        self.dim = values.shape[1]

    def forward(self, batch: Batch) -> Tensor:
        """Returns [B, P]; a value past the last row of the lookup reads row 0, unknown."""
        rows = batch.categorical[self.field]
        out: Tensor = self.lookup(torch.where(rows < self.lookup.values.shape[0], rows, 0))
        return out
