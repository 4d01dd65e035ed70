"""Block sizes: larger blocks than the usual one, where they are seen to give the same bits.

A block of 64 rows costs nearly as much as one of 200, because most of it is the way through the
layers. Larger blocks usually give every row the same bits; that depends on the machine, its
libraries and the widths of the model, so it is tried on the model at hand, when it is loaded. With
a past beside every row, a larger block may cost more per row, and is not used then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from fullrank.batch import Batch
from fullrank.ops.blocks import BLOCK_ROWS, score_in_blocks
from fullrank.schema import Schema
from fullrank.testing import random_batch

Score = Callable[[Batch], dict[str, Tensor]]

SIZES = (128, 256, 512)  # multiples of the usual size: no vector register is left half full
_DRAWS = 6  # of as many rows as the largest size has
_TIMED = 3


@dataclass(frozen=True)
class Blocks:
    """In which blocks a model may score rows.

    Args:
        seconds: size -> the least time that a block of it took; both increase. The usual size is
            the first, the others are those that gave every row the same bits and cost less per row.
        independent: a row got the same bits in any company. Where it did not, a served score may
            differ from an offline one in its last bits.
    """

    seconds: dict[int, float]
    independent: bool

    def needed(self, rows: int) -> int:
        """Returns the smallest size that so many rows fit into, or the largest."""
        return next((size for size in self.seconds if size >= rows), max(self.seconds))

    def time(self, rows: int) -> float:
        """Returns how long so many rows took on the machine as it was, in seconds."""
        largest = max(self.seconds)
        full, rest = divmod(rows, largest)
        return full * self.seconds[largest] + (self.seconds[self.needed(rest)] if rest else 0.0)


def try_blocks(score: Score, schema: Schema) -> Blocks:
    """Scores random rows in blocks of every size, in two orders, and compares the bits.

    Args:
        score: of a model in eval mode, [B] logits per label.
        schema: of its batches.
    """
    good, most = {BLOCK_ROWS, *SIZES}, max(SIZES)
    with torch.inference_mode():
        for draw in range(_DRAWS):
            generator = torch.Generator().manual_seed(draw)
            batch = random_batch(schema, most, generator)
            order = torch.randperm(most, generator=generator)
            expected, other = score_in_blocks(score, batch), batch.rows(order)
            for size in sorted(good):  # neighbours and places in the block differ as well
                found = score_in_blocks(score, other, size)
                if not all(_same(found[n], expected[n][order]) for n in expected):
                    good.discard(size)
        independent = BLOCK_ROWS in good
        sizes = sorted({BLOCK_ROWS, *good}) if independent else [BLOCK_ROWS]
        return Blocks(_paying(_seconds(score, schema, sizes)), independent)


def score_in_sizes(score: Score, batch: Batch, blocks: Blocks) -> dict[str, np.ndarray]:
    """Scores a batch in as few blocks as their sizes allow.

    Args:
        score: of a model.
        batch: B rows, at least one.
        blocks: of the same model.

    Returns:
        label -> logits [B] float32.
    """
    start, parts = 0, []
    while start < len(batch):
        size = blocks.needed(len(batch) - start)
        index = torch.arange(start, start + size).clamp_(max=len(batch) - 1)
        parts.append(score(batch.rows(index)))
        start += size
    return {label: torch.cat([p[label] for p in parts])[: len(batch)].numpy() for label in parts[0]}


def _seconds(score: Score, schema: Schema, sizes: list[int]) -> dict[int, float]:
    seconds: dict[int, float] = {}
    least = 0.0
    for size in sizes:
        batch = random_batch(schema, size, torch.Generator().manual_seed(0))
        times = []
        for _ in range(_TIMED):
            began = perf_counter()
            score(batch)
            times.append(perf_counter() - began)
        seconds[size] = least = max(least, min(times))
    return seconds


def _paying(seconds: dict[int, float]) -> dict[int, float]:
    """Leaves out sizes that cost more per row than a smaller one, as where caches overflow."""
    kept: dict[int, float] = {}
    for size, time in seconds.items():
        if all(time / size < least / smaller for smaller, least in kept.items()):
            kept[size] = time
    return kept


def _same(a: Tensor, b: Tensor) -> bool:
    return np.array_equal(a.numpy().view(np.int32), b.numpy().view(np.int32))
