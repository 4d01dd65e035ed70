from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

import fullrank.workflow.run as run_module
from fullrank.data.datasets.tabular import from_files
from fullrank.errors import (
    ConfigError,
    DataMissingError,
    MetricUndefinedError,
    RunFolderError,
    StateError,
    UnknownNameError,
)
from fullrank.serve.artifact import Artifact
from fullrank.serve.predictor import Predictor
from fullrank.workflow.data import DataOptions
from fullrank.workflow.recipe import Recipe, load_recipe
from fullrank.workflow.run import RunOptions, train_run

from .small_world import SIZES, SPEC, area, listing, loss, make_log, write_recipe, write_world


def options(cache: Path, **how: Any) -> RunOptions:
    given = {"data": DataOptions(cache=cache), "diagnose": False, "progress": False}
    return RunOptions(**(given | how))


@pytest.fixture
def recipe(trained) -> Recipe:
    return load_recipe(str(trained.recipe))


# ---- the truth


def test_a_planted_truth_is_found(trained):
    labels = pl.read_csv(trained.place / "test.csv")["click"].to_numpy()
    best = area(trained.chance, labels)
    assert best > 0.7
    assert best - 0.02 < trained.result["test"]["auc"] < best + 0.01
    odds = np.log(trained.chance / (1 - trained.chance))
    assert trained.result["test"]["logloss"] < loss(odds, labels) + 0.02


def test_shuffled_labels_stay_at_chance(tmp_path):
    write_world(tmp_path, shuffled=True)
    recipe = load_recipe(str(write_recipe(tmp_path / "own.py", tmp_path)))
    found = train_run(recipe, tmp_path / "run", options(tmp_path / "cache"))
    assert abs(found["test"]["auc"] - 0.5) < 0.06  # three deviations of 900 rows
    assert found["test"]["ne"] > 0.98


