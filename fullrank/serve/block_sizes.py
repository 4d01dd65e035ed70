"""Block sizes: larger blocks than the usual one, where they are seen to give the same bits.

A block of 64 rows costs nearly as much as one of 200, because most of it is the way through the
layers. Larger blocks usually give every row the same bits; that depends on the machine, its
libraries and the widths of the model, so it is tried on the model at hand, when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
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
_DRAWS = 3


def agreeing_sizes(score: Score, schema: Schema) -> tuple[int, ...]:
    """Returns the block sizes that give the same bits as the usual one, that one included.

    Args:
        score: of a model in eval mode, [B] logits per label.
        schema: of its batches; the rows that are tried are random.
    """
    good = set(SIZES)
    with torch.inference_mode():
        for draw in range(_DRAWS):
            batch = random_batch(schema, max(SIZES), torch.Generator().manual_seed(draw))
            expected = score_in_blocks(score, batch)
            for size in sorted(good):
                found = score_in_blocks(score, batch, size)
                if not all(_same(found[n], expected[n]) for n in expected):
                    good.discard(size)
    return (BLOCK_ROWS, *sorted(good))


def block_seconds(score: Score, schema: Schema, sizes: tuple[int, ...]) -> dict[int, float]:
    """Returns size -> the least seconds that a block of it took; they never fall with the size."""
    seconds: dict[int, float] = {}
    least = 0.0
    with torch.inference_mode():
        for size in sizes:
            batch = random_batch(schema, size, torch.Generator().manual_seed(0))
            times = []
            for _ in range(_DRAWS):
                began = perf_counter()
                score(batch)
                times.append(perf_counter() - began)
            seconds[size] = least = max(least, min(times))
    return seconds


def score_in_sizes(score: Score, batch: Batch, sizes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Scores a batch in as few blocks as these sizes allow.

    Args:
        score: of a model.
        batch: B rows, at least one.
        sizes: increasing, as `agreeing_sizes` returns them.

    Returns:
        label -> logits [B] float32.
    """
    largest, parts = sizes[-1], []
    for start in range(0, len(batch), largest):
        rows = min(largest, len(batch) - start)
        size = next(s for s in sizes if s >= rows)
        index = torch.arange(start, start + size).clamp_(max=len(batch) - 1)
        parts.append({n: x[:rows].numpy() for n, x in score(batch.rows(index)).items()})
    return {label: np.concatenate([p[label] for p in parts]) for label in parts[0]}


def _same(a: Tensor, b: Tensor) -> bool:
    return np.array_equal(a.numpy().view(np.int32), b.numpy().view(np.int32))
