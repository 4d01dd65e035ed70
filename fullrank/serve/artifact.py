"""Artifact: everything that a score depends on, in one folder of JSON, Arrow and safetensors.

    artifact.json          model, config, schema, calibration, metrics, provenance, and the hash of
                           every file
    weights.safetensors    parameters and buffers
    featurizer/            vocabularies and statistics
    assets/NAME.safetensors   lookups, if the model has any
    exported/FORM          the model as a program for other engines, if asked for; see `serve.forms`

An artefact is data: nothing that it holds is ever executed. A model of your own is imported by its
name from where Python finds it, and never from inside the artefact.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fullrank import __version__
from fullrank.config import from_dict, to_dict
from fullrank.data.featurizer import Featurizer
from fullrank.disk import raise_if_full, written_whole
from fullrank.errors import ArtifactError, ConfigError
from fullrank.evaluate.calibrate import Calibrator
from fullrank.lookup import Lookup, Provenance
from fullrank.model import Assets, create
from fullrank.schema import Schema

# An artefact with calibration is of format 2, so that a reader that knows nothing of it refuses it.
FORMATS = (1, 2)
_MANIFEST = "artifact.json"
_WEIGHTS = "weights.safetensors"
_MAX_MANIFEST = 16 << 20  # bytes; a manifest is a few kilobytes
_KEYS = {
    "model": str,
    "config": dict,
    "schema_fingerprint": str,
    "featurizer_fingerprint": str,
    "assets": dict,
    "metrics": dict,
    "provenance": dict,
    "files": dict,
}


@dataclass(frozen=True, eq=False)
class Artifact:
    """A trained model with the featurizer that it was trained with.

    Args:
        model: name for `fullrank.model.create`.
        config: the model's own Config.
        featurizer: turns raw rows into batches; its schema is the model's.
        weights: the state dict.
        assets: lookups by name.
        metrics: of the held-out split.
        provenance: recipe, seed, data notes, versions and date, for people.
        calibration: label -> what its logits go through before they become probabilities; a label
            without one is served as the model scores it.
        exported: file name -> a program of the same model, such as "model.onnx"; where it lies now.
    """

    model: str
    config: Any
    featurizer: Featurizer
    weights: Mapping[str, Tensor]
    assets: Assets = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Calibrator] = field(default_factory=dict)
    exported: Mapping[str, Path] = field(default_factory=dict)

    @property
    def schema(self) -> Schema:
        """What the batches hold."""
        return self.featurizer.schema

    def build(self) -> nn.Module:
        """Returns the model in evaluation mode. The global random state stays as it is.

        Raises:
            ArtifactError: the weights are not those of this model and config.
            ConfigError, UnknownNameError: this version of fullrank has no such setting or model.
        """
        # Initial weights are drawn, and then replaced. cost: models are laid out twice; the first
        # time without memory, so that a forged width is refused before anything is allocated.
        with torch.random.fork_rng(devices=[]):
            if "." not in self.model:  # a model of your own may not know how to
                with torch.device("meta"):
                    self._require_fitting(self._create())
            model = self._create()
        self._require_fitting(model)
        model.load_state_dict(dict(self.weights))
        return model.eval()

    def _create(self) -> nn.Module:
        try:
            return create(self.model, self.schema, self.config, self.assets)
        except (RuntimeError, TypeError, ValueError, ArithmeticError, LookupError) as cause:
            raise ArtifactError(
                "the model of an artefact cannot be built",
                where=f"model '{self.model}' with the config of {_MANIFEST}",
                found=f"{type(cause).__name__}: {str(cause).splitlines()[0][:200]}",
                expected="settings that the model accepts",
                fix="load the artefact with the version of the model that wrote it",
            ) from cause

    def _require_fitting(self, model: nn.Module) -> None:
        expected = {n: f"{t.dtype} {tuple(t.shape)}" for n, t in model.state_dict().items()}
        found = {n: f"{t.dtype} {tuple(t.shape)}" for n, t in self.weights.items()}
        for name in sorted({*expected, *found}):
            if expected.get(name) != found.get(name):
                raise ArtifactError(
                    "weights and model do not belong together",
                    where=f"{_WEIGHTS}, tensor '{name}'",
                    found=found.get(name, "no such tensor"),
                    expected=expected.get(name, "no such tensor"),
                    fix="load the artefact with the version of the model that wrote it",
                )

    def save(self, folder: Path) -> None:
        """Writes the folder, whole or not at all. An artefact that is there is replaced.

        Raises:
            ArtifactError: the folder exists and is something else.
            DiskFullError: the disk is full; what was there stays.
        """
        _require_free(folder)
        fresh = folder.with_name(f".{folder.name}.new.{os.getpid()}")
        with written_whole(fresh) as draft:
            draft.mkdir()
            _save_tensors(draft / _WEIGHTS, self.weights)
            self.featurizer.save(draft / "featurizer")
            for name, lookup in self.assets.items():
                (draft / "assets").mkdir(exist_ok=True)
                _save_tensors(draft / "assets" / f"{name}.safetensors", {"values": lookup.values})
            for name, program in self.exported.items():
                (draft / "exported").mkdir(exist_ok=True)
                shutil.copyfile(program, draft / "exported" / name)
            (draft / _MANIFEST).write_text(json.dumps(self._manifest(draft), indent=1))
        _swap(fresh, folder)

    def _manifest(self, folder: Path) -> dict[str, Any]:
        plain: dict[str, Any] = {
            "format": FORMATS[bool(self.calibration)],
            "fullrank": __version__,
            "model": self.model,
            "config": to_dict(self.config),
            "schema": self.schema.to_dict(),
            "schema_fingerprint": self.schema.fingerprint(),
            "featurizer_fingerprint": self.featurizer.fingerprint(),
            "assets": {
                name: {"key": a.key, "source": to_dict(a.source)} for name, a in self.assets.items()
            },
            "metrics": dict(self.metrics),
            "provenance": dict(self.provenance),
            "files": {
                path.relative_to(folder).as_posix(): [path.stat().st_size, _sha256(path)]
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
        }
        if self.calibration:
            plain["calibration"] = {name: c.to_dict() for name, c in self.calibration.items()}
        return plain | {"fingerprint": _fingerprint(plain)}

    @classmethod
    def load(cls, folder: Path) -> Artifact:
        """Reads a folder that `save` wrote and checks every file against its hash.

        Raises:
            ArtifactError: a file is missing, was changed, or does not match; both sides are named.
        """
        manifest = read_manifest(folder)
        _check_files(folder, manifest["files"])
        _require_outside(manifest["model"], folder)
        featurizer = Featurizer.load(folder / "featurizer")
        for what, found in (
            ("featurizer_fingerprint", featurizer.fingerprint()),
            ("schema_fingerprint", featurizer.schema.fingerprint()),
        ):
            if found != manifest[what]:
                raise _tampered(folder / "featurizer", f"{what} {found}", str(manifest[what]))
        assets = {
            name: _lookup(folder, name, stated, manifest["files"])
            for name, stated in manifest["assets"].items()
        }
        return cls(
            model=manifest["model"],
            config=manifest["config"],
            featurizer=featurizer,
            weights=_tensors(folder / _WEIGHTS),
            assets=assets,
            metrics=manifest["metrics"],
            provenance=manifest["provenance"],
            calibration=_calibration(folder, manifest, featurizer.schema),
            exported={
                name.removeprefix("exported/"): folder / name
                for name in manifest["files"]
                if name.startswith("exported/")
            },
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads artifact.json, checks its own fingerprint, and opens nothing else.

    Raises:
        ArtifactError: it is not there, is no manifest of this format, or was changed.
    """
    path = folder / _MANIFEST
    try:
        if path.is_symlink() or not path.is_file():  # a pipe would be waited on for ever
            raise ValueError("no such file" if not path.exists() else "not a plain file")
        if path.stat().st_size > _MAX_MANIFEST:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] not in FORMATS:
            raise ValueError(f"format {manifest['format']}")
        stated = manifest.pop("fingerprint")
        for key, kind in _KEYS.items():
            if not isinstance(manifest[key], kind):
                raise TypeError(f"'{key}' is a {type(manifest[key]).__name__}")
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as cause:
        raise ArtifactError(
            "this is not an artefact that can be read",
            where=str(path),
            found=f"{type(cause).__name__}: {cause}",
            expected=f"an {_MANIFEST} of format 1 or 2, at most {_MAX_MANIFEST:,} bytes",
            fix="give the folder that `fullrank export` or `fullrank train` wrote",
        ) from cause
    if _fingerprint(manifest) != stated:
        raise _tampered(path, f"fingerprint {_fingerprint(manifest)}", f"fingerprint {stated}")
    whole: dict[str, Any] = manifest | {"fingerprint": stated}
    return whole


