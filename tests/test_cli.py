"""The command line: help, JSON, exit codes, and what bad input gets."""

# Longer than 400 lines, because every command meets every bad input in one table.

from __future__ import annotations

import errno
import gzip
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import fullrank.disk as disk_module
from fullrank.cli import main
from tests.workflow.small_world import Said, command, listing, write_recipe, write_world

COMMANDS = (
    ("demo",),
    ("data",),
    ("data", "list"),
    ("data", "get"),
    ("data", "inspect"),
    ("simulate",),
    ("recipes",),
    ("models",),
    ("train",),
    ("evaluate",),
    ("diagnose",),
    ("compare",),
    ("export",),
    ("predict",),
)
LEAVES = [c for c in COMMANDS if c != ("data",)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, its data and a finished run; nobody may change it."""
    place = tmp_path_factory.mktemp("world")
    write_world(place)
    recipe = write_recipe(place / "own.py", place, epochs=1)
    flags = ["--cache", str(place / "cache"), "--out", str(place / "run")]
    assert main(["train", str(recipe), *flags]) == 0
    return place


@pytest.fixture
def raw(world: Path, tmp_path: Path) -> Path:
    """A copy of the data and the recipe, to be spoiled."""
    for name in ("train", "valid", "test"):
        shutil.copy(world / f"{name}.csv", tmp_path)
    write_recipe(tmp_path / "own.py", tmp_path, epochs=1)
    return tmp_path


# ---- help


def test_help_is_immediate_and_loads_nothing_heavy():
    code = """
import sys
from fullrank.cli import main
assert main(["--help"]) == 0
heavy = {"torch", "polars", "pyarrow", "numpy", "rich", "sklearn", "matplotlib"}
print(sorted(heavy & {*sys.modules}))
print(sorted(m for m in sys.modules if m.startswith("fullrank.")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *text, heavy, ours = done.stdout.splitlines()
    assert heavy == "[]"
    assert ours == "['fullrank.cli', 'fullrank.config', 'fullrank.errors']"
    assert all(any(name[0] in line for line in text) for name in COMMANDS)
    assert done.stderr == ""


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(name, capsys):
    assert main([*name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"fullrank {' '.join(name)}" in text
    if name != ("data",):
        assert "--json" in text


def test_no_command_is_misuse(capsys):
    assert main([]) == 2
    assert "demo" in capsys.readouterr().err


# ---- one JSON object, and exit codes


def done(capsys: pytest.CaptureFixture[str], *argv: object) -> dict:
    said = command(capsys, *argv)
    assert said.code == 0, said.err
    return said.json


def test_commands_that_list(capsys, tmp_path):
    assert {"frappe_dcnv2", "demo_dcnv2"} <= {r["name"] for r in done(capsys, "recipes")["recipes"]}
    models = {m["name"]: m["defaults"] for m in done(capsys, "models")["models"]}
    assert models["dcnv2"]["num_cross"] > 0
    listed = done(capsys, "data", "list", "--data-root", tmp_path)
    assert listed["data_root"] == str(tmp_path)
    assert not any(d["here"] for d in listed["datasets"])
    assert {"frappe", "criteo"} <= {d["name"] for d in listed["datasets"]}
    assert list(tmp_path.iterdir()) == []


def test_people_read_tables_where_programs_read_json(capsys):
    said = command(capsys, "recipes", json=False)
    assert "frappe_dcnv2" in said.out
    assert "{" not in said.out
    said = command(capsys, "recipes")
    assert "frappe_dcnv2" in said.err


def test_commands_around_a_run(world, tmp_path, capsys):
    flags = ("--cache", world / "cache")
    found = done(
        capsys, "train", world / "own.py", "--out", tmp_path / "run", "--no-diagnose", *flags
    )
    assert found["folder"] == str(tmp_path / "run")
    again = done(capsys, "evaluate", tmp_path / "run")
    assert again["metrics"] == found["test"]
    raw = done(capsys, "evaluate", tmp_path / "run" / "artifact", "--file", world / "test.csv")
    assert raw["rows"] == again["rows"]
    report = done(capsys, "diagnose", tmp_path / "run")["report"]
    assert "<html" in Path(report).read_text()
    done(capsys, "export", tmp_path / "run", tmp_path / "artifact")
    shown = done(capsys, "predict", tmp_path / "artifact", world / "test.csv")
    out = tmp_path / "scored.csv"
    said = done(capsys, "predict", tmp_path / "artifact", world / "test.csv", "--out", out)
    assert said["rows"] == 900
    scores = pl.read_csv(out)["probability_click"][:10].cast(pl.Float32).to_list()
    assert scores == shown["scores"]["click"]


def test_data_is_inspected_and_the_guess_can_be_run(world, capsys):
    found = done(capsys, "data", "inspect", world / "train.csv")
    assert (found["rows"], found["bad_rows"]) == (1200, 0)
    assert [c["name"] for c in found["columns"]] == ["user", "ad", "price", "click"]
    scope: dict = {}
    exec(found["source"], scope)
    assert [t.name for t in scope["SPEC"].targets()] == ["click"]


def test_a_simulated_log_says_what_is_best(tmp_path, capsys):
    flags = ("--data-root", tmp_path, "--set", "num_rows=300", "--set", "seed=4")
    found = done(capsys, "simulate", *flags)
    assert found["world"]["num_rows"] == 300
    assert Path(found["folder"]).is_relative_to(tmp_path)
    assert found["truth"]
    said = command(capsys, "simulate", "--data-root", tmp_path, "--set", "num_row=300")
    assert "num_rows" in said.refused("ConfigError", code=2)["fix"]


def test_the_demo_is_asked_for_what_was_said(tmp_path, capsys, monkeypatch):
    import fullrank.workflow.demo as demo_module

    asked = []
    monkeypatch.setattr(
        demo_module, "demo", lambda out, options: asked.append((out, options)) or {"best": "a"}
    )
    assert done(capsys, "demo", "--out", tmp_path, "--data-root", "/data") == {"best": "a"}
    ((out, options),) = asked
    assert (out, options.root) == (tmp_path, Path("/data"))


@pytest.mark.parametrize(
    "ending",
    [KeyboardInterrupt(), {"interrupted": True}],
    ids=["at once", "after the step"],
)
def test_an_interrupt_ends_with_one_object_and_code_one(capsys, monkeypatch, ending):
    import fullrank.workflow.show as show_module

    def listed() -> dict:
        if isinstance(ending, dict):
            return ending
        raise ending

    monkeypatch.setattr(show_module, "list_recipes_table", listed)
    said = command(capsys, "recipes")
    assert (said.code, said.json) == (1, {"interrupted": True})
    assert "Traceback" not in said.err


def test_json_has_no_nan(capsys, monkeypatch):
    import fullrank.workflow.show as show_module

    odd = {"a": float("nan"), "b": [float("inf"), (1.5, None)], 3: Path("x"), "c": np.float64(2.5)}
    monkeypatch.setattr(show_module, "list_recipes_table", lambda: odd)
    said = command(capsys, "recipes")
    assert said.json == {"a": None, "b": [None, [1.5, None]], "3": "x", "c": 2.5}


# ---- misuse


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["trian", "a"], "did you mean 'train'"),
        (["train", "a", "--ouut", "x"], "--out"),
        (["train", "a", "--resum"], "--resume"),
        (["train"], "RECIPE"),
        (["evaluate", "a", "--cache", "b"], "--cache"),  # it reads what the run was trained on
        (["data", "lst"], "list"),
        (["compare", "a", "--seeds", "two"], "seeds"),
        (["export", "a", "b", "--format", "onyx"], "torch-export"),
        (["predict", "a", "b", "--bad-rows", "ignore"], "quarantine"),
    ],
)
def test_a_misspelt_command_or_flag_is_misuse_with_a_hint(argv, hint, capsys):
    said = command(capsys, *argv)
    assert said.code == 2
    assert said.json["error"] == "ConfigError"
    assert hint.lower() in said.json["fix"].lower()
    assert hint.lower() in said.err.lower()
    assert command(capsys, *argv, json=False).out == ""


@pytest.mark.parametrize(
    ("argv", "error", "hint"),
    [
        (["train", "frappe_dcn2"], "UnknownNameError", "'frappe_dcnv2'"),
        (["train", "frappe_lr", "--set", "train.epoch=2"], "ConfigError", "'epochs'"),
        (["train", "frappe_lr", "--set", "train.epochs=two"], "ConfigError", ""),
        (["train", "frappe_lr", "--set", "model=deepfn"], "UnknownNameError", "'deepfm'"),
        (["train", "frappe_lr", "--set", "dataset=frape"], "UnknownNameError", "'frappe'"),
        (["compare", "frappe_lr", "frappe_fmm"], "UnknownNameError", "'frappe_fm'"),
        (["compare"], "ConfigError", "recipes"),
        (["compare", "frappe_lr", "--seeds", "0"], "ConfigError", "raise"),
        (["diagnose"], "ConfigError", "runs/"),
        (["data", "get", "frape"], "UnknownNameError", "'frappe'"),
        (["predict", "a", "b", "--out", "c.xlsx"], "ConfigError", "ending"),
    ],
)
def test_a_misspelt_name_is_misuse_with_a_suggestion(
    argv, error, hint, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert hint in command(capsys, *argv).refused(error, code=2)["fix"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["evaluate", "nowhere"], "ArtifactError"),
        (["diagnose", "nowhere"], "RunFolderError"),
        (["export", "nowhere", "b"], "ArtifactError"),
        (["predict", "nowhere", "b.csv"], "ArtifactError"),
        (["data", "inspect", "nowhere.csv"], "DataMissingError"),
        (["data", "get", "avazu", "--data-root", "."], "DownloadError"),
        (["train", "frappe_lr", "--data-root", ".", "--cache", "."], "DataMissingError"),
        (["compare", "frappe_lr", "--data-root", ".", "--cache", "."], "DataMissingError"),
    ],
)
def test_what_is_not_there_is_named(argv, error, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command(capsys, *argv).refused(error)
    assert list(tmp_path.iterdir()) == []


# ---- bad input


def train(capsys: pytest.CaptureFixture[str], place: Path, *more: object) -> Said:
    flags = ("--cache", place / "cache", "--out", place / "runs" / "own", "--no-diagnose")
    return command(capsys, "train", place / "own.py", *flags, *more)


def lines(change: Callable[[list[str]], object]) -> Callable[[Path], None]:
    """Spoils train.csv by its lines; line 1 of the file is lines[0]."""

    def spoil(place: Path) -> None:
        text = (place / "train.csv").read_text().splitlines()
        change(text)
        (place / "train.csv").write_text("\n".join(text) + "\n")

    return spoil


def value(line: int, column: int, text: str) -> Callable[[Path], None]:
    def change(rows: list[str]) -> None:
        cells = rows[line - 1].split(",")
        cells[column] = text
        rows[line - 1] = ",".join(cells)

    return lines(change)


def content(make: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(place: Path) -> None:
        path = place / "train.csv"
        path.write_bytes(make(path.read_bytes()))

    return spoil


def frame(**change: pl.Expr) -> Callable[[Path], None]:
    def spoil(place: Path) -> None:
        pl.read_csv(place / "train.csv").with_columns(**change).write_csv(place / "train.csv")

    return spoil


def as_parquet(place: Path) -> None:
    for name in ("train", "valid", "test"):
        pl.read_csv(place / f"{name}.csv").write_parquet(place / f"{name}.parquet")
    path = place / "train.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    write_recipe(place / "own.py", place, ending="parquet")


def as_half_gzip(place: Path) -> None:
    for name in ("train", "valid", "test"):
        packed = gzip.compress((place / f"{name}.csv").read_bytes())
        (place / f"{name}.csv.gz").write_bytes(packed[: len(packed) // 2])
    write_recipe(place / "own.py", place, ending="csv.gz")


def events(first: int, second: int) -> pl.Expr:
    """The times of two events, in seconds after the impression."""
    return pl.format("{}|{}", pl.col("time") + first, pl.col("time") + second)


def timed(**change: pl.Expr) -> Callable[[Path], None]:
    """Gives the log a clock, and a history with times, and then `change`s the training rows."""

    def spoil(place: Path) -> None:
        for i, name in enumerate(("train", "valid", "test")):
            rows = pl.read_csv(place / f"{name}.csv").with_row_index(
                "time", offset=10_000 * (i + 1)
            )
            rows = rows.with_columns(pl.col("time").cast(pl.Int64), past=pl.lit("a1|a2"))
            rows = rows.with_columns(
                seen=pl.format("{}|{}", pl.col("time") - 9, pl.col("time") - 5)
            )
            if name == "train":
                rows = rows.with_columns(**change)
            rows.write_csv(place / f"{name}.csv")
        both = 'Event(name="item", column="past", table="ad"), Event(name="time", column="seen")'
        history = f'History(name="past", events=({both}), repeats=True),'
        write_recipe(place / "own.py", place, columns=history, spec='time="time"')

    return spoil


def emptied(place: Path) -> None:
    header = (place / "valid.csv").read_text().splitlines()[0]
    (place / "valid.csv").write_text(header + "\n")


def constant_labels(name: str) -> Callable[[Path], None]:
    def spoil(place: Path) -> None:
        path = place / f"{name}.csv"
        pl.read_csv(path).with_columns(click=pl.lit(0)).write_csv(path)

    return spoil


BAD: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing file": (lambda p: (p / "train.csv").unlink(), "DataMissingError", "train.csv"),
    "empty file": (content(lambda c: b""), "DataFormatError", "0 bytes"),
    "truncated file": (content(lambda c: c[:-12]), "DataFormatError", "line 1,201"),
    "truncated Parquet": (as_parquet, "DataFormatError", "train.parquet"),
    "truncated gzip": (as_half_gzip, "DataFormatError", "train.csv.gz"),
    "binary file": (
        content(lambda c: c[:500] + bytes(range(256)) * 9),
        "DataFormatError",
        "train.csv",
    ),
    "an image": (
        content(lambda c: b"\x89PNG\r\n\x1a\n" + bytes(range(32)) * 40),
        "DataFormatError",
        "train.csv",
    ),
    "ragged row": (
        lines(lambda rows: rows.insert(4, "u1,a1,0.5")),
        "DataFormatError",
        "train.csv, line 5",
    ),
    "unknown column": (frame(weather=pl.lit("x")), "SchemaError", "weather"),
    "missing column": (value(1, 1, "add"), "SchemaError", "'add'"),
    "blank lines": (content(lambda c: b"\n\n\n"), "DataFormatError", "train.csv"),
    "label": (value(8, 3, "2"), "LabelError", "line 8"),
    "no label": (value(8, 3, ""), "LabelError", "line 8"),
    "a word for a number": (value(8, 2, "cheap"), "DataFormatError", "cheap"),
    "NaN": (value(8, 2, "nan"), "DataFormatError", "line 8"),
    "infinity": (value(8, 2, "-inf"), "DataFormatError", "line 8"),
    "more than a megabyte": (value(8, 0, "x" * 1_100_000), "DataFormatError", "line 8"),
    "vocabulary of one": (frame(ad=pl.lit("a1")), "SchemaError", "'ad'"),
    "empty split": (emptied, "DataFormatError", "valid.csv"),
    "equal labels in training": (constant_labels("train"), "LabelError", "all training labels"),
    "equal labels in validation": (constant_labels("valid"), "MetricUndefinedError", "'valid'"),
    "equal labels in the test": (constant_labels("test"), "MetricUndefinedError", "'test'"),
    "time runs backwards over splits": (
        timed(time=pl.col("time") + 50_000),
        "SplitError",
        "time",
    ),
    "time runs backwards in a history": (
        timed(seen=events(-3, -7)),
        "LeakError",
        "seen",
    ),
    "an event after its impression": (
        timed(seen=events(-3, 7)),
        "LeakError",
        "seen",
    ),
    "no label in the spec": (
        lambda p: (p / "own.py").write_text(
            (p / "own.py").read_text().replace('Target(name="click")', 'Category(name="click")')
        ),
        "SchemaError",
        "label",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_five_parts_and_leaves_nothing(case, raw, capsys):
    spoil, error, said = BAD[case]
    spoil(raw)
    before = listing(raw)
    found = train(capsys, raw).refused(error)
    assert said in json.dumps(found), found
    left = [p for p in listing(raw) if p not in before and not p.startswith("cache/")]
    assert left == []
    assert not (raw / "runs").exists()
    assert not any(".part" in p or p.startswith("cache/.") for p in listing(raw))
    if not case.startswith("equal labels in"):
        assert not (raw / "cache").exists()


def test_the_clock_of_those_cases_is_fine_when_nothing_is_spoiled(raw, capsys):
    timed()(raw)
    assert train(capsys, raw, "--set", "train.epochs=1").code == 0


def test_bad_rows_go_to_a_file_with_reasons_and_the_run_goes_on(raw, capsys):
    value(8, 3, "2")(raw)
    value(20, 2, "nan")(raw)
    value(30, 0, "x" * 1_100_000)(raw)
    lines(lambda rows: rows.insert(4, "u1,a1,0.5"))(raw)
    kept = raw / "bad" / "rows.jsonl"
    said = train(capsys, raw, "--bad-rows", "quarantine", "--quarantine", kept)
    assert said.code == 0, said.err
    assert said.json["rows"]["train"] == 1197
    assert "4 bad rows were left out" in said.json["notes"][-1]
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    found = {row["line"]: row["reason"] for row in rows}
    assert found.keys() == {5, 9, 21, 31}
    assert found[5] == "3 values"
    assert "click is 2" in found[9]
    assert "nan" in found[21]
    assert all(Path(row["file"]).name == "train.csv" for row in rows)
    assert max(len(row["text"]) for row in rows) <= 2000


def test_bad_rows_of_a_file_to_score(world, raw, capsys):
    value(8, 2, "nan")(raw)
    argv = ("predict", world / "run", raw / "train.csv", "--out", raw / "out.csv")
    assert "line 8" in command(capsys, *argv).refused("DataFormatError")["where"]
    assert not (raw / "out.csv").exists()
    kept = raw / "bad.jsonl"
    said = command(capsys, *argv, "--bad-rows", "quarantine", "--quarantine", kept)
    assert said.json["rows"] == 1199
    assert json.loads(kept.read_text())["line"] == 8


@pytest.mark.parametrize("name", ["predict", "inspect", "evaluate"])
@pytest.mark.parametrize("case", ["empty file", "binary file", "an image", "missing file"])
def test_other_commands_refuse_broken_files_too(name, case, world, raw, capsys):
    spoil, error, _ = BAD[case]
    spoil(raw)
    before, file = listing(raw), raw / "train.csv"
    argv = {
        "predict": ("predict", world / "run", file, "--out", raw / "out.csv"),
        "inspect": ("data", "inspect", file),
        "evaluate": ("evaluate", world / "run", "--file", file),
    }[name]
    assert "train.csv" in command(capsys, *argv).refused(error)["where"]
    assert listing(raw) == before


# ---- the machine


def test_a_run_folder_in_use(world, raw, capsys):
    (raw / "runs" / "own").mkdir(parents=True)
    (raw / "runs" / "own" / "recipe.json").write_text("{}")
    before = listing(raw)
    assert "--resume" in train(capsys, raw).refused("RunFolderError")["fix"]
    (raw / "runs" / "own" / "recipe.json").rename(raw / "runs" / "own" / "thesis.tex")
    assert "thesis.tex" in train(capsys, raw, "--overwrite").refused("RunFolderError")["found"]
    assert len(listing(raw)) == len(before)


@pytest.mark.parametrize("step", ["prepared data", "a state", "scores", "the artefact", "the end"])
def test_a_full_disk(step, raw, capsys, monkeypatch):
    """Whatever is written when the disk fills up, it is said so, and nothing is half there."""
    places = {
        "prepared data": "train-",
        "a state": "000001",
        "scores": "test.safetensors",
        "the artefact": "artifact",
        "the end": "result.json",
    }
    original = disk_module.os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(target).name.removeprefix(".").startswith(places[step]):
            raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))
        original(source, target)

    monkeypatch.setattr("os.replace", replace)
    found = train(capsys, raw).refused("DiskFullError")
    assert "free" in found["fix"]
    assert not any(".part" in p or ".new." in p for p in listing(raw))
    assert not (raw / "runs" / "own" / "result.json").exists()
    monkeypatch.setattr("os.replace", original)
    again = train(capsys, raw, "--overwrite")
    assert again.code == 0, again.err


@pytest.mark.parametrize(
    "argv",
    [
        ("train", "own.py", "--cache", "cache", "--out", "file/run"),
        ("train", "own.py", "--cache", "file/cache", "--out", "run"),
        ("predict", "RUN", "test.csv", "--out", "file/out.csv"),
        ("export", "RUN", "file/artifact"),
        ("export", "RUN", "file/model.pt2", "--format", "torch-export"),
        ("compare", "own.py", "--cache", "cache", "--seeds", "1", "--runs", "file/runs"),
        ("diagnose", "RUN", "--out", "file/report.html"),
    ],
    ids=lambda argv: " ".join(argv[:2] + argv[-1:]),
)
def test_a_place_that_cannot_be_written(argv, world, raw, capsys, monkeypatch):
    (raw / "file").write_text("not a folder")
    (raw / "photos").mkdir()
    (raw / "photos" / "one.jpg").touch()
    shutil.copytree(world / "run", raw / "RUN")
    monkeypatch.chdir(raw)
    before = listing(raw)
    found = command(capsys, *argv).refused("FileAccessError")
    assert "file" in found["where"] or "photos" in found["where"]
    assert [p for p in listing(raw) if p not in before and not p.startswith("cache/")] == []


@pytest.mark.parametrize("name", ["predict", "evaluate", "export", "diagnose"])
def test_a_tampered_artefact(name, world, tmp_path, capsys):
    shutil.copytree(world / "run", tmp_path / "run")
    weights = tmp_path / "run" / "artifact" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x77")
    before = listing(tmp_path)
    more = {"predict": [world / "test.csv"], "export": [tmp_path / "copy"]}.get(name, [])
    found = command(capsys, name, tmp_path / "run", *more).refused("ArtifactError")
    assert "weights.safetensors" in found["where"]
    assert listing(tmp_path) == before


def test_a_full_disk_is_named_wherever_it_is_met(capsys, monkeypatch):
    import fullrank.workflow.show as show_module

    def full() -> dict:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/metrics.jsonl")

    monkeypatch.setattr(show_module, "list_recipes_table", full)
    found = command(capsys, "recipes").refused("DiskFullError")
    assert found["where"] == "/data/metrics.jsonl"


def test_a_reader_that_leaves_is_no_error(tmp_path, monkeypatch, capsys):
    """As in `fullrank recipes --json | head -0`."""

    class Left(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return file.fileno()

    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", Left())
        assert main(["recipes", "--json"]) == 1
    assert "error" not in capsys.readouterr().err


def test_a_bug_of_ours_is_not_hidden(capsys, monkeypatch):
    import fullrank.workflow.show as show_module

    def broken() -> dict:
        return {}["a"]

    monkeypatch.setattr(show_module, "list_recipes_table", broken)
    with pytest.raises(KeyError):
        command(capsys, "recipes")
