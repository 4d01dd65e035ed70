"""Commands that list things, and what a finished run looks like in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullrank.config import to_dict
from fullrank.model import list_models, model_class
from fullrank.workflow.calibration import effect_lines
from fullrank.workflow.console import console, preparing, table
from fullrank.workflow.recipe import list_recipes, load_recipe
from fullrank.workflow.run import RunOptions, train_run

if TYPE_CHECKING:
    from fullrank.cli import Train

_SHOWN = ("auc", "gauc", "logloss", "ne", "ece", "calibration")


def list_recipes_table() -> dict[str, Any]:
    """Prints the recipes; none of them is imported."""
    found = list_recipes()
    table("recipes", ["name", "what"], [[name, what] for name, what in found.items()])
    return {"recipes": [{"name": name, "what": what} for name, what in found.items()]}


def list_models_table() -> dict[str, Any]:
    """Prints the models and the settings of each."""
    found = []
    for name in list_models():
        cls = model_class(name)
        what = (cls.__doc__ or "").strip().partition("\n")[0]
        found.append({"name": name, "what": what, "defaults": to_dict(cls.Config())})
    rows = [
        [m["name"], m["what"], ", ".join(f"{k}={v}" for k, v in m["defaults"].items())]
        for m in found
    ]
    table("models", ["name", "what", "settings and defaults"], rows)
    return {"models": found}


def train_command(asked: Train) -> dict[str, Any]:
    """Trains a recipe with bars, prints the result and says what to do next."""
    recipe = load_recipe(asked.recipe, asked.set)
    folder = asked.out or Path("runs") / recipe.name
    options = RunOptions(
        data=asked.options(),
        resume=asked.resume,
        overwrite=asked.overwrite,
        diagnose=not asked.no_diagnose,
        preparing=preparing,
    )
    result = train_run(recipe, folder, options)
    if result["interrupted"]:
        console.print(
            f"interrupted; the same command with --resume goes on from {folder}", markup=False
        )
        return result | {"folder": str(folder)}
    show_result(result)
    lines = [f"artefact  {folder / 'artifact'}"]
    if not asked.no_diagnose:
        lines.append(f"report    {folder / 'report.html'}")
    lines.append(f"next      fullrank predict {folder / 'artifact'} ROWS.csv")
    console.print("\n".join(lines), markup=False, soft_wrap=True)
    return result | {"folder": str(folder)}


def show_result(result: dict[str, Any]) -> None:
    """Prints test metrics with their intervals, the claim beside them, notes and verdicts."""
    claim = result.get("claim") or {}
    alone = result.get("popularity", {}).get("test", {})  # older runs did not measure it
    rows = []
    for name in _SHOWN:
        if name in result["test"]:
            low, high = result["interval"].get(name, [None, None])
            paper = claim.get("paper") if claim.get("metric") == name else None
            rows.append([name, result["test"][name], low, high, paper, alone.get(name)])
    title = f"{result['recipe']}: test split of {result['dataset']}"
    heading = ["metric", "value", "low", "high", "published", *(["popularity alone"] * bool(alone))]
    table(title, heading, [row[: len(heading)] for row in rows])
    for note in [*result["notes"], *effect_lines(result.get("calibration", {}))]:
        console.print(f"note: {note}", markup=False)
    for verdict in result.get("verdicts", []):
        console.print(f"- {verdict}", markup=False)
