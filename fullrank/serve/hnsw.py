"""Approximate search: a navigable graph over the vectors of an index, and how much it misses.

HNSW (Malkov & Yashunin, arXiv:1603.09320) as faiss has it, by inner product, of vectors without
their mean. What all items have in common adds the same to every product of a query and changes no
order, but a graph of vectors that all point one way, as those of trained towers do, leaves most of
them out of reach: among 20,000 vectors of 32 dimensions and uneven length, all moved by twice the
length of a typical one, the share of the true first hundred that is found rises from 0.35 to 0.999.
A further dimension that makes all vectors equally long (Bachrach et al., RecSys 2014) was tried and
left out: without any common part, that share fell from 0.98 to 0.13.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fullrank.errors import ExtraMissingError

_LINKS, _BUILD_EFFORT = 32, 80  # of every node; neighbours that are weighed when it is added
_AT_ONCE = 5000  # vectors that are added between two words of how far it is
_MOST_LAYERS = 32  # a layer has a 32nd of the nodes below it
_EFFORT = 4  # nodes that are kept in sight per item asked for, at least


class Search(Protocol):
    """Finds items by their product with a query."""

    def search(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns places [k] int64, best first, and products [k], for a query [D]."""
        ...


@dataclass(frozen=True, eq=False)
class Graph:
    """The links of a graph, as data: it takes minutes to make over a million vectors.

    Args:
        levels: [I] int32, 1 or more: in how many layers a node stands.
        links: int32: for each node 2 * 32 neighbours of the lowest layer, then 32 of each further
            one; -1 for none.
        entry: a node of the highest layer, where a search begins.
    """

    levels: np.ndarray
    links: np.ndarray
    entry: int

    def offsets(self) -> np.ndarray:
        """Returns [I + 1] uint64, where the links of each node begin."""
        ends = np.cumsum(_LINKS * (self.levels.astype(np.int64) + 1))
        return np.concatenate([[0], ends]).astype(np.uint64)

    def fault(self, size: int) -> str:
        """Returns what would lead a search over `size` vectors astray; "" for nothing."""
        levels, links = self.levels, self.links
        if size == 0:
            return "a graph over nothing"
        if levels.dtype != np.int32 or links.dtype != np.int32 or levels.shape != (size,):
            return f"levels of {levels.dtype} {levels.shape}, links of {links.dtype}"
        if not 1 <= levels.min() <= levels.max() <= _MOST_LAYERS:
            return f"a node in {levels.max()} layers"
        offsets = self.offsets().astype(np.int64)
        if links.shape != (offsets[-1],) or not -1 <= links.min() <= links.max() < size:
            return f"links {links.shape} up to {links.max(initial=-1)}"
        if not 0 <= self.entry < size or levels[self.entry] != levels.max():
            return f"a search that begins at {self.entry}"
        for layer in range(1, int(levels.max())):  # a neighbour must stand in the layer as well
            nodes = np.flatnonzero(levels > layer)
            start = offsets[nodes] + _LINKS * (layer + 1)
            there = links[start[:, None] + np.arange(_LINKS)]
            if (levels[there[there >= 0]] <= layer).any():
                return f"a link of layer {layer} that leads out of it"
        return ""


class Hnsw:
    """A graph that is searched instead of all vectors.

    Args:
        vectors: [I, D] float32.
        graph: over the same vectors, without a fault; made anew when None.
        done: is told how many vectors a new graph has.
        effort: nodes in sight per search, at least; more find more and take longer.

    Raises:
        ExtraMissingError: faiss is not installed.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        graph: Graph | None = None,
        done: Callable[[int], None] = lambda vectors: None,
        effort: int = 200,
    ) -> None:
        faiss = _faiss()
        self.effort, self._size = effort, len(vectors)
        total = vectors.sum(axis=0, dtype=np.float64)  # [D]; an index may be empty
        self._mean = (total / max(1, len(vectors))).astype(np.float32)
        self._index = faiss.IndexHNSWFlat(vectors.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = _BUILD_EFFORT
        self._parameters = faiss.SearchParametersHNSW
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # so that every process makes the same graph
        try:
            if graph is not None:
                self._restore(vectors - self._mean, graph)
            else:
                for start in range(0, len(vectors), _AT_ONCE):
                    self._index.add(vectors[start : start + _AT_ONCE] - self._mean)
                    done(self._index.ntotal)
        finally:
            faiss.omp_set_num_threads(threads)

    def graph(self) -> Graph:
        """Returns the links, to be kept with the vectors."""
        faiss, hnsw = _faiss(), self._index.hnsw
        levels, links = map(faiss.vector_to_array, (hnsw.levels, hnsw.neighbors))
        return Graph(levels, links, int(hnsw.entry_point))

    def search(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns up to k places, best first, and their products; see `ItemIndex.search`."""
        k = min(k, self._size)
        if k == 0:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        how = self._parameters(efSearch=max(self.effort, _EFFORT * k))
        products, places = self._index.search(query[None], k, params=how)
        found = places[0] >= 0  # -1 where the graph led nowhere
        return places[0][found], products[0][found] + query @ self._mean

    def _restore(self, vectors: np.ndarray, graph: Graph) -> None:
        faiss, hnsw = _faiss(), self._index.hnsw
        self._index.storage.add(vectors)
        self._index.ntotal = len(vectors)
        faiss.copy_array_to_vector(graph.levels, hnsw.levels)
        faiss.copy_array_to_vector(graph.offsets(), hnsw.offsets)
        faiss.copy_array_to_vector(graph.links, hnsw.neighbors)
        hnsw.entry_point, hnsw.max_level = graph.entry, int(graph.levels.max()) - 1


def recall(exact: Search, approximate: Search, queries: np.ndarray, k: int) -> float:
    """Returns the mean share of the k best items that the approximate search finds.

    Args:
        exact: looks at all vectors.
        approximate: over the same vectors.
        queries: [Q, D], at least one.
        k: how many items are asked for.
    """
    shares = []
    for query in queries:
        best, _ = exact.search(query, k)
        found, _ = approximate.search(query, k)
        shares.append(len(np.intersect1d(best, found)) / max(1, len(best)))
    return float(np.mean(shares))


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as cause:
        raise ExtraMissingError(
            "an optional library is not installed",
            where="approximate search",
            found=str(cause),
            expected="the extra 'retrieve'",
            fix="pip install 'fullrank[retrieve]', or search exactly",
        ) from cause
    return faiss
