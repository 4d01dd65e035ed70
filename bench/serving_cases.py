"""Artefacts and requests of bench/serving.py, every request with the answer that is right.

Weights are drawn at random and not trained, which changes no time; they are drawn wide, so that
every row has a score of its own and an answer to another request is seen to be one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import torch
from frappe import prepare_inputs
from record import WORK
from serving_load import Request

from fullrank.data.spec import Target
from fullrank.data.text import BadRows
from fullrank.model import create, model_class
from fullrank.serve import arrow_body
from fullrank.serve.artifact import Artifact
from fullrank.serve.engine import Engine
from fullrank.workflow.data import DataOptions, find_dataset, open_data
from fullrank.workflow.recipe import load_recipe

FOLDER = WORK / "serving"
# case -> the recipe of its data, and its model where that is another one with its defaults
CASES = {
    "frappe_dcnv2": ("frappe_dcnv2", ""),
    "frappe_rankmixer": ("frappe_rankmixer", ""),
    "habits_din": ("habits_din", ""),
    "two_tower": ("habits_din", "two_tower"),
}


@dataclass(frozen=True, eq=False)
class Case:
    """One artefact on disk, loaded here as well, and raw rows to ask it about."""

    name: str
    folder: Path
    engine: Engine
    rows: pl.DataFrame

    def frame(self, count: int, seed: int) -> pl.DataFrame:
        """Returns rows drawn from the log."""
        return self.rows[np.random.default_rng(seed).integers(0, len(self.rows), count)]

    def ranking(self, count: int, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Returns the side of a user, with the context, and those of the candidates."""
        rows, items = self.frame(count, seed), self.item_columns
        return rows[:1].drop(items), rows.select(items)

    @property
    def item_columns(self) -> list[str]:
        """The raw columns that candidates bring."""
        return [c.name for c in self.engine.wire.sides.item]


@cache
def data_root() -> tuple[Path, bool]:
    """Returns the root of raw data, and True where Frappe is the published one."""
    return prepare_inputs(WORK / "frappe")


def make_case(name: str, named: str = "") -> Case:
    """Makes the artefact of a case, below bench/.work.

    Args:
        name: of CASES.
        named: another name for its folder.
    """
    source, model = CASES[name]
    recipe = load_recipe(source)
    kept = WORK / "forms"
    root, _ = data_root()
    data = open_data(recipe.dataset, DataOptions(root=root, cache=kept))
    torch.manual_seed(1)
    config = model_class(model).Config() if model else recipe.config
    built = create(model or recipe.model, data.schema, config)
    generator = torch.Generator().manual_seed(1)
    weights = {
        key: value + 0.05 * torch.randn(value.shape, generator=generator)
        if value.is_floating_point() and "running" not in key
        else value
        for key, value in built.state_dict().items()
    }
    folder = FOLDER / (named or name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Artifact(
        model=model or recipe.model, config=config, featurizer=data.featurizer, weights=weights
    )
    made.save(folder)
    engine = Engine.load(folder)
    source_data = find_dataset(recipe.dataset)
    if hasattr(source_data, "ready"):
        root = source_data.ready(root, kept.resolve())
    rows = source_data.load(root, BadRows())["test"].head(20_000).collect()
    labels = [c.name for c in data.featurizer.spec.columns if isinstance(c, Target)]
    known = [n for n in rows.columns if n in engine.wire.types and n not in labels]
    return Case(name, folder, engine, rows.select(known))


def objects(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Returns rows as a client would send them; what is empty is left out."""
    return [{n: v for n, v in row.items() if v is not None} for row in frame.to_dicts()]


def score_request(case: Case, count: int, seed: int) -> Request:
    """Returns a request for the probabilities of rows."""
    frame = case.frame(count, seed)
    scores = case.engine.predictor.score(frame)
    answer = {
        "model": case.engine.fingerprint,
        "scores": {name: x.tolist() for name, x in scores.items()},
    }
    body = msgspec.json.encode({"rows": objects(frame)})
    return Request("/v1/score", body, msgspec.json.encode(answer), count)


def rank_request(case: Case, count: int, seed: int, arrow: bool = False) -> Request:
    """Returns a request for a ranking of candidates."""
    user, items = case.ranking(count, seed)
    frame = pl.concat([pl.concat([user] * count), items], how="horizontal")
    scores = case.engine.predictor.score(frame)
    label = case.engine.labels[0]
    order = np.argsort(-scores[label], kind="stable")
    best = {name: x[order] for name, x in scores.items()}
    fingerprint = case.engine.fingerprint
    if arrow:
        streams = [_stream(user), _stream(items)]
        columns = {"candidate": order.astype(np.int32), **best}
        answer = arrow_body.write_stream(columns, {"model": fingerprint})
        return Request("/v1/rank", b"".join(streams), answer, count, arrow_body.MEDIA_TYPE)
    body = msgspec.json.encode({"user": objects(user)[0], "candidates": objects(items)})
    plain = {
        "model": fingerprint,
        "label": label,
        "order": order.tolist(),
        "scores": {name: x.tolist() for name, x in best.items()},
    }
    return Request("/v1/rank", body, msgspec.json.encode(plain), count)


def _stream(frame: pl.DataFrame) -> bytes:
    return arrow_body.write_stream({n: frame[n].to_arrow() for n in frame.columns}, {})


def many(make: Callable[..., Request], case: Case, count: int, rows: int) -> list[Request]:
    """Returns requests of so many rows each, no two of which have the same answer."""
    made = [make(case, rows, seed) for seed in range(count)]
    assert len({r.answer for r in made}) == count, "two requests have the same answer"
    return made
