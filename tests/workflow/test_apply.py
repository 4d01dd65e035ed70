from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

import fullrank.workflow.apply as apply_module
from fullrank.data.featurizer import Featurizer
from fullrank.data.spec import Category, Event, History, Spec, Target, Vector
from fullrank.errors import (
    ArtifactError,
    ConfigError,
    DataFormatError,
    DiskFullError,
    EmptyInputError,
    MetricUndefinedError,
    RunFolderError,
)
from fullrank.model import create
from fullrank.ops.export import flatten
from fullrank.serve.artifact import Artifact
from fullrank.serve.predictor import Predictor
from fullrank.workflow.apply import evaluate_command, export_command, predict_command
from fullrank.workflow.data import DataOptions
from fullrank.workflow.diagnosis import diagnose_command

from .small_world import listing, make_log

OPTIONS = DataOptions()
COLUMN = "probability_click"


@pytest.fixture(scope="module")
def predictor(trained) -> Predictor:
    return Predictor.load(trained.folder / "artifact")


@pytest.fixture
def rows(tmp_path: Path) -> pl.DataFrame:
    return make_log(300, 5)[0]


def write(path: Path, rows: pl.DataFrame) -> Path:
    writers = {".csv": rows.write_csv, ".parquet": rows.write_parquet, ".arrow": rows.write_ipc}
    writers[path.suffix](path)
    return path


def read(path: Path) -> pl.DataFrame:
    return pl.read_csv(path) if path.suffix == ".csv" else pl.read_parquet(path)


# ---- predict


@pytest.mark.parametrize("source", ["csv", "parquet", "arrow"])
@pytest.mark.parametrize("target", ["csv", "parquet", "pq"])
def test_a_file_is_scored_as_the_predictor_scores_it(
    trained, predictor, rows, tmp_path, monkeypatch, source, target
):
    monkeypatch.setattr(apply_module, "_CHUNK_ROWS", 70)  # several chunks, the last one short
    file = write(tmp_path / f"in.{source}", rows)
    out = tmp_path / "new" / f"out.{target}"
    said = predict_command(trained.folder, file, out, OPTIONS)
    assert said["rows"] == 300
    found = read(out)
    assert found.columns == [*rows.columns, COLUMN]
    assert found.drop(COLUMN).cast(pl.String).equals(rows.cast(pl.String))
    scores = found[COLUMN].cast(pl.Float32).to_numpy()
    assert np.array_equal(scores, predictor.score(rows)["click"])
    assert listing(tmp_path / "new") == [f"out.{target}"]


def test_labels_are_not_needed_and_other_columns_pass_through(trained, predictor, rows, tmp_path):
    odd = rows.drop("click").with_columns(note=pl.lit("a, b"), click=pl.lit("unknown"))
    file = write(tmp_path / "in.csv", odd)
    predict_command(trained.folder / "artifact", file, tmp_path / "out.csv", OPTIONS)
    found = pl.read_csv(tmp_path / "out.csv")
    assert found.columns == [*odd.columns, COLUMN]
    assert found["note"].unique().to_list() == ["a, b"]
    scores = found[COLUMN].cast(pl.Float32).to_numpy()
    assert np.array_equal(scores, predictor.score(rows)["click"])


def test_without_a_file_to_write_ten_rows_are_shown(trained, predictor, rows, tmp_path, capsys):
    said = predict_command(trained.folder, write(tmp_path / "in.csv", rows), None, OPTIONS)
    assert said["scores"]["click"] == predictor.score(rows[:10])["click"].tolist()
    assert f"{said['scores']['click'][0]:.4f}" in capsys.readouterr().out


