"""Calibrating a trained model on its validation split, and showing what that does elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from fullrank.chart import Series, line_chart
from fullrank.config import require
from fullrank.data.featurizer import Featurizer
from fullrank.diagnose.figures import Figure, Section
from fullrank.errors import EmptyInputError, MetricUndefinedError
from fullrank.evaluate.calibrate import Calibrator, choose, fit, require_rate
from fullrank.evaluate.calibration import ReliabilityTable, equal_mass
from fullrank.evaluate.metric import Rows
from fullrank.evaluate.run import Scores
from fullrank.schema import Schema

_BUCKETS = 20
_TEXT = (
    "Of the test rows to which the model promises a rate, how many came true? In buckets of equal "
    "mass; a healthy curve lies on the dashed line. Calibration is fitted on validation rows, "
    "never on these."
)


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """How the probabilities of a trained model are brought in line with what happened.

    Args:
        method: "platt" draws a line through the logits, "isotonic" a rising curve, "auto" takes
            what heals held-out rows and leaves a healthy model alone, "none" fits nothing.
        negative_rate: share of the negatives that were kept when the log was thinned out, 1 if
            all were. Labels of impressions are moved back by it.
    """

    method: Literal["none", "auto", "platt", "isotonic"] = "none"
    negative_rate: float = 1.0

    def __post_init__(self) -> None:
        require_rate(self.negative_rate, "calibrate.negative_rate")

    def require_unweighted(self, featurizer: Featurizer) -> None:
        """Refuses to correct twice.

        Raises:
            ConfigError: a rate is given, and the rows have weights of 1 / sampling rate already.
        """
        weight = featurizer.spec.weight
        require(
            self.negative_rate == 1 or not weight,
            where="calibrate.negative_rate",
            found=f"{self.negative_rate}, and the weights of column '{weight}'",
            expected="one of them: weighted rows have taught the model the true rate",
            fix="leave the rate at 1, or the column out of the spec",
        )


@dataclass(frozen=True)
class Fitted:
    """What the labels of a model need.

    Args:
        curves: label -> its calibrator; a healthy label is absent.
        refused: label -> why it cannot be calibrated.
    """

    curves: Mapping[str, Calibrator] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def calibrators(scores: Scores, how: Calibrate, schema: Schema) -> Fitted:
    """Fits calibrators on held-out scores, label by label.

    A label that cannot be calibrated, because it never happens or its scores run against it, is
    served as it is: a finished training is not thrown away for it.
    """
    found: dict[str, Calibrator] = {}
    refused: dict[str, str] = {}
    for label in schema.labels:
        try:
            rows = scores.rows(label.name)
            curve = choose(rows) if how.method == "auto" else fit(how.method, rows)
        except (EmptyInputError, MetricUndefinedError) as cause:
            curve, refused[label.name] = Calibrator(), f"{cause.what} ({cause.found})"
        if label.given == "impression":  # negatives of a conversion are clicks, which all stay
            curve = curve.correct_sampling(how.negative_rate)
        if curve != Calibrator():
            found[label.name] = curve
    return Fitted(found, refused)


def uncorrected(curves: Mapping[str, Calibrator]) -> dict[str, Calibrator]:
    """Returns the curves for rows whose negatives are thinned out like those of the fit."""
    return {label: curve.correct_sampling(1.0) for label, curve in curves.items()}


def effects(scores: Scores, fitted: Fitted) -> dict[str, Any]:
    """Measures calibration on rows that nothing was fitted on.

    Args:
        scores: of the bare model, on the test split.
        fitted: of `calibrators`. The correction for sampled negatives is left out of the
            measurement, since these rows are sampled too.

    Returns:
        label -> "method", "negative_rate", "refused" where it could not be fitted, "before" and,
        where there is a curve, "after": log-loss, calibration error and the reliability table.
    """
    found: dict[str, Any] = {}
    for label in scores.logits:
        rows = scores.rows(label)
        if not float(rows.weight.sum()):
            continue
        curve = fitted.curves.get(label, Calibrator())
        found[label] = {"method": curve.method, "negative_rate": curve.negative_rate}
        if label in fitted.refused:
            found[label]["refused"] = fitted.refused[label]
        found[label]["before"] = _measured(rows)
        if curve.method != "none":
            z = torch.from_numpy(curve.correct_sampling(1.0).logits(rows.score.numpy()))
            found[label]["after"] = _measured(Rows(z, rows.label, rows.weight))
    return found


def _measured(rows: Rows) -> dict[str, Any]:
    table = ReliabilityTable.of(rows, equal_mass(rows, _BUCKETS), _BUCKETS)
    positive, negative = rows.masses()
    z = rows.score.double()
    zero = torch.zeros((), dtype=torch.float64)
    loss = positive * torch.logaddexp(zero, -z) + negative * torch.logaddexp(zero, z)
    return {
        "logloss": float(loss.sum() / rows.weight.double().sum()),
        "ece_mass": table.error(),
        "table": {name: values.tolist() for name, values in asdict(table).items()},
    }


def effect_lines(found: Mapping[str, Any]) -> list[str]:
    """Returns a sentence per label that was calibrated, or could not be."""
    lines = []
    for label, of in found.items():
        rate = f"; then for {of['negative_rate']:g} of the negatives" * (of["negative_rate"] != 1)
        if "after" in of:
            before, after = of["before"], of["after"]
            lines.append(
                f"label '{label}' calibrated by '{of['method']}' on validation rows: calibration "
                f"error {before['ece_mass']:.4f} to {after['ece_mass']:.4f}, log-loss "
                f"{before['logloss']:.4f} to {after['logloss']:.4f} on test rows{rate}"
            )
        elif rate or "refused" in of:
            lines.append(f"label '{label}' not fitted: {of.get('refused', 'not asked for')}{rate}")
    return lines


def reliability_section(results: Mapping[str, Mapping[str, Any]]) -> Section:
    """Returns the reliability curves of runs, before and after calibration, as far as known.

    Args:
        results: run name -> its result.json; older ones hold no curves.
    """
    figures = [
        _figure(name, label, of)
        for name, result in results.items()
        for label, of in result.get("calibration", {}).items()
    ]
    return Section("Reliability", _TEXT, figures)


def _figure(name: str, label: str, of: Mapping[str, Any]) -> Figure:
    parts = {part: of[part]["table"] for part in ("before", "after") if part in of}
    rates = [p for table in parts.values() for p in table["predicted"]]
    low, high = min(rates), max(rates)
    wide = low > 0 and high > 20 * low  # click rates of one page lie decades apart
    curves = [
        Series(
            "as scored" if part == "before" else f"after '{of['method']}'",
            table["predicted"],
            [None if wide and not rate else rate for rate in table["observed"]],
            marks=True,
        )
        for part, table in parts.items()
    ]
    curves.append(Series("as promised", [low, high], [low, high], dashed=True))
    svg = line_chart(
        curves,
        title=f"{name}: reliability of '{label}'",
        x="promised rate",
        y="rate that came true",
        log_x=wide,
        log_y=wide,
    )
    errors = ", ".join(f"{part} {of[part]['ece_mass']:.4f}" for part in parts)
    rate = "" if of["negative_rate"] == 1 else (
        f" Served rates are lower than these: {of['negative_rate']:g} of the negatives were kept."
    )  # fmt: skip
    rows = sum(parts["before"]["weight"])
    return Figure(svg, f"Mean gap: {errors}. {rows:,.0f} rows by weight.{rate}")
