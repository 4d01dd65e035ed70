from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import tyro

import fullrank.workflow.compare as compare_module
from fullrank.cli import Compare, Train
from fullrank.errors import ConfigError, RunFolderError, UnknownNameError
from fullrank.workflow.compare import compare_command
from fullrank.workflow.data import DataOptions

from .small_world import listing, write_recipe


@pytest.fixture(scope="module")
def asked(trained, tmp_path_factory: pytest.TempPathFactory) -> Compare:
    place = tmp_path_factory.mktemp("compared")
    plain = write_recipe(place / "plain.py", trained.place)
    crossed = write_recipe(place / "crossed.py", trained.place, model="fm", config="dim=2")
    return Compare(
        recipes=(str(plain), str(crossed)),
        seeds=2,
        set=("train.epochs=1",),
        name="small",
        out=place / "results",
        runs=place / "runs",
        processes=2,
        cache=trained.options.cache,
    )


@pytest.fixture(scope="module")
def said(asked: Compare) -> dict:
    return compare_command(asked)


def refuse(*args: object) -> None:
    pytest.fail("a run was started")


def test_two_recipes_are_compared_over_two_seeds(asked, said):
    assert [(r["recipe"], r["seed"]) for r in said["runs"]] == [
        ("plain", 1),
        ("plain", 2),
        ("crossed", 1),
        ("crossed", 2),
    ]
    assert len({r["auc"] for r in said["runs"]}) == 4
    assert listing(asked.out) == ["small.md", "small.svg"]
    text = Path(said["table"]).read_text()
    assert f"fullrank compare {' '.join(asked.recipes)} --seeds 2" in text
    assert "--set train.epochs=1" in text
    for run in said["runs"]:
        (folder,) = asked.runs.glob(f"{run['recipe']}-*/seed-{run['seed']}")
        result = json.loads((folder / "result.json").read_text())
        assert result["test"]["auc"] == run["auc"]
        assert result["seed"] == run["seed"]
        assert result["epochs"] == 1


def test_the_runs_of_a_comparison_read_data_as_it_was_asked_to():
    options = DataOptions(
        root=Path("raw"), cache=Path("kept"), bad_rows="quarantine", quarantine=Path("bad")
    )
    train = tyro.cli(Train, args=["own.py", *compare_module._data_flags(options)])
    assert train.options() == options


def test_a_second_call_runs_nothing_again(asked, said, monkeypatch):
    monkeypatch.setattr(compare_module, "_start", refuse)
    assert compare_command(asked) == said
    fewer = dataclasses.replace(asked, seeds=1, recipes=asked.recipes[1:])
    assert compare_command(fewer)["runs"] == said["runs"][2:3]


def test_only_what_is_missing_is_run(asked, said, monkeypatch):
    started = []
    original = compare_module._start
    monkeypatch.setattr(
        compare_module, "_start", lambda job, asked: started.append(job) or original(job, asked)
    )
    (result,) = asked.runs.glob("plain-*/plain-seed2.json")
    result.unlink()
    assert compare_command(asked)["runs"] == said["runs"]
    assert [(job.recipe.name, job.seed) for job in started] == [("plain", 2)]


def test_a_changed_recipe_is_another_run_and_the_old_ones_stay(asked, said, monkeypatch):
    monkeypatch.setattr(compare_module, "_start", refuse)
    before = listing(asked.runs)
    changed = dataclasses.replace(asked, set=("train.epochs=2",))
    with pytest.raises(pytest.fail.Exception, match="a run was started"):
        compare_command(changed)
    assert listing(asked.runs) == before


def test_a_failing_run_names_its_log_and_the_others_are_ended(asked, said, tmp_path):
    wild = dataclasses.replace(
        asked,
        recipes=asked.recipes[:1],
        set=("train.epochs=1", "train.learning_rate=1e39", "train.log_every=1"),
        out=tmp_path / "out",
        runs=tmp_path / "runs",
        seeds=1,
    )
    with pytest.raises(RunFolderError) as caught:
        compare_command(wild)
    error = caught.value
    assert "'plain', seed 1" in error.where
    (log,) = (tmp_path / "runs").glob("*/*.log")
    assert str(log) in error.fix
    assert "DivergedError" in log.read_text()
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_is_resumed(asked, tmp_path, monkeypatch):
    commands = []

    class Started:
        def __init__(self, command: list[str], **how: object) -> None:
            commands.append(command)

    monkeypatch.setattr(compare_module.subprocess, "Popen", Started)
    (recipe,) = (compare_module.load_recipe(asked.recipes[0], asked.set),)
    job = compare_module.Job(asked.recipes[0], recipe, 3, "0" * 16, tmp_path / "a.b" / "seed-3")
    compare_module._start(job, asked)
    assert "--overwrite" in commands[0]
    (job.folder / "state" / "000001").mkdir(parents=True)
    compare_module._start(job, asked)
    assert "--resume" in commands[1]
    assert "seed=3" in commands[1]
    assert listing(tmp_path) == ["a.b/seed-3.log"]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"recipes": ()}, ConfigError, "no recipe"),
        ({"seeds": 0}, ConfigError, "at least 1"),
        ({"processes": 0}, ConfigError, "one per core"),
        ({"processes": -1}, ConfigError, "one per core"),
        ({"recipes": ("frappe_lrr",)}, UnknownNameError, "frappe_lr"),
        ({"recipes": ("frappe_lr", "frappe_lr")}, ConfigError, "frappe_lr, frappe_lr"),
        ({"set": ("train.epocs=1",)}, ConfigError, "epochs"),
    ],
)
def test_misuse_is_refused_before_anything_runs(asked, monkeypatch, tmp_path, change, error, said):
    monkeypatch.setattr(compare_module, "_start", refuse)
    changed = {"out": tmp_path / "out", "runs": tmp_path / "runs"} | change
    with pytest.raises(error, match=said) as caught:
        compare_command(dataclasses.replace(asked, **changed))
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []
