"""What the diagnostics cost during training at their default cadence, once per epoch.

    python bench/diagnostics_overhead.py

Trains each recipe for one epoch with and without the monitor, in turn, on one thread. Two figures:
the time inside the monitor over the time of everything else, and the difference between the two
trainings, which also holds what the monitor does to caches and to memory but is as noisy as the
machine. The diagnosis at the end of a run is shown beside them; it happens once, not per epoch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch
from frappe import prepared
from record import WORK, Record, Target
from torch import nn

from fullrank.batch import Batch
from fullrank.data.loader import Loader
from fullrank.data.prepare import Prepared
from fullrank.diagnose.collapse import diagnose
from fullrank.diagnose.monitor import RankMonitor
from fullrank.diagnose.records import RunContext
from fullrank.model import create
from fullrank.train.loop import train
from fullrank.workflow.recipe import Recipe, load_recipe

RECIPES = ("frappe_dcnv2", "frappe_rankmixer", "frappe_fm")


class TimedMonitor(RankMonitor):
    """The monitor, with its CPU time taken."""

    spent = 0.0

    def __call__(self, model: nn.Module, batch: Batch, step: int, epoch: int) -> dict[str, float]:
        """Measures once."""
        started = time.process_time()
        found = super().__call__(model, batch, step, epoch)
        self.spent += time.process_time() - started
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads that wait burn CPU time, which would be counted
    data, real = prepared(WORK / "frappe")
    record = Record("diagnostics_overhead", "Cost of the diagnostics during training")
    record.machine |= {
        "threads": 1,
        "data": "Frappe" if real else "simulated",
        "repeats": options.repeats,
    }
    detail = {}
    for name in options.recipes:
        recipe = load_recipe(name)
        runs = [
            (epoch(recipe, data, None), *watched(recipe, data)) for _ in range(options.repeats + 1)
        ][1:]  # the first turn loads code
        detail[name] = runs
        without, within, inside = (statistics.median(column) for column in zip(*runs, strict=True))
        share = 100 * statistics.median(m / (total - m) for _, total, m in runs)
        difference = 100 * statistics.median(b / a - 1 for a, b, _ in runs)
        record.rows.append(
            {
                "recipe": name,
                "epoch without, CPU s": without,
                "epoch with, CPU s": within,
                "inside the monitor, CPU s": inside,
                "inside, %": share,
                "difference, %": difference,
                "diagnosis at the end, CPU s": final(recipe, data),
            }
        )
        record.targets.append(Target(f"{name}: overhead in %", share, 3.0, at_least=False))
    record.finish(detail)


def watched(recipe: Recipe, data: Prepared) -> tuple[float, float]:
    """Returns CPU seconds of an epoch with the monitor, and those inside it."""
    monitor = TimedMonitor(RunContext(run_id="bench", variant=recipe.name, seed=1))
    return epoch(recipe, data, monitor), monitor.spent


def epoch(recipe: Recipe, data: Prepared, monitor: TimedMonitor | None) -> float:
    torch.manual_seed(recipe.seed)
    model = create(recipe.model, data.schema, recipe.config)
    config = replace(recipe.train, epochs=1)
    loader = Loader(data.splits["train"], config.batch_size, seed=recipe.seed)
    started = time.process_time()
    train(model, loader, config, monitor=monitor, progress=False)
    return time.process_time() - started


def final(recipe: Recipe, data: Prepared) -> float:
    model = create(recipe.model, data.schema, recipe.config)
    context = RunContext(run_id="bench", variant=recipe.name, seed=1)
    counts = {table.name: data.counts(table.name) for table in data.schema.tables}
    started = time.process_time()
    diagnose(model, data.splits["valid"].batches(), context=context, counts=counts)
    return time.process_time() - started


if __name__ == "__main__":
    main()
