"""Lookup: a frozen table of anything that can be derived from an id, with its provenance."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fullrank.errors import SchemaError


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
