"""`fullrank demo`: three rankers on a real log, and a picture of which of them loses rank."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from fullrank.data.datasets.simulated import ensure
from fullrank.data.home import data_root
from fullrank.data.text import BadRows
from fullrank.data.world import World
from fullrank.serve.artifact import Artifact
from fullrank.serve.predictor import Predictor
from fullrank.workflow.console import console, preparing, table
from fullrank.workflow.data import DataOptions, find_dataset, is_there
from fullrank.workflow.diagnosis import joint_report
from fullrank.workflow.recipe import Recipe, load_recipe
from fullrank.workflow.run import RunOptions, train_run

_SIMULATED = World(num_rows=200_000)
_SHOWN_ROWS = 10


@dataclass(frozen=True)
class _Plan:
    """What the demo trains, on the data that this machine has."""

    recipes: tuple[Recipe, ...]
    data: DataOptions
    said: str


def demo(out: Path, options: DataOptions) -> dict[str, Any]:
    """Trains, diagnoses and compares three rankers, and scores raw rows with the best.

    Args:
        out: folder of the runs, the report and the artefact; a demo that is there is replaced.
        options: where data is.
    """
    began = time.perf_counter()
    plan = _plan(options, out)
    console.print(plan.said, markup=False)
    results = []
    for recipe in plan.recipes:
        console.rule(recipe.name)
        run = RunOptions(data=plan.data, overwrite=True, preparing=preparing)
        results.append(train_run(recipe, out / recipe.name, run))
        if results[-1]["interrupted"]:
            console.print("interrupted; `fullrank demo` starts again")
            return {"interrupted": True}
    best = max(results, key=lambda r: float(r["test"]["auc"]))
    report = out / "report.html"
    folders = [out / r["recipe"] for r in sorted(results, key=lambda r: -r["test"]["auc"])]
    joint_report(report, folders, "Three rankers, and which of them loses rank")
    artifact = out / "artifact"
    Artifact.load(out / best["recipe"] / "artifact").save(artifact)
    _show(results, best["recipe"])
    scores = _score_rows(artifact, plan)
    seconds = time.perf_counter() - began
    console.print(
        f"\ndone in {seconds:.0f} s\n"
        f"the picture   {report}\n"
        f"the best      {artifact}  ({best['recipe']})\n"
        f"next          open the report; then\n"
        f"              fullrank predict {artifact} YOUR_ROWS.csv --out scored.csv\n"
        f"              fullrank data inspect YOUR_LOG.csv   (your own data)\n"
        f"              fullrank recipes                     (what else there is)",
        markup=False,
    )
    return {
        "report": str(report),
        "artifact": str(artifact),
        "best": best["recipe"],
        "seconds": round(seconds, 1),
        "test_auc": {r["recipe"]: r["test"]["auc"] for r in results},
        "verdicts": {r["recipe"]: r["verdicts"] for r in results},
        "scores": scores,
    }


def _plan(options: DataOptions, out: Path) -> _Plan:
    """Chooses Frappe where it is on this machine, else the simulator."""
    root = data_root(options.root)
    if is_there(find_dataset("frappe"), root):
        names = ("demo_dcnv2", "demo_rankmixer", "demo_collapsing")
        recipes = tuple(load_recipe(name) for name in names)
        return _Plan(recipes, options, f"data: Frappe, a real log, from {root}")
    home = out / "data"
    ensure(home, _SIMULATED)
    recipes = tuple(
        replace(load_recipe(name), dataset="simulated")
        for name in ("demo_dcnv2", "demo_rankmixer", "demo_collapsing")
    )
    said = (
        f"data: Frappe is not in {root}, so a simulated ad log stands in for it. "
        "`fullrank data get frappe` fetches the real one."
    )
    return _Plan(recipes, replace(options, root=home), said)


def _show(results: list[dict[str, Any]], best: str) -> None:
    rows = [
        [
            ("* " if r["recipe"] == best else "  ") + r["recipe"],
            r["test"]["auc"],
            r["test"]["logloss"],
            r["parameters"],
            r["train_seconds"],
            r["verdicts"][0].partition(":")[0],
        ]
        for r in results
    ]
    columns = ["model", "test AUC", "log-loss", "parameters", "seconds", "what the diagnosis says"]
    table("three rankers on the held-out split (* the best)", columns, rows)
    for r in results:
        for verdict in r["verdicts"]:
            console.print(f"{r['recipe']}: {verdict}", markup=False)


def _score_rows(artifact: Path, plan: _Plan) -> list[dict[str, Any]]:
    """Scores raw rows of the test split, as a server would: without their labels."""
    source = find_dataset(plan.recipes[0].dataset)
    rows = source.load(data_root(plan.data.root), BadRows())["test"].head(_SHOWN_ROWS).collect()
    predictor = Predictor.load(artifact)
    labels = [label.name for label in predictor.artifact.schema.labels]
    served = rows.drop(labels)
    scores = predictor.score(served)
    shown = [c for c in served.columns if not isinstance(served[c].dtype, pl.List | pl.Array)][:4]
    cells = [
        [
            *(str(served[c][i]) for c in shown),
            *(float(scores[n][i]) for n in labels),
            rows[labels[0]][i],
        ]
        for i in range(len(rows))
    ]
    columns = [*shown, *(f"p({label})" for label in labels), f"{labels[0]} in the log"]
    table("ten raw rows, scored with the best", columns, cells)
    return [{n: float(scores[n][i]) for n in labels} for i in range(len(rows))]
