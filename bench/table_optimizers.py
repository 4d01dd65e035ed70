"""Measures when sparse gradients pay: dense fused Adam against the row-wise optimisers.

One step is look-up, backward and update of one table and nothing else. All ways run in turn in the
same process on one thread; medians of CPU milliseconds. The ratio of table rows to look-ups at
which dense Adam and lazy Adam cost the same is `BREAK_EVEN` in `fullrank/train/optim.py`.

    OMP_NUM_THREADS=1 python bench/table_optimizers.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from fullrank.train.optim import LazyAdam, RowWiseAdagrad

LOOKUPS = 4096 * 10  # batch 4096, ten fields
RATIOS = (0.25, 0.5, 1, 2, 4, 8, 16, 48)
REPEATS = 15


def stepper(
    rows: int, dim: int, ids: Tensor, make: Callable[[Tensor], Optimizer], sparse: bool
) -> Callable[[], float]:
    table = nn.Parameter(torch.randn(rows, dim) * 0.01)
    optimizer = make(table)
    direction = torch.randn(ids.shape[0], dim)

    def step() -> float:
        start = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        (F.embedding(ids, table, sparse=sparse) * direction).sum().backward()
        optimizer.step()
        return 1e3 * (time.process_time() - start)

    return step


def compare(rows: int, dim: int, skewed: bool) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(LOOKUPS, generator=generator)
    ids = ((u**3 if skewed else u) * rows).to(torch.int32)
    ways = {
        "adam": stepper(
            rows, dim, ids, lambda t: torch.optim.Adam([t], lr=1e-3, fused=True), False
        ),
        "lazy_adam": stepper(rows, dim, ids, lambda t: LazyAdam([t]), True),
        "rowwise_adagrad": stepper(rows, dim, ids, lambda t: RowWiseAdagrad([t]), True),
        "SparseAdam": stepper(rows, dim, ids, lambda t: torch.optim.SparseAdam([t]), True),
    }
    for step in ways.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, step in ways.items():
            times[name].append(step())
    return {name: median(values) for name, values in times.items()}


def main() -> None:
    torch.set_num_threads(1)
    print(f"look-ups {LOOKUPS:,}; CPU ms per step; last column: dense Adam / lazy Adam")
    for skewed in (False, True):
        for dim in (10, 16, 64):
            for ratio in RATIOS:
                ms = compare(int(ratio * LOOKUPS), dim, skewed)
                cells = "  ".join(f"{name} {value:7.2f}" for name, value in ms.items())
                print(
                    f"{'skewed' if skewed else 'even':6} D {dim:3} rows/look-ups {ratio:5}  {cells}"
                    f"  {ms['adam'] / ms['lazy_adam']:6.2f}"
                )


if __name__ == "__main__":
    main()
