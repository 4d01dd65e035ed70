"""RunFolder: where one run keeps everything, claimed by one process at a time.

recipe.json   what was asked        card.json        what changes the result
metrics.jsonl every logged step     state/           to resume from
scores/       test logits           diagnostics/     records and spectra
report.html   the picture           artifact/        what is served
result.json   the last thing written: its presence means the run is finished
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullrank.disk import write_text
from fullrank.errors import RunFolderError


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def recipe(self) -> Path:
        """What was asked."""
        return self.path / "recipe.json"

    @property
    def state(self) -> Path:
        """The training state to resume from."""
        return self.path / "state"

    @property
    def artifact(self) -> Path:
        """The exported model."""
        return self.path / "artifact"

    @property
    def diagnostics(self) -> Path:
        """Records and spectra."""
        return self.path / "diagnostics"

    @property
    def report(self) -> Path:
        """The picture."""
        return self.path / "report.html"

    @property
    def result(self) -> Path:
        """Written last."""
        return self.path / "result.json"

    def read_result(self) -> dict[str, Any]:
        """Returns result.json.

        Raises:
            RunFolderError: the run is not finished, or this is no run.
        """
        try:
            found: dict[str, Any] = json.loads(self.result.read_text())
        except (OSError, ValueError) as cause:
            state = "an unfinished run" if self.recipe.exists() else "no run"
            raise RunFolderError(
                "this is not a finished run",
                where=str(self.path),
                found=state,
                expected="a folder that `fullrank train` finished",
                fix="train first, or resume with `fullrank train RECIPE --resume`",
            ) from cause
        return found

    @contextmanager
    def claimed(self, *, resume: bool = False, overwrite: bool = False) -> Iterator[None]:
        """Holds the folder for this process.

        Raises:
            RunFolderError: another process holds it, or it has a run and neither `resume` nor
                `overwrite` was asked for.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / ".lock"
        _take(lock)
        try:
            if self.recipe.exists() and not (resume or overwrite):
                finished = self.result.exists()
                raise RunFolderError(
                    "a run folder is already in use",
                    where=str(self.path),
                    found="a finished run" if finished else "a run that was interrupted",
                    expected="an empty folder",
                    fix="choose another with --out, or say --overwrite"
                    + ("" if finished else " or --resume"),
                )
            if overwrite and not resume:
                _empty(self.path, keep=lock)
            yield
        finally:
            lock.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all.

    Raises:
        DiskFullError: the disk is full; an older file stays.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def _take(lock: Path) -> None:
    """Creates the lock file, taking over one whose process is gone."""
    for _ in range(2):
        try:
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            holder = _holder(lock)
            if holder is not None:
                raise RunFolderError(
                    "a run folder is already in use",
                    where=str(lock.parent),
                    found=f"process {holder} is working in it",
                    expected="a folder that no other process holds",
                    fix="wait for it, stop it, or choose another folder with --out",
                ) from None
            lock.unlink(missing_ok=True)
        else:
            with os.fdopen(handle, "w") as file:
                file.write(str(os.getpid()))
            return
    raise RunFolderError(
        "a run folder cannot be claimed",
        where=str(lock),
        found="another process took it at the same moment",
        expected="a folder that no other process holds",
        fix="try again, or choose another folder with --out",
    )


def _holder(lock: Path) -> int | None:
    """Returns the living process that holds a lock, or None."""
    try:
        holder = int(lock.read_text())
        os.kill(holder, 0)
    except PermissionError:
        return holder  # it lives, and is somebody else's
    except (OSError, ValueError):
        return None
    return holder


def _empty(folder: Path, keep: Path) -> None:
    for entry in folder.iterdir():
        if entry == keep:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
