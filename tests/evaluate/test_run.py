from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fullrank.batch import Batch, Columns
from fullrank.errors import (
    ConfigError,
    EmptyInputError,
    MetricUndefinedError,
    SchemaError,
)
from fullrank.evaluate.ranking import AUC, ExactAUC, exact_auc
from fullrank.evaluate.run import default_metrics, evaluate, predict_scores
from fullrank.schema import Label, Numeric, Schema


class Scorer(nn.Module):
    """Scores every label with the one numeric field, through dropout and a frozen norm."""

    def __init__(self, labels: tuple[str, ...], group: str | None = None) -> None:
        super().__init__()
        self.schema = Schema(
            fields=(Numeric("x"),), labels=tuple(Label(name) for name in labels), group=group
        )
        self.scale = nn.Parameter(torch.ones(1))
        self.dropout, self.frozen = nn.Dropout(0.9), nn.BatchNorm1d(1)
        self.frozen.eval()
        self.grad_seen: list[bool] = []

    def score(self, batch: Batch) -> dict[str, Tensor]:
        x = self.dropout(self.scale * batch.numeric["x"])
        self.grad_seen.append(x.requires_grad)
        return {label.name: (i + 1) * x for i, label in enumerate(self.schema.labels)}


def test_values_modes_and_gradients() -> None:
    model, batches = Scorer(("click",)), _batches(("click",))
    model.train()
    model.frozen.eval()
    found = evaluate(model, batches)
    score = torch.cat([b.numeric["x"] for b in batches])
    label = torch.cat([b.labels["click"] for b in batches])
    seen = torch.cat([b.observed["click"] for b in batches])
    assert found["auc"] == exact_auc(score[seen], label[seen])
    assert {"logloss", "ne", "ece", "ece_mass", "calibration", "score_std"} <= found.keys()
    assert "gauc" not in found
    assert all(type(value) is float for value in found.values())
    assert model.training
    assert model.dropout.training
    assert not model.frozen.training  # what the user froze stays frozen
    assert model.grad_seen == [False, False]
    assert model.scale.grad is None


def test_modes_come_back_after_an_error() -> None:
    model = Scorer(("click",))
    with torch.no_grad():
        model.scale.fill_(float("nan"))
    with pytest.raises(MetricUndefinedError, match="not finite"):
        evaluate(model, _batches(("click",)))
    assert model.training
    assert not model.frozen.training


def test_groups_and_labels_in_names() -> None:
    labels = ("click", "buy")
    found = evaluate(Scorer(labels, group="user"), _batches(labels))
    assert {"click/auc", "buy/auc", "click/gauc", "click/gauc_dropped"} <= found.keys()
    chosen = {"a": AUC("buy"), "b": AUC("click")}
    assert evaluate(Scorer(labels), _batches(labels), chosen).keys() == {"buy/auc", "click/auc"}
    assert evaluate(Scorer(labels), _batches(labels), {"a": AUC("buy")}).keys() == {"auc"}


def test_evaluating_twice_gives_the_same() -> None:
    model, batches = Scorer(("click",)), _batches(("click",))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert evaluate(model, batches) == evaluate(model, batches)
    assert torch.equal(torch.get_rng_state(), state)


def test_default_metrics_are_fresh_each_call() -> None:
    first, second = default_metrics(["click"]), default_metrics(["click"])
    assert first.keys() == second.keys()
    assert not {id(metric) for metric in first.values()} & {id(m) for m in second.values()}


def test_streams_keep_no_rows() -> None:
    model, batches = Scorer(("click",)), _batches(("click",))
    metrics = default_metrics(["click"], exact=False)
    found = evaluate(model, batches, metrics)
    assert not [metric for metric in metrics.values() if hasattr(metric, "_store")]
    exact = evaluate(model, batches)
    assert found == {name: value for name, value in exact.items() if name != "ece_mass"}


def test_undefined_metrics_are_refused_or_left_out() -> None:
    labels = ("click", "buy")
    batches = _batches(labels)
    for batch in batches:
        batch.labels["buy"].zero_()
    with pytest.raises(MetricUndefinedError, match="all labels are equal") as caught:
        evaluate(Scorer(labels), batches)
    assert "'buy'" in caught.value.where
    found = evaluate(Scorer(labels), batches, undefined="omit")
    assert {"click/auc", "buy/logloss"} <= found.keys()
    assert not {"buy/auc", "buy/ne", "buy/calibration"} & found.keys()


def test_scores_keep_the_order_and_the_unobserved() -> None:
    model, batches = Scorer(("click",), group="user"), _batches(("click",))
    scores = predict_scores(model, iter(batches))
    assert len(scores) == 60
    assert torch.equal(scores.logits["click"], torch.cat([b.numeric["x"] for b in batches]))
    assert torch.equal(scores.weight, torch.cat([b.weight for b in batches]))
    assert scores.group is not None
    rows = scores.rows("click")
    assert len(rows) == int(scores.observed["click"].sum()) < 60
    assert exact_auc(rows.score, rows.label) == evaluate(model, batches)["auc"]
    assert predict_scores(Scorer(("click",)), batches).group is None
    with pytest.raises(SchemaError, match="no such label"):
        scores.rows("clicks")


def test_a_loader_may_refill_its_buffers() -> None:
    model, batches = Scorer(("click",), group="user"), _batches(("click",))
    expected = predict_scores(model, batches)
    exact = evaluate(model, batches)

    def refilled() -> Iterator[Batch]:
        for batch in _batches(("click",)):
            yield batch
            for block in (batch.numeric.block, batch.labels.block, batch.weight, batch.group):
                block.zero_()
            batch.observed.block.fill_(False)

    found = predict_scores(model, refilled())
    for name in ("logits", "labels", "observed"):
        assert torch.equal(getattr(found, name)["click"], getattr(expected, name)["click"])
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.group, expected.group)
    assert evaluate(model, refilled()) == exact


def test_metrics_may_be_merged_outside_inference_mode() -> None:
    model, batches = Scorer(("click",)), _batches(("click",))
    parts = []
    for batch in batches:
        part = ExactAUC("click")
        evaluate(model, [batch], {"auc": part})
        parts.append(part)
    parts[0].merge(parts[1])
    assert parts[0].compute()["auc"] == evaluate(model, batches)["auc"]


def test_refusals() -> None:
    model = Scorer(("click",))
    for measure in (evaluate, predict_scores):
        with pytest.raises(EmptyInputError, match="no batches"):
            measure(model, [])
        with pytest.raises(ConfigError, match="cannot score"):
            measure(nn.Linear(1, 1), _batches(("click",)))
    with pytest.raises(ConfigError, match="same name"):
        evaluate(model, _batches(("click",)), {"a": AUC("click"), "b": ExactAUC("click")})


def _batches(labels: tuple[str, ...], rows: int = 30) -> list[Batch]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(2):
        x = rng.normal(size=(rows, 1)).astype(np.float32)
        y = rng.random((rows, len(labels))) < 1 / (1 + np.exp(-x))
        made.append(
            Batch(
                categorical=Columns.none(rows, torch.int32),
                numeric=Columns(("x",), torch.from_numpy(x)),
                labels=Columns(labels, torch.from_numpy(y.astype(np.float32))),
                observed=Columns(labels, torch.from_numpy(rng.random((rows, len(labels))) < 0.8)),
                weight=torch.ones(rows),
                group=torch.from_numpy(rng.integers(0, 5, rows)),
                time=torch.zeros(rows, dtype=torch.int64),
            )
        )
    return made
