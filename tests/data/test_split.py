"""Splits: complete, disjoint, in order of time, stable, and never empty."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.data.split import at_random, by_time, in_order, require_order, stable_hash
from fullrank.errors import ConfigError, DataFormatError, SplitError

MASK = 2**64 - 1
HALVES = {"train": 0.5, "test": 0.5}


def rows_of(part: pl.LazyFrame, column: str = "row") -> list[int]:
    return part.collect()[column].to_list()


def slow_mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def slow_hash(value: int, seed: int) -> int:
    return slow_mix((value & MASK) ^ slow_mix(seed))


def log(times: list[int]) -> pl.LazyFrame:
    return pl.LazyFrame({"row": list(range(len(times))), "time": times})


def spans(**parts: pl.LazyFrame) -> dict[str, tuple[int | None, int | None]]:
    times = {name: rows_of(part, "time") for name, part in parts.items()}
    return {n: (min(t, default=None), max(t, default=None)) for n, t in times.items()}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.floats(0.2, 0.8))
def test_split_by_time_is_complete_keeps_ties_together_and_never_looks_ahead(
    times: list[int], share: float
) -> None:
    # The boundary whose share of older rows is nearest to the asked one, by trying all.
    options = {t: sum(x < t for x in times) for t in sorted(set(times))}
    nearest = min(abs(n - share * len(times)) for n in options.values())
    best = [n for n in options.values() if abs(n - share * len(times)) <= nearest + 1e-9]
    shares = {"train": share, "test": 1 - share}
    if 0 in best:
        with pytest.raises(SplitError, match="empty: train"):
            by_time(log(times), "time", fractions=shares)
        return
    parts = by_time(log(times), "time", fractions=shares)
    train, test = (rows_of(parts[name]) for name in ("train", "test"))
    assert sorted(train + test) == list(range(len(times)))
    assert max(times[i] for i in train) < min(times[i] for i in test)
    assert len(train) in best
    require_order(spans(**parts), "time")


def test_split_by_time_in_three_follows_the_fractions() -> None:
    parts = by_time(log([(37 * i) % 101 for i in range(100)]), "time")
    assert {name: len(rows_of(part)) for name, part in parts.items()} == {
        "train": 80,
        "valid": 10,
        "test": 10,
    }
    assert all(isinstance(part, pl.LazyFrame) for part in parts.values())


def test_explicit_starts_belong_to_the_later_split() -> None:
    times = [4, 1, 5, 9, 5]
    parts = by_time(log(times), "time", starts={"train": 2, "valid": 5, "test": 9})
    assert [[times[i] for i in rows_of(p)] for p in parts.values()] == [[4, 1], [5, 5], [9]]


def test_split_by_time_refuses_what_it_cannot_cut() -> None:
    with pytest.raises(SplitError, match="empty: valid") as caught:
        by_time(log([1, 2, 9]), "time", starts={"train": 0, "valid": 3, "test": 9})
    assert "train 2, valid 0, test 1 rows" in caught.value.found
    with pytest.raises(SplitError):
        by_time(log([7, 7, 7]), "time")
    with pytest.raises(SplitError):
        by_time(log([]), "time")
    with pytest.raises(ConfigError):
        by_time(log([1, 2]), "time", starts={"train": 2, "test": 1})
    for bad in ([1, None, 3], [1.0, float("nan"), 3.0]):
        with pytest.raises(DataFormatError, match="no time") as missing:
            by_time(pl.LazyFrame({"time": bad}), "time", fractions=HALVES)
        assert "1 empty" in missing.value.found


@pytest.mark.parametrize("bad", [{"train": 0.5}, {"train": 1.5, "test": -0.5}, {}])
def test_fractions_that_do_not_make_one_are_refused(bad: dict[str, float]) -> None:
    for split in (
        lambda: by_time(log([1, 2]), "time", fractions=bad),
        lambda: in_order(log([1, 2]), fractions=bad),
        lambda: at_random(log([1, 2]), fractions=bad),
    ):
        with pytest.raises(ConfigError):
            split()


@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.integers(0, MASK))
@settings(max_examples=40, deadline=None)
def test_hash_equals_its_slow_twin(values: list[int], seed: int) -> None:
    numbers = np.array(values, dtype=np.int64)
    assert stable_hash(numbers, seed).tolist() == [slow_hash(v, seed) for v in values]


def test_rows_fall_into_splits_by_their_share() -> None:
    parts = at_random(log(list(range(20_000))), seed=1)
    sizes = [len(rows_of(part)) for part in parts.values()]
    for size, share in zip(sizes, (0.8, 0.1, 0.1), strict=True):
        deviation = (20_000 * share * (1 - share)) ** 0.5
        assert abs(size - 20_000 * share) < 5 * deviation


def test_random_split_is_complete_seeded_and_equals_its_twin() -> None:
    rows = log(list(range(500)))
    parts = at_random(rows, fractions=HALVES, seed=11)
    assert rows_of(parts["train"]) == [i for i in range(500) if slow_hash(i, 11) < 2**63]
    assert sorted(rows_of(parts["train"]) + rows_of(parts["test"])) == list(range(500))
    assert parts["train"].collect_schema().names() == ["row", "time"]
    assert rows_of(at_random(rows, fractions=HALVES, seed=12)["train"]) != rows_of(parts["train"])


def test_splits_without_rows_are_refused_by_name() -> None:
    with pytest.raises(SplitError, match="empty"):
        at_random(log([1]), fractions=HALVES)
    with pytest.raises(SplitError, match="empty") as caught:
        in_order(log([1, 1, 1]), fractions={"train": 0.9, "valid": 0.05, "test": 0.05})
    assert caught.value.found == "train 3, valid 0, test 0 rows"


@pytest.mark.parametrize("count", [2, 5, 9, 100])
def test_a_cut_by_file_order_is_complete_and_keeps_the_order(count: int) -> None:
    parts = in_order(log(list(range(count))), fractions=HALVES)
    train, test = (rows_of(parts[name]) for name in ("train", "test"))
    assert train + test == list(range(count))
    assert abs(len(train) - len(test)) <= 1


def test_order_is_required_strictly() -> None:
    early, tie, late = log([1, 2]), log([2, 3]), log([3, 4])
    require_order(spans(train=early, test=late), "time")
    for wrong in (spans(train=early, test=tie), spans(train=late, test=early)):
        with pytest.raises(SplitError, match="looks ahead"):
            require_order(wrong, "time")
    with pytest.raises(SplitError, match="empty: test"):
        require_order(spans(train=early, test=log([])), "time")
