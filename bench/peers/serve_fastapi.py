"""The server that one would write first: FastAPI, pydantic, and the model called per request.

    python bench/peers/serve_fastapi.py ARTIFACT --port 8000

A pydantic model of a row, checked by pydantic; `async` handlers, which saves FastAPI the way to a
thread and back; one uvicorn worker with llhttp. There are two ways to make tensors of the rows:
`/v1/polars` gives them to the featurizer that training used, `/v1/dictionaries` looks up every
value in a dictionary. The model then runs once, on exactly the rows of the request.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import polars as pl
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, Field

from fullrank.batch import Batch
from fullrank.data.encode import assemble
from fullrank.serve.artifact import Artifact


class Row(BaseModel):
    """One row of Frappe."""

    user: int
    item: int
    daytime: int
    weekday: int
    isweekend: int
    homework: int
    cost: int
    weather: int
    country: int
    city: int


class Question(BaseModel):
    """Rows to score."""

    rows: list[Row] = Field(min_length=1, max_length=5000)


class Answer(BaseModel):
    """Probabilities by label."""

    scores: dict[str, list[float]]


def make_app(folder: Path) -> FastAPI:
    artifact = Artifact.load(folder)
    model, featurizer = artifact.build(), artifact.featurizer
    labels = tuple(label.name for label in artifact.schema.labels)
    names = tuple(f.name for f in artifact.schema.categorical())
    words = {
        n: dict(zip(featurizer.vocabularies[n].values.to_list(), range(1, 1 << 30), strict=False))
        for n in names
    }
    app = FastAPI()

    def answered(batch: Batch) -> Answer:
        with torch.inference_mode():
            logits = model.score(batch)
        return Answer(scores={n: torch.sigmoid(x).tolist() for n, x in logits.items()})

    @app.get("/readyz")
    async def ready() -> dict[str, Any]:
        return {}

    @app.post("/v1/polars")
    async def by_polars(question: Question) -> Answer:
        return answered(featurizer(pl.DataFrame([row.model_dump() for row in question.rows])))

    @app.post("/v1/dictionaries")
    async def by_dictionaries(question: Question) -> Answer:
        ids = [[words[n].get(getattr(row, n), 0) for n in names] for row in question.rows]
        block = torch.tensor(ids, dtype=torch.int32)
        batch = assemble(artifact.schema, labels, len(ids), {"categorical": block}, {})
        return answered(batch)

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    uvicorn.run(
        make_app(options.folder), port=options.port, http="httptools", access_log=False,
        log_level="warning",
    )  # fmt: skip


if __name__ == "__main__":
    main()
