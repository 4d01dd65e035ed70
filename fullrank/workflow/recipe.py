"""Recipe: one run, as choices. A run is a Python function that returns one.

A file of recipes holds the runs on one data set side by side, so that what they share is written
once. Function `dcnv2` of `frappe.py` is the recipe `frappe_dcnv2`; a function named `recipe` goes
by the name of its file. Runs that several data sets share are the methods of a class, of which a
file of recipes makes the object `RECIPES: ThatClass`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from fullrank.config import override, require, to_dict
from fullrank.errors import ConfigError, UnknownNameError, nearest
from fullrank.model import model_class
from fullrank.train.config import TrainConfig
from fullrank.workflow.assets import AssetSource
from fullrank.workflow.calibration import Calibrate


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A published number that the recipe is held against.

    Args:
        metric: such as "auc".
        paper: the published value.
        source: where it stands.
        floor: what a naive method reaches, where somebody measured it.
    """

    metric: str
    paper: float
    source: str
    floor: float | None = None


@dataclass(frozen=True, kw_only=True)
class Gain:
    """An advantage over another recipe that a comparison of both puts to the test.

    Args:
        over: name of the other recipe: a baseline, or a control of as many parameters.
        metric: in which it shows.
        paper: the published gain, None where none was published.
        source: where that stands.
    """

    over: str
    metric: str = "auc"
    paper: float | None = None
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Data, model and training of one run.

    Args:
        dataset: a name of `fullrank data list`, the dotted path of your own module, or a dataset
            object such as `tabular.from_files` returns.
        model: a name of `fullrank models`, or the dotted path of your own module.
        config: the model's own Config, a mapping of its settings, or None for the defaults.
        train: how it is trained.
        seed: of initial weights, order of rows and dropout.
        claim: what it should reach.
        gains: what it should be better than; no part of the run itself.
        assets: what makes the lookups of the model, such as `data.pretrain.PretrainedVectors`; the
            model then trains on the rows that these do not know.
        calibrate: how served probabilities are made to come true; test metrics are of bare scores.
        name: set by whoever loads the recipe.
    """

    dataset: Any
    model: str
    config: Any
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 1
    claim: Claim | None = None
    gains: tuple[Gain, ...] = ()
    assets: tuple[AssetSource, ...] = ()
    calibrate: Calibrate = field(default_factory=Calibrate)
    name: str = ""

    def __post_init__(self) -> None:
        require(
            self.seed >= 0,
            where="Recipe.seed",
            found=self.seed,
            expected="0 or more",
            fix="choose another seed",
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types; a dataset object is stored under its name."""
        dataset = self.dataset if isinstance(self.dataset, str) else self.dataset.NAME
        made = [{"kind": type(source).__name__, **to_dict(source)} for source in self.assets]
        calibrated = self.calibrate != Calibrate()
        return {
            "name": self.name,
            "dataset": dataset,
            "model": self.model,
            "config": to_dict(self.config),
            "train": to_dict(self.train),
            "seed": self.seed,
            "claim": to_dict(self.claim),
            **({"assets": made} if made else {}),  # so that runs without any stay what they were
            **({"calibrate": to_dict(self.calibrate)} if calibrated else {}),
        }


def list_recipes() -> dict[str, str]:
    """Returns name -> first line of what it says about itself; nothing is imported."""
    return {name: text for name, (_, _, text) in _shipped().items()}


