"""Whole or not at all, whatever happens in between."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from fullrank import disk
from fullrank.disk import raise_if_full, write_text, written_whole
from fullrank.errors import DiskFullError


@contextmanager
def limited(size: int) -> Iterator[None]:
    """A real refusal by the kernel: this process may write no file above the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def fill(draft: Path, text: str = "new") -> None:
    draft.mkdir()
    (draft / "deep").mkdir()
    (draft / "deep" / "a").write_text(text)
    (draft / "b").write_text(text)


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_and_a_folder_appear_at_the_end(tmp_path, durable):
    with written_whole(tmp_path / "x" / "y" / "file", durable=durable) as draft:
        assert draft.parent == tmp_path / "x" / "y"
        draft.write_text("new")
        assert not (tmp_path / "x" / "y" / "file").exists()
    with written_whole(tmp_path / "x" / "folder", durable=durable) as draft:
        fill(draft)
        assert not (tmp_path / "x" / "folder").exists()
    made = ["folder", "folder/b", "folder/deep", "folder/deep/a", "y", "y/file"]
    assert names(tmp_path / "x") == made
    write_text(tmp_path / "file", "näher")
    assert (tmp_path / "file").read_bytes() == "näher".encode()


def stopped(target: Path, cause: type[BaseException]) -> None:
    with written_whole(target) as draft:
        if target.name == "folder":
            fill(draft)
        else:
            draft.write_text("half")
        raise cause


@pytest.mark.parametrize("cause", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_whatever_stops_it_leaves_what_was_there(tmp_path, cause):
    write_text(tmp_path / "file", "old")
    for name in ("file", "folder"):
        with pytest.raises(cause):
            stopped(tmp_path / name, cause)
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_nothing_written_is_an_error_and_not_a_loss(tmp_path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "old"


def test_a_folder_that_is_there_is_never_merged_into(tmp_path):
    with written_whole(tmp_path / "folder") as draft:
        fill(draft, "old")
    before = names(tmp_path)
    with pytest.raises(OSError, match="not empty"), written_whole(tmp_path / "folder") as draft:
        fill(draft)
    assert names(tmp_path) == before
    assert (tmp_path / "folder" / "b").read_text() == "old"


def draft_name(folder: Path) -> str:
    with written_whole(folder / "file") as draft:
        draft.touch()
    return draft.name


def ended_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_what_an_earlier_try_left_is_in_nobodys_way(tmp_path):
    name = draft_name(tmp_path)
    for make in (Path.mkdir, Path.touch):
        make(tmp_path / name)
        write_text(tmp_path / "file", "new")
        assert names(tmp_path) == ["file"]
    elsewhere = tmp_path / "elsewhere"
    fill(elsewhere)
    (tmp_path / name).symlink_to(elsewhere)
    write_text(tmp_path / "file", "new")
    assert (elsewhere / "b").exists()  # the link went, what it points at did not
    assert not (tmp_path / "file").is_symlink()


def test_drafts_of_dead_processes_are_swept_and_no_others(tmp_path):
    mine, dead = f".{os.getpid()}.", f".{ended_process()}."
    name = draft_name(tmp_path)
    host = name.split(".")[2]
    kept = [
        name.replace(mine, f".{os.getppid()}."),  # its process lives
        name.replace(mine, dead).replace(f".{host}.", f".x{host}."),  # on another machine
        name.replace(mine, dead).replace(".file.", ".file.b."),  # of another target
        name.replace(mine, dead) + "ial",
        name.replace(mine, ".x1."),
        name.replace(mine, f".{2**99}."),
    ]
    for other in kept:
        (tmp_path / other).touch()
    (tmp_path / name.replace(mine, dead)).touch()
    write_text(tmp_path / "file", "new")
    assert names(tmp_path) == sorted([*kept, "file"])
    for other in kept:
        (tmp_path / other).unlink()
    fill(tmp_path / name.replace(mine, dead))
    write_text(tmp_path / "file", "new")
    assert names(tmp_path) == ["file"]


def test_readers_see_the_old_or_the_new_when_the_writer_is_killed(tmp_path):
    """A real kill, in the middle of a file."""
    write_text(tmp_path / "file", "old")
    code = """
import sys, time
from pathlib import Path
from fullrank.disk import written_whole
with written_whole(Path(sys.argv[1])) as draft, draft.open("w") as file:
    file.write("half")
    file.flush()
    print("half", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "file").read_text() == "old"
    assert len(names(tmp_path)) == 2
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
    assert names(tmp_path) == ["file"]


# ---- no room


def by_python(path: Path) -> None:
    path.write_bytes(bytes(5000))


def by_safetensors(path: Path) -> None:
    save_file({"x": torch.zeros(5000)}, path)


def by_arrow(path: Path) -> None:
    pq.write_table(pa.table({"x": [os.urandom(9000)]}), path)


def in_a_folder(path: Path) -> None:
    path.mkdir()
    (path / "small").write_text("fits")
    by_python(path / "large")


@pytest.mark.parametrize("write", [by_python, in_a_folder])
@pytest.mark.parametrize("durable", [False, True])
def test_no_room_is_named_and_leaves_what_was_there(tmp_path, write, durable):
    write_text(tmp_path / "file", "old")
    target = tmp_path / "new" if write is in_a_folder else tmp_path / "file"
    with limited(1000), pytest.raises(DiskFullError) as caught:  # noqa: SIM117
        with written_whole(target, durable=durable) as draft:
            write(draft)
    assert caught.value.where == str(target)
    assert os.strerror(errno.EFBIG) in caught.value.found
    assert "MB free" in caught.value.found
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("write", [by_safetensors, by_arrow])
def test_the_words_of_libraries_are_understood(tmp_path, write):
    with limited(1000), pytest.raises(DiskFullError):  # noqa: SIM117
        with written_whole(tmp_path / "file") as draft:
            write(draft)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("cause", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "in another language"), True),
        (OSError(errno.EFBIG, "in another language"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("no space in a name"), False),
        (KeyboardInterrupt(), False),
        (
            DiskFullError("a", where="b", found="No space left on device", expected="", fix=""),
            False,
        ),
    ],
)
def test_only_a_lack_of_room_is_called_one(tmp_path, cause, full):
    target = tmp_path / "not" / "there" / "yet"
    if not full:
        raise_if_full(cause, target)
        return
    with pytest.raises(DiskFullError) as caught:
        raise_if_full(cause, target)
    assert caught.value.__cause__ is cause
    with pytest.raises(DiskFullError):
        raise_if_full(cause, Path("relative"))


# ---- durable


def test_contents_are_synced_before_the_name_and_the_name_after(tmp_path, monkeypatch):
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def named(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        events.append("draft" if path.suffix == ".part" else path.name)
        fsync(handle)

    def moved(source: Path, target: Path) -> None:
        events.append("replace")
        replace(source, target)

    monkeypatch.setattr(disk.os, "fsync", named)
    monkeypatch.setattr(disk.os, "replace", moved)
    with written_whole(tmp_path / "folder", durable=True) as draft:
        fill(draft)
    assert sorted(events[:4]) == ["a", "b", "deep", "draft"]
    assert events[4:] == ["replace", tmp_path.name]
    events.clear()
    write_text(tmp_path / "file", "x")
    assert events == ["replace"]  # what can be made again need not be synced
