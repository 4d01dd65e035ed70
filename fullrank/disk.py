"""Writing whole or not at all: to a temporary name, then renamed; a full disk is named as such."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fullrank.errors import DiskFullError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXT = ("No space left on device", "Disk quota exceeded", "File too large")


@contextmanager
def written_whole(target: Path, *, durable: bool = False) -> Iterator[Path]:
    """Gives a temporary path beside the target, and renames it to the target at the end.

    What was at the target stays as it was unless everything succeeds. What a killed process of
    this machine left beside the same target is removed first.

    Args:
        target: a file, or a folder that does not exist yet. Missing folders above it are made.
        durable: a loss of power does not undo it either: contents are synced before the target
            gets its name, and the name afterwards.

    Raises:
        DiskFullError: there is no room; nothing half-written is left.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with written_whole(Path(folder) / "a.txt") as draft:
        ...         _ = draft.write_text("whole")
        ...     (Path(folder) / "a.txt").read_text()
        'whole'
    """
    draft = target.with_name(f"{_drafts_of(target)}{os.getpid()}.part")
    _remove(draft)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        yield draft
        if durable:
            for path in (draft, *(draft.rglob("*") if draft.is_dir() else ())):
                _sync(path)
        os.replace(draft, target)
        if durable:
            _sync(target.parent)
    except BaseException as cause:
        _remove(draft)
        raise_if_full(cause, target)
        raise


def write_text(target: Path, text: str) -> None:
    """Writes a text file in one piece.

    Raises:
        DiskFullError: there is no room; an older file stays.
    """
    with written_whole(target) as draft:
        draft.write_text(text, encoding="utf-8")


def raise_if_full(cause: BaseException, target: Path) -> None:
    """Raises a DiskFullError where an error means that there is no room for a file.

    Args:
        cause: of the operating system, or of a library that wrapped one in its own.
        target: what was being written.
    """
    if isinstance(cause, DiskFullError):
        return
    text = str(cause)
    if getattr(cause, "errno", None) not in _FULL and not any(t in text for t in _FULL_TEXT):
        return
    home = next((p for p in target.parents if p.exists()), Path("/"))
    raise DiskFullError(
        "the disk is full",
        where=str(target),
        found=f"{text.splitlines()[0]} ({shutil.disk_usage(home).free / 1e6:,.0f} MB free)",
        expected="room for what is written",
        fix="free some space, or choose a folder on another disk; what was there before is intact",
    ) from cause


def _drafts_of(target: Path) -> str:
    """Returns how the names of drafts begin; the process follows, whose number is this host's."""
    return f".{target.name}.{re.sub('[^0-9A-Za-z-]', '_', platform.node())[:32]}."


def _sweep(target: Path) -> None:
    """Removes the drafts of a target whose processes are gone."""
    if os.name == "nt":
        return  # trap: there, asking for a process by a signal ends it
    begin = _drafts_of(target)
    with suppress(OSError):  # a folder that may not be listed can still be written to
        for path in target.parent.iterdir():
            process = path.name.removeprefix(begin).removesuffix(".part")
            is_draft = path.name == f"{begin}{process}.part" and process.isdecimal()
            if is_draft and not _is_alive(int(process)):
                _remove(path)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # it is there and not ours, or no number of a process: leave it alone
    return True


def _sync(path: Path) -> None:
    """Asks the operating system to bring a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows does not open folders, and syncs their names by itself
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
