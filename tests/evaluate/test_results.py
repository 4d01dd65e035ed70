from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from fullrank.errors import (
    DataFormatError,
    DiskFullError,
    IncomparableError,
    MetricUndefinedError,
)
from fullrank.evaluate.results import (
    RunResult,
    finished,
    read_result,
    result_path,
    write_result,
)

FULL = RunResult(
    recipe="frappe_dcnv2",
    seed=3,
    metrics={"auc": 0.98, "logloss": 0.15},
    fingerprint="ab12",
    parameters=1_000_000,
    step_seconds=0.01,
    paper={"auc": 0.984},
    floor={"auc": 0.5},
    popularity={"auc": 0.6, "gauc": 0.55},
)
BARE = RunResult(recipe="mine/recipe.py", seed=0, metrics={"auc": 0.5})


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "results"
    assert write_result(folder, BARE) != write_result(folder, FULL)
    for result in (BARE, FULL):
        assert read_result(result_path(folder, result.recipe, result.seed)) == result
    assert sorted(p.suffix for p in folder.iterdir()) == [".json", ".json"]


def test_a_result_of_before_popularity_was_measured_is_read(tmp_path: Path) -> None:
    path = write_result(tmp_path, BARE)
    older = json.loads(path.read_text())
    del older["popularity"]
    path.write_text(json.dumps(older))
    assert read_result(path) == BARE


def test_any_recipe_name_gives_a_file_of_its_own(tmp_path: Path) -> None:
    names = ["a/b", "a_b", "a%2Fb", "../up", "a b", "x-seed1"]
    paths = {result_path(tmp_path, name, seed) for name in names for seed in (1, 11)}
    assert len(paths) == 12
    assert {path.parent for path in paths} == {tmp_path}


def test_only_unfinished_runs_are_made_again(tmp_path: Path) -> None:
    assert finished(tmp_path, FULL.recipe, FULL.seed, "ab12") is None
    write_result(tmp_path, FULL)
    assert finished(tmp_path, FULL.recipe, FULL.seed, "ab12") == FULL
    assert finished(tmp_path, FULL.recipe, 4, "ab12") is None
    with pytest.raises(IncomparableError, match="another version") as caught:
        finished(tmp_path, FULL.recipe, FULL.seed, "cd34")
    assert "ab12" in caught.value.found
    assert "cd34" in caught.value.expected


@pytest.mark.parametrize("text", ["", "{", "[]", '{"recipe": "a"}', '{"recipes": 1}', "\xff\x00"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    path = result_path(tmp_path, "a", 0)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataFormatError, match="cannot be read") as caught:
        finished(tmp_path, "a", 0)
    assert caught.value.where == str(path)


def test_values_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(MetricUndefinedError, match="not finite") as caught:
        RunResult(recipe="a", seed=1, metrics={"auc": float("nan")})
    assert "'auc'" in caught.value.where


def test_a_full_disk_keeps_the_old_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_result(tmp_path, FULL)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskFullError, match="full"):
        write_result(tmp_path, replace(FULL, metrics={"auc": 0.1}))
    assert read_result(path) == FULL
    assert list(tmp_path.iterdir()) == [path]
