"""Batch: what a model sees. Columns of one type lie in one contiguous block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor


class Columns(Mapping[str, Tensor]):
    """A read-only mapping from names to the columns of one contiguous block.

    The block is what fused look-ups read; the names are what people read.

    Args:
        names: C names.
        block: [B, C].

    Example:
        >>> Columns(("a", "b"), torch.tensor([[1, 2], [3, 4]]))["b"].tolist()
        [2, 4]
    """

    __slots__ = ("_at", "block", "names")

    def __init__(self, names: tuple[str, ...], block: Tensor) -> None:
        assert block.shape[1:] == (len(names),), (names, block.shape)
        self.names, self.block = names, block
        self._at = {name: i for i, name in enumerate(names)}

    def __getitem__(self, name: str) -> Tensor:
        return self.block[:, self._at[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def index(self, names: tuple[str, ...]) -> list[int]:
        """Returns the positions of these names in the block."""
        return [self._at[name] for name in names]

    def rows(self, index: Tensor | slice) -> Columns:
        """Returns the same columns for some rows."""
        return Columns(self.names, self.block[index])

    def to(self, device: torch.device | str) -> Columns:
        """Returns the columns on a device."""
        return Columns(self.names, self.block.to(device))

    @classmethod
    def none(cls, rows: int, dtype: torch.dtype) -> Columns:
        """Returns no columns for a number of rows."""
        return cls((), torch.empty(rows, 0, dtype=dtype))


class Jagged:
    """Several values per row, as flat values and offsets.

        row 0: a b c      values  [a b c d e]
        row 1:            offsets [0 3 3 5]
        row 2: d e

    Args:
        values: column -> [sum of lengths, ...]; columns are aligned.
        offsets: [B + 1] int64, first 0, never falling.
    """

    __slots__ = ("offsets", "values")

    def __init__(self, values: dict[str, Tensor], offsets: Tensor) -> None:
        self.values, self.offsets = values, offsets

    def __len__(self) -> int:
        return self.offsets.shape[0] - 1

    def lengths(self) -> Tensor:
        """Returns [B] int64."""
        return self.offsets[1:] - self.offsets[:-1]

    def padded(
        self, column: str, length: int, side: Literal["left", "right"] = "right"
    ) -> tuple[Tensor, Tensor]:
        """Lays a column out as a rectangle, keeping the newest `length` events of each row.

        Args:
            column: of `values`.
            length: T, at least 1.
            side: where the padding goes. "right" puts event 0 at place 0.

        Returns:
            [B, T, ...] values with zeros at padding, and [B, T] bool, True where a value is real.
        """
        flat = self.values[column]
        kept = self.lengths().clamp(max=length)[:, None]  # [B, 1]
        place = torch.arange(length, device=flat.device)[None, :]  # [1, T]
        if side == "right":
            valid = place < kept
            source = self.offsets[1:, None] - kept + place
        else:
            valid = place >= length - kept
            source = self.offsets[1:, None] - length + place
        if flat.shape[0] == 0:  # an all-empty batch has nothing to point at
            shape = (len(self), length, *flat.shape[1:])
            return flat.new_zeros(shape), valid
        out = flat[torch.where(valid, source, 0)]  # [B, T, ...]
        mask = valid.reshape(*valid.shape, *[1] * (out.ndim - 2))
        return torch.where(mask, out, torch.zeros((), dtype=out.dtype, device=out.device)), valid

    def newest(self, length: int) -> Jagged:
        """Returns the newest `length` events of each row; itself where none has more."""
        lengths = self.lengths()
        if not bool((lengths > length).any()):
            return self
        offsets = torch.zeros_like(self.offsets)
        torch.cumsum(lengths.clamp(max=length), 0, out=offsets[1:])
        return self._taken(self.offsets[1:] - offsets[1:], offsets)

    def rows(self, index: Tensor) -> Jagged:
        """Returns some rows. `index` holds int64 row numbers, in any order, repeats allowed."""
        lengths = self.lengths()[index]
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64, device=self.offsets.device)
        torch.cumsum(lengths, 0, out=offsets[1:])
        return self._taken(self.offsets[:-1][index] - offsets[:-1], offsets)

    def _taken(self, shift: Tensor, offsets: Tensor) -> Jagged:
        """Returns rows with these offsets, whose events lie `shift` [B] further on in `values`."""
        shift = torch.repeat_interleave(shift, offsets[1:] - offsets[:-1])
        source = torch.arange(int(offsets[-1]), device=self.offsets.device) + shift
        return Jagged({name: flat[source] for name, flat in self.values.items()}, offsets)

    def to(self, device: torch.device | str) -> Jagged:
        """Returns the same rows on a device."""
        moved = {name: flat.to(device) for name, flat in self.values.items()}
        return Jagged(moved, self.offsets.to(device))


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows of everything a model may read. Never written to.

    Args:
        categorical: [B, C] int32 row numbers, one column per categorical field in schema order.
        numeric: [B, N] float32, one column per numeric field in schema order.
        labels: [B, Y] float32 in {0, 1}.
        observed: [B, Y] bool: has the label's waiting window closed, and did its condition
            happen? Rows that are not observed carry no loss.
        weight: [B] float32, 1 / sampling rate.
        group: [B] int64, request or user, for grouped metrics.
        time: [B] int64, unix seconds; 0 where the log has no clock.
        bags: name -> Jagged with one column "value".
        dense: name -> [B, *shape] float32.
        sequences: name -> Jagged, events oldest first.
    """

    categorical: Columns
    numeric: Columns
    labels: Columns
    observed: Columns
    weight: Tensor
    group: Tensor
    time: Tensor
    bags: dict[str, Jagged] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)
    sequences: dict[str, Jagged] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.weight.shape[0]

    @property
    def fields(self) -> dict[str, Tensor | Jagged]:
        """Returns every field by name: a view, nothing is copied."""
        return {**self.categorical, **self.numeric, **self.bags, **self.dense}

    def rows(self, index: Tensor) -> Batch:
        """Returns some rows. `index` holds int64 row numbers."""
        return self._map(lambda x: x.rows(index) if not isinstance(x, Tensor) else x[index])

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch on a device."""
        return self._map(lambda x: x.to(device))

    def without_labels(self) -> Batch:
        """Returns the batch as a server sees it: labels all zero, nothing observed."""
        blank, unseen = torch.zeros_like(self.labels.block), torch.zeros_like(self.observed.block)
        return replace(
            self,
            labels=Columns(self.labels.names, blank),
            observed=Columns(self.observed.names, unseen),
        )

    def _map(self, change: Any) -> Batch:
        changed: dict[str, Any] = {}
        for f in fields(self):
            part = getattr(self, f.name)
            if isinstance(part, dict):
                changed[f.name] = {name: change(value) for name, value in part.items()}
            else:
                changed[f.name] = change(part)
        return Batch(**changed)
