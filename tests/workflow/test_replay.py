"""`fullrank predict --check`: what is said about a log, and how it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch

from fullrank.data.featurizer import Featurizer
from fullrank.data.spec import Category, Number, Spec, Target
from fullrank.serve.artifact import Artifact
from fullrank.serve.engine import Engine
from fullrank.serve.shadow import ShadowConfig, ShadowLog, log_files, raw_rows
from fullrank.workflow.replay import check_command

from .small_world import SPEC, command, make_log

HIDDEN = Spec(
    columns=(
        Category(name="user", redact=True),
        Category(name="ad"),
        Number(name="price"),
        Target(name="click"),
    )
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An artefact whose spec redacts the user, and a log of 300 rows that it served."""
    save(tmp_path / "artifact", HIDDEN, seed=1)
    serve(tmp_path / "artifact", tmp_path / "log")
    return tmp_path


def save(place: Path, spec: Spec, seed: int) -> None:
    featurizer = Featurizer.fit(spec, make_log(200, 1)[0].lazy())
    artifact = Artifact(model="lr", config={}, featurizer=featurizer, weights={})
    torch.manual_seed(seed)
    weights = {n: torch.rand(t.shape) for n, t in artifact._create().state_dict().items()}
    Artifact(model="lr", config={}, featurizer=featurizer, weights=weights).save(place)


def serve(artifact: Path, log: Path, form: str = "eager") -> None:
    engine = Engine.load(artifact, form=form)
    shadow = ShadowLog(
        ShadowConfig(folder=log, every=1), engine.artifact, engine.fingerprint, form=form
    )
    rows = make_log(300, 2)[0].drop("click")
    batch = engine.encode_rows(rows)
    shadow.offer(raw_rows(rows), batch, engine.score(batch))
    shadow.close()
    assert shadow.dropped == 0


def change(log: Path, line: int, old: str, new: str) -> None:
    path = log_files(log)[0]
    lines = path.read_text().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_text("".join(lines))


def test_a_log_that_replays_ends_well(folder, capsys):
    threads = torch.get_num_threads()
    said = command(capsys, "predict", folder / "artifact", "--check", folder / "log")
    assert said.code == 0
    found = said.json
    assert (found["rows"], found["encoded_again"], found["unequal"]) == (300, 300, 0)
    assert (found["first"], found["files"], found["half_lines"]) == (None, 1, 0)
    assert found["other_environment"] == {}
    assert found["rows_per_second"] > 0
    assert "300 served rows checked, 0 unequal" in said.err
    assert torch.get_num_threads() == threads
    one = command(capsys, "predict", folder / "artifact", "--check", log_files(folder / "log")[0])
    assert (one.code, one.json["rows"]) == (0, 300)


def test_other_forms_are_replayed_by_the_form_that_served(folder, capsys):
    serve(folder / "artifact", folder / "exported", form="torch-export")
    said = command(capsys, "predict", folder / "artifact", "--check", folder / "exported")
    assert (said.code, said.json["rows"]) == (0, 300)


def test_an_unequal_row_is_named_and_the_command_fails(folder, capsys):
    path = log_files(folder / "log")[0]
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    price, user = rows[6]["raw"]["price"], rows[6]["encoded"]["user"]
    change(folder / "log", 8, f'"price":{price}', '"price":0.5')
    change(folder / "log", 20, '"scores":{"click":0.', '"scores":{"click":0.1')
    said = command(capsys, "predict", folder / "artifact", "--check", folder / "log")
    assert said.code == 1
    found = said.json
    assert (found["rows"], found["unequal"]) == (300, 2)
    assert found["first"]["at"] == f"{path.name}, line 8"
    assert list(found["first"]["encoded"]) == ["price"]
    assert found["first"]["raw"] == {"ad": rows[6]["raw"]["ad"], "price": 0.5, "user": "(redacted)"}
    assert "2 unequal" in said.err
    assert "line 8" in said.err
    assert user == Artifact.load(folder / "artifact").featurizer(
        make_log(300, 2)[0][6:7]
    ).categorical["user"].item()  # fmt: skip


def test_a_log_of_another_artefact_is_refused_with_both_names(folder, capsys):
    save(folder / "other", HIDDEN, seed=2)
    mine, theirs = (Engine.load(folder / n).fingerprint for n in ("other", "artifact"))
    said = command(capsys, "predict", folder / "other", "--check", folder / "log")
    refused = said.refused("ConfigError", code=2)
    assert theirs in refused["found"]
    assert mine in refused["expected"]
    serve(folder / "other", folder / "log")  # after a swap, one folder holds both
    said = command(capsys, "predict", folder / "other", "--check", folder / "log")
    assert (said.code, said.json["rows"], said.json["files_of_others"]) == (0, 300, 1)
    assert "1 files of other artefacts left out" in said.err


def test_a_half_line_is_left_out_and_said(folder, capsys):
    path = log_files(folder / "log")[0]
    path.write_bytes(path.read_bytes()[:-9])
    said = command(capsys, "predict", folder / "artifact", "--check", folder / "log")
    assert (said.code, said.json["rows"], said.json["half_lines"]) == (0, 299, 1)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))
    said = command(capsys, "predict", folder / "artifact", "--check", folder / "log")
    said.refused("EmptyInputError")


def test_another_machine_is_said(folder, capsys):
    change(folder / "log", 1, torch.__version__, "1.0")
    said = command(capsys, "predict", folder / "artifact", "--check", folder / "log")
    assert said.json["other_environment"] == {"torch": ["1.0", torch.__version__]}
    assert "torch: served by 1.0" in said.err


@pytest.mark.parametrize(
    ("old", "new"), [('"threads": 1', '"threads": 999999'), ('"form": "eager"', '"form": "magic"')]
)
def test_a_header_is_not_trusted(folder, capsys, old, new):
    change(folder / "log", 1, old, new)
    said = command(capsys, "predict", folder / "artifact", "--check", folder / "log")
    said.refused("ConfigError", code=2)


def test_misuse_and_missing_logs_are_told_apart_from_inequality(folder, capsys):
    artifact, log = folder / "artifact", folder / "log"
    pl.DataFrame({"a": [1]}).write_csv(folder / "rows.csv")
    for more in (
        [],
        [folder / "rows.csv", "--check", log],
        ["--check", log, "--out", folder / "out.csv"],
    ):
        command(capsys, "predict", artifact, *more).refused("ConfigError", code=2)
    shutil.rmtree(log)
    command(capsys, "predict", artifact, "--check", log).refused("DataMissingError")
    log.mkdir()
    command(capsys, "predict", artifact, "--check", log).refused("DataMissingError")


def test_specs_without_redaction_show_the_whole_row(tmp_path):
    save(tmp_path / "artifact", SPEC, seed=1)
    serve(tmp_path / "artifact", tmp_path / "log")
    change(tmp_path / "log", 2, '"scores":{"click":0.', '"scores":{"click":0.1')
    first = check_command(tmp_path / "artifact", tmp_path / "log")["first"]
    assert first["raw"] == make_log(300, 2)[0].drop("click").row(0, named=True)
    assert list(first["scores"]) == ["click"]
