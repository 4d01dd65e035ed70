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

from typing import Any, Protocol

import numpy as np

from fullrank.errors import ExtraMissingError

_LINKS, _BUILD_EFFORT = 32, 80  # of every node; neighbours that are weighed when it is added
_EFFORT = 4  # nodes that are kept in sight per item asked for, at least


class Search(Protocol):
    """Finds items by their product with a query."""

    def search(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns places [k] int64, best first, and products [k], for a query [D]."""
        ...


class Hnsw:
    """A graph that is searched instead of all vectors.

    Args:
        vectors: [I, D] float32.
        effort: nodes in sight per search, at least; more find more and take longer.

    Raises:
        ExtraMissingError: faiss is not installed.
    """

    def __init__(self, vectors: np.ndarray, effort: int = 200) -> None:
        faiss = _faiss()
        self.effort, self._size = effort, len(vectors)
        total = vectors.sum(axis=0, dtype=np.float64)  # [D]; an index may be empty
        self._mean = (total / max(1, len(vectors))).astype(np.float32)
        self._graph = faiss.IndexHNSWFlat(vectors.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
        self._graph.hnsw.efConstruction = _BUILD_EFFORT
        self._parameters = faiss.SearchParametersHNSW
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # so that every process makes the same graph
        try:
            self._graph.add(vectors - self._mean)
        finally:
            faiss.omp_set_num_threads(threads)

    def search(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns up to k places, best first, and their products; see `ItemIndex.search`."""
        k = min(k, self._size)
        if k == 0:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        how = self._parameters(efSearch=max(self.effort, _EFFORT * k))
        products, places = self._graph.search(query[None], k, params=how)
        found = places[0] >= 0  # -1 where the graph led nowhere
        return places[0][found], products[0][found] + query @ self._mean


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
