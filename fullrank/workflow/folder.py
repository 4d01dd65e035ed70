"""RunFolder: where one run keeps everything, claimed by one process at a time.

recipe.json   what was asked        card.json        what changes the result
metrics.jsonl every logged step     state/           to resume from
scores/       test logits           diagnostics/     records and spectra
report.html   the picture           artifact/        what is served
assets.safetensors  lookups that were made for the run
best.safetensors  weights of the best validation; tensorboard/ and mlflow.json where asked for
result.json   the last thing written: its presence means the run is finished
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fullrank.disk import write_text
from fullrank.errors import RunFolderError

_LOCK = ".lock"
_OURS = (
    "recipe.json",
    "card.json",
    "metrics.jsonl",
    "mlflow.json",
    "assets.safetensors",
    "best.safetensors",
    "state",
    "scores",
    "diagnostics",
    "tensorboard",
    "report.html",
    "artifact",
    "result.json",
)


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
    def assets(self) -> Path:
        """The lookups that were made for the run."""
        return self.path / "assets.safetensors"

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

    def prepared(self) -> Path:
        """Returns where the prepared data of the run lies.

        Raises:
            RunFolderError: it was deleted, or this is no run.
        """
        found = "no recipe.json"
        try:
            place = Path(json.loads(self.recipe.read_text())["data"])
            if place.is_dir():
                return place
            found = f"nothing at {place}: it was deleted, or made on another machine"
        except (OSError, ValueError, KeyError, TypeError) as cause:
            found += f" that names it ({type(cause).__name__})"
        raise RunFolderError(
            "the prepared data of a run is not there",
            where=str(self.path),
            found=found,
            expected="a run folder, and the data that it was trained on",
            fix="give a run folder, or train again; `fullrank evaluate --file` needs an artefact "
            "and raw rows with labels alone",
        )

    @contextmanager
    def claimed(self, *, resume: bool = False, overwrite: bool = False) -> Iterator[None]:
        """Holds the folder for this process. Folders made for it go again if nothing is written.

        Raises:
            RunFolderError: another process holds it, it has a run and neither `resume` nor
                `overwrite` was asked for, or it has other files.
        """
        made = [p for p in (self.path, *self.path.parents) if not p.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / _LOCK
        handle = _take(lock)
        try:
            self._require_free(resume or overwrite)
            yield
        finally:
            _release(handle, lock)
            with suppress(OSError):  # one that is not empty, and those above it, stay
                for folder in made:
                    folder.rmdir()

    def is_held(self) -> bool:
        """Says whether a living process is working in the folder."""
        lock = self.path / _LOCK
        if not lock.exists():
            return False
        handle = os.open(lock, os.O_RDWR)
        try:
            return not _locked(handle)
        finally:
            os.close(handle)  # which also ends a lock that was free

    def clear(self) -> None:
        """Removes a run that is here, and nothing else that lies beside it."""
        for name in _OURS:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _require_free(self, may_hold_run: bool) -> None:
        if self.recipe.exists():
            if may_hold_run:
                return
            finished = self.result.exists()
            raise RunFolderError(
                "a run folder is already in use",
                where=str(self.path),
                found="a finished run" if finished else "a run that was interrupted",
                expected="an empty folder",
                fix="choose another with --out, or say --overwrite"
                + ("" if finished else " or --resume"),
            )
        others = sorted(p.name for p in self.path.iterdir() if not p.name.startswith("."))
        if others:
            raise RunFolderError(
                "a folder for a run has other files",
                where=str(self.path),
                found=", ".join(others)[:200],
                expected="an empty folder, or one with a run",
                fix="choose another folder with --out",
            )


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all.

    Raises:
        DiskFullError: the disk is full; an older file stays.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def _take(lock: Path) -> int:
    """Opens and locks a file; the operating system ends the lock with the process, come what may.

    Raises:
        RunFolderError: a living process holds it.
    """
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        if not _locked(handle):
            holder = os.read(handle, 20).decode(errors="replace").strip()
            os.close(handle)
            raise RunFolderError(
                "a run folder is already in use",
                where=str(lock.parent),
                found=f"process {holder or 'unknown'} is working in it",
                expected="a folder that no other process holds",
                fix="wait for it, stop it, or choose another folder with --out",
            )
        if lock.exists() and os.path.samestat(os.fstat(handle), lock.stat()):
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
            return handle
        os.close(handle)  # its holder took it away between the two lines above: once more


def _release(handle: int, lock: Path) -> None:
    if sys.platform == "win32":  # there, an open file cannot be removed
        os.close(handle)
        lock.unlink(missing_ok=True)
    else:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _locked(handle: int) -> bool:
    """Returns whether the lock is ours now."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, 1 << 20, os.SEEK_SET)  # past the text, which others may read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True  # this file system knows no locks; a run is worth more than the guard
    return True
