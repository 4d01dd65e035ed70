from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tyro

import fullrank.workflow.compare as compare_module
import fullrank.workflow.diagnosis as diagnosis
from fullrank.cli import Compare, Train
from fullrank.errors import ConfigError, RunFolderError, UnknownNameError
from fullrank.workflow.compare import compare_command
from fullrank.workflow.data import DataOptions

from .small_world import listing, write_recipe


@pytest.fixture(scope="module")
def asked(trained, tmp_path_factory: pytest.TempPathFactory) -> Compare:
    place = tmp_path_factory.mktemp("compared")
    plain = write_recipe(place / "plain.py", trained.place)
    gains = 'Gain(over="plain", metric="logloss", paper=0.125, source="a paper"), '
    gains += 'Gain(over="absent"),'
    crossed = write_recipe(
        place / "crossed.py", trained.place, model="fm", config="dim=2", gains=gains
    )
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
    names = ["small.html", "small.json", "small.md", "small.svg", "small_frontier.svg"]
    assert listing(asked.out) == names
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
    (folder,) = asked.runs.glob("plain-*/seed-2")
    shutil.rmtree(folder)
    (folder.parent / "plain-seed2.json").unlink()
    assert compare_command(asked)["runs"] == said["runs"]
    assert [(job.recipe.name, job.seed) for job in started] == [("plain", 2)]


def test_the_page_says_which_and_why(asked, said):
    page = Path(said["page"]).read_text()
    for words in (
        "which one, and why",
        "Gains",
        "What changed inside",
        "crossed over absent: not tested, absent is not among the compared recipes",
        "crossed over plain: published in a paper",
        "+0.12500",
        "Effective rank through the model",
    ):
        assert words in page, words
    assert page.count("auc against parameters") == 1
    assert "<script" not in page
    data = json.loads(Path(said["data"]).read_text())
    tested, untested = data["gains"]
    assert (tested["recipe"], tested["over"], tested["metric"]) == ("crossed", "plain", "logloss")
    assert tested["paper"] == 0.125
    runs = {(r["recipe"], r["seed"]): r["logloss"] for r in said["runs"]}
    gains = [runs["plain", seed] - runs["crossed", seed] for seed in (1, 2)]  # lower is better
    assert tested["gains"] == pytest.approx(gains)
    assert tested["low"] < tested["mean"] < tested["high"]
    assert untested["untested"]
    assert set(data["inside"]) == {"plain", "crossed"}
    assert 0 < data["inside"]["crossed"]["tables"] <= 1


def test_models_are_looked_into_once_and_only_where_asked(asked, said, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_module, "_start", refuse)
    monkeypatch.setattr(diagnosis, "diagnose", refuse)
    data = json.loads(Path(said["data"]).read_text())
    took = {r["recipe"]: r["step_ms"] / 1e3 for r in data["recipes"]}
    monkeypatch.setattr(compare_module, "step_seconds", lambda runs: {n: took[n] for n in runs})
    before = Path(said["page"]).read_text()
    compare_command(asked)
    assert Path(said["page"]).read_text() == before  # but for the time that a step takes
    plain = dataclasses.replace(asked, no_diagnose=True, out=tmp_path)
    (tmp_path / "small.html").write_text("of an earlier comparison")
    assert "page" not in compare_command(plain)
    assert "small.html" not in listing(tmp_path)
    assert json.loads((tmp_path / "small.json").read_text())["inside"] == {}


def test_what_a_recipe_promises_is_no_part_of_its_runs(asked, said, monkeypatch):
    monkeypatch.setattr(compare_module, "_start", refuse)
    crossed = Path(asked.recipes[1])
    text = crossed.read_text()
    crossed.write_text(text.replace('Gain(over="absent")', 'Gain(over="other")'))
    assert compare_command(asked)["runs"] == said["runs"]
    assert "other is not among" in Path(said["table"]).read_text()
    crossed.write_text(text)
    compare_command(asked)


def test_a_result_that_nobody_wrote_down_is_taken_from_its_run(asked, said, monkeypatch):
    monkeypatch.setattr(compare_module, "_start", refuse)
    (kept,) = asked.runs.glob("crossed-*/crossed-seed1.json")
    before = kept.read_text()
    kept.unlink()
    assert compare_command(asked) == said
    assert kept.read_text() == before


def test_after_a_kill_no_run_is_repeated_and_what_still_runs_is_waited_for(
    asked, said, tmp_path, monkeypatch
):
    runs = tmp_path / "runs"
    flags = {"seeds": 2, "processes": 1, "runs": runs, "out": tmp_path / "out"}
    again = dataclasses.replace(asked, recipes=asked.recipes[:1], **flags)
    command = [sys.executable, "-m", "fullrank", "compare", again.recipes[0], "--no-diagnose"]
    command += ["--set", *asked.set, "--cache", str(asked.cache)]
    command += [part for k, v in flags.items() for part in (f"--{k}", str(v))]
    comparison = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not list(runs.glob("*/plain-seed1.json")) or not list(runs.glob("*/seed-2/.lock")):
        assert comparison.poll() is None
        time.sleep(0.02)
    comparison.kill()
    comparison.wait()
    monkeypatch.setattr(compare_module, "_start", refuse)
    assert compare_command(again)["runs"] == said["runs"][:2]


def test_the_end_of_a_comparison_is_the_end_of_its_runs(asked, tmp_path, monkeypatch):
    ended, before = [], signal.getsignal(signal.SIGTERM)

    class Running:
        returncode = None

        def __init__(self, *command: object, **how: object) -> None: ...

        def poll(self) -> None:
            assert signal.getsignal(signal.SIGTERM) is not before  # else it would end the tests
            os.kill(os.getpid(), signal.SIGTERM)

        def terminate(self) -> None:
            ended.append("asked to end")

        def wait(self) -> None:
            ended.append("waited for")

    monkeypatch.setattr(compare_module.subprocess, "Popen", Running)
    with pytest.raises(KeyboardInterrupt):
        compare_command(dataclasses.replace(asked, runs=tmp_path, processes=2))
    assert ended == ["asked to end"] * 2 + ["waited for"] * 2
    assert signal.getsignal(signal.SIGTERM) == before


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
    folder = tmp_path / "a.b" / "seed-3"
    job = compare_module.Job(asked.recipes[0], recipe, 3, "0" * 16, folder, None)
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
