"""Making the index of a catalogue beside the artefact that encodes it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from fullrank.data.datasets.tabular import read_files
from fullrank.data.spec import Spec
from fullrank.data.text import BadRows
from fullrank.errors import EmptyInputError
from fullrank.workflow.apply import artifact_folder
from fullrank.workflow.console import console, preparing
from fullrank.workflow.data import DataOptions, refusing_broken
from fullrank.workflow.serving import needing_serve

if TYPE_CHECKING:
    from fullrank.serve.pipeline import Retrieval


def index_command(
    folder: Path, items: Path, bid: str, search: Literal["exact", "hnsw"], options: DataOptions
) -> dict[str, Any]:
    """Encodes a catalogue and writes the index into the artefact.

    Args:
        folder: of an artefact whose model is a retriever, or of a run that has one.
        items: file with one row per item.
        bid: column with bids in micro-units of currency; "" for none.
        search: "hnsw" keeps a graph for approximate search, and measures what that misses.
        options: what happens to bad rows.

    Raises:
        ExtraMissingError: the libraries of the server, or of the graph, are not installed.
        ArtifactError: the model of the artefact does not tell users from items.
        EmptyInputError: the file has no rows.
        SchemaError, DataFormatError: it is no catalogue of this artefact's items.
    """
    with needing_serve("fullrank index"):
        from fullrank.serve.engine import Engine
        from fullrank.serve.hnsw import Hnsw
        from fullrank.serve.pipeline import Retrieval
        from fullrank.serve.retrieval import ItemIndex, retriever
    place = artifact_folder(folder)
    engine = Engine.load(place)
    spec, fields = engine.featurizer.spec, retriever(engine.predictor).item_fields
    part = Spec(columns=tuple(c for c in spec.columns if c.name in fields), item=spec.item)
    rows = _read(items, part, options)
    index = ItemIndex.build(engine.predictor, rows, bid)
    if search == "hnsw":
        with preparing("linking") as advance:
            made = Hnsw(index.vectors, done=lambda items: advance("items", items, len(index)))
        index = replace(index, graph=made.graph())
    path = index.save(place, engine.fingerprint)
    console.print(
        f"wrote {len(index):,} vectors of width {index.vectors.shape[1]} to {path}", markup=False
    )
    measured = _said(Retrieval(engine, index, "hnsw")) if search == "hnsw" else None
    return {"out": str(path), "items": len(index), "bid": bid, "measured": measured}


def _read(file: Path, spec: Spec, options: DataOptions) -> pl.DataFrame:
    quarantine = options.quarantine if options.bad_rows == "quarantine" else None
    with refusing_broken(file):
        lazy = read_files(
            file, spec, BadRows(options.bad_rows, quarantine), labels=False, extra=True
        )
        rows = lazy.collect()
    if len(rows) == 0:
        raise EmptyInputError(
            "there is no item to index",
            where=str(file),
            found="0 rows",
            expected="one row per item",
            fix="check the file",
        )
    return rows


def _said(retrieval: Retrieval) -> dict[str, Any]:
    measured = retrieval.measured
    assert measured is not None
    console.print(
        f"approximate search finds {measured.recall:.1%} of the best {measured.at} items of "
        f"{measured.queries} made-up users, in {measured.seconds * 1e3:.2f} ms against "
        f"{measured.exact_seconds * 1e3:.2f} ms for looking at all",
        markup=False,
    )
    return asdict(measured)
