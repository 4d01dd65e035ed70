"""ItemIndex: the vectors of a catalogue, beside the artefact that made them.

    ARTIFACT/index.safetensors    vectors [I, D], the raw rows of the items as an Arrow stream, and
                                  the links of a graph for approximate search, if it has one

The file is data, like the artefact: the files of libraries for approximate search may not be read
from strangers, so that a graph is kept as plain numbers, each of which is checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from fullrank.batch import Batch
from fullrank.data.featurizer import Featurizer
from fullrank.data.spec import Category, Target
from fullrank.disk import written_whole
from fullrank.errors import ArtifactError, DataFormatError, RequestError, SchemaError, nearest
from fullrank.model import Retriever
from fullrank.ops.blocks import score_in_blocks
from fullrank.serve.arrow_body import read_streams, write_stream
from fullrank.serve.hnsw import Graph
from fullrank.serve.predictor import Predictor
from fullrank.serve.values import Values
from fullrank.serve.wire import Given

FILE = "index.safetensors"
_FORMAT = "1"
_GRAPH = ("levels", "links", "entry")


@dataclass(frozen=True, eq=False)
class ItemIndex:
    """Every item of a catalogue, with its vector.

    Args:
        vectors: [I, D] float32, finite.
        items: I raw rows: the columns that a vector depends on, and the bid if there is one.
        item: column with the names of the items, each once.
        bid: column with bids in micro-units of currency, or "".
        graph: over the vectors, for approximate search; None where none was kept.
    """

    vectors: np.ndarray
    items: pl.DataFrame
    item: str
    bid: str = ""
    graph: Graph | None = None

    @classmethod
    def build(cls, predictor: Predictor, items: pl.DataFrame, bid: str = "") -> ItemIndex:
        """Encodes a catalogue.

        Args:
            predictor: of an artefact whose model is a `Retriever`.
            items: raw rows, one per item; columns that are not the item's are left out.
            bid: column with bids, whole numbers in micro-units, to keep; "" for none.

        Raises:
            ArtifactError: the model does not tell users from items.
            SchemaError: a column is missing.
            DataFormatError: an item occurs twice or has no name, or a bid is no whole number.
        """
        model, item = retriever(predictor), _item(predictor)
        for name in (item, *([bid] if bid else [])):
            if name not in items.columns:
                raise _missing(name, items.columns)
        used = [n for n in model.item_fields if n in items.columns]
        kept = items.select(*used, *([] if not bid or bid in used else [bid]))
        kept = _named(kept, item, predictor.artifact.featurizer)
        if bid:
            kept = _whole_bids(kept, bid)
        vectors = encode_items(predictor, kept)
        return cls(vectors, kept, item, bid)

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the items of largest product with a query, by looking at all of them.

        Args:
            query: [D] float32.
            k: how many; fewer where there are fewer items.

        Returns:
            Places [k] int64 in the index, best first, ties in its order; and products [k].
        """
        products = self.vectors @ query  # [I]
        k = min(k, len(products))
        if k == 0:
            return np.empty(0, dtype=np.int64), products
        least = np.partition(products, len(products) - k)[len(products) - k]
        among = np.flatnonzero(products >= least)  # k, or more if there are ties
        best = among[np.argsort(-products[among], kind="stable")[:k]]
        return best, products[best]

    def places(self, columns: Mapping[str, Sequence[Any]], rows: int) -> np.ndarray:
        """Finds candidates whose vectors are known.

        A candidate is known if the index has its item with just these values; one whose price has
        changed since must be encoded again. An absent column is an empty value.

        Args:
            columns: raw column -> [rows] plain values.
            rows: B.

        Returns:
            [B] int64, the place in the index or -1.
        """
        ids = columns.get(self.item, [None] * rows)
        at = self._at
        found = np.fromiter((at.get(i, -1) for i in ids), dtype=np.int64, count=rows)
        for name in self._values.keys() - {self.item}:
            stored = self._values[name]
            given = columns.get(name, [None] * rows)
            for row in np.flatnonzero(found >= 0).tolist():
                if stored[found[row]] != given[row]:
                    found[row] = -1
        return found

    def rows(self, places: np.ndarray) -> list[dict[str, Any]]:
        """Returns raw candidates as a request would give them: no bids, no empty values."""
        values = self._values  # trap: a data frame takes tens of milliseconds on a busy machine
        picked = [{n: stored[place] for n, stored in values.items()} for place in places.tolist()]
        return [{n: v for n, v in row.items() if v is not None} for row in picked]

    def given(self, places: np.ndarray) -> Given:
        """Returns items as the candidates of a request that was read; no bids."""
        picked = {n: [v[p] for p in places.tolist()] for n, v in self._values.items()}
        columns: dict[str, Values] = {
            n: v for n, v in picked.items() if any(x is not None for x in v)
        }
        return Given(columns, len(places))

    @cached_property
    def _at(self) -> dict[Any, int]:
        return {name: i for i, name in enumerate(self._values[self.item])}

    @cached_property
    def _values(self) -> dict[str, list[Any]]:
        return {n: self.items[n].to_list() for n in self.items.columns if n != self.bid}

    def save(self, folder: Path, fingerprint: str) -> Path:
        """Writes index.safetensors into an artefact folder, whole or not at all.

        Args:
            folder: of the artefact.
            fingerprint: of the artefact, whose weights made the vectors.

        Raises:
            DiskFullError: the disk is full; an older index stays.
        """
        table = self.items.to_arrow()
        stream = write_stream({n: table[n] for n in table.column_names}, {})
        tensors = {"vectors": self.vectors, "items": np.frombuffer(stream, dtype=np.uint8)}
        if graph := self.graph:
            entry = np.array([graph.entry])
            tensors |= {"levels": graph.levels, "links": graph.links, "entry": entry}
        said = {"format": _FORMAT, "artifact": fingerprint, "item": self.item, "bid": self.bid}
        path = folder / FILE
        with written_whole(path) as draft:
            save_file(tensors, draft, said | {"sha256": _digest(tensors, said)})
            draft.chmod(0o644)  # safetensors makes files that only their owner can read
        return path

    @classmethod
    def load(cls, folder: Path, predictor: Predictor, fingerprint: str) -> ItemIndex:
        """Reads the index of an artefact folder.

        Args:
            folder: of the artefact.
            predictor: of the artefact.
            fingerprint: of the artefact.

        Raises:
            ArtifactError: there is none, it was changed, or another artefact made it.
        """
        path = folder / FILE
        tensors, said = _read(path)
        if said["artifact"] != fingerprint:
            raise _unfit(path, f"vectors of artefact {said['artifact'][:40]!r}", fingerprint)
        vectors = tensors["vectors"]
        try:
            [items] = read_streams(tensors["items"].tobytes(), 1, len(vectors))
        except RequestError as cause:
            raise _unfit(path, cause.found, "the rows of its items") from cause
        index = cls(vectors, items, said["item"], said["bid"], _graph(tensors, path))
        _require_sound(index, predictor, path)
        return index


