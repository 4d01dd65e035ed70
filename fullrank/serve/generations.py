"""Generations: how several workers agree on the artefact that they serve.

    current.json        name of the generation that is served
    g-NUMBER/           a copy of an artefact, whole, checked, and never changed
    worker-PID.json     what a worker serves, and its numbers; written each second

Whoever swaps the artefact copies it first, so that a worker that is replaced later, and the others
that follow, load what was accepted and not whatever lies at the source by then.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fullrank.disk import write_text, written_whole
from fullrank.errors import ArtifactError
from fullrank.serve.artifact import Artifact, read_manifest
from fullrank.serve.retrieval import FILE

_CURRENT = "current.json"
_KEPT = 2  # generations: the current one, and the one that slow workers may still be loading


class Generations:
    """The runtime folder of one server.

    Args:
        folder: private to the server; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, source: Path, fingerprint: str) -> str:
        """Copies an artefact that was loaded and found sound; returns the generation's name.

        Raises:
            ArtifactError: the source was changed meanwhile.
        """
        manifest = read_manifest(source)
        # The same fingerprint means the same list of files, whose paths were checked.
        if manifest["fingerprint"] != fingerprint:
            raise ArtifactError(
                "the artefact changed while it was loaded",
                where="artifact.json",
                found=f"fingerprint {manifest['fingerprint']}",
                expected=f"fingerprint {fingerprint}",
                fix="reload again when nothing writes to it",
            )
        name = f"g-{time.time_ns()}"
        with written_whole(self.folder / name) as draft:
            draft.mkdir()
            beside = [FILE] if (source / FILE).is_file() else []  # it says whose items it has
            for file in ("artifact.json", *manifest["files"], *beside):
                (draft / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / file, draft / file)
            Artifact.load(draft)
        return name

    def publish(self, name: str) -> None:
        """Makes a generation the one that every worker serves."""
        write_text(self.folder / _CURRENT, json.dumps({"generation": name}))
        older = sorted(self.folder.glob("g-*"))[:-_KEPT]
        for path in older:
            if path.name != name:
                shutil.rmtree(path, ignore_errors=True)

    def current(self) -> str:
        """Returns the name of the generation that is served."""
        name: str = json.loads((self.folder / _CURRENT).read_text())["generation"]
        return name

    def path(self, name: str) -> Path:
        """Returns the folder of a generation."""
        return self.folder / name

    def report(self, state: dict[str, Any]) -> None:
        """Leaves word of this process for the other workers."""
        write_text(self.folder / f"worker-{os.getpid()}.json", json.dumps(state))

    def reports(self) -> dict[str, dict[str, Any]]:
        """Returns process -> what it reported, of the workers that live."""
        found: dict[str, dict[str, Any]] = {}
        for path in self.folder.glob("worker-*.json"):
            process = path.stem.removeprefix("worker-")
            try:
                os.kill(int(process), 0)
                found[process] = json.loads(path.read_text())
            except ProcessLookupError:
                path.unlink(missing_ok=True)
            except (OSError, ValueError):
                continue
        return found

    def forget(self) -> None:
        """Takes the word of this process back, when it ends."""
        with suppress(OSError):
            (self.folder / f"worker-{os.getpid()}.json").unlink(missing_ok=True)
