"""A log whose best possible score is known, and recipes of a user's own on it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import polars as pl
import pytest

from fullrank.cli import main
from fullrank.data.spec import Category, Number, Spec, Target

SPEC = Spec(
    columns=(Category(name="user"), Category(name="ad"), Number(name="price"), Target(name="click"))
)
SIZES = {"train": 1200, "valid": 150, "test": 900}


def make_log(rows: int, seed: int) -> tuple[pl.DataFrame, np.ndarray]:
    """Returns rows and [rows] the true probability of a click."""
    truth = np.random.default_rng(0)
    users, ads = truth.normal(size=9), truth.normal(size=7)
    rng = np.random.default_rng([1, seed])
    user, ad, price = rng.integers(0, 9, rows), rng.integers(0, 7, rows), rng.random(rows)
    chance = 1 / (1 + np.exp(-(users[user] + ads[ad] + 2 * price - 1)))
    frame = pl.DataFrame(
        {
            "user": [f"u{i}" for i in user],
            "ad": [f"a{i}" for i in ad],
            "price": price.round(4),
            "click": (rng.random(rows) < chance).astype(np.int64),
        }
    )
    return frame, chance


def write_world(folder: Path, *, shuffled: bool = False) -> np.ndarray:
    """Writes train.csv, valid.csv and test.csv; returns the true probabilities of the test rows."""
    for i, (name, rows) in enumerate(SIZES.items()):
        frame, chance = make_log(rows, i)
        if shuffled:
            frame = frame.with_columns(pl.col("click").shuffle(seed=i))
        frame.write_csv(folder / f"{name}.csv")
    return chance


def write_recipe(
    path: Path,
    data: Path,
    *,
    model: str = "lr",
    config: str = "",
    columns: str = "",
    spec: str = "",
    gains: str = "",
    ending: str = "csv",
    **train: Any,
) -> Path:
    """Writes a recipe as a user would: a Python file.

    `columns`, `spec` and `gains` are code: more columns and gains, each with a comma, and more
    arguments of Spec.
    """
    settings = {"epochs": 4, "batch_size": 64, "learning_rate": 0.05, "threads": 1} | train
    given = ", ".join(f"{k}={v!r}" for k, v in settings.items())
    text = f'''
        """A recipe of one's own."""

        from pathlib import Path

        from fullrank.data.datasets.tabular import from_files
        from fullrank.data.spec import Category, Event, History, Number, Spec, Target
        from fullrank.model import model_class
        from fullrank.train.config import TrainConfig
        from fullrank.workflow.recipe import Claim, Gain, Recipe

        DATA = Path({str(data)!r})
        SPEC = Spec(
            columns=(
                Category(name="user"), Category(name="ad"), Number(name="price"), {columns}
                Target(name="click"),
            ),
            {spec}
        )


        def recipe() -> Recipe:
            splits = {{name: DATA / f"{{name}}.{ending}" for name in ("train", "valid", "test")}}
            return Recipe(
                dataset=from_files(splits, SPEC),
                model={model!r},
                config=model_class({model!r}).Config({config}),
                train=TrainConfig({given}),
                claim=Claim(metric="auc", paper=0.5, source="nowhere"),
                gains=({gains}),
            )
    '''
    path.write_text(dedent(text))
    return path


def area(scores: np.ndarray, labels: np.ndarray) -> float:
    """The AUC from its definition: how often a click scores above a row without one."""
    above = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    return float(np.mean(np.sign(above) / 2 + 0.5))


def loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """The log-loss of logits, row by row."""
    rows = zip(scores.tolist(), labels.tolist(), strict=True)
    return sum(math.log1p(math.exp(-x if y else x)) for x, y in rows) / len(labels)


class Said:
    """What a command line ended with."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object, on the last line of the output stream and nowhere else."""
        lines = self.out.splitlines()
        assert len(lines) == 1, self.out
        found = json.loads(lines[0])
        assert isinstance(found, dict)
        return found

    def refused(self, kind: str, code: int = 1) -> dict[str, Any]:
        """The command failed in five parts, for people and for programs."""
        assert self.code == code, self.err
        found = self.json
        assert found["error"] == kind, found
        assert list(found) == ["error", "what", "where", "found", "expected", "fix"]
        for part in ("where", "found", "expected", "fix"):
            assert found[part], part
            assert found[part].splitlines()[0] in self.err
        assert "Traceback" not in self.err
        return found


def command(capsys: pytest.CaptureFixture[str], *argv: object, json: bool = True) -> Said:
    """Runs a command line in this process."""
    code = main([*map(str, argv), *(["--json"] if json else [])])
    said = capsys.readouterr()
    return Said(code, said.out, said.err)


def listing(folder: Path) -> list[str]:
    """Every file below a folder."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
