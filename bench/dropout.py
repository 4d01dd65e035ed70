"""What does dropout cost, with PyTorch's mask and with ours?

    OMP_NUM_THREADS=1 python bench/dropout.py [--rounds 15]

Forward and backward of the layer alone, and whole training steps of DCN-V2 on synthetic ids at the
sizes of Frappe with either layer. Both take turns within a round; CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from record import Record, Target
from torch import nn

from fullrank.models.dcnv2 import DCNv2
from fullrank.nn.dropout import Dropout
from fullrank.schema import Categorical, Label, Schema, Table
from fullrank.testing.cases import random_batch
from fullrank.train.memory import keep_freed_memory

SHAPES = ((4096, 400), (4096, 8, 64), (1024, 8, 32))
BATCH, FIELDS = 4096, 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = [_row(f"layer, {shape}", _layer(nn.Dropout(0.4), shape), _layer(Dropout(0.4), shape),
                 rounds) for shape in SHAPES]  # fmt: skip
    rows.append(_row("DCN-V2 step", _step(theirs=True), _step(theirs=False), rounds))
    step = float(rows[-1]["ratio"])
    target = Target("a DCN-V2 step with PyTorch's dropout over one with ours", step, 1.1)
    note = "A ratio is taken within a round; medians over rounds."
    Record("dropout", "Dropout: PyTorch's mask against ours", rows, [note], [target]).finish()


def _row(
    name: str, theirs: Callable[[], None], ours: Callable[[], None], rounds: int
) -> dict[str, object]:
    pairs = [(_seconds(theirs), _seconds(ours)) for _ in range(rounds + 1)][1:]
    a, b = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    ratio = statistics.median(p[0] / p[1] for p in pairs)
    return {"what": name, "PyTorch ms": round(1e3 * a, 2), "ours ms": round(1e3 * b, 2),
            "ratio": round(ratio, 2)}  # fmt: skip


def _seconds(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _layer(layer: nn.Module, shape: tuple[int, ...]) -> Callable[[], None]:
    x, gradient = torch.randn(shape, requires_grad=True), torch.randn(shape)

    def run() -> None:
        x.grad = None
        layer(x).backward(gradient)

    return run


def _step(*, theirs: bool) -> Callable[[], None]:
    schema = Schema(
        tables=tuple(Table(f"t{i}", 500) for i in range(FIELDS)),
        fields=tuple(Categorical(f"f{i}", f"t{i}") for i in range(FIELDS)),
        labels=(Label("click"),),
    )
    batch = random_batch(schema, BATCH, torch.Generator().manual_seed(0))
    model = DCNv2(schema, DCNv2.Config(dim=10, num_cross=4, hidden=(400, 400, 400), dropout=0.4))
    if theirs:
        for name, module in list(model.named_modules()):
            if isinstance(module, Dropout):
                model.set_submodule(name, nn.Dropout(module.p))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def run() -> None:
        optimizer.zero_grad()
        torch.stack(list(model(batch).values())).sum().backward()
        optimizer.step()

    return run


if __name__ == "__main__":
    main()
