"""Popularity alone stands beside the results of a run, and old results are still read."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

import fullrank.workflow.compare as compare_module
from fullrank.cli import Compare
from fullrank.data.prepare import Prepared
from fullrank.workflow.compare import compare_command
from fullrank.workflow.data import DataOptions, open_data
from fullrank.workflow.diagnosis import run_line
from fullrank.workflow.folder import RunFolder
from fullrank.workflow.popularity import popularity_alone
from fullrank.workflow.recipe import load_recipe
from fullrank.workflow.run import RunOptions, train_run
from fullrank.workflow.show import show_result

from .small_world import area, command, write_recipe, write_world


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> tuple[Path, dict]:
    """A run whose schema has a judged item and groups."""
    place = tmp_path_factory.mktemp("judged")
    write_world(place)
    recipe = write_recipe(place / "own.py", place, spec='item="ad", group="user",', epochs=1)
    options = RunOptions(data=DataOptions(cache=place / "cache"), progress=False)
    return place, train_run(load_recipe(str(recipe)), place / "run", options)


def test_the_result_holds_what_counting_clicks_reaches(judged) -> None:
    place, result = judged
    train, test = (pl.read_csv(place / f"{name}.csv") for name in ("train", "test"))
    clicks = Counter(train.filter(pl.col("click") == 1)["ad"])
    scores = test["ad"].map_elements(lambda ad: math.log(1 + clicks[ad]), pl.Float64).to_numpy()
    found = result["popularity"]["test"]
    assert found["auc"] == pytest.approx(area(scores, test["click"].to_numpy()), abs=1e-9)
    assert found["auc"] > 0.52  # ads differ in this world
    assert set(result["popularity"]) == {"valid", "test"}
    assert json.loads((place / "run" / "result.json").read_text())["popularity"] == json.loads(
        json.dumps(result["popularity"])
    )


def test_it_is_printed_beside_the_model_and_on_the_page(judged, capsys) -> None:
    place, result = judged
    show_result(result)
    printed = capsys.readouterr().out
    assert "popularity alone" in " ".join(printed.replace("│", " ").split())
    auc = f"{result['popularity']['test']['auc']:.4f}"
    (row,) = [line for line in printed.splitlines() if " auc " in line]
    assert auc in row
    assert f"popularity alone: AUC {auc}, GAUC" in run_line(result)
    assert f"popularity alone: AUC {auc}" in (place / "run" / "report.html").read_text()
    said = command(capsys, "evaluate", place / "run", json=False)
    assert f"popularity alone: AUC {auc}" in said.out


def test_results_without_it_are_shown_as_before(judged, trained, capsys) -> None:
    old = {k: v for k, v in judged[1].items() if k != "popularity"}
    show_result(old)
    assert "popularity" not in capsys.readouterr().out
    assert "popularity" not in run_line(old)
    assert trained.result["popularity"] == {}  # its spec names no item
    show_result(trained.result)
    assert "popularity" not in capsys.readouterr().out
    assert popularity_alone(Prepared.open(RunFolder(trained.folder).prepared())) == {}


def test_a_comparison_measures_it_also_for_runs_that_lack_it(judged, tmp_path, monkeypatch) -> None:
    place, result = judged
    asked = Compare(
        recipes=(str(place / "own.py"),),
        seeds=1,
        name="own",
        out=tmp_path / "docs",
        runs=tmp_path / "runs",
        cache=place / "cache",
        no_diagnose=True,
    )
    (job,) = compare_module._jobs(asked, [load_recipe(str(place / "own.py"))])
    shutil.copytree(place / "run", job.folder)
    old = {k: v for k, v in result.items() if k != "popularity"}
    (job.folder / "result.json").write_text(json.dumps(old))
    monkeypatch.setattr(compare_module, "step_seconds", lambda runs: dict.fromkeys(runs, 0.001))
    paths = compare_command(asked)
    found = result["popularity"]["test"]
    page = Path(paths["table"]).read_text()
    assert f"Popularity alone: AUC {found['auc']:.4f}, GAUC {found['gauc']:.4f}" in page
    assert "| popularity alone |" in page
    (recipe,) = json.loads(Path(paths["data"]).read_text())["recipes"]
    assert recipe["popularity"] == pytest.approx(found)


def test_rows_whose_label_is_not_known_do_not_count(tmp_path) -> None:
    write_world(tmp_path)
    for name in ("train", "valid", "test"):
        rows = pl.read_csv(tmp_path / f"{name}.csv")
        known = pl.int_range(pl.len()) % 3 != 0
        rows.with_columns(known=known).write_csv(tmp_path / f"{name}.csv")
    columns = 'Target(name="click", observed="known"),'
    recipe = write_recipe(tmp_path / "own.py", tmp_path, spec='item="ad",')
    text = recipe.read_text().replace('Target(name="click"),', columns)
    recipe.write_text(text)
    data = open_data(load_recipe(str(recipe)).dataset, DataOptions(cache=tmp_path / "cache"))
    train, test = (
        pl.read_csv(tmp_path / f"{name}.csv").filter("known") for name in ("train", "test")
    )
    clicks = Counter(train.filter(pl.col("click") == 1)["ad"])
    scores = test["ad"].map_elements(lambda ad: math.log(1 + clicks[ad]), pl.Float64).to_numpy()
    found = popularity_alone(data)["test"]
    assert found == {"auc": pytest.approx(area(scores, test["click"].to_numpy()), abs=1e-9)}
