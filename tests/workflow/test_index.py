"""`fullrank index`: from a file of items to an index that a server can load."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fullrank.cli import main
from fullrank.serve.auction import AuctionRules
from fullrank.serve.engine import Engine
from fullrank.serve.pipeline import Pipeline, Retrieval
from fullrank.serve.retrieval import FILE, ItemIndex
from tests.serve.catalogue import USERS, catalogue, save_artifact


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    last: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return last


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_file_of_items_becomes_an_index(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = save_artifact(tmp_path / "artifact"), tmp_path / f"items.{ending}"
    items = catalogue().with_columns(pl.lit("not an item's").alias("note"))
    if ending == "parquet":
        items.write_parquet(file)
    else:
        items.with_columns(
            pl.col("tags", "picture").cast(pl.List(pl.String)).list.join("|")
        ).write_csv(file)
    asked = ["index", str(folder), str(file), "--bid", "bid", "--json"]
    assert main([*asked, *(["--search", "hnsw"] if ending == "csv" else [])]) == 0
    result = said(capsys)
    assert (result["items"], result["bid"], result["out"]) == (90, "bid", str(folder / FILE))
    if ending == "csv":
        assert result["measured"]["recall"] == 1.0  # type: ignore[index]
    else:
        assert result["measured"] is None
    engine = Engine.load(folder)
    retrieval = Retrieval.load(folder, engine)
    direct = ItemIndex.build(engine.predictor, catalogue(), "bid")
    np.testing.assert_allclose(retrieval.index.vectors, direct.vectors, rtol=1e-6, atol=1e-6)
    assert (retrieval.index.graph is None) == (ending == "parquet")
    assert "note" not in retrieval.index.items.columns
    assert len(Pipeline(retrieval, None, "click").run(USERS[0], 9, AuctionRules(slots=2))) == 2


def test_what_cannot_be_indexed_ends_in_five_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = save_artifact(tmp_path / "ranker", "lr")
    folder, file = save_artifact(tmp_path / "artifact"), tmp_path / "items.parquet"
    catalogue().write_parquet(file)
    catalogue(0).write_parquet(tmp_path / "none.parquet")
    for asked, error in (
        ([ranker, file], "ArtifactError"),
        ([folder, tmp_path / "none.parquet"], "EmptyInputError"),
        ([folder, tmp_path / "absent.csv"], "DataMissingError"),
        ([folder, file, "--bid", "price"], "DataFormatError"),
        ([folder, file, "--bid", "bidd"], "SchemaError"),
    ):
        assert main(["index", *map(str, asked), "--json"]) == 1
        assert said(capsys)["error"] == error
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert main(["index", str(folder), str(file), "--search", "hnsw", "--json"]) == 2
    assert said(capsys)["error"] == "ExtraMissingError"
    assert not (folder / FILE).exists()
    assert main(["index", str(folder), str(file), "--json"]) == 0
    assert said(capsys)["measured"] is None
