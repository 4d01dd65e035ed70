from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.errors import BatchError
from fullrank.models.lr import LR, LRConfig
from fullrank.ops.export import export_program, exportable, flatten, unflatten
from fullrank.schema import Schema
from fullrank.testing import random_batch, random_schema, tiny_schema


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), rows=st.integers(0, 4), empty=st.booleans())
def test_features_make_the_round_trip(seed: int, rows: int, empty: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    schema = random_schema(g)
    batch = random_batch(schema, rows, g, empty=empty)
    features = flatten(batch)
    back = unflatten(features, schema)
    assert len(back) == rows
    again = flatten(back)
    assert again.keys() == features.keys()
    assert all(torch.equal(again[name], features[name]) for name in features)
    assert back.categorical.names == batch.categorical.names
    assert list(back.fields) == list(batch.fields)
    assert list(back.sequences) == list(batch.sequences)


def test_labels_and_groups_are_not_features() -> None:
    batch = random_batch(tiny_schema(), 5, torch.Generator().manual_seed(0))
    back = unflatten(flatten(batch), tiny_schema())
    assert not back.labels.block.any()
    assert not back.observed.block.any()
    assert not back.group.any()


@pytest.mark.parametrize("name", ["categorical", "bags.tags.value", "sequences.history.offsets"])
def test_a_missing_feature_is_named_with_the_nearest(name: str) -> None:
    features = flatten(random_batch(tiny_schema(), 5, torch.Generator().manual_seed(0)))
    features[name + "x"] = features.pop(name)
    with pytest.raises(BatchError, match="feature is missing") as caught:
        unflatten(features, tiny_schema())
    assert name in caught.value.where
    assert name + "x" in caught.value.fix


def test_a_sample_of_one_row_is_refused() -> None:
    schema = tiny_schema()
    batch = random_batch(schema, 1, torch.Generator().manual_seed(0))
    with pytest.raises(BatchError, match="too small"):
        export_program(LR(schema, LRConfig()), schema, batch)


class CountsEvents(nn.Module):
    """A stand-in for a model that reads histories."""

    def score(self, batch: Batch) -> dict[str, Tensor]:
        ids, valid = batch.sequences["history"].padded("item", 3)
        return {"click": (ids * valid).sum(dim=1).float()}


@torch.no_grad()
def test_histories_go_through_an_export_even_when_all_are_empty() -> None:
    schema, g = tiny_schema(), torch.Generator().manual_seed(0)
    model = CountsEvents()
    program = export_program(model, schema, random_batch(schema, 9, g)).module()
    for rows, empty in ((9, False), (30, False), (1, False), (3, True), (1, True)):
        batch = random_batch(schema, rows, g, empty=empty)
        expected = model.score(batch)["click"]
        assert torch.equal(program(flatten(batch))["click"], expected)
        assert torch.equal(exportable(model, schema)(flatten(batch))["click"], expected)


def test_the_model_itself_is_not_changed() -> None:
    schema: Schema = tiny_schema()
    model = LR(schema, LRConfig()).train()
    exported = exportable(model, schema)
    assert model.training
    assert not exported.training
    assert exported.model is not model