def _check_files(folder: Path, files: dict[str, Any]) -> None:
    """Refuses a listed file that differs, and a file that would be read and is not listed."""
    manifest = folder / _MANIFEST
    for name, stated in files.items():
        match stated:
            case [int(size), str(digest)]:
                _check_file(folder, name, size, digest)
            case _:
                raise _tampered(manifest, f"{name!r}: {stated!r}", "[bytes, sha256] of each file")
    read = [folder / _WEIGHTS]
    for part in ("featurizer", "assets", "exported"):
        read += sorted(p for p in (folder / part).rglob("*") if not p.is_dir())
    for path in read:
        name = path.relative_to(folder).as_posix()
        if name not in files:
            raise _tampered(manifest, f"no entry for {name}", "an entry for every file")


def _check_file(folder: Path, name: str, size: int, digest: str) -> None:
    place = PurePosixPath(name)
    if not place.parts or place.is_absolute() or ".." in place.parts or {*"\\:\0"} & {*name}:
        raise _tampered(folder / _MANIFEST, f"the path {name!r}", "a path inside the folder")
    path = folder
    for part in place.parts:
        path = path / part
        if path.is_symlink():
            raise _tampered(path, "a link", "a plain file or folder")
    if not path.is_file():
        raise _tampered(path, "no such file", f"a file of {size:,} bytes")
    if path.stat().st_size != size:
        raise _tampered(path, f"{path.stat().st_size:,} bytes", f"{size:,} bytes")
    if _sha256(path) != digest:
        raise _tampered(path, f"sha256 {_sha256(path)[:16]}...", f"sha256 {digest[:16]}...")


