"""A log with every kind of column, and an artefact of each of two models on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from fullrank.data.featurizer import Featurizer
from fullrank.data.spec import Category, Event, History, Number, Spec, Tags, Target, Vector
from fullrank.lookup import Lookup, Provenance
from fullrank.model import create, model_class
from fullrank.serve.artifact import Artifact

SPEC = Spec(
    columns=(
        Category(name="user", side="user"),
        Category(name="ad", table="item", side="item"),
        Category(name="browser", optional=True),
        Number(name="price"),
        Number(name="age", transform="log", optional=True),
        Tags(name="tags", optional=True),
        Vector(name="picture", shape=(2,), optional=True),
        History(
            name="past",
            events=(Event(name="item", column="past", table="item"),),
            repeats=True,
            optional=True,
        ),
        Target(name="click"),
        Target(name="buy", given="click"),
    ),
    item="ad",
    group="user",
)
OPTIONAL = ("browser", "age", "tags", "picture", "past")


def make_log(rows: int, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)

    def some(kinds: int) -> np.ndarray:
        return rng.integers(0, kinds, rows)

    return pl.DataFrame(
        {
            "user": [f"u{i}" for i in some(20)],
            "ad": some(9),
            "browser": [None if i == 0 else f"b{i}" for i in some(4)],
            "price": rng.random(rows) * 10,
            "age": [None if i == 0 else float(i) for i in some(60)],
            "tags": ["|".join(f"t{j}" for j in range(i)) for i in some(4)],
            "picture": rng.random((rows, 2)).tolist(),
            "past": [rng.integers(0, 9, n).tolist() for n in some(5)],
            "click": some(2),
            "buy": some(2),
        },
        schema_overrides={"past": pl.List(pl.Int64)},
    )


def make_artifact(name: str, log: pl.DataFrame, *, seed: int = 0, assets: bool = False) -> Artifact:
    """An untrained model whose scores differ from row to row, in every weight and buffer."""
    featurizer = Featurizer.fit(SPEC, log.lazy())
    config = model_class(name).Config.tiny()
    torch.manual_seed(seed)
    model = create(name, featurizer.schema, config)
    weights = {
        n: t + 0.3 * torch.rand(t.shape) if t.is_floating_point() else t
        for n, t in model.state_dict().items()
    }
    values = torch.rand(len(featurizer.vocabularies["item"].values) + 1, 2)
    lookup = Lookup("item", values, Provenance("a made-up encoder", date="2024-01-01"))
    return Artifact(
        model=name,
        config=config,
        featurizer=featurizer,
        weights=weights,
        assets={"pictures": lookup} if assets else {},
        metrics={"auc": 0.5},
        provenance={"recipe": "made up"},
    )


@pytest.fixture(scope="session")
def log() -> pl.DataFrame:
    return make_log(300)


@pytest.fixture(scope="session", params=["dcnv2", "rankmixer"])
def artifact(request: pytest.FixtureRequest, log: pl.DataFrame) -> Artifact:
    return make_artifact(request.param, log)


@pytest.fixture
def saved(log: pl.DataFrame, tmp_path: Path) -> Path:
    """A fresh artefact on disk, with an asset."""
    folder = tmp_path / "artifact"
    make_artifact("dcnv2", log, assets=True).save(folder)
    return folder
