from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.data import numbers as numbers_module
from fullrank.data.numbers import NumberStats, encode_number, fit_numbers
from fullrank.data.spec import Number
from fullrank.errors import DataFormatError

TRANSFORMS = ("standard", "log", "none")
VALUES = st.lists(
    st.one_of(st.none(), st.floats(-1e6, 1e6), st.integers(0, 9)), min_size=1, max_size=30
)


def by_hand(values: list[float | None], transform: str) -> NumberStats:
    kept = [v for v in values if v is not None]
    if transform == "log":
        kept = [math.copysign(math.log1p(abs(v)), v) for v in kept]
    mean = math.fsum(kept) / len(kept) if kept else 0.0
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in kept) / len(kept)) if kept else 0.0
    return NumberStats(0.0, 1.0, mean) if transform == "none" else NumberStats(mean, deviation, 0.0)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.sampled_from(TRANSFORMS), st.integers(1, 7))
def test_statistics_equal_the_definition_however_the_rows_are_cut(values, transform, cut) -> None:
    frame = pl.DataFrame({"x": values}, schema={"x": pl.Float64}, strict=False).lazy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbers_module, "_CHUNK_ROWS", cut + 2)
        patch.setattr(numbers_module, "_TILE_ROWS", cut)
        found = fit_numbers(frame, [Number(name="x", transform=transform)])["x"]
    expected = by_hand(values, transform)
    assert found.mean == pytest.approx(expected.mean, rel=1e-9, abs=1e-9)
    assert found.fill == pytest.approx(expected.fill, rel=1e-9, abs=1e-9)
    if expected.deviation > 1e-9:
        assert found.deviation == pytest.approx(expected.deviation, rel=1e-6)


def test_a_far_offset_does_not_swallow_the_deviation() -> None:
    x = 1e9 + np.random.default_rng(0).normal(size=60_000)
    found = fit_numbers(pl.DataFrame({"x": x}).lazy(), [Number(name="x")])["x"]
    assert found.deviation == pytest.approx(np.std(x - 1e9), rel=1e-6)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_value_is_encoded_alike_alone_in_a_slice_and_in_a_column(transform: str) -> None:
    column, stats = Number(name="x", transform=transform), NumberStats(1.3, 0.7, 0.25)
    rng = np.random.default_rng(1)
    raw = pl.Series("x", rng.normal(size=40_000) * 10.0 ** rng.integers(-9, 9, 40_000))
    raw = pl.DataFrame({"x": raw, "keep": rng.random(40_000) < 0.9}).select(
        pl.when("keep").then("x").alias("x")
    )["x"]
    whole = encode_number(column, raw, stats)
    assert whole.dtype == np.float32
    for first, length in ((0, 1), (1, 1), (3, 7), (16_380, 9), (16_384, 1), (20_001, 17_003)):
        part = encode_number(column, raw[first : first + length], stats)
        assert part.tobytes() == whole[first : first + length].tobytes()
    every = [encode_number(column, raw[i : i + 1], stats)[0] for i in range(1000)]
    assert np.array(every).tobytes() == whole[:1000].tobytes()
    for value, encoded in zip(raw[:1000], whole[:1000], strict=True):
        if value is None:
            assert encoded == np.float32(0.25)
        else:
            by_log = math.copysign(math.log1p(abs(value)), value)
            expected = ((by_log if transform == "log" else value) - 1.3) / 0.7
            assert encoded == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_what_is_not_finite_is_named_by_its_row_in_the_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numbers_module, "_CHUNK_ROWS", 10)
    x = np.zeros(35)
    x[23] = np.nan
    with pytest.raises(DataFormatError, match="column 'x', row 23"):
        fit_numbers(pl.DataFrame({"x": x}).lazy(), [Number(name="x")])
    empty = pl.Series("x", ["1.5", "", "words", None])  # text that is no number is empty
    stats = NumberStats(0.0, 1.0, -1.0)
    assert encode_number(Number(name="x"), empty, stats).tolist() == [1.5, -1.0, -1.0, -1.0]
