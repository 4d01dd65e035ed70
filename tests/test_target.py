"""Which columns of a history belong to the target, and what is read of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.embedding import Embeddings
from fullrank.errors import ConfigError, SchemaError
from fullrank.schema import Categorical, Schema, Sequence, Table
from fullrank.target import TargetHistory
from fullrank.testing.cases import random_batch, tiny_schema


def two_columns() -> Schema:
    return Schema(
        tables=(Table("items", 7), Table("cats", 5), Table("users", 4), Table("liked", 3)),
        fields=(
            Categorical("cat", "cats"),
            Categorical("user", "users"),
            Categorical("item", "items"),
        ),
        sequences=(
            Sequence(
                "past",
                (("time", None), ("liked", "liked"), ("item", "items"), ("cat", "cats")),
                max_length=4,
            ),
        ),
    )


def test_columns_that_share_a_table_with_a_field_are_the_target_and_the_rest_is_feedback() -> None:
    history = TargetHistory(two_columns())
    assert (history.fields, history.columns) == (("cat", "item"), ("cat", "item"))
    assert (history.context, history.feedback) == (("user",), ("liked",))
    assert (history.name, history.length) == ("past", 4)


@settings(deadline=None)
@given(seed=st.integers(0, 99), length=st.integers(1, 4))
def test_events_padded_and_match_equal_loops_over_the_newest_events(seed, length) -> None:
    schema, g = two_columns(), torch.Generator().manual_seed(seed)
    batch, history = random_batch(schema, 5, g), TargetHistory(schema, length=length)
    tables = Embeddings(schema, 3, sequences=("past",), std=1.0).requires_grad_(False)
    block, past = tables.fields(batch), batch.sequences["past"]
    events = history.events(tables, batch)
    padded, valid = history.padded(tables, batch)
    match, _ = history.match(tables, batch)
    starts, ends = past.offsets[:-1].tolist(), past.offsets[1:].tolist()
    expected = []
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        kept = range(max(start, end - length), end)
        target = torch.cat([block[row, 0], block[row, 2]])  # cat, item
        for place, at in enumerate(kept, start=length - len(kept)):
            cat = tables.weight("cats")[past.values["cat"][at]]
            item = tables.weight("items")[past.values["item"][at]]
            liked = tables.weight("liked")[past.values["liked"][at]]
            expected.append((row, torch.cat([cat, item]), liked))
            torch.testing.assert_close(padded[row, place], torch.cat([cat, item]))
            dot = float(torch.cat([cat, item]) @ target) / 6**0.5
            assert match[row, place].item() == pytest.approx(dot, abs=1e-5)
        assert valid[row].tolist() == [False] * (length - len(kept)) + [True] * len(kept)
        assert not padded[row, : length - len(kept)].any()
    assert events.row.tolist() == [row for row, _, _ in expected]
    assert events.within.all()
    for i, (_, x, liked) in enumerate(expected):
        torch.testing.assert_close(events.x[i], x)
        torch.testing.assert_close(events.feedback[i], liked)
    torch.testing.assert_close(history.target(block), block[:, [0, 2]].flatten(1))
    torch.testing.assert_close(history.others(block), block[:, 1])


def test_what_a_model_does_not_read_gets_no_table() -> None:
    schema = two_columns()
    history = TargetHistory(schema)
    for feedback, tables in ((True, 4), (False, 3)):
        read = history.reads(schema, feedback=feedback)
        assert len(Embeddings(read, 2, sequences=("past",)).schema.tables) == tables
        assert read.fields == schema.fields


def test_refuses_a_schema_without_a_history_that_can_be_compared() -> None:
    schema = tiny_schema()
    with pytest.raises(SchemaError, match="the history to read is not clear"):
        TargetHistory(replace(schema, sequences=()))
    other = Sequence("other", (("time", None),), 3)
    with pytest.raises(SchemaError, match=r"(?s)history, other.*name it"):
        TargetHistory(replace(schema, sequences=(*schema.sequences, other)))
    with pytest.raises(SchemaError, match="cannot be compared with a target"):
        TargetHistory(replace(schema, sequences=(other,)))
    with pytest.raises(ConfigError, match=r"(?s)a window of 9 events.*use 3"):
        TargetHistory(schema, length=9)
