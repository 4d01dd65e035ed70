"""Forms of a ranker side by side: the model itself, torch-export and ONNX, at 1, 64 and 500 rows.

    python bench/forms.py

The forms take turns on one thread; medians of CPU milliseconds per call on ready tensors. A server
scores in blocks of 64 rows and more, so that 64 rows are what its smallest request costs. Weights
are untrained, which changes no time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from itertools import islice
from pathlib import Path

import torch
from record import WORK, Record

from fullrank.batch import Batch
from fullrank.model import create
from fullrank.serve.forms import Form, Score, make_form
from fullrank.workflow.data import DataOptions, open_data
from fullrank.workflow.recipe import load_recipe

RECIPES = ("frappe_dcnv2", "frappe_rankmixer", "habits_din", "habits_tokenformer")
FORMS: tuple[Form, ...] = ("eager", "torch-export", "onnx")
ROWS = (1, 64, 500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = Record("forms", "Eager, torch-export and ONNX scoring the same rows")
    record.machine |= {"threads": 1, "calls": options.calls}
    for name in options.recipes:
        forms, batch, making = made(name)
        for rows in ROWS:
            middle = medians(forms, batch.rows(torch.arange(rows)), options.calls)
            record.rows.append(
                {"recipe": name, "rows": rows}
                | {f"{form}, CPU ms": round(ms, 3) for form, ms in middle.items()}
                | {f"making {form}, CPU s": round(making[form], 1) for form in FORMS[1:]}
            )
    for form in FORMS[1:]:
        cost = [row[f"{form}, CPU ms"] / row["eager, CPU ms"] for row in record.rows]
        record.notes.append(
            f"{form} takes {min(cost):.2f} to {max(cost):.2f} times what eager takes, "
            f"{statistics.median(cost):.2f} times in the middle case."
        )
    record.finish()


def made(name: str) -> tuple[dict[str, Score], Batch, dict[str, float]]:
    """Returns the forms of a recipe's model, 500 test rows, and what making each form took."""
    recipe = load_recipe(name)
    root = os.environ.get("FULLRANK_DATA")
    data = open_data(
        recipe.dataset, DataOptions(root=Path(root) if root else None, cache=WORK / "forms")
    )
    torch.manual_seed(1)
    model = create(recipe.model, data.schema, recipe.config).eval()
    forms: dict[str, Score] = {}
    making: dict[str, float] = {}
    for form in FORMS:
        began = time.process_time()
        forms[form] = make_form(model, data.schema, form)
        making[form] = time.process_time() - began
    batch = next(islice(data.splits["test"].batches(max(ROWS)), 1)).without_labels()
    return forms, batch, making


def medians(forms: dict[str, Score], batch: Batch, calls: int) -> dict[str, float]:
    """Returns form -> median CPU milliseconds of a call; the forms take turns."""
    times: dict[str, list[float]] = {form: [] for form in forms}
    with torch.inference_mode():
        for turn in range(calls + 3):
            for form, score in forms.items():
                began = time.process_time()
                score(batch)
                if turn >= 3:  # the first calls warm up
                    times[form].append(1e3 * (time.process_time() - began))
    return {form: statistics.median(ms) for form, ms in times.items()}


if __name__ == "__main__":
    main()
