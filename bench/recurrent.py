"""What does a recurrence over rows of unequal length cost?

    OMP_NUM_THREADS=1 python bench/recurrent.py [--rows 1024] [--length 200] [--rounds 5]

Forward and backward of one recurrence, inputs included, on one thread:

- "ours": fullrank.nn.recurrent, rows sorted by length, no step for padding.
- "torch, padded": torch.nn.GRU (oneDNN) over the rectangle. It has no attention.
- "torch, packed": torch.nn.GRU over a PackedSequence. It has no attention.
- "cells, padded": one step after the other over the rectangle by autograd, as the DIENs of other
  libraries do.

Rows of "equal" all have the mean length, so "unequal" over "equal" is what padding costs. Subjects
take turns within a round; ratios are taken within a round; CPU seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from record import Record, Target
from torch import Tensor, nn

from fullrank.nn.recurrent import GatedRecurrence, steps_of
from fullrank.train.memory import keep_freed_memory


def main() -> None:
    """Measures, prints, and writes what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    keep_freed_memory()  # as train() does
    torch.set_num_threads(1)
    record = Record("recurrent", "Recurrences over rows of unequal length, forward and backward")
    for dim in (32, 64):
        g = torch.Generator().manual_seed(0)
        unequal = torch.randint(1, asked.length + 1, (asked.rows,), generator=g)
        mean = torch.full_like(unequal, int(unequal.float().mean().round()))
        subjects = {
            "GRU, ours": ours("GRU", unequal, dim),
            "GRU, ours, equal": ours("GRU", mean, dim),
            "GRU, torch, padded": torch_padded(unequal, dim),
            "GRU, torch, packed": torch_packed(unequal, dim),
            "GRU, cells, padded": cells(unequal, dim, attention=False),
            "AUGRU, ours": ours("AUGRU", unequal, dim),
            "AUGRU, ours, equal": ours("AUGRU", mean, dim),
            "AUGRU, cells, padded": cells(unequal, dim, attention=True),
        }
        taken = clock(subjects, asked.rounds)
        for name, seconds in taken.items():
            own = taken[name.split(",")[0] + ", ours"]
            ratio = statistics.median(s / o for s, o in zip(seconds, own, strict=True))
            ms = round(1e3 * statistics.median(seconds), 1)
            record.rows.append({"D": dim, "subject": name, "ms": ms, "over ours": round(ratio, 2)})
        for kind in ("GRU", "AUGRU"):
            pair = zip(taken[f"{kind}, ours"], taken[f"{kind}, ours, equal"], strict=True)
            ratio = statistics.median(a / b for a, b in pair)
            what = f"{kind}, D = {dim}, unequal over equal lengths"
            record.targets.append(Target(what, ratio, 1.3, at_least=False))
    record.finish(detail={"rows": asked.rows, "length": asked.length})


def ours(kind: str, lengths: Tensor, dim: int) -> Callable[[], None]:
    unit = GatedRecurrence(dim, dim, kind)  # type: ignore[arg-type]
    events = int(lengths.sum())
    x = torch.randn(events, dim, requires_grad=True)
    a = torch.rand(events, 1, requires_grad=True)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])

    def run() -> None:
        steps = steps_of(offsets, int(lengths.max()), events)
        share = None if kind == "GRU" else steps.lay_out(a)[:, 0] * steps.real
        after, final = unit(steps.lay_out(x), steps, share)
        (after.sum() + final.sum()).backward()

    return run


def torch_padded(lengths: Tensor, dim: int) -> Callable[[], None]:
    unit = nn.GRU(dim, dim, batch_first=True)
    x = torch.randn(len(lengths), int(lengths.max()), dim, requires_grad=True)
    return lambda: unit(x)[0].sum().backward()


def torch_packed(lengths: Tensor, dim: int) -> Callable[[], None]:
    unit = nn.GRU(dim, dim, batch_first=True)
    x = torch.randn(len(lengths), int(lengths.max()), dim)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    packed.data.requires_grad_()
    return lambda: unit(packed)[0].data.sum().backward()


def cells(lengths: Tensor, dim: int, *, attention: bool) -> Callable[[], None]:
    of_input, of_state = nn.Linear(dim, 3 * dim), nn.Linear(dim, 3 * dim, bias=False)
    x = torch.randn(len(lengths), int(lengths.max()), dim, requires_grad=True)
    a = torch.rand(len(lengths), int(lengths.max()), requires_grad=True)

    def run() -> None:
        s, after = x.new_zeros(len(lengths), dim), []
        for t in range(x.shape[1]):
            z, y = of_input(x[:, t]), of_state(s)
            u, r = torch.sigmoid(z[:, : 2 * dim] + y[:, : 2 * dim]).chunk(2, dim=1)
            n = torch.tanh(z[:, 2 * dim :] + r * y[:, 2 * dim :])
            w = u * a[:, t, None] if attention else u
            s = (1 - w) * s + w * n
            after.append(s)
        torch.stack(after, dim=1).sum().backward()

    return run


def clock(subjects: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Returns CPU seconds per subject and round; subjects take turns."""
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    for round_ in range(rounds + 1):
        for name, run in subjects.items():
            start = time.process_time()
            run()
            if round_ > 0:  # the first one warms up
                taken[name].append(time.process_time() - start)
    return taken


if __name__ == "__main__":
    main()
