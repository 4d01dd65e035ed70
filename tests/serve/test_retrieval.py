"""The index of a catalogue: what it holds, what it finds, and what it refuses to be."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from fullrank.errors import ArtifactError, DataFormatError, SchemaError
from fullrank.serve.arrow_body import write_stream
from fullrank.serve.artifact import read_manifest
from fullrank.serve.predictor import Predictor
from fullrank.serve.retrieval import FILE, ItemIndex, encode_items
from tests.serve.catalogue import ITEM_COLUMNS, catalogue, make_artifact, save_artifact


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_artifact(tmp_path_factory.mktemp("retrieval") / "artifact")


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor.load(folder)


@pytest.fixture(scope="module")
def index(predictor: Predictor) -> ItemIndex:
    return ItemIndex.build(predictor, catalogue(), "bid")


def load(folder: Path, predictor: Predictor) -> ItemIndex:
    return ItemIndex.load(folder, predictor, read_manifest(folder)["fingerprint"])


def test_vectors_are_those_of_whole_rows_alone_or_together(
    predictor: Predictor, index: ItemIndex
) -> None:
    items = catalogue()
    whole = items.with_columns(pl.lit("u1").alias("user"), pl.lit(3.0).alias("age"))
    with torch.inference_mode():
        vectors = predictor.model.encode_item(predictor.encode(whole)).numpy()
    np.testing.assert_allclose(index.vectors, vectors, rtol=1e-5, atol=1e-6)
    assert len(np.unique(index.vectors, axis=0)) == len(items)
    for row in (0, 7, 89):
        assert np.array_equal(encode_items(predictor, items[row]), index.vectors[row : row + 1])


def test_an_index_keeps_what_belongs_to_the_item_and_the_bid(index: ItemIndex) -> None:
    assert set(index.items.columns) == {*ITEM_COLUMNS, "bid"}
    assert index.rows(np.array([5])) == [
        {k: v for k, v in catalogue().row(5, named=True).items() if v is not None and k != "bid"}
    ]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(1, 14), st.integers(0, 2**31))
def test_exact_search_is_a_sort_by_product_and_place(items: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (items, 2)).astype(np.float32)  # many ties
    query = rng.integers(-2, 3, 2).astype(np.float32)
    index = ItemIndex(vectors, pl.DataFrame({"ad": range(items)}), "ad")
    places, products = index.search(query, k)
    expected = sorted(range(items), key=lambda i: (-float(vectors[i] @ query), i))[:k]
    assert places.tolist() == expected
    assert products.tolist() == [float(vectors[i] @ query) for i in expected]


def test_a_candidate_is_known_only_with_the_values_that_were_encoded(index: ItemIndex) -> None:
    rows = index.rows(np.arange(10))
    columns = {n: [row.get(n) for row in rows] for n in ITEM_COLUMNS}
    assert index.places(columns, 10).tolist() == list(range(10))
    columns["ad"] = ["a3", *columns["ad"][1:8], "new", None]  # the first has another's properties
    columns["price"] = [*columns["price"][:4], 99.0, *columns["price"][5:]]
    assert index.places(columns, 10).tolist() == [-1, 1, 2, 3, -1, 5, 6, 7, -1, -1]
    del columns["tags"]  # an absent column is an empty value, as when it is scored
    assert index.places(columns, 10).tolist() == [-1, -1, -1, -1, -1, 5, -1, -1, -1, -1]
    assert index.places({}, 2).tolist() == [-1, -1]


def test_saved_and_loaded_it_is_the_same(
    folder: Path, predictor: Predictor, index: ItemIndex
) -> None:
    index.save(folder, read_manifest(folder)["fingerprint"])
    again = load(folder, predictor)
    assert np.array_equal(again.vectors, index.vectors)
    assert again.items.equals(index.items)
    assert (again.item, again.bid) == ("ad", "bid")
    assert again.rows(np.arange(90)) == index.rows(np.arange(90))
    assert Predictor.load(folder)  # the artefact is as whole as before


def resigned(path: Path, change: Callable[[dict[str, np.ndarray], dict[str, str]], None]) -> None:
    """Changes an index and gives it the hash that its new contents have."""
    from fullrank.serve import retrieval

    tensors, said = retrieval._read(path)
    change(tensors, said)
    save_file(tensors, path, said | {"sha256": retrieval._digest(tensors, said)})


def _nan(t: dict[str, np.ndarray], _: dict[str, str]) -> None:
    t["vectors"] = np.where(np.arange(90)[:, None] == 50, np.float32(np.nan), t["vectors"])


def _others(t: dict[str, np.ndarray], _: dict[str, str]) -> None:
    t["vectors"] = t["vectors"] + 1


def _narrow(t: dict[str, np.ndarray], _: dict[str, str]) -> None:
    t["vectors"] = np.ascontiguousarray(t["vectors"][:, :1])


def _fewer(t: dict[str, np.ndarray], _: dict[str, str]) -> None:
    t["vectors"] = t["vectors"][:-1]


def _more(t: dict[str, np.ndarray], _: dict[str, str]) -> None:
    t["vectors"] = np.concatenate([t["vectors"], t["vectors"][:1]])


def _none(t: dict[str, np.ndarray], _: dict[str, str]) -> None:
    empty = catalogue(0).select(*ITEM_COLUMNS, "bid").to_arrow()
    stream = write_stream({n: empty[n] for n in empty.column_names}, {})
    t["vectors"], t["items"] = t["vectors"][:0], np.frombuffer(stream, dtype=np.uint8)


def _double(t: dict[str, np.ndarray], _: dict[str, str]) -> None:
    t["vectors"] = t["vectors"].astype(np.float64)


def _broken_rows(t: dict[str, np.ndarray], _: dict[str, str]) -> None:
    t["items"] = t["items"][: len(t["items"]) // 2]


def _other_item(_: dict[str, np.ndarray], said: dict[str, str]) -> None:
    said["item"] = "price"


def _no_bid(_: dict[str, np.ndarray], said: dict[str, str]) -> None:
    said["bid"] = "tags"


def _later(_: dict[str, np.ndarray], said: dict[str, str]) -> None:
    said["format"] = "2"


def _elsewhere(_: dict[str, np.ndarray], said: dict[str, str]) -> None:
    said["artifact"] = "0" * 16


CHANGES = (
    *(_nan, _others, _narrow, _fewer, _more, _none, _double),
    *(_broken_rows, _other_item, _no_bid, _later, _elsewhere),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_forged_index_is_refused(
    predictor: Predictor,
    folder: Path,
    index: ItemIndex,
    change: Callable[[dict[str, np.ndarray], dict[str, str]], None],
) -> None:
    path = index.save(folder, read_manifest(folder)["fingerprint"])
    resigned(path, lambda t, said: None)
    load(folder, predictor)  # the forger can sign
    resigned(path, change)
    with pytest.raises(ArtifactError, match="an index cannot be used"):
        load(folder, predictor)


def test_a_changed_broken_linked_or_absent_file_is_refused(
    predictor: Predictor, folder: Path, index: ItemIndex, tmp_path: Path
) -> None:
    path = index.save(folder, read_manifest(folder)["fingerprint"])
    whole = path.read_bytes()
    price = whole.index(struct.pack("<d", index.items["price"][50]))  # in the middle of the rows
    huge = json.dumps(
        {"vectors": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 8]}}
    )
    hostile = [
        whole[:price] + struct.pack("<d", 1.0) + whole[price + 8 :],
        whole[:100],
        b"",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", len(huge)) + huge.encode() + b"\0" * 8,
    ]
    for contents in hostile:
        path.write_bytes(contents)
        with pytest.raises(ArtifactError, match="an index cannot be used"):
            load(folder, predictor)
    path.unlink()
    with pytest.raises(ArtifactError, match="an index cannot be used"):
        load(folder, predictor)
    (tmp_path / "elsewhere").write_bytes(whole)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="an index cannot be used"):
        load(folder, predictor)
    path.unlink()


def test_an_index_of_an_older_artefact_is_refused(
    predictor: Predictor, index: ItemIndex, tmp_path: Path
) -> None:
    newer = save_artifact(tmp_path / "newer", seed=1)
    index.save(newer, read_manifest(newer)["fingerprint"])  # even under the newer one's name
    with pytest.raises(ArtifactError, match="an index cannot be used"):
        load(newer, Predictor.load(newer))


def test_a_model_that_reads_both_sides_together_has_no_index() -> None:
    with pytest.raises(ArtifactError, match="no vectors of users and items"):
        ItemIndex.build(Predictor(make_artifact("lr")), catalogue())


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda c: c.drop("ad"), SchemaError, "lacks a column"),
        (lambda c: c.drop("bid"), SchemaError, "lacks a column"),
        (lambda c: c.drop("price"), SchemaError, "price"),
        (lambda c: pl.concat([c, c[:1]]), DataFormatError, "the name of another"),
        (lambda c: c.with_columns(ad=pl.lit(None, pl.String)), DataFormatError, "no name"),
        (lambda c: c.with_columns(bid=pl.col("bid") + 0.5), DataFormatError, "no whole number"),
        (lambda c: c.with_columns(bid=-pl.col("bid")), DataFormatError, "no whole number"),
        (lambda c: c.with_columns(bid=pl.lit("1e3")), DataFormatError, "no whole number"),
        (lambda c: c.with_columns(picture=pl.lit("none")), DataFormatError, "encoded"),
    ],
)
def test_catalogues_that_cannot_be_an_index_are_refused(
    predictor: Predictor,
    change: Callable[[pl.DataFrame], pl.DataFrame],
    error: type[Exception],
    said: str,
) -> None:
    with pytest.raises(error, match=said):
        ItemIndex.build(predictor, change(catalogue()), "bid")


def test_names_get_the_type_that_training_saw(predictor: Predictor) -> None:
    text = catalogue(3).with_columns(bid=pl.col("bid").cast(pl.String))
    assert ItemIndex.build(predictor, text, "bid").items["bid"].dtype == pl.Int64
    numbers = catalogue(3).with_columns(ad=pl.Series([1, 2, 3]))
    assert ItemIndex.build(predictor, numbers).items["ad"].to_list() == ["1", "2", "3"]


def test_the_file_holds_data_alone(folder: Path, index: ItemIndex) -> None:
    path = index.save(folder, read_manifest(folder)["fingerprint"])
    assert path.name == FILE
    assert {n: t.dtype.name for n, t in load_file(path).items()} == {
        "vectors": "float32",
        "items": "uint8",
    }