def test_the_result_is_what_the_files_say(trained):
    result = json.loads((trained.folder / "result.json").read_text())
    assert result == json.loads(json.dumps(trained.result))
    logits = load_file(trained.folder / "scores" / "test.safetensors")["click"].double().numpy()
    labels = pl.read_csv(trained.place / "test.csv")["click"].to_numpy()
    assert result["test"]["auc"] == pytest.approx(area(logits, labels), abs=1e-9)
    assert result["test"]["logloss"] == pytest.approx(loss(logits, labels), abs=1e-6)
    for name in ("auc", "logloss"):
        low, high = result["interval"][name]
        assert low < result["test"][name] < high
    assert result["rows"] == SIZES
    assert result["parameters"] == 9 + 7 + 2 + 2 + 1  # rows, two unknown, a slope and two biases
    assert result["steps"] == result["epochs"] * -(-SIZES["train"] // 64)
    assert (result["recipe"], result["dataset"], result["model"]) == ("own", "train", "lr")
    assert result["claim"] == {"metric": "auc", "paper": 0.5, "source": "nowhere", "floor": None}
    assert result["interrupted"] is False
    assert result["verdicts"]
    artifact = Artifact.load(trained.folder / "artifact")
    assert artifact.metrics == result["test"]
    assert artifact.provenance["recipe"]["train"]["batch_size"] == 64


def test_the_folder_holds_what_it_should(trained):
    names = {p.split("/")[0] for p in listing(trained.folder)}
    assert names == {
        "artifact",
        "best.safetensors",
        "card.json",
        "diagnostics",
        "metrics.jsonl",
        "recipe.json",
        "report.html",
        "result.json",
        "scores",
        "state",
    }
    asked = json.loads((trained.folder / "recipe.json").read_text())
    assert asked["train"]["epochs"] == 4
    assert Path(asked["data"]).is_dir()


def test_the_same_recipe_gives_the_same_bits_and_another_seed_does_not(trained, recipe, tmp_path):
    scores = []
    for name, made in (("a", recipe), ("b", replace(recipe, seed=2))):
        train_run(made, tmp_path / name, options(trained.options.cache))
        scores.append((tmp_path / name / "scores" / "test.safetensors").read_bytes())
    whole = (trained.folder / "scores" / "test.safetensors").read_bytes()
    assert scores[0] == whole  # and the diagnosis, left out here, changed nothing
    assert scores[1] != whole
    assert not (tmp_path / "a" / "report.html").exists()


def test_logits_of_the_test_split_are_those_of_the_predictor(trained, tmp_path, monkeypatch):
    """To the bit, with a model whose matrix products depend on how many rows run together."""
    monkeypatch.setattr(run_module, "_VALID_ROWS", 3)
    config = "dim=10, hidden=(100, 100)"
    own = tmp_path / "own.py"
    recipe = write_recipe(own, trained.place, model="dcnv2", config=config, epochs=1)
    train_run(load_recipe(str(recipe)), tmp_path / "run", options(tmp_path / "cache"))
    logits = load_file(tmp_path / "run" / "scores" / "test.safetensors")["click"].numpy()
    predictor = Predictor.load(tmp_path / "run" / "artifact")
    rows = pl.read_csv(trained.place / "test.csv")
    for size in (1, 13, 900):
        parts = [rows[i : i + size] for i in range(0, 900 if size > 1 else 40, size)]
        found = [predictor.logits(predictor.artifact.featurizer(part))["click"] for part in parts]
        joined = np.concatenate(found)
        assert np.array_equal(joined, logits[: len(joined)]), size


# ---- interrupted


def test_an_interrupted_run_goes_on_to_the_same_bits(trained, tmp_path):
    """A real Ctrl-C, at whatever step it lands."""
    settings = ("train.epochs=12", "train.log_every=1", "train.patience=none")
    command = [sys.executable, "-m", "fullrank", "train", str(trained.recipe), "--no-diagnose"]
    command += ["--out", str(tmp_path / "broken"), "--cache", str(trained.options.cache), "--json"]
    slow = "train.save_every=1"  # changes no bit, and gives us time
    command += [part for setting in (*settings, slow) for part in ("--set", setting)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        log = tmp_path / "broken" / "metrics.jsonl"
        for _ in range(6000):
            if process.poll() is not None or (log.exists() and log.read_text().count("\n") > 25):
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    said = json.loads(out)
    assert process.returncode == 1, err
    assert said["interrupted"] is True
    assert b"--resume goes on" in err
    assert b"Traceback" not in err
    assert not (tmp_path / "broken" / "result.json").exists()
    assert 0 < said["epoch"] * 19 + said["batch"] < 12 * 19

    recipe = load_recipe(str(trained.recipe), settings)
    with pytest.raises(RunFolderError, match="interrupted"):
        train_run(recipe, tmp_path / "broken", options(trained.options.cache))
    resumed = train_run(recipe, tmp_path / "broken", options(trained.options.cache, resume=True))
    unbroken = train_run(recipe, tmp_path / "whole", options(trained.options.cache))
    timed = ("train_seconds",)
    assert {k: v for k, v in resumed.items() if k not in timed} == {
        k: v for k, v in unbroken.items() if k not in timed
    }
    for name in ("scores/test.safetensors", "artifact/weights.safetensors", "best.safetensors"):
        pair = [(tmp_path / run / name).read_bytes() for run in ("broken", "whole")]
        assert pair[0] == pair[1], name
    logs = []
    for run in ("broken", "whole"):
        lines = (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        logs.append([{**json.loads(line), "seconds": None} for line in lines])
    assert logs[0] == logs[1]


def test_a_state_of_other_choices_is_refused_and_nothing_changes(trained, tmp_path):
    recipe = load_recipe(str(trained.recipe), ("train.epochs=1",))
    train_run(recipe, tmp_path / "run", options(trained.options.cache))
    before = {p: (tmp_path / "run" / p).read_bytes() for p in listing(tmp_path / "run")}
    other = load_recipe(str(trained.recipe), ("train.learning_rate=0.1",))
    with pytest.raises(StateError, match="learning_rate"):
        train_run(other, tmp_path / "run", options(trained.options.cache, resume=True))
    assert {p: (tmp_path / "run" / p).read_bytes() for p in listing(tmp_path / "run")} == before


def test_resuming_what_never_began_begins(trained, recipe, tmp_path):
    found = train_run(recipe, tmp_path / "run", options(trained.options.cache, resume=True))
    assert found["test"] == trained.result["test"]


# ---- refused before it costs anything


def broken(recipe: Recipe, case: str, folder: Path) -> tuple[Recipe, type[Exception]]:
    match case:
        case "data":
            return replace(recipe, dataset=from_files(folder / "gone.csv", SPEC)), DataMissingError
        case "dataset":
            return replace(recipe, dataset="frape"), UnknownNameError
        case "model":
            return replace(recipe, model="dcnv3"), UnknownNameError
        case "config":
            return replace(recipe, config={"widht": 3}), ConfigError
    raise AssertionError(case)


@pytest.mark.parametrize("case", ["data", "dataset", "model", "config"])
def test_a_run_that_cannot_begin_leaves_the_older_one_alone(trained, recipe, tmp_path, case):
    wrong, error = broken(recipe, case, tmp_path)
    with pytest.raises(error):
        train_run(wrong, tmp_path / "new", options(trained.options.cache))
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    for name in ("recipe.json", "result.json"):
        (tmp_path / "old" / name).write_text("{}")
    with pytest.raises(error):
        train_run(wrong, tmp_path / "old", options(trained.options.cache, overwrite=True))
    assert listing(tmp_path / "old") == ["recipe.json", "result.json"]


def test_going_on_and_beginning_anew_exclude_each_other(recipe, tmp_path):
    with pytest.raises(ConfigError, match="leave one out"):
        train_run(recipe, tmp_path / "a", RunOptions(resume=True, overwrite=True))
    assert list(tmp_path.iterdir()) == []


def test_overwriting_begins_anew(trained, tmp_path):
    recipe = load_recipe(str(trained.recipe), ("train.epochs=1",))
    run = tmp_path / "run"
    (run / "state").mkdir(parents=True)
    (run / "state" / "000009").mkdir()
    (run / "diagnostics").mkdir()
    (run / "diagnostics" / "old.jsonl").touch()
    (run / "recipe.json").write_text("{}")
    (run / "notes.md").write_text("mine")
    with pytest.raises(RunFolderError):
        train_run(recipe, run, options(trained.options.cache))
    train_run(recipe, run, options(trained.options.cache, overwrite=True))
    assert "diagnostics/old.jsonl" not in listing(run)
    assert (run / "notes.md").read_text() == "mine"


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_split_without_a_click_is_refused_before_training(tmp_path, monkeypatch, split):
    write_world(tmp_path)
    rows = pl.read_csv(tmp_path / f"{split}.csv").with_columns(click=pl.lit(0))
    rows.write_csv(tmp_path / f"{split}.csv")
    recipe = load_recipe(str(write_recipe(tmp_path / "own.py", tmp_path)))
    monkeypatch.setattr(run_module, "train", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(MetricUndefinedError) as caught:
        train_run(recipe, tmp_path / "run", options(tmp_path / "cache"))
    assert split in caught.value.where
    assert caught.value.found == "only 0"
    assert not (tmp_path / "run").exists()


def test_two_labels_have_metrics_each_and_the_first_has_plain_names(tmp_path):
    from fullrank.data.spec import Spec, Target

    for i, name in enumerate(SIZES):
        frame = make_log(300, i)[0]
        frame = frame.with_columns(buy=pl.col("click") * (pl.col("price") > 0.3).cast(pl.Int64))
        frame.write_csv(tmp_path / f"{name}.csv")
    spec = Spec(columns=(*SPEC.columns, Target(name="buy", given="click")), group="user")
    paths = {name: tmp_path / f"{name}.csv" for name in SIZES}
    recipe = load_recipe(str(write_recipe(tmp_path / "own.py", tmp_path)), ("train.epochs=1",))
    recipe = replace(recipe, dataset=from_files(paths, spec))
    found = train_run(recipe, tmp_path / "run", options(tmp_path / "cache"))["test"]
    assert found["auc"] == found["click/auc"] != found["buy/auc"]
    assert 0 < found["gauc"] < 1


def test_the_seed_decides_the_initial_weights(trained, recipe, tmp_path):
    data = run_module.open_data(recipe.dataset, trained.options)
    fm = replace(recipe, model="fm", config=None)
    first, same, other = (
        run_module.build(replace(fm, seed=seed), data).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