def retriever(predictor: Predictor) -> Retriever:
    """Returns the model of an artefact as one that tells users from items.

    Raises:
        ArtifactError: it is another kind of model.
    """
    if isinstance(predictor.model, Retriever):
        return predictor.model
    raise ArtifactError(
        "the model of an artefact has no vectors of users and items",
        where=f"model '{predictor.artifact.model}'",
        found="a ranker that reads both sides together",
        expected="a model with encode_user and encode_item, such as two_tower",
        fix="train two_tower on the same data, and retrieve with its artefact",
    )


def encode_items(predictor: Predictor, items: pl.DataFrame) -> np.ndarray:
    """Returns the vectors [I, D] float32 of raw item rows, which need no other columns."""
    model, whole = retriever(predictor), predictor.artifact.featurizer
    columns = tuple(
        c if isinstance(c, Target) or c.name in model.item_fields else replace(c, optional=True)
        for c in whole.spec.columns
    )
    alone = replace(whole, spec=replace(whole.spec, columns=columns))
    try:
        batch = alone(items.select(n for n in model.item_fields if n in items.columns))
    except pl.exceptions.PolarsError as cause:
        raise DataFormatError(
            "the items cannot be encoded",
            where=", ".join(f"{n}: {t}" for n, t in items.schema.items())[:300],
            found=str(cause).splitlines()[0][:300],
            expected="columns of the types that the spec says",
            fix="convert the column first",
        ) from cause
    return item_vectors(model, batch)


def item_vectors(model: Retriever, batch: Batch) -> np.ndarray:
    """Returns [B, D] float32; a row's bits do not depend on the rows beside it."""

    def encode(block: Batch) -> dict[str, Tensor]:
        return {"item": model.encode_item(block)}

    with torch.inference_mode():
        return score_in_blocks(encode, batch)["item"].numpy()


