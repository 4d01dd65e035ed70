"""Lookups of a recipe: made once from the earliest rows, and then wherever the model goes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
import torch

import fullrank.workflow.compare as compare_module
from fullrank.cli import Compare
from fullrank.data.pretrain import Pretrained, PretrainedVectors
from fullrank.errors import ConfigError, SplitError, StateError
from fullrank.lookup import Lookup, Provenance
from fullrank.serve.artifact import Artifact
from fullrank.serve.predictor import Predictor
from fullrank.workflow.apply import evaluate_command, export_command, predict_command
from fullrank.workflow.assets import make_assets
from fullrank.workflow.data import DataOptions, open_data
from fullrank.workflow.diagnosis import diagnose_command
from fullrank.workflow.recipe import Recipe, load_recipe
from fullrank.workflow.run import RunOptions, train_run

from .small_world import SIZES, make_log, write_recipe

SOURCE = "PretrainedVectors(item='ad', dim=3, share=0.25)"
NO_TIME = "ignore=(('time', 'nobody looks at it'),)"
CONFIG = (
    "embedding_dim=4, sparse_tokens=2, num_blocks=1, token_dim=20, cross='pretrained', "
    "dense_token=False"
)


class Made(NamedTuple):
    """A finished run with lookups."""

    place: Path
    recipe: Recipe
    folder: Path
    result: dict
    options: DataOptions


def write_own(path: Path, data: Path, source: str = SOURCE, **settings) -> Path:
    """A recipe file of a user's own, with assets."""
    given = {"model": "rankup", "config": CONFIG, "spec": "time='time'", "epochs": 2} | settings
    text = write_recipe(path, data, **given).read_text()
    text = text.replace("claim=Claim", f"assets=({source},), claim=Claim")
    text = text.replace("import TrainConfig", "import TrainConfig\nfrom fullrank.data.pretrain "
                        "import PretrainedVectors")  # fmt: skip
    path.write_text(text)
    return path


def how(options: DataOptions, **given) -> RunOptions:
    return RunOptions(**({"data": options, "progress": False, "diagnose": False} | given))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    place = tmp_path_factory.mktemp("assets")
    start = 0
    for i, (name, rows) in enumerate(SIZES.items()):
        time = pl.Series("time", np.arange(start, start + rows) + 10**6)
        make_log(rows, i)[0].with_columns(time).write_csv(place / f"{name}.csv")
        start += rows
    recipe = load_recipe(str(write_own(place / "own.py", place)))
    options = DataOptions(cache=place / "cache")
    result = train_run(recipe, place / "run", how(options, diagnose=True))
    return Made(place, recipe, place / "run", result, options)


@pytest.fixture
def _made_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PretrainedVectors, "make", lambda *_: pytest.fail("made again"))


