"""Served scores are offline scores, whatever stands beside a row and however it arrives."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from fullrank.data.prepare import prepare
from fullrank.errors import DataFormatError, SchemaError
from fullrank.evaluate.calibrate import Calibrator
from fullrank.ops.blocks import score_in_blocks
from fullrank.serve.predictor import Predictor, probabilities

from .conftest import OPTIONAL, SPEC, make_log

ROWS = make_log(150, seed=1)


@pytest.fixture(scope="session")
def predictor(artifact) -> Predictor:
    return Predictor(artifact)


def offline(artifact, log, folder) -> dict[str, np.ndarray]:
    """Probabilities of prepared rows, in batches, as evaluation scores them."""
    data = prepare({"train": log.lazy(), "test": ROWS.lazy()}, SPEC, folder)
    model = artifact.build()
    parts: dict[str, list[float]] = {}
    with torch.inference_mode():
        for batch in data.splits["test"].batches(100):
            for label, logit in score_in_blocks(model.score, batch).items():
                parts.setdefault(label, []).extend(logit.tolist())
    return {
        label: np.array([1 / (1 + math.exp(-x)) for x in logits]).astype(np.float32)
        for label, logits in parts.items()
    }


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def test_served_scores_are_the_offline_scores_to_the_bit(artifact, predictor, log, tmp_path):
    expected = offline(artifact, log, tmp_path / "data")
    assert list(expected) == ["click", "buy"]
    for values in expected.values():
        assert len(np.unique(values)) > 100  # rows differ, so that equality says something
        assert values.dtype == np.float32
    served = ROWS.drop("click", "buy")
    assert same(predictor.score(served), expected)
    for size in (1, 7, 64, 149):
        parts = [predictor.score(served[i : i + size]) for i in range(0, len(served), size)]
        joined = {n: np.concatenate([p[n] for p in parts]) for n in expected}
        assert same(joined, expected), size
    order = np.random.default_rng(0).permutation(len(served))
    assert same(predictor.score(served[order]), {n: v[order] for n, v in expected.items()})


def test_a_probability_has_the_same_bits_at_every_place():
    x = np.random.default_rng(0).normal(size=203).astype(np.float32) * 8
    alone = np.concatenate([probabilities(x[i : i + 1]) for i in range(len(x))])
    assert np.array_equal(probabilities(x), alone)
    assert np.array_equal(probabilities(x[::-1])[::-1], alone)
    assert alone.tolist() == [np.float32(1 / (1 + math.exp(-v))) for v in x.tolist()]
    extremes = probabilities(np.array([-1e4, -100, 0, 100, 1e4], dtype=np.float32))
    assert extremes.tolist() == [0.0, np.float32(math.exp(-100)), 0.5, 1.0, 1.0]


def test_the_loaded_artefact_scores_as_the_one_that_was_saved(artifact, predictor, tmp_path):
    artifact.save(tmp_path / "a")
    assert same(Predictor.load(tmp_path / "a").score(ROWS), predictor.score(ROWS))


def test_how_rows_arrive_changes_nothing(predictor):
    expected = predictor.score(ROWS)
    assert same(predictor.score(ROWS.to_arrow()), expected)
    assert same(predictor.score(ROWS.select(reversed(ROWS.columns))), expected)
    text = ROWS.with_columns(pl.col("ad").cast(pl.String), pl.col("price").cast(pl.String))
    assert same(predictor.score(text), expected)
    chunks = list(predictor.score_batches(ROWS.lazy(), 40))
    assert pl.concat([rows for rows, _ in chunks]).equals(ROWS)
    scores = {n: np.concatenate([s[n] for _, s in chunks]) for n in expected}
    assert same(scores, expected)


def test_labels_and_other_columns_are_ignored_whatever_they_hold(predictor):
    expected = predictor.score(ROWS.drop("click", "buy"))
    odd = ROWS.with_columns(
        click=pl.lit(7), buy=pl.lit("unknown"), weather=pl.lit(float("nan")), note=pl.lit("x")
    )
    assert same(predictor.score(odd), expected)
    assert same(predictor.score(ROWS.with_columns(click=pl.lit(None))), expected)


def test_an_unseen_value_scores_as_a_missing_one(predictor):
    unseen = ROWS.with_columns(
        user=pl.lit("nobody"), ad=pl.lit(-5), browser=pl.lit("lynx"), tags=pl.lit("t99|t98")
    )
    nothing = unseen.with_columns(
        user=pl.lit(None, pl.String), ad=pl.lit(None, pl.Int64), browser=pl.lit(None, pl.String)
    )
    scores = predictor.score(unseen)
    assert same(scores, predictor.score(nothing))
    assert not same(scores, predictor.score(ROWS))
    assert all(np.isfinite(v).all() for v in scores.values())


@pytest.mark.parametrize("column", OPTIONAL)
def test_a_missing_optional_column_scores_as_an_empty_one(predictor, column):
    empty = ROWS.with_columns(pl.lit(None).cast(ROWS.schema[column]).alias(column))
    without = predictor.score(ROWS.drop(column))
    assert same(without, predictor.score(empty))
    if column not in ("past",):  # these two models do not read histories
        assert not same(without, predictor.score(ROWS))


def test_a_missing_column_is_named_and_the_nearest_suggested(predictor):
    with pytest.raises(SchemaError) as caught:
        predictor.score(ROWS.rename({"price": "prise"}))
    assert "'price'" in caught.value.where
    assert "'prise'" in caught.value.fix


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused(predictor, value):
    rows = ROWS.with_columns(price=pl.when(pl.arange(0, 150) == 7).then(value).otherwise("price"))
    with pytest.raises(DataFormatError) as caught:
        predictor.score(rows)
    assert "'price', row 7" in caught.value.where


@pytest.mark.parametrize(
    "change",
    [
        {"past": pl.lit("a b")},
        {"picture": pl.lit("0.5 0.5")},
        {"picture": pl.lit([0.5], pl.List(pl.Float64))},
    ],
)
def test_a_column_of_another_type_is_refused_in_our_words(predictor, change):
    with pytest.raises(DataFormatError) as caught:
        predictor.score(ROWS.with_columns(**change))
    assert next(iter(change)) in caught.value.where


def test_no_rows_give_no_scores(predictor):
    scores = predictor.score(ROWS[:0])
    assert {n: (v.shape, v.dtype) for n, v in scores.items()} == {
        n: ((0,), np.dtype(np.float32)) for n in ("click", "buy")
    }


def test_calibration_is_applied_after_the_logits_and_to_its_label_alone(artifact, predictor):
    curve = Calibrator(method="platt", y=(-0.5,), slope=0.4, negative_rate=0.1)
    moved = Predictor(replace(artifact, calibration={"buy": curve}))
    bare, served = predictor.score(ROWS), moved.score(ROWS)
    assert np.array_equal(served["click"], bare["click"])
    batch = artifact.featurizer(ROWS.drop("click", "buy"))
    logits = predictor.logits(batch)["buy"].tolist()
    p = [1 / (1 + math.exp(-(0.4 * x - 0.5 + math.log(0.1)))) for x in logits]
    assert served["buy"].dtype == np.float32
    assert served["buy"] == pytest.approx(np.array(p), rel=1e-6)
    assert np.array_equal(np.argsort(served["buy"]), np.argsort(bare["buy"]))
    parts = [moved.score(ROWS[i : i + 7])["buy"] for i in range(0, len(ROWS), 7)]
    assert np.array_equal(np.concatenate(parts), served["buy"])
    same_bits = Predictor(replace(artifact, calibration={"buy": Calibrator()}))
    assert same(same_bits.score(ROWS), bare)


def test_loading_and_scoring_leave_torch_as_it_was(artifact):
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    predictor = Predictor(artifact)
    predictor.score(ROWS)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads
    assert not predictor.model.training
