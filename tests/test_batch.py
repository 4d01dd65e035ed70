from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from fullrank.batch import Batch, Columns, Jagged

LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=8)


def jagged(lengths: list[int]) -> tuple[Jagged, list[list[int]]]:
    rows, at = [], 0
    for n in lengths:
        rows.append(list(range(at + 1, at + n + 1)))
        at += n
    flat = torch.tensor([v for row in rows for v in row], dtype=torch.int32)
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    return Jagged({"c": flat}, offsets), rows


@given(LENGTHS, st.integers(1, 7), st.sampled_from(["left", "right"]))
def test_padded_keeps_the_newest_events_of_each_row(lengths, length, side) -> None:
    made, rows = jagged(lengths)
    values, valid = made.padded("c", length, side)
    for i, row in enumerate(rows):
        newest = row[-length:] if row else []
        gap = [0] * (length - len(newest))
        real = [True] * len(newest)
        empty = [False] * len(gap)
        assert values[i].tolist() == (newest + gap if side == "right" else gap + newest)
        assert valid[i].tolist() == (real + empty if side == "right" else empty + real)


@given(LENGTHS, st.data())
def test_rows_equals_picking_lists(lengths, data) -> None:
    made, rows = jagged(lengths)
    index = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=10))
    got = made.rows(torch.tensor(index, dtype=torch.int64))
    flat, offsets = got.values["c"].tolist(), got.offsets.tolist()
    assert [flat[a:b] for a, b in itertools.pairwise(offsets)] == [rows[i] for i in index]


def test_padded_carries_trailing_axes() -> None:
    made = Jagged({"v": torch.arange(6.0).reshape(3, 2)}, torch.tensor([0, 1, 3]))
    values, valid = made.padded("v", 2)
    assert values.tolist() == [[[0, 1], [0, 0]], [[2, 3], [4, 5]]]
    assert valid.tolist() == [[True, False], [True, True]]


def test_rows_of_a_batch_picks_from_every_part() -> None:
    made, _ = jagged([2, 0, 1])
    batch = Batch(
        categorical=Columns(("a",), torch.tensor([[1], [2], [3]], dtype=torch.int32)),
        numeric=Columns(("x",), torch.tensor([[0.1], [0.2], [0.3]])),
        labels=Columns(("y",), torch.tensor([[1.0], [0.0], [1.0]])),
        observed=Columns(("y",), torch.tensor([[True], [False], [True]])),
        weight=torch.tensor([1.0, 2.0, 3.0]),
        group=torch.tensor([7, 8, 9]),
        time=torch.tensor([10, 11, 12]),
        bags={"b": made},
        dense={"d": torch.arange(6.0).reshape(3, 2)},
        sequences={"s": made},
    )
    part = batch.rows(torch.tensor([2, 0]))
    assert len(part) == 2
    assert part.categorical["a"].tolist() == [3, 1]
    assert part.labels["y"].tolist() == [1, 1]
    assert part.observed["y"].tolist() == [True, True]
    assert part.group.tolist() == [9, 7]
    assert part.time.tolist() == [12, 10]
    assert part.weight.tolist() == [3, 1]
    assert part.bags["b"].values["c"].tolist() == [3, 1, 2]
    assert part.dense["d"].tolist() == [[4, 5], [0, 1]]
    assert part.sequences["s"].lengths().tolist() == [1, 2]
    assert set(batch.fields) == {"a", "x", "b", "d"}
    hidden = batch.without_labels()
    assert hidden.labels.block.sum() == 0
    assert not hidden.observed.block.any()
    assert batch.labels.block.sum() == 2


@given(LENGTHS, st.integers(1, 7))
def test_newest_equals_slicing_lists(lengths, length) -> None:
    made, rows = jagged(lengths)
    kept = made.newest(length)
    flat, offsets = kept.values["c"].tolist(), kept.offsets.tolist()
    assert [flat[a:b] for a, b in itertools.pairwise(offsets)] == [r[-length:] for r in rows]
