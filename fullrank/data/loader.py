"""Loader: prepared rows to shuffled batches, with no per-row Python and an exact position.

The rows of a split are cut into chunks; a *buffer* is a random set of chunks in memory, and its
rows are drawn in a random order. A split that fits into one buffer is shuffled exactly, every
order being equally likely; a larger one is shuffled buffer by buffer. Each row comes once an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fullrank.batch import Batch, Jagged
from fullrank.config import require
from fullrank.data.encode import assemble
from fullrank.data.prepare import Split
from fullrank.errors import StateError

_CHUNK_ROWS = 4096
_BUFFER_BYTES = 256 << 20


class Loader:
    """Yields the batches of one epoch each time it is iterated.

    Args:
        split: prepared rows.
        batch_size: B; the last batch of an epoch may be smaller.
        shuffle: a new order in every epoch; False keeps the order on disk.
        seed: of the orders. Seed, epoch and batch determine everything; no state is hidden.
        buffer_bytes: memory for the rows being shuffled.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        buffer_bytes: int = _BUFFER_BYTES,
    ) -> None:
        require(
            batch_size >= 1,
            where="Loader.batch_size",
            found=batch_size,
            expected="at least 1",
            fix="raise it",
        )
        self.split, self.batch_size, self.shuffle, self.seed = split, batch_size, shuffle, seed
        self.epoch = 0
        self._batch = 0  # the next one to be yielded
        rows = max(_CHUNK_ROWS, buffer_bytes // split.row_bytes())
        self._chunk = min(_CHUNK_ROWS, max(split.rows, 1))
        self._chunks_per_buffer = max(1, rows // self._chunk)
        self._resident: _Rows | None = None

    @property
    def num_rows(self) -> int:
        """Rows per epoch."""
        return self.split.rows

    def __len__(self) -> int:
        """Returns the number of batches per epoch."""
        return -(-self.split.rows // self.batch_size)

    def state(self) -> dict[str, int]:
        """Returns the position: the epoch, the next batch in it, and what both depend on."""
        return {
            "epoch": self.epoch,
            "batch": self._batch,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "rows": self.split.rows,
        }

    def resume(self, state: dict[str, int]) -> None:
        """Continues at a position that `state` returned.

        Raises:
            StateError: the position belongs to another seed, batch size or split.
        """
        mine = self.state()
        for key in ("seed", "batch_size", "rows"):
            if state[key] != mine[key]:
                raise StateError(
                    "a saved position belongs to another loader",
                    where=f"loader state, {key}",
                    found=str(state[key]),
                    expected=str(mine[key]),
                    fix="resume with the data, seed and batch size of the first run",
                )
        self.epoch, self._batch = state["epoch"], state["batch"]

    def __iter__(self) -> Iterator[Batch]:
        size, skip = self.batch_size, self._batch * self.batch_size
        left: _Rows | None = None  # rows of the last buffer that did not fill a batch
        for rows, order in self._buffers(skip):
            start = 0
            if left is not None:
                start = min(size - len(left), len(order))
                left = _Rows.joined(left, rows.take(order[:start]))
                if len(left) < size:
                    continue
                yield self._done(left)
                left = None
            while len(order) - start >= size:
                yield self._done(rows.take(order[start : start + size]))
                start += size
            if start < len(order):
                left = rows.take(order[start:])
        if left is not None:
            yield self._done(left)
        self.epoch, self._batch = self.epoch + 1, 0

    def _done(self, rows: _Rows) -> Batch:
        self._batch += 1
        return rows.batch(self.split)

    def _buffers(self, skip: int) -> Iterator[tuple[_Rows, Tensor]]:
        """Yields rows in memory and the order in which to draw them, the first `skip` left out."""
        chunks = np.arange(-(-self.split.rows // self._chunk))
        if self.shuffle:
            chunks = np.random.default_rng([self.seed, self.epoch]).permutation(chunks)
        step = self._chunks_per_buffer
        for number, first in enumerate(range(0, len(chunks), step)):
            mine = np.sort(chunks[first : first + step])
            total = int(sum(self._rows_in(c) for c in mine))
            if skip >= total:
                skip -= total
                continue
            if self.shuffle:
                generator = np.random.default_rng([self.seed, self.epoch, number + 1])
                order = torch.from_numpy(generator.permutation(total))
            else:
                order = torch.arange(total)
            yield self._load(mine, whole=total == self.split.rows), order[skip:]
            skip = 0

    def _rows_in(self, chunk: int) -> int:
        return min(self._chunk, self.split.rows - int(chunk) * self._chunk)

    def _load(self, chunks: np.ndarray, whole: bool) -> _Rows:
        if whole:
            if self._resident is None:
                self._resident = _Rows.read(self.split, (0, self.split.rows))
            return self._resident
        runs = np.split(chunks, np.flatnonzero(np.diff(chunks) != 1) + 1)  # neighbours in one read
        starts = [int(run[0]) * self._chunk for run in runs]
        stops = [min((int(run[-1]) + 1) * self._chunk, self.split.rows) for run in runs]
        return _Rows.read(self.split, *zip(starts, stops, strict=True))


class _Rows:
    """Rows in memory, as tensors by block."""

    def __init__(self, count: int, blocks: dict[str, Tensor], jagged: dict[str, Jagged]) -> None:
        self.count, self.blocks, self.jagged = count, blocks, jagged

    def __len__(self) -> int:
        return self.count

    @classmethod
    def read(cls, split: Split, *spans: tuple[int, int]) -> _Rows:
        encoded = split.read(*spans)
        return cls(
            encoded.rows,
            {name: torch.from_numpy(block) for name, block in encoded.blocks.items()},
            {
                name: Jagged(
                    {c: torch.from_numpy(v) for c, v in values.items()}, torch.from_numpy(o)
                )
                for name, (values, o) in encoded.jagged.items()
            },
        )

    @classmethod
    def joined(cls, *parts: _Rows) -> _Rows:
        blocks = {n: torch.cat([p.blocks[n] for p in parts]) for n in parts[0].blocks}
        jagged = {n: _joined([p.jagged[n] for p in parts]) for n in parts[0].jagged}
        return cls(sum(len(p) for p in parts), blocks, jagged)

    def take(self, index: Tensor) -> _Rows:
        blocks = {n: block.index_select(0, index) for n, block in self.blocks.items()}
        return _Rows(len(index), blocks, {n: j.rows(index) for n, j in self.jagged.items()})

    def batch(self, split: Split) -> Batch:
        labels = tuple(label.name for label in split.schema.labels)
        return assemble(split.schema, labels, self.count, self.blocks, self.jagged)


def _joined(parts: list[Jagged]) -> Jagged:
    values = {c: torch.cat([p.values[c] for p in parts]) for c in parts[0].values}
    lengths = torch.cat([p.lengths() for p in parts])
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    torch.cumsum(lengths, 0, out=offsets[1:])
    return Jagged(values, offsets)