def test_a_folder_of_files_is_scored_in_order(trained, predictor, rows, tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.parquet", rows[:100])
    write(tmp_path / "in" / "b.parquet", rows[100:])
    predict_command(trained.folder, tmp_path / "in", tmp_path / "out.parquet", OPTIONS)
    scores = pl.read_parquet(tmp_path / "out.parquet")[COLUMN].to_numpy()
    assert np.array_equal(scores, predictor.score(rows)["click"])


def test_lists_survive_a_csv(tmp_path):
    spec = Spec(
        columns=(
            Category(name="user"),
            Vector(name="point", shape=(2,)),
            History(name="past", events=(Event(name="item", column="past", table="item"),)),
            Target(name="click"),
        )
    )
    rows = pl.DataFrame(
        {
            "user": ["a", "b", "c"],
            "point": [[0.1, 1e-9], [1 / 3, -2.0], [0.0, 4.0]],
            "past": [["x", "y"], [], ["y"]],
            "click": [0, 1, 0],
        }
    )
    featurizer = Featurizer.fit(spec, rows.lazy())
    model = create("dcnv2", featurizer.schema)
    Artifact(model="dcnv2", config={}, featurizer=featurizer, weights=model.state_dict()).save(
        tmp_path / "a"
    )
    first = write(tmp_path / "in.parquet", rows)
    predict_command(tmp_path / "a", first, tmp_path / "once.csv", OPTIONS)
    predict_command(tmp_path / "a", tmp_path / "once.csv", tmp_path / "twice.csv", OPTIONS)
    once, twice = (pl.read_csv(tmp_path / f"{n}.csv") for n in ("once", "twice"))
    assert once["past"].to_list() == ["x|y", "", "y"]
    assert once[COLUMN].to_list() == twice[COLUMN].to_list()


@pytest.mark.parametrize("out", [None, "out.parquet"])
def test_no_rows_are_refused_and_nothing_is_written(trained, rows, tmp_path, out):
    file = write(tmp_path / "in.parquet", rows[:0])
    with pytest.raises(EmptyInputError, match=r"in\.parquet"):
        predict_command(trained.folder, file, out and tmp_path / out, OPTIONS)
    assert listing(tmp_path) == ["in.parquet"]


def test_what_stands_there_stays_unless_everything_succeeds(trained, rows, tmp_path):
    file = write(tmp_path / "in.parquet", rows.with_columns(price=pl.lit(float("nan"))))
    (tmp_path / "out.csv").write_text("older")
    with pytest.raises(DataFormatError, match="price"):
        predict_command(trained.folder, file, tmp_path / "out.csv", OPTIONS)
    assert (tmp_path / "out.csv").read_text() == "older"
    assert listing(tmp_path) == ["in.parquet", "out.csv"]


def test_a_disk_that_is_full_at_the_end_leaves_no_half_file(trained, rows, tmp_path, monkeypatch):
    class Writer(pq.ParquetWriter):
        def close(self) -> None:
            super().close()
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(apply_module._WRITERS, ".parquet", Writer)
    file = write(tmp_path / "in.csv", rows)
    with pytest.raises(DiskFullError):
        predict_command(trained.folder, file, tmp_path / "out.parquet", OPTIONS)
    assert listing(tmp_path) == ["in.csv"]


def test_an_ending_that_is_not_known_is_refused_first(tmp_path):
    with pytest.raises(ConfigError, match=r"\.parquet"):
        predict_command(tmp_path, tmp_path, tmp_path / "out.xlsx", OPTIONS)


def test_a_column_that_csv_cannot_hold_is_refused(trained, rows, tmp_path):
    odd = rows.with_columns(extra=pl.struct("user", "ad"))
    file = write(tmp_path / "in.parquet", odd)
    with pytest.raises(ConfigError, match=r"write \.parquet"):
        predict_command(trained.folder, file, tmp_path / "out.csv", OPTIONS)
    assert listing(tmp_path) == ["in.parquet"]
    predict_command(trained.folder, file, tmp_path / "out.parquet", OPTIONS)
    assert pl.read_parquet(tmp_path / "out.parquet")["extra"].dtype == odd["extra"].dtype


# ---- evaluate


def test_a_run_measured_again_says_the_same(trained):
    said = evaluate_command(trained.folder, None, OPTIONS)
    assert said["metrics"] == trained.result["test"]
    assert said["interval"] == trained.result["interval"]
    assert said["rows"] == 900


@pytest.mark.parametrize("chunk", [65536, 128])
def test_raw_rows_measure_as_the_prepared_ones(trained, monkeypatch, chunk):
    monkeypatch.setattr(apply_module, "_CHUNK_ROWS", chunk)
    test = trained.place / "test.csv"
    said = evaluate_command(trained.folder / "artifact", test, OPTIONS)
    assert said["metrics"] == pytest.approx(trained.result["test"], abs=1e-6)
    assert said["metrics"]["auc"] == trained.result["test"]["auc"]


def test_without_prepared_data_there_is_nothing_to_measure(trained, tmp_path):
    with pytest.raises(RunFolderError, match="--file"):
        evaluate_command(trained.folder / "artifact", None, OPTIONS)
    shutil.copytree(trained.folder, tmp_path / "run")
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    recipe["data"] = str(tmp_path / "deleted")
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(RunFolderError, match="deleted"):
        evaluate_command(tmp_path / "run", None, OPTIONS)
    before = listing(tmp_path)
    with pytest.raises(RunFolderError, match="deleted"):
        diagnose_command([tmp_path / "run"], None)
    assert listing(tmp_path) == before


def test_other_prepared_data_is_refused(trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "run")
    artifact = Artifact.load(tmp_path / "run" / "artifact")
    frame = make_log(200, 8)[0]
    other = Featurizer.fit(artifact.featurizer.spec, frame.lazy())
    model = create("lr", other.schema)
    Artifact(model="lr", config={}, featurizer=other, weights=model.state_dict()).save(
        tmp_path / "run" / "artifact"
    )
    with pytest.raises(ArtifactError) as caught:
        evaluate_command(tmp_path / "run", None, OPTIONS)
    assert other.fingerprint() in caught.value.expected
    assert artifact.featurizer.fingerprint() in caught.value.found


def test_rows_without_a_click_have_no_auc_and_it_is_said(trained, rows, tmp_path):
    file = write(tmp_path / "in.csv", rows.with_columns(click=pl.lit(0)))
    with pytest.raises(MetricUndefinedError):
        evaluate_command(trained.folder, file, OPTIONS)


# ---- export


def test_an_exported_artefact_is_the_same_artefact(trained, predictor, rows, tmp_path):
    said = export_command(trained.folder, tmp_path / "copy", "artifact")
    assert said["model"] == "lr"
    scores = Predictor.load(tmp_path / "copy").score(rows)["click"]
    assert np.array_equal(scores, predictor.score(rows)["click"])


def test_an_exported_program_scores_as_the_model(trained, predictor, rows, tmp_path, caplog):
    export_command(trained.folder, tmp_path / "model.pt2", "torch-export")
    assert listing(tmp_path) == ["model.pt2"]
    program = torch.export.load(tmp_path / "model.pt2").module()
    for size in (1, 7, 300):
        batch = predictor.artifact.featurizer(rows[:size])
        with torch.inference_mode():
            exported = program(flatten(batch))["click"].numpy()
        assert np.abs(exported - predictor.logits(batch)["click"]).max() < 1e-6


def test_a_program_lies_in_the_artefact_beside_what_is_served(trained, predictor, rows, tmp_path):
    export_command(trained.folder, tmp_path / "a", "torch-export")
    export_command(tmp_path / "a", tmp_path / "b", "onnx")  # and keeps the one that is there
    assert [p for p in listing(tmp_path / "b") if p.startswith("exported")] == [
        "exported/model.onnx",
        "exported/model.pt2",
    ]
    served = Predictor.load(tmp_path / "b").score(rows)["click"]
    assert np.array_equal(served, predictor.score(rows)["click"])


def test_a_program_that_scores_otherwise_is_refused(trained, tmp_path, monkeypatch):
    class Wrong:
        def __init__(self, model, schema, batch) -> None:
            self.scores = {n: x.detach() + 1e-4 for n, x in model.score(batch).items()}

        def module(self):
            return lambda features: self.scores

    monkeypatch.setattr("fullrank.serve.forms.export_program", Wrong)
    with pytest.raises(ArtifactError, match="differ") as caught:
        export_command(trained.folder, tmp_path / "model.pt2", "torch-export")
    assert "0.0001" in caught.value.found
    assert listing(tmp_path) == []


def test_a_tampered_artefact_is_not_exported(trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "run")
    weights = tmp_path / "run" / "artifact" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    before = listing(tmp_path)
    for form in ("artifact", "torch-export"):
        with pytest.raises(ArtifactError):
            export_command(tmp_path / "run", tmp_path / "copy", form)
    assert listing(tmp_path) == before


def test_an_export_does_not_take_the_place_of_other_files(trained, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    with pytest.raises(ArtifactError, match="taken"):
        export_command(trained.folder, tmp_path / "photos", "artifact")
    with pytest.raises(ArtifactError, match="taken"):
        export_command(trained.folder, tmp_path / "photos", "torch-export")
    (tmp_path / "photos.pt2").mkdir()
    with pytest.raises(OSError, match="photos"):
        export_command(trained.folder, tmp_path / "photos.pt2", "torch-export")
    assert listing(tmp_path) == ["photos/one.jpg"]
