"""Pipeline: from a user to the items that are shown: retrieve, rank, sell, in one process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fullrank.config import require
from fullrank.errors import AuctionError, RequestError, nearest
from fullrank.ops.blocks import score_in_blocks
from fullrank.serve.auction import AuctionRules, Award, run_auction
from fullrank.serve.engine import Engine
from fullrank.serve.hnsw import Hnsw, Search, recall
from fullrank.serve.retrieval import ItemIndex
from fullrank.serve.two_sided import TwoSided
from fullrank.serve.wire import Given
from fullrank.testing import random_batch

_QUERIES, _RECALL_AT = 200, 100  # made-up users whose items are looked for when an index is loaded


@dataclass(frozen=True, eq=False)
class Retrieved:
    """Items of an index for one user.

    Args:
        places: [k] int64 in the index, best first.
        probabilities: label -> [k] float32, calibrated where the artefact is.
    """

    places: np.ndarray
    probabilities: dict[str, np.ndarray]


@dataclass(frozen=True)
class Measured:
    """What approximate search misses and costs, against looking at every item.

    Args:
        recall: share of the true first `at` items that was found, the mean over `queries` users.
        at: items asked for.
        queries: made-up users: values drawn evenly from those that training saw.
        build_seconds: to make the graph, or to read one that was kept.
        exact_seconds: of one exact search.
        seconds: of one approximate search.
    """

    recall: float
    at: int
    queries: int
    build_seconds: float
    exact_seconds: float
    seconds: float


class Retrieval:
    """A model of two sides and the index of its items.

    Args:
        engine: of an artefact whose model is a `Retriever`.
        index: of the same artefact.
        search: "exact": looks at every item; "hnsw": at a few, and misses some.

    Attributes:
        sides: ranks candidates by the same vectors.
        measured: what "hnsw" misses; None for "exact".

    Raises:
        ArtifactError: the model does not tell users from items.
        ExtraMissingError: "hnsw" without faiss.
    """

    def __init__(
        self, engine: Engine, index: ItemIndex, search: Literal["exact", "hnsw"] = "exact"
    ) -> None:
        self.engine, self.index = engine, index
        self.sides = TwoSided(engine, index)
        self.measured: Measured | None = None
        self._search: Search = index
        if search == "hnsw":
            began = time.perf_counter()
            self._search = Hnsw(index.vectors, index.graph)
            self.measured = self._measure(time.perf_counter() - began)

    @classmethod
    def load(
        cls, folder: Path, engine: Engine, search: Literal["exact", "hnsw"] = "exact"
    ) -> Retrieval:
        """Loads the index of an artefact folder that an engine has loaded.

        Raises:
            ArtifactError: there is no index, it was changed, or another artefact made it.
        """
        index = ItemIndex.load(folder, engine.predictor, engine.fingerprint)
        return cls(engine, index, search)

    def retrieve(
        self, user: Mapping[str, Any] | Given, k: int, label: str | None = None
    ) -> Retrieved:
        """Finds the items that a user likes best.

        Args:
            user: raw columns of the user and the context, as for a ranking.
            k: how many; fewer where there are fewer items.
            label: by which items are ordered; the first of the schema when None.

        Raises:
            RequestError, DataFormatError: the user cannot be encoded, there is no such label, or
                k is below 1.
        """
        wanted = self._label(label)
        if k < 1:
            raise _refused("k", str(k), "1 or more", "ask for at least one item")
        first = np.zeros(1, dtype=np.int64)  # a user is encoded with an item, whichever
        item = self.index.given(first) if isinstance(user, Given) else self.index.rows(first)
        batch = self.engine.encode_rank(user, item)
        vectors = self.sides.user(batch)
        places, _ = self._search.search(vectors[wanted][0].numpy(), k)
        return Retrieved(places, self.sides.matched(vectors, self.index.vectors[places]))

    def _label(self, label: str | None) -> str:
        labels = self.engine.labels
        if label is not None and label not in labels:
            fix = nearest(label, labels)
            raise _refused("label", f"'{label[:40]}'", "one of: " + ", ".join(labels), fix)
        return label or labels[0]

    def _measure(self, build_seconds: float) -> Measured:
        users = random_batch(
            self.engine.artifact.schema, _QUERIES, torch.Generator().manual_seed(0)
        )
        with torch.inference_mode():
            vectors = score_in_blocks(self.sides.model.encode_user, users)
        queries, at = vectors[self.engine.labels[0]].numpy(), min(_RECALL_AT, len(self.index))
        return Measured(
            recall=recall(self.index, self._search, queries, at),
            at=at,
            queries=_QUERIES,
            build_seconds=build_seconds,
            exact_seconds=_seconds(self.index, queries, at),
            seconds=_seconds(self._search, queries, at),
        )


@dataclass(frozen=True)
class Placement:
    """An item that is shown.

    Args:
        item: its name.
        place: in the index.
        probability: calibrated, of the event that is paid for.
        award: slot and price; `award.candidate` is its place among the retrieved.
    """

    item: Any
    place: int
    probability: float
    award: Award


class Pipeline:
    """Retrieves candidates, ranks them, and sells the slots.

    Args:
        retrieval: finds candidates; its index keeps the bids.
        ranker: of the probabilities; the retrieval model itself when None. Its columns are among
            those of the index and the user.
        label: the event that is paid for.

    Raises:
        AuctionError: the index keeps no bids.
        ConfigError: there is no such label.
    """

    def __init__(self, retrieval: Retrieval, ranker: Engine | None, label: str) -> None:
        self.retrieval, self.ranker, self.label = retrieval, ranker, label
        for engine in (retrieval.engine, ranker or retrieval.engine):
            require(
                label in engine.labels,
                where="Pipeline.label",
                found=f"'{label}'",
                expected=f"a label of model '{engine.artifact.model}'",
                fix=nearest(label, engine.labels),
            )
        index = retrieval.index
        if not index.bid:
            raise AuctionError(
                "there is nothing to sell by",
                where="the index",
                found="no column with bids",
                expected="bids, whole numbers in micro-units of currency",
                fix="make it again with `fullrank index --bid COLUMN`",
            )
        self._bids = index.items[index.bid].to_list()

    def run(self, user: Mapping[str, Any], k: int, rules: AuctionRules) -> list[Placement]:
        """Fills the slots for one user.

        Args:
            user: raw columns of the user and the context.
            k: how many items are retrieved and ranked.
            rules: of the auction.

        Returns:
            Best slot first; ties go to what was retrieved first.
        """
        known = self._known(self.retrieval.engine, user)
        return self.sell(user, self.retrieval.retrieve(known, k, self.label), rules)

    def sell(
        self, user: Mapping[str, Any], found: Retrieved, rules: AuctionRules
    ) -> list[Placement]:
        """Fills the slots for one user with some of what was retrieved."""
        chances = self._probabilities(user, found)
        bids = [self._bids[place] for place in found.places]
        index = self.retrieval.index
        return [
            Placement(
                item=index.items[index.item][int(found.places[award.candidate])],
                place=int(found.places[award.candidate]),
                probability=chances[award.candidate],
                award=award,
            )
            for award in run_auction(bids, chances, rules)
        ]

    def _probabilities(self, user: Mapping[str, Any], found: Retrieved) -> list[float]:
        if self.ranker is None:
            values: list[float] = found.probabilities[self.label].tolist()
            return values
        rows = self.retrieval.index.rows(found.places)
        candidates = [self._known(self.ranker, row) for row in rows]
        batch = self.ranker.encode_rank(self._known(self.ranker, user), candidates)
        ranked: list[float] = self.ranker.score(batch)[self.label].tolist()
        return ranked

    def _known(self, engine: Engine, row: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a row without the columns that only the other of the two models reads."""
        if self.ranker is None:
            return dict(row)
        other = self.ranker if engine is self.retrieval.engine else self.retrieval.engine
        mine, theirs = set(engine.wire.known), set(other.wire.known)
        return {n: v for n, v in row.items() if n in mine or n not in theirs}


def _seconds(search: Search, queries: np.ndarray, k: int) -> float:
    began = time.perf_counter()
    for query in queries:
        search.search(query, k)
    return (time.perf_counter() - began) / len(queries)


def _refused(name: str, found: str, expected: str, fix: str) -> RequestError:
    return RequestError(
        "a retrieval cannot be done as asked", where=name, found=found, expected=expected, fix=fix
    )
