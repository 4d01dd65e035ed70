from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from fullrank.workflow.data import DataOptions
from fullrank.workflow.recipe import load_recipe
from fullrank.workflow.run import RunOptions, train_run

from .small_world import write_recipe, write_world


class Trained(NamedTuple):
    """A finished run."""

    place: Path
    recipe: Path
    options: DataOptions
    folder: Path
    result: dict
    chance: np.ndarray


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A logistic regression on the planted world, diagnosed; nobody may change it."""
    place = tmp_path_factory.mktemp("trained")
    chance = write_world(place)
    recipe = write_recipe(place / "own.py", place)
    options = DataOptions(cache=place / "cache")
    run = RunOptions(data=options, progress=False)
    result = train_run(load_recipe(str(recipe)), place / "run", run)
    return Trained(place, recipe, options, place / "run", result, chance)
