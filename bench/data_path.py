"""What the data path and the loop cost: `train` from disk against bare steps on ready tensors.

    python bench/data_path.py

The bare loop steps the same model with the same optimisers on batches that lie in memory, and does
nothing else: no reading, no shuffling, no checks, no log. Both run in turn on one thread; medians
of CPU time. `train` writes its log and saves its state as it does by default.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from frappe import prepared
from record import WORK, Record, Target
from torch import nn

from fullrank.batch import Batch
from fullrank.data.loader import Loader
from fullrank.data.prepare import Prepared
from fullrank.model import create
from fullrank.train.config import TrainConfig
from fullrank.train.loop import train
from fullrank.train.optim import build_optimizers

# What is promised, and the settings that it is promised for.
MODELS: dict[str, tuple[float, dict[str, Any]]] = {
    "dcnv2": (0.90, {"dim": 10, "num_cross": 3, "hidden": [400, 400, 400], "dropout": 0.0}),
    "fm": (0.60, {"dim": 10}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads that wait burn CPU time, which would be counted
    data, real = prepared(WORK / "frappe")
    record = Record("data_path", "Training from disk against bare steps on tensors in memory")
    record.machine |= {
        "threads": 1,
        "data": "Frappe" if real else "simulated",
        "repeats": options.repeats,
    }
    config = TrainConfig(epochs=options.epochs, batch_size=4096, optimizer="adam")
    detail = {}
    for name, (wanted, settings) in MODELS.items():
        times = compare(name, settings, data, config, options.repeats)
        detail[name] = times
        rows = data.splits["train"].rows * options.epochs
        speed = {way: rows / statistics.median(cpu for cpu, _ in t) for way, t in times.items()}
        wall = {way: rows / statistics.median(w for _, w in t) for way, t in times.items()}
        # Neighbours in time met the same load, so their ratio is steadier than that of medians.
        pairs = zip(times["bare"], times["train"], strict=True)
        ratio = statistics.median(bare / ours for (bare, _), (ours, _) in pairs)
        record.rows.append(
            {
                "model": name,
                "train, rows per CPU s": speed["train"],
                "bare, rows per CPU s": speed["bare"],
                "ratio": ratio,
                "train, rows per s": wall["train"],
                "bare, rows per s": wall["bare"],
            }
        )
        record.targets.append(Target(f"{name}: share of the bare speed", ratio, wanted))
    record.finish(detail)


def compare(
    name: str, settings: dict[str, Any], data: Prepared, config: TrainConfig, repeats: int
) -> dict[str, list[tuple[float, float]]]:
    """Returns way -> (CPU, wall) seconds per repeat, the ways taking turns."""
    batches = list(Loader(data.splits["train"], config.batch_size))
    times: dict[str, list[tuple[float, float]]] = {"bare": [], "train": []}
    for repeat in range(repeats + 1):
        for way, taken in times.items():
            torch.manual_seed(1)
            model = create(name, data.schema, settings)
            if way == "bare":
                taken.append(bare(model, batches, config))
            else:
                taken.append(from_disk(model, data, config))
            if repeat == 0:  # the first turn loads code and fills caches
                taken.clear()
    return times


def bare(model: nn.Module, batches: list[Batch], config: TrainConfig) -> tuple[float, float]:
    optimizers = build_optimizers(model, config)
    model.train()
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(config.epochs):
        for batch in batches:
            torch.stack(tuple(model(batch).values())).sum().backward()
            optimizers.step(1.0)
            optimizers.zero_grad()
    return time.process_time() - cpu, time.perf_counter() - wall


def from_disk(model: nn.Module, data: Prepared, config: TrainConfig) -> tuple[float, float]:
    folder = Path(tempfile.mkdtemp(dir=WORK))
    cpu, wall = time.process_time(), time.perf_counter()
    loader = Loader(data.splits["train"], config.batch_size)
    train(model, loader, config, folder=folder, progress=False)
    spent = time.process_time() - cpu, time.perf_counter() - wall
    shutil.rmtree(folder)
    return spent


if __name__ == "__main__":
    main()
