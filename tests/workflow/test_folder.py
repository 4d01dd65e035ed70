from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fullrank.errors import RunFolderError
from fullrank.workflow.folder import RunFolder, write_json

HOLD = """
import sys, time
from pathlib import Path
from fullrank.workflow.folder import RunFolder

with RunFolder(Path(sys.argv[1])).claimed():
    print("held", flush=True)
    time.sleep(60)
"""


def begin(folder: Path, *, finish: bool = False) -> RunFolder:
    """What a run leaves behind."""
    run = RunFolder(folder)
    with run.claimed():
        write_json(run.recipe, {"name": "a"})
        run.state.mkdir()
        (run.state / "000001").touch()
        if finish:
            write_json(run.result, {"auc": 0.5})
    return run


def refused(folder: Path, **how: bool) -> RunFolderError:
    before = sorted(folder.iterdir())
    with pytest.raises(RunFolderError) as caught, RunFolder(folder).claimed(**how):
        pytest.fail("claimed")
    assert sorted(folder.iterdir()) == before
    return caught.value


def test_a_fresh_folder_is_made_and_goes_again_when_nothing_is_written(tmp_path):
    with RunFolder(tmp_path / "a" / "b").claimed():
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    begin(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "recipe.json").exists()
    assert not (tmp_path / "a" / "b" / ".lock").exists()
    (tmp_path / "empty").mkdir()
    with RunFolder(tmp_path / "empty").claimed():
        pass
    assert (tmp_path / "empty").is_dir()  # it was there before


def test_one_process_at_a_time(tmp_path):
    with RunFolder(tmp_path).claimed():
        for how in ({}, {"resume": True}, {"overwrite": True}):
            assert str(os.getpid()) in refused(tmp_path, **how).found
    with RunFolder(tmp_path).claimed():
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert str(holder.pid) in refused(tmp_path).found
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert (tmp_path / ".lock").exists()  # it had no time to tidy up
    with RunFolder(tmp_path).claimed():
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_nobody_holds_means_nothing(tmp_path):
    (tmp_path / ".lock").write_text(str(os.getppid()))  # alive, and not a run of ours
    with RunFolder(tmp_path).claimed():
        pass


def test_a_run_is_not_written_over_by_accident(tmp_path):
    begin(tmp_path / "unfinished")
    error = refused(tmp_path / "unfinished")
    assert error.found == "a run that was interrupted"
    assert "--resume" in error.fix
    assert "--overwrite" in error.fix
    begin(tmp_path / "finished", finish=True)
    error = refused(tmp_path / "finished")
    assert error.found == "a finished run"
    assert "--resume" not in error.fix
    for how in ({"resume": True}, {"overwrite": True}):
        with RunFolder(tmp_path / "finished").claimed(**how):
            assert (tmp_path / "finished" / "result.json").exists()  # clearing comes later


@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}])
def test_a_folder_with_other_files_is_left_alone(tmp_path, how):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "thesis.tex" in refused(tmp_path, **how).found


def test_clearing_removes_a_run_and_nothing_else(tmp_path):
    run = begin(tmp_path, finish=True)
    (tmp_path / "notes.md").write_text("mine")
    run.artifact.mkdir()
    (run.artifact / "weights").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    run.diagnostics.symlink_to(tmp_path / "elsewhere")
    run.clear()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "notes.md"]
    assert (tmp_path / "elsewhere" / "precious").exists()


def test_a_failure_inside_frees_the_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path / "a").claimed():
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_results_are_read_or_their_absence_is_explained(tmp_path):
    assert begin(tmp_path / "a", finish=True).read_result() == {"auc": 0.5}
    with pytest.raises(RunFolderError, match="an unfinished run"):
        begin(tmp_path / "b").read_result()
    with pytest.raises(RunFolderError, match="no run"):
        RunFolder(tmp_path / "c").read_result()
    RunFolder(tmp_path / "a").result.write_text("{half")
    with pytest.raises(RunFolderError):
        RunFolder(tmp_path / "a").read_result()


def test_json_has_no_nan_and_is_whole_or_not_there(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert (tmp_path / "a.json").read_text() == '{\n "x": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