def load_recipe(name: str, settings: tuple[str, ...] = ()) -> Recipe:
    """Finds a recipe and applies settings such as `train.epochs=2`.

    Args:
        name: one of `list_recipes`, or the path of a Python file with a function `recipe`, or
            `path.py:function`. Such a file is code of your own and is run.
        settings: assignments, applied in order.

    Raises:
        UnknownNameError: there is no such recipe or model; the nearest name is suggested.
        ConfigError: a setting is unknown or has the wrong type, the config belongs to another
            model, or the file cannot be imported.
    """
    module, function = _found(name)
    made = getattr(module, function, getattr(getattr(module, "RECIPES", None), function, None))
    if not callable(made):
        raise UnknownNameError(
            f"a recipe file has no function {function}()",
            where=name,
            found="names " + ", ".join(sorted(n for n in vars(module) if not n.startswith("_"))),
            expected=f"def {function}() -> Recipe",
            fix="add the function, or name one that is there: path.py:function",
        )
    built: Recipe = made()
    require(
        isinstance(built, Recipe),
        where=f"{name}: {function}()",
        found=type(built).__name__,
        expected="a fullrank.workflow.recipe.Recipe",
        fix="return a Recipe",
    )
    stem = (module.__file__ and Path(module.__file__).stem) or name
    built = replace(built, name=stem if function == "recipe" else f"{stem}_{function}")
    for setting in settings:
        built = override(built, setting)
    wanted = model_class(built.model).Config
    require(
        built.config is None or isinstance(built.config, wanted | dict),
        where=f"{name}: config of model '{built.model}'",
        found=f"a {type(built.config).__module__}.{type(built.config).__qualname__}",
        expected=f"a {wanted.__module__}.{wanted.__qualname__}",
        fix="give the model its own Config; a recipe for another model is a file of your own",
    )
    return built


def _shipped() -> dict[str, tuple[str, str, str]]:
    """Returns name -> (module, function, what it says about itself)."""
    folder = Path(importlib.import_module("fullrank.recipes").__path__[0])
    found: dict[str, tuple[str, str, str]] = {}
    for module in pkgutil.iter_modules([str(folder)]):
        tree = ast.parse((folder / f"{module.name}.py").read_text())
        about = _first_line(tree)
        told = {node.name: _first_line(node) for node in _functions(tree.body)}
        for node in _functions(_shared(tree, folder)):
            told[node.name] = f"{_first_line(node)} {about}"
        if not module.name.startswith("_"):
            found |= {f"{module.name}_{n}": (module.name, n, text) for n, text in told.items()}
    return found


def _shared(tree: ast.Module, folder: Path) -> list[ast.stmt]:
    """Returns the body of the class that `RECIPES: Class = ...` of a file names, if it does."""
    made = {
        node.target.id: node.annotation.id
        for node in tree.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(node.annotation, ast.Name)
    }
    imports = (node for node in tree.body if isinstance(node, ast.ImportFrom))
    for node in imports:
        if made.get("RECIPES") in [alias.name for alias in node.names]:
            source = folder / f"{(node.module or '').rpartition('.')[2]}.py"
            classes = ast.parse(source.read_text()).body
            return next(
                c.body for c in classes if isinstance(c, ast.ClassDef) and c.name == made["RECIPES"]
            )
    return []


def _functions(body: list[ast.stmt]) -> list[ast.FunctionDef]:
    return [n for n in body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]


def _first_line(node: ast.Module | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]


def _found(name: str) -> tuple[ModuleType, str]:
    """Returns the module and the function that a name stands for."""
    path, colon, function = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        path, function = name, "recipe"
    if path.endswith(".py"):
        return _from_file(Path(path)), function
    known = _shipped()
    if name not in known:
        raise UnknownNameError(
            "there is no such recipe",
            where="recipe name",
            found=f"'{name}'",
            expected="a name of `fullrank recipes`, or the path of a .py file",
            fix=nearest(name, known),
        )
    module, function, _ = known[name]
    return importlib.import_module(f"fullrank.recipes.{module}"), function


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UnknownNameError(
            "there is no such recipe file",
            where=str(path),
            found="no file",
            expected="a Python file with a function recipe()",
            fix="check the path",
        )
    name = f"_fullrank_recipe_{path.stem}"  # trap: a file named random.py is not Python's random
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses of the file look themselves up by module
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as cause:
        line = f", line {cause.lineno}" if isinstance(cause, SyntaxError) and cause.lineno else ""
        raise ConfigError(
            "a recipe file cannot be imported",
            where=f"{path}{line}",
            found=f"{type(cause).__name__}: {cause.msg}",
            expected="Python whose imports are installed",
            fix="correct the file",
        ) from cause
    return module