def _digest(tensors: Mapping[str, np.ndarray], said: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name}:{tensors[name].shape}:".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    if path.is_symlink() or not path.is_file():
        raise _unfit(path, "a link" if path.is_symlink() else "no such file", "an index")
    try:
        with safe_open(path, framework="numpy") as file:
            said = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError) as cause:
        raise _unfit(path, str(cause).splitlines()[0][:200], "a safetensors file") from cause
    stated = said.pop("sha256", "")
    if said.keys() != {"format", "artifact", "item", "bid"} or said["format"] != _FORMAT:
        raise _unfit(path, f"a header with {sorted(said)}"[:200], f"format {_FORMAT}")
    if tensors.keys() not in ({"vectors", "items"}, {"vectors", "items", *_GRAPH}):
        raise _unfit(path, f"parts {sorted(tensors)}"[:200], "vectors, items, and maybe a graph")
    if _digest(tensors, said) != stated:
        raise _unfit(path, "other contents than when it was written", f"sha256 {stated[:16]}...")
    if tensors["vectors"].dtype != np.float32 or tensors["vectors"].ndim != 2:
        raise _unfit(path, f"vectors of type {tensors['vectors'].dtype}", "[I, D] float32")
    return tensors, said


def _graph(tensors: Mapping[str, np.ndarray], path: Path) -> Graph | None:
    if "links" not in tensors:
        return None
    levels, links, entry = (tensors[name] for name in _GRAPH)
    if entry.shape != (1,) or entry.dtype != np.int64:
        raise _unfit(path, f"a search that begins at {entry.dtype} {entry.shape}", "one node")
    graph = Graph(levels, links, int(entry[0]))
    if fault := graph.fault(len(tensors["vectors"])):
        raise _unfit(path, fault, "a graph over its vectors")
    return graph


def _require_sound(index: ItemIndex, predictor: Predictor, path: Path) -> None:
    """Refuses rows and vectors that do not belong together, or not to this model."""
    if index.item != _item(predictor) or index.item not in index.items.columns:
        raise _unfit(path, f"items named by '{index.item[:40]}'", f"'{_item(predictor)}'")
    if not 0 < len(index) == len(index.items) or not np.isfinite(index.vectors).all():
        raise _unfit(path, f"{len(index.items):,} rows", f"{len(index):,} with finite vectors")
    if index.bid and not index.items.schema.get(index.bid, pl.Null()).is_integer():
        raise _unfit(path, f"no whole numbers in column '{index.bid[:40]}'", "bids")
    first = encode_items(predictor, index.items.head(1))
    if first.shape != index.vectors[:1].shape or not np.allclose(
        first, index.vectors[:1], rtol=1e-3, atol=1e-4
    ):
        raise _unfit(path, "a vector that this model does not give", "vectors of this model")


def _item(predictor: Predictor) -> str:
    item = predictor.artifact.featurizer.spec.item
    if item:
        return item
    raise SchemaError(
        "the spec does not say which column names the item",
        where="Spec.item",
        found="''",
        expected="the name of a Category",
        fix="name it in the spec and train again",
    )


def _named(items: pl.DataFrame, item: str, featurizer: Featurizer) -> pl.DataFrame:
    """Returns items with names of the type that training saw, each once."""
    [column] = [c for c in featurizer.spec.columns if isinstance(c, Category) and c.name == item]
    cast = items[item].cast(featurizer.table_of(column).values.dtype, strict=False)
    if cast.null_count() == items[item].null_count():  # a text file has 7 as text
        items = items.with_columns(cast)
    twice = items[item].is_duplicated() | items[item].is_null()
    if twice.any():
        row = int(twice.arg_max() or 0)
        raise DataFormatError(
            "an item has no name, or the name of another",
            where=f"column '{item}', row {row}",
            found=f"{items[item][row]!r} ({int(twice.sum()):,} such rows)"[:200],
            expected="each item once",
            fix="keep one row per item",
        )
    return items


def _whole_bids(items: pl.DataFrame, bid: str) -> pl.DataFrame:
    bids = items[bid].cast(pl.Int64, strict=False)
    text = items[bid].cast(pl.String, strict=False)
    wrong = bids.is_null() | (bids < 0) | (bids.cast(pl.String) != text)
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        raise DataFormatError(
            "a bid is no whole number",
            where=f"column '{bid}', row {row}",
            found=f"{items[bid][row]!r} ({int(wrong.sum()):,} such rows)"[:200],
            expected="an integer, 0 or more, in millionths of the currency's unit",
            fix="multiply by a million and round",
        )
    return items.with_columns(bids)


def _missing(name: str, present: Sequence[str]) -> SchemaError:
    return SchemaError(
        "a catalogue lacks a column",
        where=f"column '{name}'",
        found="columns " + ", ".join(sorted(present))[:300],
        expected=f"'{name}'",
        fix=nearest(name, present),
    )


def _unfit(path: Path, found: str, expected: str) -> ArtifactError:
    return ArtifactError(
        "an index cannot be used with this artefact",
        where=str(path),
        found=found,
        expected=expected,
        fix="make it again with `fullrank index`",
    )
