"""Scoring rows with a model, and measuring the scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.errors import ConfigError, EmptyInputError, MetricUndefinedError, SchemaError, nearest
from fullrank.evaluate.calibration import (
    CalibrationRatio,
    EqualMassCalibrationError,
    ExpectedCalibrationError,
)
from fullrank.evaluate.grouped import GAUC
from fullrank.evaluate.metric import Metric, Rows
from fullrank.evaluate.ranking import AUC, ExactAUC, LogLoss, NormalizedEntropy
from fullrank.evaluate.spread import ScoreSpread
from fullrank.model import Ranker


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What a model said about n rows, and what happened; all on the CPU.

    Args:
        logits: label -> [n] float32.
        labels: label -> [n] float32 in {0, 1}.
        observed: label -> [n] bool, True where the label is known.
        weight: [n] float32.
        group: [n] int64, or None where the schema has no groups.
    """

    logits: dict[str, Tensor]
    labels: dict[str, Tensor]
    observed: dict[str, Tensor]
    weight: Tensor
    group: Tensor | None

    def __len__(self) -> int:
        return self.weight.shape[0]

    def rows(self, label: str) -> Rows:
        """Returns the observed rows of a label, for `bootstrap` and the like.

        Raises:
            SchemaError: the model does not score this label.
            MetricUndefinedError: a score is NaN or infinite.
        """
        if label not in self.logits:
            raise SchemaError(
                "the model scores no such label",
                where="Scores.rows",
                found=f"'{label}'",
                expected="one of: " + ", ".join(self.logits),
                fix=nearest(label, self.logits),
            )
        kept = self.observed[label]
        return Rows.of(
            self.logits[label][kept],
            self.labels[label][kept],
            self.weight[kept],
            None if self.group is None else self.group[kept],
            where=f"label '{label}'",
        )


def default_metrics(
    labels: Iterable[str], *, grouped: bool = False, exact: bool = True
) -> dict[str, Metric]:
    """Returns fresh metrics for every label: AUC, log-loss, NE, calibration and spread.

    Args:
        labels: which labels the model scores.
        grouped: whether `Batch.group` means something; adds GAUC, which keeps every row.
        exact: True keeps every score, for the exact AUC and buckets of equal mass; False is for
            streams too long for that: AUC from a histogram, and buckets of equal width alone.
    """
    metrics: dict[str, Metric] = {}
    for label in labels:
        metrics[f"{label}/auc"] = ExactAUC(label) if exact else AUC(label)
        if grouped:
            metrics[f"{label}/gauc"] = GAUC(label)
        metrics[f"{label}/logloss"] = LogLoss(label)
        metrics[f"{label}/ne"] = NormalizedEntropy(label)
        metrics[f"{label}/ece"] = ExpectedCalibrationError(label)
        if exact:
            metrics[f"{label}/ece_mass"] = EqualMassCalibrationError(label)
        metrics[f"{label}/calibration"] = CalibrationRatio(label)
        metrics[f"{label}/spread"] = ScoreSpread(label)
    return metrics


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    metrics: Mapping[str, Metric] | None = None,
    *,
    undefined: Literal["refuse", "omit"] = "refuse",
) -> dict[str, float]:
    """Measures a model on batches, in evaluation mode and without gradients.

    Every module's mode is put back afterwards. No random number is drawn.

    Args:
        model: a Ranker.
        batches: of any split; unobserved rows are left out.
        metrics: fresh ones, by any name; without them `default_metrics` of the labels that the
            model scores, GAUC included where the model's schema has groups.
        undefined: "refuse" raises when a metric has no value on these rows; "omit" leaves it out,
            for a rare label in a small split.

    Returns:
        Such as "auc" and "logloss"; with metrics of several labels "click/auc".

    Raises:
        EmptyInputError: there are no batches, or no observed rows.
        MetricUndefinedError: all labels are equal, or a score is NaN or infinite.
        ConfigError: two metrics give values of the same name.
    """
    with _evaluating(model):
        for batch in batches:
            prediction = _scored(model, batch)
            if metrics is None:
                metrics = default_metrics(prediction, grouped=_has_groups(model))
            for metric in metrics.values():
                metric.update(prediction, batch)
    if metrics is None:
        raise _no_batches("evaluate")
    return compute(metrics, undefined=undefined)


def compute(
    metrics: Mapping[str, Metric], *, undefined: Literal["refuse", "omit"] = "refuse"
) -> dict[str, float]:
    """Returns the values of several metrics under the names that `evaluate` gives them."""
    several = len({metric.label for metric in metrics.values()}) > 1
    values: dict[str, float] = {}
    for metric in metrics.values():
        try:
            found = metric.compute()
        except MetricUndefinedError:
            if undefined == "refuse":
                raise
            continue
        for name, value in found.items():
            key = f"{metric.label}/{name}" if several else name
            if key in values:
                raise ConfigError(
                    "two metrics give values of the same name",
                    where="evaluate, metrics",
                    found=f"'{key}' twice",
                    expected="each name once",
                    fix="leave one of them out",
                )
            values[key] = value
    return values


def predict_scores(model: nn.Module, batches: Iterable[Batch]) -> Scores:
    """Scores every row and keeps the logits beside labels, weights and groups, in order.

    Args:
        model: a Ranker.
        batches: not shuffled, where the order of rows matters.

    Raises:
        EmptyInputError: there are no batches.
    """
    kept: list[Scores] = []
    with _evaluating(model):
        for batch in batches:
            logits = {label: logit.float() for label, logit in _scored(model, batch).items()}
            group = _copy(batch.group) if _has_groups(model) else None
            kept.append(
                Scores(
                    logits,
                    {label: _copy(batch.labels[label]) for label in logits},
                    {label: _copy(batch.observed[label]) for label in logits},
                    _copy(batch.weight),
                    group,
                )
            )
    if not kept:
        raise _no_batches("predict_scores")
    groups = [part.group for part in kept if part.group is not None]
    return Scores(
        {label: torch.cat([part.logits[label] for part in kept]) for label in kept[0].logits},
        {label: torch.cat([part.labels[label] for part in kept]) for label in kept[0].labels},
        {label: torch.cat([part.observed[label] for part in kept]) for label in kept[0].observed},
        torch.cat([part.weight for part in kept]),
        torch.cat(groups) if groups else None,
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Puts every module into evaluation mode, and afterwards each back into its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:  # trap: model.train() would wake modules frozen on purpose
            module.training = training


def _scored(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Returns label -> logits [B] on the CPU, scored without gradients where the model lies."""
    if not isinstance(model, Ranker):
        raise ConfigError(
            "the model cannot score rows",
            where=type(model).__name__,
            found="no method score",
            expected="score(batch) -> label -> logits [B]",
            fix="evaluate a Ranker",
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        # Copies: a compiled model may write its next output over this one.
        logits = model.score(batch if device.type == "cpu" else batch.to(device))
    return {label: logit.to("cpu", copy=True) for label, logit in logits.items()}


def _copy(x: Tensor) -> Tensor:
    """Returns the tensor on the CPU in memory of its own: a loader may refill its buffers."""
    return x.to("cpu", copy=True)


def _no_batches(where: str) -> EmptyInputError:
    return EmptyInputError(
        "a model was asked to score no batches",
        where=where,
        found="0 batches",
        expected="at least one",
        fix="check the split; a generator can be read only once",
    )


def _has_groups(model: nn.Module) -> bool:
    """Returns whether `Batch.group` means something: the model's schema names the column."""
    schema = getattr(model, "schema", None)
    return schema is not None and schema.group is not None
