"""What every metric shares: the protocol, and rows that were checked once at the door."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fullrank.batch import Batch
from fullrank.errors import (
    BatchError,
    EmptyInputError,
    IncomparableError,
    LabelError,
    MetricUndefinedError,
    nearest,
)


class Metric(Protocol):
    """Sums over rows that can be added across batches and machines before anything is divided.

    A metric starts empty, is updated any number of times, may be merged with others of its class
    and settings, and computes without changing. Merged equals unmerged.
    """

    label: str

    def update(self, prediction: Mapping[str, Tensor], batch: Batch) -> None:
        """Adds the rows of a batch. `prediction` holds label -> logits [B]."""
        ...

    def merge(self, other: Any) -> None:
        """Adds what another metric of the same class and settings has seen."""
        ...

    def compute(self) -> dict[str, float]:
        """Returns named values of everything seen so far."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """n scored rows of one label, all of them observed. Build them with `Rows.of`.

    Args:
        score: [n] floating point, a logit or anything that is monotone in one; always finite.
        label: [n] bool.
        weight: [n] floating point, finite and not negative.
        group: [n] int64, or None where the log has no groups.
    """

    score: Tensor
    label: Tensor
    weight: Tensor
    group: Tensor | None = None

    def __len__(self) -> int:
        return self.score.shape[0]

    def masses(self) -> tuple[Tensor, Tensor]:
        """Returns the weights of positive and negative rows: two [n] float64, zero elsewhere."""
        weight, zero = self.weight.double(), torch.zeros((), dtype=torch.float64)
        return torch.where(self.label, weight, zero), torch.where(self.label, zero, weight)

    @classmethod
    def of(
        cls, score: Any, label: Any, weight: Any = None, group: Any = None, where: str = "rows"
    ) -> Rows:
        """Checks arrays or tensors and makes rows of them, copied to the CPU.

        Args:
            score: [n] numbers.
            label: [n], each 0 or 1.
            weight: [n], or None for weights of one.
            group: [n] integers, or None.
            where: what an error names as the place.

        Raises:
            BatchError: the lengths differ, or a weight is negative or not finite.
            LabelError: a label is neither 0 nor 1.
            MetricUndefinedError: a score is NaN or infinite; such a score has no place in an order.
        """
        score, label = _vector(score, "score", where), _vector(label, "label", where)
        if not score.is_floating_point():
            score = score.double()
        if score.dtype in (torch.float16, torch.bfloat16):
            score = score.float()
        weight = torch.ones(len(score)) if weight is None else _vector(weight, "weight", where)
        group = None if group is None else _vector(group, "group", where).long()
        for name, part in (("label", label), ("weight", weight), ("group", group)):
            if part is not None and len(part) != len(score):
                raise BatchError(
                    f"{name}s and scores differ in number",
                    where=where,
                    found=f"{len(part):,} {name}s and {len(score):,} scores",
                    expected="one of each for every row",
                    fix="pass the labels of the rows that were scored",
                )
        _refuse_values(score, label, weight, where)
        return cls(score, label != 0, weight, group)

    @classmethod
    def observed(cls, prediction: Mapping[str, Tensor], batch: Batch, label: str) -> Rows:
        """Picks the rows of a batch whose label is known, and checks them.

        Raises:
            BatchError: the model does not score the label, the batch does not hold it, or the
                scores are not [B].
            LabelError: a label is neither 0 nor 1.
            MetricUndefinedError: a score is NaN or infinite.
        """
        for holder, names in (("the model", prediction), ("the batch", batch.labels)):
            if label not in names:
                raise BatchError(
                    f"{holder} has no such label",
                    where=f"metric of label '{label}'",
                    found="labels " + (", ".join(sorted(names)) or "(none)"),
                    expected=f"'{label}' among them",
                    fix=nearest(label, names),
                )
        logit = prediction[label]
        if logit.shape != (len(batch),):
            raise BatchError(
                "scores have the wrong shape",
                where=f"label '{label}'",
                found=f"{list(logit.shape)} for {len(batch):,} rows",
                expected=f"[{len(batch)}], one logit per row",
                fix="let score() return label -> [B]; squeeze a named dimension in the model",
            )
        # Indexing copies: a loader may refill its buffers, a compiled model its outputs.
        kept = batch.observed[label].nonzero().squeeze(1)  # [n]
        return cls.of(
            logit[kept.to(logit.device)],
            batch.labels[label][kept],
            batch.weight[kept],
            batch.group[kept],
            where=f"label '{label}'",
        )

    @classmethod
    def concatenate(cls, parts: Iterable[Rows], where: str) -> Rows:
        """Returns all rows as one block.

        Raises:
            EmptyInputError: there is not a single row.
        """
        kept = [part for part in parts if len(part)]
        refuse_empty(float(len(kept)), where)
        groups = [part.group for part in kept if part.group is not None]
        return cls(
            torch.cat([part.score for part in kept]),
            torch.cat([part.label for part in kept]),
            torch.cat([part.weight for part in kept]),
            torch.cat(groups) if len(groups) == len(kept) else None,
        )


class RowStore:
    """Keeps rows for metrics that need all of them at once; memory is linear in rows.

    About 17 bytes a row: float32 score and weight, bool label, int64 group.
    """

    def __init__(self) -> None:
        self._parts: list[Rows] = []

    def add(self, rows: Rows) -> None:
        """Appends rows."""
        self._parts.append(rows)

    def merge(self, other: RowStore) -> None:
        """Appends the rows of another store."""
        self._parts.extend(list(other._parts))

    def rows(self, where: str) -> Rows:
        """Returns all rows as one block.

        Raises:
            EmptyInputError: there is not a single row.
        """
        whole = Rows.concatenate(self._parts, where)
        self._parts = [whole]  # a second call need not copy again
        return whole


def refuse_empty(amount: float, where: str) -> None:
    """Raises an EmptyInputError unless there are rows with some weight."""
    if amount <= 0:
        raise EmptyInputError(
            "a metric was asked of no rows",
            where=where,
            found="0 observed rows with weight",
            expected="at least one",
            fix="check that the split is not empty and that the label is observed in it",
        )


def refuse_one_class(
    positive: float, negative: float, rows: int, where: str, metric: str = "AUC"
) -> None:
    """Raises a MetricUndefinedError unless both labels have weight.

    Args:
        positive: weight of the rows with label 1.
        negative: weight of the rows with label 0.
        rows: how many rows there are, for the message.
        where: what the message names as the place.
        metric: what is undefined then.
    """
    refuse_empty(positive + negative, where)
    if positive <= 0 or negative <= 0:
        raise MetricUndefinedError(
            f"{metric} is undefined because all labels are equal",
            where=where,
            found=f"{rows:,} rows, all with label {int(positive > 0)}",
            expected="at least one row of each label",
            fix="evaluate more rows, or another split or label",
        )


def refuse_unlike(mine: object, theirs: object, *settings: str) -> None:
    """Raises an IncomparableError unless two metrics have one class and equal settings."""
    differing = ["class"] if type(mine) is not type(theirs) else []
    differing += [
        name for name in settings if not differing and getattr(mine, name) != getattr(theirs, name)
    ]
    if differing:
        name = differing[0]
        pair = [
            type(x).__name__ if name == "class" else repr(getattr(x, name)) for x in (mine, theirs)
        ]
        raise IncomparableError(
            "two metrics cannot be merged",
            where=f"{type(mine).__name__}.merge",
            found=f"{name} {pair[0]} and {pair[1]}",
            expected=f"the same {name}",
            fix="merge metrics that were made alike",
        )


def _vector(values: Any, name: str, where: str) -> Tensor:
    vector: Tensor = torch.as_tensor(values).detach().to("cpu")
    if vector.ndim != 1:
        raise BatchError(
            f"{name}s are not a vector",
            where=where,
            found=f"shape {list(vector.shape)}",
            expected="[n], one value per row",
            fix="flatten them, or select a column",
        )
    return vector


def _refuse_values(score: Tensor, label: Tensor, weight: Tensor, where: str) -> None:
    finite = torch.isfinite(score)
    if not finite.all():
        missing = int(torch.isnan(score).sum())
        raise MetricUndefinedError(
            "scores are not finite, so they cannot be put in order",
            where=where,
            found=f"{missing:,} NaN and {int((~finite).sum()) - missing:,} infinite among "
            f"{len(score):,} scores",
            expected="finite logits",
            fix="the model has diverged: load an earlier state, or lower the learning rate",
        )
    binary = (label == 0) | (label == 1)
    if not binary.all():
        row = int((~binary).nonzero()[0])
        raise LabelError(
            "a label is neither 0 nor 1",
            where=f"{where}, observed row {row:,}",
            found=str(label[row].item()),
            expected="0 or 1",
            fix="turn the target into a click or no click before it is prepared",
        )
    usable = torch.isfinite(weight) & (weight >= 0)
    if not usable.all():
        row = int((~usable).nonzero()[0])
        raise BatchError(
            "a row has an impossible weight",
            where=f"{where}, observed row {row:,}",
            found=str(weight[row].item()),
            expected="a finite weight of zero or more",
            fix="set the weight to 1 / sampling rate",
        )
