"""An artefact comes back as it was saved, or is refused with both sides named."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import resource
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import fullrank.serve.artifact as artifact_module
from fullrank.errors import ArtifactError, ConfigError, DiskFullError, UnknownNameError
from fullrank.evaluate.calibrate import Calibrator
from fullrank.serve.artifact import Artifact
from fullrank.serve.predictor import Predictor

from .conftest import SPEC, make_artifact, make_log

FILES = (
    "artifact.json",
    "weights.safetensors",
    "featurizer/featurizer.json",
    "featurizer/vocabulary-0.arrow",
    "assets/pictures.safetensors",
)
Plain = dict[str, Any]


def forge(folder: Path, change: Callable[[Plain], object] | None = None) -> None:
    """Rewrites the manifest as somebody would who knows the format: every hash is right again."""
    path = folder / "artifact.json"
    manifest = json.loads(path.read_text())
    del manifest["fingerprint"]
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = [len(content), hashlib.sha256(content).hexdigest()]
    if change is not None:
        change(manifest)
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    path.write_text(json.dumps(manifest))


def refused(folder: Path) -> ArtifactError:
    """The folder is refused, in words, with both sides."""
    with pytest.raises(ArtifactError) as caught:
        Predictor.load(folder)
    error = caught.value
    assert error.found
    assert error.expected
    assert error.found != error.expected
    return error


def listing(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def equal(a: Artifact, b: Artifact) -> bool:
    return a.weights.keys() == b.weights.keys() and all(
        torch.equal(a.weights[n], b.weights[n]) and a.weights[n].dtype == b.weights[n].dtype
        for n in a.weights
    )


# ---- there and back


def test_what_is_saved_comes_back(log, tmp_path):
    first = make_artifact("dcnv2", log, assets=True)
    first.save(tmp_path / "a")
    second = Artifact.load(tmp_path / "a")
    assert equal(first, second)
    assert second.schema == first.schema
    assert second.featurizer.fingerprint() == first.featurizer.fingerprint()
    assert second.assets["pictures"].source == first.assets["pictures"].source
    assert torch.equal(second.assets["pictures"].values, first.assets["pictures"].values)
    assert (second.model, second.metrics, second.provenance) == (
        first.model,
        first.metrics,
        first.provenance,
    )
    second.save(tmp_path / "b")  # an export of an export
    assert (tmp_path / "a/artifact.json").read_text() == (tmp_path / "b/artifact.json").read_text()
    forge(tmp_path / "b")  # the forger of these tests is right when there is nothing to forge
    assert equal(Artifact.load(tmp_path / "b"), first)


def test_everybody_may_read_what_its_owner_writes(saved):
    before = os.umask(0o022)
    try:
        Artifact.load(saved).save(saved)
    finally:
        os.umask(before)
    for path in [saved, *saved.rglob("*")]:
        wanted = 0o755 if path.is_dir() else 0o644
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    assert {*FILES} <= {*listing(saved)}
    endings = {p.suffix for p in saved.rglob("*") if p.is_file()}
    assert endings == {".json", ".arrow", ".safetensors"}


CURVE = Calibrator(method="isotonic", x=(-1.5, 0.1), y=(-2.0, 1 / 3), slope=0.7)


def test_calibration_and_programs_come_back_and_older_artefacts_stay_as_they_were(saved, tmp_path):
    plain = json.loads((saved / "artifact.json").read_text())
    assert plain["format"] == 1
    assert "calibration" not in plain
    first = Artifact.load(saved)
    assert (first.calibration, first.exported) == ({}, {})
    (tmp_path / "p").write_bytes(b"a program")
    more = replace(first, calibration={"click": CURVE}, exported={"model.onnx": tmp_path / "p"})
    more.save(saved)  # in the place of the older one
    assert json.loads((saved / "artifact.json").read_text())["format"] == 2
    second = Artifact.load(saved)
    assert second.calibration == {"click": CURVE}
    second.save(tmp_path / "b")
    assert Artifact.load(tmp_path / "b").exported == {
        "model.onnx": tmp_path / "b" / "exported" / "model.onnx"
    }
    assert (tmp_path / "b/artifact.json").read_text() == (saved / "artifact.json").read_text()
    (saved / "exported" / "model.onnx").write_bytes(b"a different one")
    assert "model.onnx" in refused(saved).where


@pytest.mark.parametrize(
    "change",
    [
        {"nobody": CURVE.to_dict()},
        {"click": CURVE.to_dict() | {"y": [1.0, 0.0]}},
        {"click": CURVE.to_dict() | {"x": [0.0]}},
        {"click": CURVE.to_dict() | {"slope": float("nan")}},
        {"click": CURVE.to_dict() | {"code": "import os"}},
        {"click": "sigmoid"},
        ["click"],
    ],
)
def test_forged_calibration_is_refused(saved, change):
    forge(saved, lambda m: m.update(calibration=change))
    assert "calibration" in refused(saved).found


def test_a_program_that_is_not_listed_is_refused(saved):
    (saved / "exported").mkdir()
    (saved / "exported" / "model.onnx").write_bytes(b"from elsewhere")
    assert "exported/model.onnx" in refused(saved).found


# ---- changed by accident


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_refused(saved, name):
    whole = (saved / name).read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        content = bytearray(whole)
        content[place] ^= 1
        (saved / name).write_bytes(content)
        assert Path(name).name in refused(saved).where
    (saved / name).write_bytes(whole)
    Predictor.load(saved)


def test_a_better_number_in_the_manifest_is_refused(saved):
    text = (saved / "artifact.json").read_text()
    (saved / "artifact.json").write_text(text.replace('"auc": 0.5', '"auc": 0.9'))
    assert "fingerprint" in refused(saved).found


@pytest.mark.parametrize("name", FILES)
def test_a_missing_and_a_truncated_file_are_refused(saved, name):
    content = (saved / name).read_bytes()
    for part in (b"", content[:-1], content[: len(content) // 2]):
        (saved / name).write_bytes(part)
        error = refused(saved)
        assert Path(name).name in error.where
        if name != "artifact.json":
            assert (error.found, error.expected) == (
                f"{len(part):,} bytes",
                f"{len(content):,} bytes",
            )
    (saved / name).unlink()
    error = refused(saved)
    assert Path(name).name in error.where
    assert "no such file" in error.found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not json", "JSONDecodeError"),
        (b"[1, 2]", "TypeError"),
        (b"{}", "KeyError"),
        (b'{"format": 3}', "format 3"),
        (b"\xff\xfe\x00", "UnicodeDecodeError"),
        (b"[" * 100_000, "RecursionError"),
        (b'{"format": 1, "fingerprint": "x", "model": 3}', "'model' is a int"),
        (b" " * (17 << 20), "17,825,792 bytes"),
    ],
)
def test_what_is_no_manifest_is_refused(saved, content, said):
    (saved / "artifact.json").write_bytes(content)
    assert said in refused(saved).found


def test_a_folder_that_is_no_artefact_is_refused(tmp_path):
    assert "no such file" in refused(tmp_path).found
    assert "no such file" in refused(tmp_path / "nowhere").found


# ---- forged: every hash is right


def test_a_pipe_is_not_waited_on(saved):
    (saved / "artifact.json").unlink()
    os.mkfifo(saved / "artifact.json")
    assert "plain file" in refused(saved).found


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "featurizer/../../outside", "a\\b", "", "C:/x"]
)
def test_a_path_out_of_the_folder_is_not_followed(saved, name):
    (saved.parent / "outside").write_text("secret")
    forge(saved, lambda m: m["files"].update({name: [6, "0" * 64]}))
    assert repr(name) in refused(saved).found


def test_links_are_refused(saved):
    for name in ("weights.safetensors", "featurizer"):
        outside = saved.parent / f"moved {name}"
        (saved / name).rename(outside)
        (saved / name).symlink_to(outside)
        assert refused(saved).found == "a link"
        (saved / name).unlink()
        outside.rename(saved / name)
    Predictor.load(saved)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_file_that_the_manifest_does_not_list_is_not_read(saved, name):
    forge(saved, lambda m: m["files"].pop(name))
    assert name in refused(saved).found or "asset" in refused(saved).found


@pytest.mark.parametrize("stated", [None, 3, [1], ["1", 2], {"size": 1}])
def test_an_entry_of_another_form_is_refused(saved, stated):
    forge(saved, lambda m: m["files"].update({"weights.safetensors": stated}))
    assert "weights.safetensors" in refused(saved).found


def test_an_asset_cannot_climb_out_of_the_folder(saved):
    save_file({"values": torch.zeros(99, 2)}, saved.parent / "outside.safetensors")
    asset = json.loads((saved / "artifact.json").read_text())["assets"]["pictures"]
    forge(saved, lambda m: m["assets"].update({"../../outside": asset}))
    assert "../../outside" in refused(saved).found


def test_a_pickle_in_place_of_the_weights_is_not_executed(saved):
    sign = saved.parent / "executed"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (sign,)

    (saved / "weights.safetensors").write_bytes(pickle.dumps(Evil()))
    forge(saved)
    assert "weights.safetensors" in refused(saved).where
    assert not sign.exists()
    pickle.loads((saved / "weights.safetensors").read_bytes())
    assert sign.exists()  # it would have been


def test_code_inside_the_artefact_is_not_imported(saved, monkeypatch):
    sign = saved.parent / "executed"
    code = f"import pathlib; pathlib.Path({str(sign)!r}).touch(); MODEL = None"
    for name in ("__init__.py", "evil.py"):
        (saved / name).write_text(code)
    forge(saved, lambda m: m.update(model="artifact.evil"))
    monkeypatch.syspath_prepend(str(saved.parent))
    error = refused(saved)
    assert "artifact.evil" in error.found
    assert not sign.exists()


def test_a_model_of_ones_own_is_found_outside(saved, monkeypatch):
    (saved.parent / "acme").mkdir()
    text = "from fullrank.models.dcnv2 import DCNv2\nMODEL = DCNv2\n"
    (saved.parent / "acme" / "ads_model.py").write_text(text)
    forge(saved, lambda m: m.update(model="acme.ads_model"))
    monkeypatch.syspath_prepend(str(saved.parent))
    Predictor.load(saved)
    forge(saved, lambda m: m.update(model="acme.nothing"))
    with pytest.raises(UnknownNameError):
        Predictor.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1 << 40]},
        {"shape": [1 << 40], "data_offsets": [0, 1 << 42]},
        {"shape": [1 << 62, 1 << 62]},
        {"shape": [-1, 8]},
        {"data_offsets": [8, 0]},
        {"dtype": "OBJECT"},
    ],
)
@pytest.mark.parametrize("name", ["weights.safetensors", "assets/pictures.safetensors"])
def test_a_forged_shape_of_a_tensor_allocates_nothing(saved, name, change):
    content = (saved / name).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    next(iter(header.values())).update(change)
    text = json.dumps(header).encode()
    (saved / name).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    forge(saved)
    _, before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), before))
    try:
        assert Path(name).name in refused(saved).where
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, before))


def test_a_vocabulary_that_swells_is_refused(saved):
    zeros = pl.DataFrame({"value": np.zeros(1 << 23, dtype=np.int64)}).with_columns(count="value")
    zeros.write_ipc(saved / "featurizer/vocabulary-0.arrow", compression="zstd")
    forge(saved)
    error = refused(saved)
    assert error.where.endswith("vocabulary-0.arrow")
    assert f"{1 << 27:,} bytes that are packed into" in error.found


def test_a_forged_width_allocates_nothing(saved, monkeypatch):
    places = []

    def create(*args: Any) -> Any:
        places.append(torch.empty(0).device.type)
        return original(*args)

    original = artifact_module.create
    monkeypatch.setattr(artifact_module, "create", create)
    forge(saved, lambda m: m["config"].update(dim=4096))
    error = refused(saved)
    assert f"{4096 * len(SPEC.columns[:7])})" in error.expected  # as wide as it says
    assert places == ["meta"]
    forge(saved, lambda m: m["config"].update(dim=10**30))
    refused(saved)
    assert places == ["meta", "meta"]


def test_a_config_of_another_version_names_the_key(saved):
    forge(saved, lambda m: m["config"].update(widht=3))
    with pytest.raises(ConfigError) as caught:
        Predictor.load(saved)
    assert "widht" in caught.value.where
    forge(saved, lambda m: (m["config"].pop("widht"), m.update(model="dcnv3")))
    with pytest.raises(UnknownNameError) as unknown:
        Predictor.load(saved)
    assert "dcnv2" in unknown.value.fix


@pytest.mark.parametrize(
    ("change", "found", "expected"),
    [
        (lambda t: t.double(), "torch.float64", "torch.float32"),
        (lambda t: t[:, :-1].contiguous(), "", ""),
        (None, "no such tensor", "torch.float32"),
    ],
)
def test_weights_of_another_model_are_refused(saved, change, found, expected):
    weights = load_file(saved / "weights.safetensors")
    name = next(n for n, t in weights.items() if t.ndim == 2)
    shape = tuple(weights[name].shape)
    if change is None:
        del weights[name]
    else:
        weights[name] = change(weights[name])
    save_file(weights, saved / "weights.safetensors")
    forge(saved)
    error = refused(saved)
    assert f"'{name}'" in error.where
    assert found in error.found
    assert expected in error.expected
    assert str(shape) in error.expected


def test_a_tensor_too_many_is_refused(saved):
    weights = load_file(saved / "weights.safetensors")
    save_file(weights | {"extra": torch.zeros(2)}, saved / "weights.safetensors")
    forge(saved)
    assert refused(saved).expected == "no such tensor"


def test_the_featurizer_of_other_data_is_refused(saved, tmp_path):
    other = make_artifact("dcnv2", make_log(300, seed=9), assets=True)
    other.save(tmp_path / "other")
    for file in (saved / "featurizer").iterdir():
        file.write_bytes((tmp_path / "other" / "featurizer" / file.name).read_bytes())
    forge(saved)
    error = refused(saved)
    assert other.featurizer.fingerprint() in error.found
    manifest = json.loads((saved / "artifact.json").read_text())
    assert manifest["featurizer_fingerprint"] in error.expected


def test_a_changed_claim_about_the_data_is_refused(saved):
    forge(saved, lambda m: m.update(schema_fingerprint="0" * 16))
    assert "0" * 16 in refused(saved).expected


# ---- saving


def test_only_an_artefact_is_ever_replaced(saved, log, tmp_path):
    other = make_artifact("rankmixer", log)
    other.save(saved)
    assert equal(Artifact.load(saved), other)
    foreign = tmp_path / "photos"
    foreign.mkdir()
    other.save(foreign)  # an empty folder will do
    assert equal(Artifact.load(foreign), other)
    (foreign / "artifact.json").unlink()
    before = listing(tmp_path)
    with pytest.raises(ArtifactError, match="taken"):
        other.save(foreign)
    with pytest.raises(ArtifactError, match="taken"):
        other.save(saved / "weights.safetensors")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("step", ["weights", "manifest", "move"])
def test_a_full_disk_keeps_the_old_artefact(saved, log, monkeypatch, step):
    old, before = Artifact.load(saved), listing(saved.parent)
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise full

    def no_room(*args: Any, **kwargs: Any) -> Any:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    def move(source: Path, target: Path) -> None:
        if Path(target) == saved and ".new." in Path(source).name:
            raise full
        os.rename(source, target)

    with monkeypatch.context() as patch:
        if step == "weights":
            patch.setattr(artifact_module, "save_file", no_room)
        elif step == "manifest":
            patch.setattr(Path, "write_text", fail)
        else:
            patch.setattr(artifact_module.os, "replace", move)
        with pytest.raises(DiskFullError):
            make_artifact("rankmixer", log).save(saved)
    assert listing(saved.parent) == before
    assert equal(Artifact.load(saved), old)


def test_tied_weights_are_saved_too(log, tmp_path):
    artifact = make_artifact("dcnv2", log)
    name = next(n for n, t in artifact.weights.items() if t.ndim == 2)
    tied = replace(artifact, weights={**artifact.weights, "tied": artifact.weights[name]})
    tied.save(tmp_path / "a")
    found = Artifact.load(tmp_path / "a").weights
    assert torch.equal(found["tied"], found[name])
