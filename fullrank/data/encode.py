"""Encoding: columns of raw values to contiguous blocks. Vectorised, the same for 1 row and 10^7."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from fullrank.batch import Batch, Columns, Jagged
from fullrank.data.numbers import NumberStats, encode_number
from fullrank.data.spec import Category, History, Number, Spec, Tags, Vector
from fullrank.errors import DataFormatError, LabelError
from fullrank.schema import Schema

if TYPE_CHECKING:
    from fullrank.data.featurizer import Featurizer


_TILE_ROWS = 2048  # of a block with dozens of columns: a tile fits the cache


@dataclass(eq=False)
class Encoded:
    """Rows as plain arrays: what is written to disk, and what a Batch is made of.

    Args:
        rows: B.
        blocks: "categorical" [B, C] int32, "numeric" [B, N] float32, "labels" [B, Y] float32,
            "observed" [B, Y] bool, "weight" [B] float32, "group" and "time" [B] int64,
            "dense.NAME" [B, *shape] float32. A constant observed, weight, group or time is absent.
        jagged: bag or sequence -> (column -> flat values, offsets [B + 1] int64).
    """

    rows: int
    blocks: dict[str, np.ndarray] = field(default_factory=dict)
    jagged: dict[str, tuple[dict[str, np.ndarray], np.ndarray]] = field(default_factory=dict)

    def batch(self, schema: Schema) -> Batch:
        """Returns the rows as a Batch; the arrays are shared, not copied."""
        labels = tuple(label.name for label in schema.labels)
        blocks = {name: _tensor(block) for name, block in self.blocks.items()}
        jagged = {
            name: Jagged({c: _tensor(v) for c, v in values.items()}, _tensor(o))
            for name, (values, o) in self.jagged.items()
        }
        return assemble(schema, labels, self.rows, blocks, jagged)


def _tensor(array: np.ndarray) -> torch.Tensor:
    # Polars hands out read-only views of its own buffers; torch wants to own what it writes to.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def assemble(
    schema: Schema,
    labels: tuple[str, ...],
    rows: int,
    blocks: dict[str, torch.Tensor],
    jagged: dict[str, Jagged],
) -> Batch:
    """Returns a Batch from blocks; absent constant blocks are filled in without being stored."""
    count = len(labels)
    zero = torch.zeros(1, dtype=torch.int64).expand(rows)
    known = "labels" in blocks
    return Batch(
        categorical=Columns(
            tuple(f.name for f in schema.categorical()),
            blocks.get("categorical", torch.empty(rows, 0, dtype=torch.int32)),
        ),
        numeric=Columns(
            tuple(f.name for f in schema.numeric()), blocks.get("numeric", torch.empty(rows, 0))
        ),
        labels=Columns(labels, blocks["labels"] if known else torch.zeros(rows, count)),
        observed=Columns(
            labels,
            blocks["observed"]
            if "observed" in blocks
            else torch.full((1, 1), known).expand(rows, count),
        ),
        weight=blocks["weight"] if "weight" in blocks else torch.ones(1).expand(rows),
        group=blocks.get("group", zero),
        time=blocks.get("time", zero),
        bags={n: j for n, j in jagged.items() if n not in {s.name for s in schema.sequences}},
        dense={n[len("dense.") :]: b for n, b in blocks.items() if n.startswith("dense.")},
        sequences={s.name: jagged[s.name] for s in schema.sequences},
    )


def encode(featurizer: Featurizer, frame: pl.DataFrame, has_labels: bool) -> Encoded:
    """Encodes every column of a frame; see Featurizer for what is refused."""
    spec, out = featurizer.spec, encode_rest(featurizer, frame, has_labels)
    categorical = [c for c in spec.columns if isinstance(c, Category)]
    if categorical:
        missing = np.zeros(len(frame), dtype=np.int32)
        ids = [
            featurizer.table_of(c).rows(frame[c.name]) if c.name in frame.columns else missing
            for c in categorical
        ]
        out.blocks["categorical"] = side_by_side(
            ids, np.empty((len(frame), len(ids)), dtype=np.int32)
        )
    numbers = [c for c in spec.columns if isinstance(c, Number)]
    if numbers:
        values = [_number(n, frame, featurizer.numbers.get(n.name)) for n in numbers]
        out.blocks["numeric"] = side_by_side(
            values, np.empty((len(frame), len(values)), np.float32)
        )
    return out


def encode_rest(featurizer: Featurizer, frame: pl.DataFrame, has_labels: bool) -> Encoded:
    """Encodes what is not a Category or a Number, from a frame that may lack those."""
    spec, out = featurizer.spec, Encoded(len(frame))
    for c in spec.columns:
        match c:
            case Tags():
                out.jagged[c.name] = _bag(featurizer, c, frame)
            case Vector():
                out.blocks[f"dense.{c.name}"] = _vectors(c, frame)
            case History():
                out.jagged[c.name] = _history(featurizer, c, frame)
            case _:
                pass
    _encode_context(spec, frame, out)
    if has_labels:
        _encode_labels(spec, frame, out)
    return out


def side_by_side(columns: Sequence[np.ndarray], block: np.ndarray) -> np.ndarray:
    """Writes columns [B] into a block [B, C], and returns it."""
    # cost: a whole column at a time would miss the cache at every value, six times slower
    for start in range(0, len(block), _TILE_ROWS):
        tile = slice(start, start + _TILE_ROWS)
        for i, column in enumerate(columns):
            block[tile, i] = column[tile]
    return block


def _number(column: Number, frame: pl.DataFrame, stats: NumberStats | None) -> np.ndarray:
    if stats is None or column.name not in frame.columns:
        return np.full(len(frame), stats.fill if stats else 0.0, dtype=np.float32)
    return encode_number(column, frame[column.name], stats)


def _encode_context(spec: Spec, frame: pl.DataFrame, out: Encoded) -> None:
    if spec.group in frame.columns:
        out.blocks["group"] = _group_ids(frame[spec.group])
    if spec.time in frame.columns:
        out.blocks["time"] = frame[spec.time].cast(pl.Int64).fill_null(0).to_numpy()
    if spec.weight in frame.columns:
        out.blocks["weight"] = frame[spec.weight].cast(pl.Float32).to_numpy()


def _encode_labels(spec: Spec, frame: pl.DataFrame, out: Encoded) -> None:
    targets = spec.targets()
    labels = np.empty((len(frame), len(targets)), dtype=np.float32)
    observed = np.ones((len(frame), len(targets)), dtype=np.bool_)
    place = {t.name: i for i, t in enumerate(targets)}
    for i, t in enumerate(targets):
        values = frame[t.name].cast(pl.Float32, strict=False)
        bad = values.is_null() | ~values.is_in([0.0, 1.0])
        if t.observed:
            observed[:, i] = frame[t.observed].cast(pl.Boolean).fill_null(False).to_numpy()
            bad = bad & pl.Series(observed[:, i])
        if bad.any():
            row = int(bad.arg_max() or 0)
            raise LabelError(
                "a label is outside {0, 1}",
                where=f"column '{t.name}', row {row}",
                found=f"{frame[t.name][row]!r} ({int(bad.sum()):,} such rows)",
                expected="0 or 1",
                fix="map the column to 0 and 1 before it is read",
            )
        labels[:, i] = values.fill_null(0.0).to_numpy()
    for i, t in enumerate(targets):
        if t.given in place:  # a conversion is defined only where its click happened
            observed[:, i] &= labels[:, place[t.given]] == 1
    out.blocks["labels"] = labels
    if not observed.all():
        out.blocks["observed"] = observed


def _group_ids(values: pl.Series) -> np.ndarray:
    if values.dtype.is_integer():
        return values.cast(pl.Int64).fill_null(0).to_numpy()
    return values.cast(pl.String).fill_null("").hash().to_numpy().view(np.int64)


def tag_lists(values: pl.Expr, frame: pl.DataFrame | pl.LazyFrame, column: Tags) -> pl.Expr:
    """Returns the tags of a row as a list, whether they came as a list or as text."""
    kind = frame.collect_schema().dtypes()[0]
    if isinstance(kind, pl.List | pl.Array):
        return values.cast(pl.List(kind.inner))
    text = values.cast(pl.String)
    return pl.when(text != "").then(text.str.split(column.separator))


def _bag(
    featurizer: Featurizer, column: Tags, frame: pl.DataFrame
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    if column.name not in frame.columns:
        return _nothing(["value"], len(frame))
    raw = frame.select(pl.col(column.name).alias("value"))
    lists = raw.select(tag_lists(pl.col("value"), raw, column))["value"]
    lists = lists.list.head(column.max_length)
    rows = featurizer.table_of(column).rows(_flat(lists))
    return {"value": rows}, _offsets(lists)


def _history(
    featurizer: Featurizer, history: History, frame: pl.DataFrame
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    if any(e.column not in frame.columns for e in history.events):
        return _nothing([e.name for e in history.events], len(frame), history)
    values: dict[str, np.ndarray] = {}
    offsets: np.ndarray | None = None
    for e in history.events:
        lists = frame[e.column].list.tail(history.max_length)
        flat, own = _flat(lists), _offsets(lists)
        if offsets is not None and not np.array_equal(offsets, own):
            row = int(np.argmax(np.diff(offsets) != np.diff(own)))
            raise DataFormatError(
                "the columns of a history have different lengths",
                where=f"history '{history.name}', column '{e.column}', row {row}",
                found=f"{np.diff(own)[row]} events",
                expected=f"{np.diff(offsets)[row]}, as in column '{history.events[0].column}'",
                fix="write one entry per event into every column",
            )
        offsets = own
        if e.table:
            values[e.name] = featurizer.vocabularies[e.table].rows(flat)
        else:
            values[e.name] = flat.cast(pl.Int64).fill_null(0).to_numpy()
    assert offsets is not None
    return values, offsets


def _nothing(
    names: list[str], rows: int, history: History | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    raw = {e.name for e in history.events if not e.table} if history else set()
    values = {n: np.empty(0, dtype=np.int64 if n in raw else np.int32) for n in names}
    return values, np.zeros(rows + 1, dtype=np.int64)


def _flat(lists: pl.Series) -> pl.Series:
    return lists.filter(lists.list.len() > 0).explode()


def _offsets(lists: pl.Series) -> np.ndarray:
    lengths = lists.list.len().fill_null(0).to_numpy()
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _vectors(column: Vector, frame: pl.DataFrame) -> np.ndarray:
    width = int(np.prod(column.shape))
    out = np.zeros((len(frame), width), dtype=np.float32)
    if column.name in frame.columns and len(frame):
        raw: Any = frame[column.name]
        lists = raw.arr.to_list() if isinstance(raw.dtype, pl.Array) else raw
        lengths = lists.list.len()
        wrong = (lengths != width) & lists.is_not_null()
        if wrong.any():
            row = int(wrong.arg_max() or 0)
            raise DataFormatError(
                "a vector has the wrong length",
                where=f"column '{column.name}', row {row}",
                found=f"{lengths[row]} numbers ({int(wrong.sum()):,} such rows)",
                expected=f"{width}, for shape {column.shape}",
                fix="correct the shape in the spec, or the file",
            )
        present = lists.is_not_null().to_numpy()
        flat = lists.drop_nulls().explode().cast(pl.Float32).fill_null(float("nan")).to_numpy()
        out[present] = flat.reshape(-1, width)
        if not np.isfinite(out).all():
            row = int(np.argmax(~np.isfinite(out).all(axis=1)))
            raise DataFormatError(
                "a vector holds a number that is not finite",
                where=f"column '{column.name}', row {row}",
                found="NaN, infinity or an empty entry",
                expected="finite numbers, or no vector at all",
                fix="leave the vector empty, or filter the rows",
            )
    return out.reshape(len(frame), *column.shape)
