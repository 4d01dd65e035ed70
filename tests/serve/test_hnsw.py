"""Approximate search: what it finds, how it is kept, and graphs that would lead it astray."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fullrank.errors import ArtifactError, ExtraMissingError
from fullrank.serve.artifact import read_manifest
from fullrank.serve.hnsw import Graph, Hnsw, recall
from fullrank.serve.predictor import Predictor
from fullrank.serve.retrieval import ItemIndex
from tests.serve.catalogue import catalogue, save_artifact


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_artifact(tmp_path_factory.mktemp("hnsw") / "artifact")


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor.load(folder)


@pytest.fixture(scope="module")
def index(predictor: Predictor) -> ItemIndex:
    return ItemIndex.build(predictor, catalogue())


def reloaded(folder: Path, predictor: Predictor, index: ItemIndex) -> ItemIndex:
    fingerprint = read_manifest(folder)["fingerprint"]
    index.save(folder, fingerprint)
    return ItemIndex.load(folder, predictor, fingerprint)


def uneven(count: int, seed: int) -> np.ndarray:
    """Vectors of uneven length, whose largest products are not of the nearest."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, 8)) * np.exp(rng.normal(size=(count, 1)))).astype(np.float32)


def test_approximate_search_finds_most_and_its_products_are_true() -> None:
    vectors, queries = uneven(3000, 1), uneven(40, 2)
    exact = ItemIndex(vectors, pl.DataFrame({"ad": range(3000)}), "ad")
    graph = Hnsw(vectors)
    assert recall(exact, graph, queries, 20) > 0.9
    for query in queries[:5]:
        places, products = graph.search(query, 20)
        np.testing.assert_allclose(products, vectors[places] @ query, rtol=1e-4, atol=1e-4)
        assert (np.diff(products) <= 1e-4).all()
    again = Hnsw(vectors)
    for query in queries:
        assert np.array_equal(again.search(query, 20)[0], graph.search(query, 20)[0])
    assert len(graph.search(queries[0], 10**6)[0]) <= 3000
    assert len(Hnsw(vectors[:0]).search(queries[0], 5)[0]) == 0


def test_a_graph_that_was_kept_finds_the_same(
    folder: Path, predictor: Predictor, index: ItemIndex
) -> None:
    made = Hnsw(index.vectors)
    assert reloaded(folder, predictor, index).graph is None
    kept = reloaded(folder, predictor, replace(index, graph=made.graph())).graph
    assert kept is not None
    again = Hnsw(index.vectors, kept)
    other = Hnsw(index.vectors, replace(kept, links=np.full_like(kept.links, -1)))
    for query in uneven(20, 5)[:, : index.vectors.shape[1]]:
        for mine, its in zip(made.search(query, 9), again.search(query, 9), strict=True):
            assert np.array_equal(mine, its)
        assert len(other.search(query, 9)[0]) == 1  # without a link there is no way on


def test_progress_ends_with_every_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fullrank.serve.hnsw._AT_ONCE", 40)
    seen = list[int]()
    Hnsw(uneven(90, 1), done=seen.append)
    assert seen == [40, 80, 90]


def astray(graph: Graph) -> dict[str, Graph]:
    """Graphs that would be read beyond their end, or in a layer where a node is not."""
    top = int(graph.levels.argmax())
    low = int(graph.levels.argmin())
    begin = int(graph.offsets()[top])
    upward = graph.links.copy()
    upward[begin + 64] = low
    far = graph.links.copy()
    far[3] = len(graph.levels)
    deep = graph.levels.copy()
    deep[low] = 2**31 - 1
    return {
        "a neighbour that is not there": replace(graph, links=far),
        "a neighbour below -1": replace(graph, links=np.where(graph.links < 0, -2, graph.links)),
        "a neighbour of a lower layer": replace(graph, links=upward),
        "too few links": replace(graph, links=graph.links[:-1]),
        "long links": replace(graph, links=graph.links.astype(np.int64)),
        "too few levels": replace(graph, levels=graph.levels[:-1]),
        "a level of zero": replace(graph, levels=graph.levels * 0),
        "a deep node": replace(graph, levels=deep),
        "an entry beyond the end": replace(graph, entry=len(graph.levels)),
        "an entry below the top": replace(graph, entry=low),
    }


GRAPH = Hnsw(uneven(500, 1)).graph()


def test_the_graph_of_this_test_has_layers() -> None:
    assert GRAPH.levels.max() >= 2
    assert GRAPH.fault(500) == ""


def test_a_graph_over_nothing_is_refused_in_words() -> None:
    empty = Graph(np.empty(0, np.int32), np.empty(0, np.int32), 0)
    assert empty.fault(0)
    assert empty.fault(1)


@pytest.mark.parametrize("name", astray(GRAPH))
def test_a_graph_that_leads_astray_is_refused(
    folder: Path, predictor: Predictor, name: str
) -> None:
    hostile = astray(GRAPH)[name]
    assert hostile.fault(500)
    index = ItemIndex.build(predictor, catalogue(500))
    with pytest.raises(ArtifactError, match="an index cannot be used"):
        reloaded(folder, predictor, replace(index, graph=hostile))


def test_what_all_items_have_in_common_costs_no_recall() -> None:
    rng = np.random.default_rng(0)
    queries, common = rng.normal(size=(40, 16)), rng.normal(size=16)
    vectors = (rng.normal(size=(3000, 16)) + 5 * common).astype(np.float32)
    queries = queries.astype(np.float32)
    exact = ItemIndex(vectors, pl.DataFrame({"ad": range(3000)}), "ad")
    assert recall(exact, Hnsw(vectors), queries, 20) > 0.9
    graph = Hnsw(vectors)
    graph._index.reset()
    graph._index.add(vectors)  # with what is common left in
    assert recall(exact, graph, queries, 20) < 0.5


def test_recall_is_the_share_that_was_found() -> None:
    vectors, queries = uneven(60, 1), uneven(7, 2)
    exact = ItemIndex(vectors, pl.DataFrame({"ad": range(60)}), "ad")

    class Half:
        def search(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            places, products = exact.search(query, k)
            return places[::2], products[::2]

    assert recall(exact, exact, queries, 10) == 1.0
    assert recall(exact, Half(), queries, 10) == 0.5
    blind = Hnsw(np.random.default_rng(0).permutation(vectors))
    assert recall(exact, blind, queries, 10) < 0.5


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ExtraMissingError, match="optional library"):
        Hnsw(uneven(3, 0))
