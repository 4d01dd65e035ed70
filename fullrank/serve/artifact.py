"""Artifact: everything that a score depends on, in one folder of JSON, Arrow and safetensors.

    artifact.json          model, config, schema, metrics, provenance, and the hash of every file
    weights.safetensors    parameters and buffers
    featurizer/            vocabularies and statistics
    assets/NAME.safetensors   lookups, if the model has any

An artefact is data. Loading one never executes anything that it holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
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
from fullrank.disk import written_whole
from fullrank.errors import ArtifactError
from fullrank.lookup import Lookup, Provenance
from fullrank.model import Assets, create
from fullrank.schema import Schema

FORMAT = 1
_MANIFEST = "artifact.json"
_WEIGHTS = "weights.safetensors"
_MAX_MANIFEST = 16 << 20  # bytes; a manifest is a few kilobytes


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
    """

    model: str
    config: Any
    featurizer: Featurizer
    weights: Mapping[str, Tensor]
    assets: Assets = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def schema(self) -> Schema:
        """What the batches hold."""
        return self.featurizer.schema

    def build(self) -> nn.Module:
        """Returns the model in evaluation mode.

        Raises:
            ArtifactError: the weights are not those of this model and config.
        """
        model = create(self.model, self.schema, self.config, self.assets)
        expected = {n: tuple(t.shape) for n, t in model.state_dict().items()}
        found = {n: tuple(t.shape) for n, t in self.weights.items()}
        for name in sorted({*expected, *found}):
            if expected.get(name) != found.get(name):
                raise ArtifactError(
                    "weights and model do not belong together",
                    where=f"{_WEIGHTS}, tensor '{name}'",
                    found=str(found.get(name, "no such tensor")),
                    expected=str(expected.get(name, "no such tensor")),
                    fix="load the artefact with the version of the model that wrote it",
                )
        model.load_state_dict(dict(self.weights))
        return model.eval()

    def save(self, folder: Path) -> None:
        """Writes the folder, whole or not at all. An artefact that is there is replaced.

        Raises:
            ArtifactError: the folder exists and is something else.
            DiskFullError: the disk is full; what was there stays.
        """
        if folder.exists() and any(folder.iterdir()) and not (folder / _MANIFEST).exists():
            raise ArtifactError(
                "the folder is not an artefact",
                where=str(folder),
                found="other files",
                expected="an empty place or an older artefact",
                fix="choose another folder",
            )
        fresh = folder.with_name(f".{folder.name}.new.{os.getpid()}")
        with written_whole(fresh) as draft:
            draft.mkdir()
            _save_tensors(draft / _WEIGHTS, self.weights)
            self.featurizer.save(draft / "featurizer")
            for name, lookup in self.assets.items():
                (draft / "assets").mkdir(exist_ok=True)
                _save_tensors(draft / "assets" / f"{name}.safetensors", {"values": lookup.values})
            (draft / _MANIFEST).write_text(json.dumps(self._manifest(draft), indent=1))
        older = folder.with_name(f".{folder.name}.old.{os.getpid()}")
        if folder.exists():  # a folder cannot be replaced in one step, only moved aside
            os.replace(folder, older)
        os.replace(fresh, folder)
        shutil.rmtree(older, ignore_errors=True)

    def _manifest(self, folder: Path) -> dict[str, Any]:
        plain: dict[str, Any] = {
            "format": FORMAT,
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
        return plain | {"fingerprint": _fingerprint(plain)}

    @classmethod
    def load(cls, folder: Path) -> Artifact:
        """Reads a folder that `save` wrote and checks every file against its hash.

        Raises:
            ArtifactError: a file is missing, was changed, or does not match; both sides are named.
        """
        manifest = read_manifest(folder)
        _check_files(folder, manifest["files"])
        featurizer = Featurizer.load(folder / "featurizer")
        for what, found in (
            ("featurizer_fingerprint", featurizer.fingerprint()),
            ("schema_fingerprint", featurizer.schema.fingerprint()),
        ):
            if found != manifest[what]:
                raise _tampered(folder / "featurizer", f"{what} {found}", str(manifest[what]))
        assets = {
            name: Lookup(
                stated["key"],
                _tensors(folder / "assets" / f"{name}.safetensors")["values"],
                from_dict(Provenance, stated["source"]),
            )
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
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads artifact.json, checks its own fingerprint, and opens nothing else."""
    path = folder / _MANIFEST
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        manifest = json.loads(path.read_text())
        stated = manifest.pop("fingerprint")
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}")
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as cause:
        raise ArtifactError(
            "this is not an artefact that can be read",
            where=str(path),
            found=f"{type(cause).__name__}: {cause}",
            expected=f"an artifact.json of format {FORMAT}",
            fix="give the folder that `fullrank export` or `fullrank train` wrote",
        ) from cause
    if _fingerprint(manifest) != stated:
        raise _tampered(path, f"fingerprint {_fingerprint(manifest)}", f"fingerprint {stated}")
    whole: dict[str, Any] = manifest | {"fingerprint": stated}
    return whole


def _check_files(folder: Path, files: dict[str, Any]) -> None:
    for name, (size, digest) in files.items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or "\\" in name:
            raise _tampered(folder / _MANIFEST, f"the path {name!r}", "a path inside the folder")
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise _tampered(path, "no such file", f"a file of {size:,} bytes")
        if path.stat().st_size != size:
            raise _tampered(path, f"{path.stat().st_size:,} bytes", f"{size:,} bytes")
        if _sha256(path) != digest:
            raise _tampered(path, f"sha256 {_sha256(path)[:16]}...", f"sha256 {digest[:16]}...")


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({n: t.contiguous() for n, t in tensors.items()}, path)
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
