"""torch.compile on and off, for DCN-V2 and RankMixer on Frappe batches.

    python bench/compile.py

Steps of the compiled and the plain model take turns on one thread; medians of CPU milliseconds.
The first steps, in which the compiler works, are timed apart.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from itertools import islice

import torch
from frappe import prepared
from record import WORK, Record

from fullrank.batch import Batch
from fullrank.data.loader import Loader
from fullrank.model import create
from fullrank.train.optim import build_optimizers
from fullrank.workflow.recipe import Recipe, load_recipe

RECIPES = ("frappe_dcnv2", "frappe_rankmixer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads that wait burn CPU time, which would be counted
    data, real = prepared(WORK / "frappe")
    record = Record("compile", "torch.compile against eager steps")
    record.machine |= {
        "threads": 1,
        "data": "Frappe" if real else "simulated",
        "steps": options.steps,
    }
    batches = list(islice(Loader(data.splits["train"], 4096), options.steps))
    for name in RECIPES:
        recipe = load_recipe(name)
        ways: dict[str, Callable[[Batch], None]] = {}
        for way in ("eager", "compiled"):
            torch.manual_seed(1)
            model = create(recipe.model, data.schema, recipe.config).train()
            ways[way] = stepper(model, recipe, compiled=way == "compiled")
        started, wall = _tree_seconds(), time.perf_counter()
        ways["compiled"](batches[0])
        compiling, compiling_wall = _tree_seconds() - started, time.perf_counter() - wall
        for step in ways.values():
            step(batches[0])
        times: dict[str, list[float]] = {way: [] for way in ways}
        for batch in batches:
            for way, step in ways.items():
                started = time.process_time()
                step(batch)
                times[way].append(1e3 * (time.process_time() - started))
        middle = {way: statistics.median(ms) for way, ms in times.items()}
        record.rows.append(
            {
                "recipe": name,
                "eager, CPU ms": middle["eager"],
                "compiled, CPU ms": middle["compiled"],
                "eager over compiled": middle["eager"] / middle["compiled"],
                "compiling, CPU s": compiling,
                "compiling, wall s": compiling_wall,
            }
        )
    record.finish()


def stepper(model: torch.nn.Module, recipe: Recipe, *, compiled: bool) -> Callable[[Batch], None]:
    optimizers = build_optimizers(model, recipe.train)
    forward = torch.compile(model) if compiled else model

    def step(batch: Batch) -> None:
        torch.stack(tuple(forward(batch).values())).sum().backward()
        optimizers.step(1.0)
        optimizers.zero_grad()

    return step


def _tree_seconds() -> float:
    """CPU seconds of this process and of the finished compilers that it started."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
