"""Models as plain tensors in, plain tensors out: what `torch.export` and ONNX can carry.

A batch becomes a dictionary of named tensors, the *features*:

    categorical              [B, C] int32, columns in schema order
    numeric                  [B, N] float32, columns in schema order
    bags.NAME.value          [sum of lengths] int32
    bags.NAME.offsets        [B + 1] int64
    dense.NAME               [B, *shape] float32
    sequences.NAME.COLUMN    [sum of lengths]
    sequences.NAME.offsets   [B + 1] int64

Labels, weights, groups and times are not features: a server does not have them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fullrank.batch import Batch, Columns, Jagged
from fullrank.errors import BatchError, nearest
from fullrank.schema import Bag, Dense, Schema


def flatten(batch: Batch) -> dict[str, Tensor]:
    """Returns the features of a batch; blocks without columns are left out."""
    features: dict[str, Tensor] = {}
    if batch.categorical.names:
        features["categorical"] = batch.categorical.block
    if batch.numeric.names:
        features["numeric"] = batch.numeric.block
    for kind, group in (("bags", batch.bags), ("sequences", batch.sequences)):
        for name, jagged in group.items():
            for column, values in jagged.values.items():
                features[f"{kind}.{name}.{column}"] = values
            features[f"{kind}.{name}.offsets"] = jagged.offsets
    for name, values in batch.dense.items():
        features[f"dense.{name}"] = values
    return features


def unflatten(features: Mapping[str, Tensor], schema: Schema) -> Batch:
    """Returns a batch of these features, with blank labels, unit weights and no groups or times.

    Args:
        features: what `flatten` returned for a batch of this schema.
        schema: fields and sequences to read; further features are left alone.

    Raises:
        BatchError: a feature of the schema is absent; the nearest name is suggested.
    """

    def take(name: str) -> Tensor:
        if name not in features:
            raise BatchError(
                "a feature is missing",
                where=f"'{name}'",
                found="features: " + ", ".join(sorted(features)),
                expected="every field and sequence of the schema",
                fix=nearest(name, features),
            )
        return features[name]

    def jagged(prefix: str, columns: tuple[str, ...]) -> Jagged:
        values = {column: take(f"{prefix}.{column}") for column in columns}
        return Jagged(values, take(f"{prefix}.offsets"))

    categorical = tuple(f.name for f in schema.categorical())
    numeric = tuple(f.name for f in schema.numeric())
    labels = tuple(label.name for label in schema.labels)
    bags = {f.name: jagged(f"bags.{f.name}", ("value",)) for f in schema.fields if _is_bag(f)}
    dense = {f.name: take(f"dense.{f.name}") for f in schema.fields if isinstance(f, Dense)}
    sequences = {
        s.name: jagged(f"sequences.{s.name}", tuple(column for column, _ in s.columns))
        for s in schema.sequences
    }
    rows, device = _count(features)
    none = torch.zeros(rows, 0, device=device)
    zeros = torch.zeros(rows, dtype=torch.int64, device=device)
    return Batch(
        categorical=Columns(categorical, take("categorical") if categorical else none.int()),
        numeric=Columns(numeric, take("numeric") if numeric else none),
        labels=Columns(labels, torch.zeros(rows, len(labels), device=device)),
        observed=Columns(labels, torch.zeros(rows, len(labels), dtype=torch.bool, device=device)),
        weight=torch.ones(rows, device=device),
        group=zeros,
        time=zeros,
        bags=bags,
        dense=dense,
        sequences=sequences,
    )


def _is_bag(field: object) -> bool:
    return isinstance(field, Bag)


def _count(features: Mapping[str, Tensor]) -> tuple[int, torch.device]:
    """Returns B and the device, from a rectangular feature where there is one."""
    for name, values in features.items():
        if name in ("categorical", "numeric") or name.startswith("dense."):
            return values.shape[0], values.device
    offsets = next(values for name, values in features.items() if name.endswith(".offsets"))
    return offsets.shape[0] - 1, offsets.device


class Scorer(nn.Module):
    """A ranker as a module from features to logits: label -> [B].

    One blank row is scored along with the others and dropped, because `torch.export` takes a size
    of one for a constant: with it, the program accepts a single row.

    Args:
        model: a ranker; used as it is, in its present mode.
        schema: what it was built from.
    """

    def __init__(self, model: nn.Module, schema: Schema) -> None:
        super().__init__()
        self.model, self.schema = model, schema

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        longer = {name: _with_blank_row(name, values) for name, values in features.items()}
        batch = unflatten(longer, self.schema)  # B + 1 rows
        scores: dict[str, Tensor] = self.model.score(batch)  # type: ignore[operator]
        rows, _ = _count(features)
        return {label: logits.narrow(0, 0, rows) for label, logits in scores.items()}


def _with_blank_row(name: str, values: Tensor) -> Tensor:
    if name.endswith(".offsets"):
        return torch.cat([values, values[-1:]])  # an empty history
    if name.startswith("bags."):
        return values
    # Flat event values get zeros that no row points to, so that all histories may be empty.
    extra = 2 if name.startswith("sequences.") else 1
    return torch.cat([values, values.new_zeros(extra, *values.shape[1:])])


def exportable(model: nn.Module, schema: Schema) -> Scorer:
    """Returns a copy of a ranker in eval mode, taking and giving plain tensors."""
    return Scorer(copy.deepcopy(model), schema).eval()


def dynamic_shapes(features: Mapping[str, Tensor]) -> dict[str, dict[int, Any]]:
    """Returns which sizes of the features may change from call to call, for `torch.export`."""
    rows = Dim("rows", min=1)
    values: dict[str, Any] = {}  # one size for all columns of a bag or sequence
    shapes: dict[str, dict[int, Any]] = {}
    for name in features:
        if name.endswith(".offsets"):
            shapes[name] = {0: rows + 1}
        elif name.startswith(("bags.", "sequences.")):
            owner = name.rpartition(".")[0]
            shapes[name] = {0: values.setdefault(owner, Dim(f"values_{len(values)}", min=0))}
        else:
            shapes[name] = {0: rows}
    return shapes


def export_program(model: nn.Module, schema: Schema, sample: Batch) -> ExportedProgram:
    """Exports the scores of a ranker for any number of rows, one included, and any lengths.

    Args:
        model: a ranker; not changed.
        schema: what it was built from.
        sample: at least two rows, with at least two values in every bag and sequence, since
            `torch.export` takes sizes of zero and one for constants.

    Returns:
        The program; `.module()(flatten(batch))` gives label -> logits [B].

    Raises:
        BatchError: the sample is too small.
    """
    features = flatten(sample)
    for name, values in features.items():
        if values.shape[0] < 2:
            raise BatchError(
                "a sample is too small to export from",
                where=f"'{name}'",
                found=f"{values.shape[0]} values",
                expected="at least 2",
                fix="pass more rows, such as 64 of the training split",
            )
    with torch.no_grad():
        return torch.export.export(
            exportable(model, schema), (features,), dynamic_shapes=(dynamic_shapes(features),)
        )