def _require_outside(model: str, folder: Path) -> None:
    """Refuses the name of a model whose module lies inside the artefact."""
    if "." not in model:
        return
    inside = folder.resolve()
    for place in sys.path:
        module = Path(place or os.curdir).resolve().joinpath(*model.split("."))
        if module.is_relative_to(inside):
            raise ArtifactError(
                "an artefact names code that it brings along",
                where=str(folder / _MANIFEST),
                found=f"model '{model}', at {module}",
                expected="a model of fullrank, or one installed outside of the artefact",
                fix="do not use this artefact; ask whoever made it",
            )


def _lookup(folder: Path, name: str, stated: Any, files: dict[str, Any]) -> Lookup:
    manifest, file = folder / _MANIFEST, f"assets/{name}.safetensors"
    if file not in files:  # so that a name cannot climb out of the folder either
        raise _tampered(manifest, f"an asset '{name}' without its file", "an entry for every file")
    tensors = _tensors(folder / file)
    try:
        return Lookup(stated["key"], tensors["values"], from_dict(Provenance, stated["source"]))
    except (KeyError, TypeError) as cause:
        raise _tampered(manifest, f"asset '{name}': {stated!r}", "its key and source") from cause


def _calibration(folder: Path, manifest: dict[str, Any], schema: Schema) -> dict[str, Calibrator]:
    stated, labels = manifest.get("calibration", {}), {label.name for label in schema.labels}
    try:
        if not isinstance(stated, dict) or not stated.keys() <= labels:
            raise TypeError(str(stated)[:200])
        return {label: Calibrator.from_dict(curve) for label, curve in stated.items()}
    except (ConfigError, TypeError) as cause:
        found = f"calibration: {getattr(cause, 'found', cause)}"
        raise _tampered(folder / _MANIFEST, found, "a rising curve for labels that are") from cause


def _require_free(folder: Path) -> None:
    if not folder.exists() or (folder / _MANIFEST).is_file():
        return
    if folder.is_dir() and not any(folder.iterdir()):
        return
    raise ArtifactError(
        "the place for an artefact is taken",
        where=str(folder),
        found="a folder with other files" if folder.is_dir() else "a file",
        expected="an empty place or an older artefact",
        fix="choose another folder",
    )


def _swap(fresh: Path, folder: Path) -> None:
    """Puts a new folder in the place of an older one, which comes back if that fails."""
    older = folder.with_name(f".{folder.name}.old.{os.getpid()}")
    replaces = folder.exists()
    try:
        if replaces:  # a folder cannot be replaced in one step, only moved aside
            os.replace(folder, older)
        os.replace(fresh, folder)
    except OSError as cause:
        if replaces and older.exists():
            os.replace(older, folder)
        shutil.rmtree(fresh, ignore_errors=True)
        raise_if_full(cause, folder)
        raise
    shutil.rmtree(older, ignore_errors=True)


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    plain, places = {}, set[int]()
    for name, x in tensors.items():
        x = x.detach().contiguous()
        place = x.untyped_storage().data_ptr()
        plain[name] = x.clone() if place in places else x  # the format has no tied tensors
        places.add(place)
    save_file(plain, path)
    path.chmod(0o644)  # safetensors makes files that only their owner can read


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as cause:
        raise _tampered(path, str(cause), "a safetensors file") from cause


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(manifest: dict[str, Any]) -> str:
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _tampered(path: Path, found: str, expected: str) -> ArtifactError:
    return ArtifactError(
        "an artefact was changed after it was written, or is incomplete",
        where=str(path),
        found=found,
        expected=expected,
        fix="copy the folder again from where it was saved, or export it again",
    )


def versions() -> dict[str, str]:
    """Returns the versions that a score depends on, for the provenance."""
    return {"fullrank": __version__, "torch": torch.__version__}
