"""A log whose items have every kind of column, and an untrained two-tower artefact on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch

from fullrank.data.featurizer import Featurizer
from fullrank.data.spec import Category, Event, History, Number, Spec, Tags, Target, Vector
from fullrank.evaluate.calibrate import Calibrator
from fullrank.model import create, model_class
from fullrank.serve.artifact import Artifact

SPEC = Spec(
    columns=(
        Category(name="user", side="user"),
        Number(name="age", side="user", optional=True),
        Category(name="hour", optional=True),
        Category(name="ad", table="item", side="item"),
        Number(name="price", side="item"),
        Tags(name="tags", side="item", optional=True),
        Vector(name="picture", shape=(2,), side="item", optional=True),
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
)
ITEM_COLUMNS = ("ad", "price", "tags", "picture")


def catalogue(items: int = 90, seed: int = 0) -> pl.DataFrame:
    """Returns one row per item, with a bid; some have no tags or picture."""
    rng = np.random.default_rng(seed)
    pictures = rng.random((items, 2)).astype(np.float32).tolist()
    return pl.DataFrame(
        {
            "ad": [f"a{i}" for i in range(items)],
            "price": rng.random(items) * 10,
            "tags": [[f"t{j}" for j in range(i % 4)] if i % 5 else None for i in range(items)],
            "picture": [p if i % 7 else None for i, p in enumerate(pictures)],
            "bid": rng.integers(1, 10**6, items),
        },
        schema_overrides={"picture": pl.List(pl.Float32), "tags": pl.List(pl.String)},
    )


def make_log(rows: int = 200, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    items = catalogue()
    seen = items.select(ITEM_COLUMNS)[rng.integers(0, 60, rows)]  # 30 items are new to training
    return seen.with_columns(
        pl.Series("user", [f"u{i}" for i in rng.integers(0, 20, rows)]),
        pl.Series("age", rng.random(rows) * 60),
        pl.Series("hour", rng.integers(0, 24, rows)),
        pl.Series(
            "past", [[f"a{i}" for i in rng.integers(0, 60, n)] for n in rng.integers(0, 5, rows)]
        ),
        pl.Series("click", rng.integers(0, 2, rows)),
        pl.Series("buy", rng.integers(0, 2, rows)),
    )


USERS = (
    {"user": "u3", "age": 30.5, "hour": 7, "past": ["a1", "a50", "nobody"]},
    {"user": "u7"},
    {"user": "a stranger", "past": []},
)


def make_artifact(name: str = "two_tower", *, seed: int = 0, spec: Spec = SPEC) -> Artifact:
    featurizer = Featurizer.fit(spec, make_log().lazy())
    config = model_class(name).Config.tiny()
    torch.manual_seed(seed)
    model = create(name, featurizer.schema, config)
    weights = {
        n: t + 0.3 * torch.randn(t.shape) if t.is_floating_point() else t
        for n, t in model.state_dict().items()
    }
    return Artifact(
        model=name,
        config=config,
        featurizer=featurizer,
        weights=weights,
        calibration={"click": Calibrator(method="platt", y=(-1.0,), slope=0.7)},
    )


def save_artifact(
    folder: Path, name: str = "two_tower", *, seed: int = 0, spec: Spec = SPEC
) -> Path:
    make_artifact(name, seed=seed, spec=spec).save(folder)
    return folder
