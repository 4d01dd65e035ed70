"""Every model of fullrank/models keeps every law, and broken models are caught by the right one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.errors import SchemaError
from fullrank.model import list_models, model_class
from fullrank.models.lr import LR
from fullrank.schema import Categorical, Schema, Sequence
from fullrank.target import TargetHistory
from fullrank.testing import LAWS, check_law, planted, random_batch, random_schema, tiny_schema


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", list_models())
def test_every_model_keeps_every_law(name: str, law: str) -> None:
    check_law(model_class(name), law)


@pytest.mark.parametrize("name", list_models())
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 5), empty=st.booleans())
def test_random_schemas_are_scored_and_trained(
    name: str, seed: int, rows: int, empty: bool
) -> None:
    g = torch.Generator().manual_seed(seed)
    schema = random_schema(g)
    cls = model_class(name)
    try:
        model = cls(schema, cls.Config.tiny())
    except SchemaError:  # only a model of the past may refuse, and only where no past is to be had
        with pytest.raises(SchemaError):
            TargetHistory(schema)
        schema = with_past(schema)
        model = cls(schema, cls.Config.tiny())
    batch = random_batch(schema, rows, g, empty=empty)
    losses = model(batch)
    torch.stack(list(losses.values())).sum().backward()
    assert all(bool(loss.isfinite()) for loss in losses.values())
    scores = model.eval().score(batch)
    assert list(scores) == [label.name for label in schema.labels]
    assert all(logits.shape == (rows,) for logits in scores.values())


def with_past(schema: Schema) -> Schema:
    item = schema.tables[0].name
    return replace(
        schema,
        fields=(*schema.fields, Categorical("judged", item)),
        sequences=(Sequence("past", (("item", item), ("time", None)), max_length=3),),
    )


class Leaks(LR):
    """Reads the label."""

    def score(self, batch: Batch) -> dict[str, Tensor]:
        return {k: v + batch.labels[k] for k, v in super().score(batch).items()}


class Mixes(LR):
    """Subtracts the mean of the batch."""

    def score(self, batch: Batch) -> dict[str, Tensor]:
        return {k: v - v.mean() for k, v in super().score(batch).items()}


class CountsEvents(LR):
    """Counts events without a window."""

    def score(self, batch: Batch) -> dict[str, Tensor]:
        extra = sum((j.lengths() for j in batch.sequences.values()), torch.zeros(len(batch)))
        return {k: v + extra for k, v in super().score(batch).items()}


class Idle(LR):
    """Has a parameter that nothing uses."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.idle = nn.Parameter(torch.zeros(2))


class Draws(LR):
    """Draws a random number while scoring."""

    def score(self, batch: Batch) -> dict[str, Tensor]:
        torch.rand(1)
        return super().score(batch)


class Writes(LR):
    """Writes into the batch."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        batch.weight.mul_(2)
        return super().forward(batch)


class Forgets(LR):
    """Keeps a part of its state where saving does not find it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.hidden = torch.randn(())

    def score(self, batch: Batch) -> dict[str, Tensor]:
        return {k: v + self.hidden for k, v in super().score(batch).items()}


class Overflows(LR):
    """Divides by the number of observed labels."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {k: v.sum() / batch.observed[k].sum() for k, v in super().forward(batch).items()}


class OnlyTheBias(LR):
    """Cannot learn anything about a row."""

    def score(self, batch: Batch) -> dict[str, Tensor]:
        return {k: v * 1e-3 + self.bias[0] for k, v in super().score(batch).items()}


class BranchesOnData(LR):
    """Chooses by the values of the batch, which an export cannot carry."""

    def score(self, batch: Batch) -> dict[str, Tensor]:
        sign = 1 if float(batch.numeric.block.sum()) > 0 else -1
        return {k: v * sign for k, v in super().score(batch).items()}


class WrongAxes(LR):
    """Says that its embeddings are flat."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.embed.axes = "B D"


@pytest.mark.parametrize(
    ("cls", "law"),
    [
        (Leaks, "labels"),
        (Mixes, "rows"),
        (CountsEvents, "histories"),
        (Idle, "gradients"),
        (Draws, "untouched"),
        (Writes, "untouched"),
        (Forgets, "save"),
        (Overflows, "finite"),
        (OnlyTheBias, "memory"),
        (OnlyTheBias, "truth"),
        (WrongAxes, "taps"),
    ],
)
def test_a_broken_model_breaks_its_law(cls: type[nn.Module], law: str) -> None:
    with pytest.raises(AssertionError):
        check_law(cls, law)


def test_a_branch_on_data_cannot_be_exported() -> None:
    with pytest.raises(Exception, match=r"guard|data-dependent"):
        check_law(BranchesOnData, "export")


def test_the_checks_leave_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    check_law(LR, "finite")
    assert torch.equal(before, torch.get_rng_state())


def test_the_planted_cross_hides_from_single_fields() -> None:
    _, batch, truth = planted(2, 20_000, torch.Generator().manual_seed(0))
    sign = batch.categorical.block % 2
    for column in range(3):
        rates = [float(truth[sign[:, column] == s].mean()) for s in (0, 1)]
        assert abs(rates[0] - rates[1]) < 0.02
    assert float(truth[sign[:, 0] == sign[:, 1]].mean()) > 0.8


def test_the_tiny_schema_has_every_kind_of_part() -> None:
    schema = tiny_schema()
    kinds = {type(f).__name__ for f in schema.fields}
    assert kinds == {"Categorical", "Numeric", "Bag", "Dense"}
    assert schema.sequences
    assert any(table.grows for table in schema.tables)
    assert len(schema.labels) > 1