def test_the_model_trains_on_the_rows_that_its_vectors_do_not_know(made):
    early = SIZES["train"] // 4
    assert made.result["rows"] == SIZES | {"train": SIZES["train"] - early}
    assert made.result["steps"] == 2 * -(-(SIZES["train"] - early) // 64)
    artifact = Artifact.load(made.folder / "artifact")
    expected = make_assets(made.recipe.assets, open_data(made.recipe.dataset, made.options))
    assert expected.since == 10**6 + early
    assert {n: x.key for n, x in artifact.assets.items()} == {
        "user_vectors": "user",
        "item_vectors": "ad",
    }
    for name, lookup in artifact.assets.items():
        assert torch.equal(lookup.values, expected.lookups[name].values)
        assert lookup.source == expected.lookups[name].source
    assert made.result["verdicts"]
    asked = json.loads((made.folder / "recipe.json").read_text())["assets"]
    assert asked == [{"kind": "PretrainedVectors", **vars(made.recipe.assets[0])}]


@pytest.mark.usefixtures("_made_no_more")
def test_whatever_is_done_with_a_run_reads_its_artefact(made, tmp_path):
    said = evaluate_command(made.folder, None, made.options)
    assert said["metrics"] == made.result["test"]
    predict_command(made.folder, made.place / "test.csv", tmp_path / "out.csv", made.options)
    rows = pl.read_csv(made.place / "test.csv")
    scores = Predictor.load(made.folder / "artifact").score(rows)["click"]
    written = pl.read_csv(tmp_path / "out.csv")["probability_click"].cast(pl.Float32).to_numpy()
    assert np.array_equal(written, scores)
    export_command(made.folder, tmp_path / "copy", "artifact")
    assert np.array_equal(Predictor.load(tmp_path / "copy").score(rows)["click"], scores)
    export_command(made.folder, tmp_path / "model.pt2", "torch-export")
    assert str(made.folder) in diagnose_command([made.folder], tmp_path / "r.html")["verdicts"]


def test_the_scores_depend_on_the_vectors(made):
    artifact = Artifact.load(made.folder / "artifact")
    rows = pl.read_csv(made.place / "test.csv").head(50)
    weights = {n: -x if n == "user.lookup.values" else x for n, x in artifact.weights.items()}
    other = Predictor(replace(artifact, weights=weights)).score(rows)["click"]
    assert not np.allclose(other, Predictor(artifact).score(rows)["click"])


def test_a_resumed_run_keeps_its_vectors_and_ends_with_the_same_bits(made, tmp_path, monkeypatch):
    once = replace(made.recipe, train=replace(made.recipe.train, epochs=1))
    train_run(once, tmp_path / "run", how(made.options))
    other = replace(once, assets=(replace(once.assets[0], share=0.5),))
    for wrong in (other, replace(once, assets=())):
        with pytest.raises((StateError, ConfigError)):
            train_run(wrong, tmp_path / "run", how(made.options, resume=True))
    with pytest.raises(StateError, match="share"):
        train_run(other, tmp_path / "run", how(made.options, resume=True))
    with monkeypatch.context() as patch:
        patch.setattr(PretrainedVectors, "make", lambda *_: pytest.fail("made again"))
        found = train_run(made.recipe, tmp_path / "run", how(made.options, resume=True))
    assert found["test"] == made.result["test"]
    weights = "artifact/weights.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (made.folder / weights).read_bytes()
    (tmp_path / "run" / "assets.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(StateError, match="cannot be read"):
        train_run(made.recipe, tmp_path / "run", how(made.options, resume=True))
    plain = write_recipe(tmp_path / "plain.py", made.place, spec="time='time'", epochs=1)
    train_run(load_recipe(str(plain)), tmp_path / "run", how(made.options, overwrite=True))
    assert not (tmp_path / "run" / "assets.safetensors").exists()  # it was of the older run


def test_assets_name_a_run_only_where_there_are_some(made, tmp_path):
    plain = replace(made.recipe, assets=())
    assert "assets" not in plain.to_dict()
    files = [
        str(write_own(tmp_path / f"{name}.py", made.place, source))
        for name, source in (("a", SOURCE), ("b", SOURCE.replace("0.25", "0.5")), ("c", SOURCE))
    ]
    asked = Compare(recipes=tuple(files), seeds=1, runs=tmp_path, cache=made.options.cache)
    recipes = [replace(load_recipe(f), name="same") for f in files]
    a, b, c = (job.fingerprint for job in compare_module._jobs(asked, recipes))
    assert a == c != b


def test_a_comparison_trains_with_assets(made, tmp_path):
    file = write_own(tmp_path / "vectors.py", made.place, epochs=1)
    asked = Compare(
        recipes=(str(file),),
        seeds=1,
        name="assets",
        out=tmp_path / "results",
        runs=tmp_path / "runs",
        no_diagnose=True,
        cache=made.options.cache,
    )
    said = compare_module.compare_command(asked)
    assert [r["recipe"] for r in said["runs"]] == ["vectors"]
    (run,) = (tmp_path / "runs").glob("vectors-*/seed-1")
    assert Artifact.load(run / "artifact").assets.keys() == {"user_vectors", "item_vectors"}


# ---- refused


@dataclass(frozen=True)
class Constant:
    """Lookups that know no row of the log."""

    name: str

    def make(self, data) -> Pretrained:
        values = torch.ones(data.schema.table("user").size, 3)
        return Pretrained({self.name: Lookup("user", values, Provenance("a test"))}, None)


def test_several_sources_end_with_the_last_and_share_no_name(made):
    data = open_data(made.recipe.dataset, made.options)
    both = make_assets((Constant("a"), *made.recipe.assets, Constant("b")), data)
    assert sorted(both.lookups) == ["a", "b", "item_vectors", "user_vectors"]
    assert both.since == make_assets(made.recipe.assets, data).since
    assert make_assets((Constant("a"),), data).since is None
    with pytest.raises(ConfigError) as caught:
        make_assets((Constant("a"), Constant("a")), data)
    assert caught.value.found == "twice: a"


def test_lookups_that_the_model_does_not_read_are_refused(made, tmp_path):
    idle = replace(made.recipe, model="lr", config=None)
    with pytest.raises(ConfigError) as caught:
        train_run(idle, tmp_path / "run", how(made.options))
    assert caught.value.where == "Recipe.assets"
    assert "item_vectors, user_vectors, which model 'lr' does not read" in caught.value.found
    assert not (tmp_path / "run").exists()


def test_a_log_without_time_is_refused_before_it_costs_anything(made, tmp_path):
    timeless = load_recipe(str(write_own(tmp_path / "own.py", made.place, spec=NO_TIME)))
    with pytest.raises(SplitError) as caught:
        train_run(timeless, tmp_path / "run", how(made.options))
    for part in ("what", "where", "found", "expected", "fix"):
        assert getattr(caught.value, part)
    assert not (tmp_path / "run").exists()
