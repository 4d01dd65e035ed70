"""Calibration from recipe or export to artefact, result and report; without it nothing changes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from fullrank.data.featurizer import Featurizer
from fullrank.errors import ConfigError, RunFolderError
from fullrank.evaluate.calibrate import Calibrator
from fullrank.evaluate.run import Scores
from fullrank.schema import Label
from fullrank.serve.artifact import Artifact
from fullrank.serve.predictor import Predictor
from fullrank.workflow.apply import evaluate_command, export_command
from fullrank.workflow.calibration import (
    Calibrate,
    Fitted,
    calibrators,
    effects,
    reliability_section,
)
from fullrank.workflow.data import DataOptions
from fullrank.workflow.diagnosis import joint_report
from fullrank.workflow.recipe import load_recipe
from fullrank.workflow.run import RunOptions, train_run

from .small_world import SPEC, loss, make_log, write_recipe

DATA = DataOptions()


@pytest.fixture(scope="module")
def ill(trained, tmp_path_factory):
    """A run whose weights grew fourfold after training: its probabilities are too sure."""
    folder = tmp_path_factory.mktemp("ill") / "run"
    folder.mkdir()
    (folder / "recipe.json").write_bytes((trained.folder / "recipe.json").read_bytes())
    artifact = Artifact.load(trained.folder / "artifact")
    weights = {n: 4 * t for n, t in artifact.weights.items()}
    replace(artifact, weights=weights).save(folder / "artifact")
    return folder


def test_recipes_without_calibration_are_stored_as_they_were(trained):
    recipe = load_recipe(str(trained.recipe))
    assert "calibrate" not in recipe.to_dict()
    asked = load_recipe(str(trained.recipe), ("calibrate.method=platt",))
    assert asked.to_dict()["calibrate"] == {"method": "platt", "negative_rate": 1.0}
    assert {k: v for k, v in asked.to_dict().items() if k != "calibrate"} == recipe.to_dict()


def test_a_run_without_calibration_serves_bare_scores_and_shows_its_curve(trained):
    assert Artifact.load(trained.folder / "artifact").calibration == {}
    found = trained.result["calibration"]["click"]
    assert (found["method"], "after" in found) == ("none", False)
    assert found["before"]["logloss"] == pytest.approx(trained.result["test"]["logloss"], rel=1e-6)
    assert found["before"]["ece_mass"] == pytest.approx(trained.result["test"]["ece_mass"])
    page = (trained.folder / "report.html").read_text()
    assert "reliability of &#x27;click&#x27;" in page or "reliability of 'click'" in page


def test_training_calibrates_where_the_recipe_says_so(trained, tmp_path):
    recipe = load_recipe(str(trained.recipe), ("calibrate.method=platt",))
    options = RunOptions(data=trained.options, progress=False, diagnose=False)
    result = train_run(recipe, tmp_path / "run", options)
    assert result["test"] == trained.result["test"]  # measured bare, and trained to the same bits
    artifact = Artifact.load(tmp_path / "run" / "artifact")
    assert artifact.calibration["click"].method == "platt"
    served = evaluate_command(tmp_path / "run", None, DATA)["metrics"]
    assert served == artifact.metrics
    assert served["auc"] == result["test"]["auc"]
    after = result["calibration"]["click"]["after"]
    assert served["logloss"] == pytest.approx(after["logloss"], rel=1e-6)
    assert served["logloss"] != result["test"]["logloss"]


@pytest.mark.parametrize("method", ["auto", "platt", "isotonic"])
def test_an_export_heals_an_ill_run_on_rows_it_was_not_fitted_on(ill, tmp_path, method, capsys):
    export_command(ill, tmp_path / "out", "artifact", Calibrate(method=method))
    bare, served = Predictor.load(ill / "artifact"), Predictor.load(tmp_path / "out")
    rows, chance = make_log(2000, 77)
    label = rows["click"].to_numpy()

    def off(predictor: Predictor) -> tuple[float, float]:
        p = predictor.score(rows)["click"].astype(float)
        return loss(np.log(p / (1 - p)), label), float(np.abs(p - chance).mean())

    assert all(after < 0.9 * before or after < before - 0.02
               for after, before in zip(off(served), off(bare), strict=True))  # fmt: skip
    assert "calibration error" in capsys.readouterr().out


def test_auto_leaves_a_healthy_run_alone(trained, tmp_path, capsys):
    export_command(trained.folder, tmp_path / "out", "artifact", Calibrate(method="auto"))
    assert Artifact.load(tmp_path / "out").calibration == {}
    assert "nothing to heal" in capsys.readouterr().out


def test_thinned_out_negatives_are_put_back(trained, tmp_path):
    how = Calibrate(negative_rate=0.25)
    export_command(trained.folder, tmp_path / "out", "artifact", how)
    rows = make_log(50, 5)[0]
    p = Predictor.load(trained.folder / "artifact").score(rows)["click"].astype(float)
    served = Predictor.load(tmp_path / "out").score(rows)["click"]
    assert served == pytest.approx(p / (p + (1 - p) / 0.25), rel=1e-5)


def test_what_cannot_be_fitted_is_refused(trained, tmp_path):
    with pytest.raises(RunFolderError):  # an artefact alone has no validation rows
        export_command(
            trained.folder / "artifact", tmp_path / "o", "artifact", Calibrate(method="platt")
        )
    with pytest.raises(ConfigError, match="negative_rate"):
        Calibrate(negative_rate=0.0)
    rows = make_log(50, 5)[0].with_columns(w=pl.lit(2.0))
    weighted = Featurizer.fit(replace(SPEC, weight="w"), rows.lazy())
    with pytest.raises(ConfigError, match="'w'"):
        Calibrate(negative_rate=0.5).require_unweighted(weighted)
    Calibrate(method="platt").require_unweighted(weighted)
    again = write_recipe(tmp_path / "own.py", trained.place, spec='weight="price",')
    recipe = load_recipe(str(again), ("calibrate.negative_rate=0.5",))
    with pytest.raises(ConfigError, match="weights"):
        train_run(recipe, tmp_path / "run", RunOptions(data=DataOptions(cache=tmp_path / "c")))


def two_labels(click, buy) -> Scores:
    """400 rows; a click is always known, a purchase for every other row."""
    logits = torch.linspace(-2, 2, 400)
    known = torch.arange(400) % 2 == 0
    return Scores(
        {"click": logits, "buy": logits},
        {"click": click(logits).float(), "buy": buy(logits).float()},
        {"click": torch.ones(400, dtype=torch.bool), "buy": known},
        torch.ones(400),
        None,
    )


class Two:
    labels = (Label("click"), Label("buy", given="click"))


def test_labels_are_calibrated_one_by_one_and_conversions_are_not_moved_by_the_rate():
    rng = torch.Generator().manual_seed(0)

    def drawn(logits):
        return torch.rand(400, generator=rng) < torch.sigmoid(0.5 * logits)

    found = calibrators(
        two_labels(drawn, drawn), Calibrate(method="platt", negative_rate=0.1), Two
    ).curves
    assert found["click"].negative_rate == 0.1
    assert found["buy"].negative_rate == 1.0
    assert found["click"].slope != found["buy"].slope
    never = calibrators(
        two_labels(drawn, torch.zeros_like), Calibrate(method="isotonic", negative_rate=0.1), Two
    )
    assert set(never.curves) == {"click"}
    assert (
        "all labels are equal" in never.refused["buy"]
    )  # a label that never happens does not end a finished training
    assert calibrators(two_labels(drawn, drawn), Calibrate(), Two) == Fitted()


def test_effects_are_measured_among_the_thinned_out_rows():
    scores = two_labels(lambda x: x > 0.3, lambda x: x > 0)
    curve = Calibrator(method="platt", slope=3.0, negative_rate=0.1)
    found = effects(scores, Fitted({"click": curve}))
    assert found["click"]["negative_rate"] == 0.1
    z = 3.0 * scores.logits["click"].double().numpy()
    label = scores.labels["click"].numpy()
    assert found["click"]["after"]["logloss"] == pytest.approx(loss(z, label))
    assert "after" not in found["buy"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_page_shows_both_curves_and_bears_rates_of_zero_and_older_runs(trained, tmp_path):
    scores = two_labels(lambda x: x > 0.3, lambda x: x > 0)
    found = effects(
        scores, Fitted({"click": Calibrator(method="isotonic", slope=3.0, negative_rate=0.1)})
    )
    section = reliability_section({"new": {"calibration": found}, "old": {}})
    assert len(section.figures) == 2
    assert "as scored" in section.figures[0].svg
    assert "after &#x27;isotonic&#x27;" in section.figures[0].svg
    assert "0.1 of the negatives" in section.figures[0].caption
    assert "after" not in section.figures[1].svg
    assert reliability_section({"old": {}}).figures == []
    joint_report(tmp_path / "r.html", [trained.folder], "a comparison")  # which shows none
