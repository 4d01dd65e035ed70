from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

import fullrank.workflow.data as data_module
from fullrank.data.datasets.tabular import TabularDataset, from_files
from fullrank.data.prepare import Prepared
from fullrank.data.spec import Category, Number, Spec
from fullrank.errors import (
    DataFormatError,
    DataMissingError,
    LabelError,
    SchemaError,
    SplitError,
    UnknownNameError,
)
from fullrank.workflow.data import DataOptions, find_dataset, open_data

from .small_world import SPEC, listing, make_log

FRACTIONS = {"train": 0.6, "valid": 0.2, "test": 0.2}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    make_log(100, 0)[0].write_csv(path)
    return path


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that were prepared."""
    made: list[str] = []
    original = data_module.prepare

    def prepare(splits: Any, spec: Spec, out: Path, **options: Any) -> Prepared:
        made.append(out.name)
        return original(splits, spec, out, **options)

    monkeypatch.setattr(data_module, "prepare", prepare)
    return made


def own(path: Path, **how: Any) -> TabularDataset:
    return from_files(path, SPEC, **({"fractions": FRACTIONS} | how))


def options(log: Path, **how: Any) -> DataOptions:
    return DataOptions(cache=log.parent / "cache", quarantine=log.parent / "bad.jsonl", **how)


def test_prepared_data_is_used_again(log, counted):
    first = open_data(own(log), options(log))
    second = open_data(own(log), options(log))
    assert len(counted) == 1
    assert first.folder == second.folder
    assert {name: part.rows for name, part in second.splits.items()} == {
        name: part.rows for name, part in first.splits.items()
    }
    assert second.folder.is_absolute()


def test_a_relative_cache_is_found_from_anywhere(log, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = open_data(own(log), DataOptions(cache=Path("cache")))
    monkeypatch.chdir("/")
    assert made.folder.is_dir()
    assert made.folder.is_relative_to(tmp_path)


def touched(log: Path) -> TabularDataset:
    make_log(100, 1)[0].write_csv(log)
    return own(log)


@pytest.mark.parametrize(
    "change",
    [
        touched,
        lambda log: own(log, seed=1),
        lambda log: own(log, split="order"),
        lambda log: own(log, fractions=FRACTIONS | {"valid": 0.1, "test": 0.3}),
        lambda log: replace(
            own(log),
            SPEC=replace(SPEC, columns=(Category(name="user", min_count=2), *SPEC.columns[1:])),
        ),
    ],
    ids=["file", "seed", "split", "fractions", "spec"],
)
def test_whatever_decides_the_rows_makes_them_anew(
    log, counted, change: Callable[[Path], TabularDataset]
):
    first = open_data(own(log), options(log))
    second = open_data(change(log), options(log))
    assert len({*counted}) == 2
    assert first.folder != second.folder
    assert first.folder.is_dir()


def test_swapped_files_are_other_data(tmp_path, counted):
    for i, name in enumerate(("a", "b", "c")):
        make_log(60 + 20 * i, i)[0].write_csv(tmp_path / f"{name}.csv")
    for order in ("abc", "acb"):
        paths = {
            part: tmp_path / f"{name}.csv"
            for part, name in zip(("train", "valid", "test"), order, strict=True)
        }
        made = open_data(from_files(paths, SPEC), DataOptions(cache=tmp_path / "cache"))
        expected = {part: 60 + 20 * "abc".index(x) for part, x in zip(paths, order, strict=True)}
        assert {name: part.rows for name, part in made.splits.items()} == expected
    assert len(counted) == 2


def test_a_changed_reader_makes_the_data_anew(log, counted, monkeypatch):
    module = log.parent / "acme" / "reader.py"
    module.parent.mkdir()
    text = f"""
from pathlib import Path
from fullrank.data.datasets.tabular import from_files
from tests.workflow.small_world import SPEC
NAME, FOLDERS = "mine", ({str(log)!r},)
def load(root, bad_rows):
    return from_files(Path({str(log)!r}), SPEC, fractions={FRACTIONS!r}).load(root, bad_rows)
"""
    module.write_text(text)
    monkeypatch.syspath_prepend(str(log.parent))
    for _ in range(2):
        open_data("acme.reader", options(log))
    assert len(counted) == 1
    module.write_text(text + "# now with other rows\n")
    open_data("acme.reader", options(log))
    assert len({*counted}) == 2
    columns = (Category(name="user", min_count=2), *SPEC.columns[1:])
    monkeypatch.setattr(sys.modules["acme.reader"], "SPEC", replace(SPEC, columns=columns))
    open_data("acme.reader", options(log))
    assert len({*counted}) == 3


def test_a_file_of_the_same_size_is_not_the_same_file(log, counted):
    open_data(own(log), options(log))
    log.write_text(log.read_text().replace("u1", "u7"))
    open_data(own(log), options(log))
    assert len({*counted}) == 2


@pytest.mark.parametrize("damage", ["manifest", "truncated", "featurizer"])
def test_a_damaged_folder_is_made_again(log, counted, damage):
    folder = open_data(own(log), options(log)).folder
    before = listing(folder)
    if damage == "manifest":
        (folder / "manifest.json").write_text("{")
    elif damage == "truncated":
        content = (folder / "test" / "labels.npy").read_bytes()
        (folder / "test" / "labels.npy").write_bytes(content[:-5])
    else:
        path = folder / "featurizer" / "featurizer.json"
        path.write_text(path.read_text().replace("price", "prize"))
    made = open_data(own(log), options(log))
    assert len(counted) == 2
    assert (made.folder, listing(made.folder)) == (folder, before)
    assert sum(part.rows for part in made.splits.values()) == 100


def test_two_processes_may_make_the_same_data(log, monkeypatch):
    original = data_module.prepare

    def too_late(splits: Any, spec: Spec, out: Path, **how: Any) -> Prepared:
        original(splits, spec, out, **how)  # the other process was faster
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(data_module, "prepare", too_late)
    assert open_data(own(log), options(log)).splits["train"].rows > 0


def test_another_failure_to_write_is_not_hidden(log, monkeypatch):
    def refuse(*args: Any, **how: Any) -> Prepared:
        raise PermissionError(errno.EACCES, "Permission denied", "cache")

    monkeypatch.setattr(data_module, "prepare", refuse)
    with pytest.raises(PermissionError):
        open_data(own(log), options(log))


# ---- bad rows


def spoiled(log: Path) -> Path:
    lines = log.read_text().splitlines()
    lines[3] += ",more"
    lines[9] = lines[9].rpartition(",")[0] + ",7"
    log.write_text("\n".join(lines) + "\n")
    return log


def test_bad_rows_are_refused_or_written_down_every_time(log, counted):
    source, asked = own(spoiled(log)), options(log, bad_rows="quarantine")
    with pytest.raises(DataFormatError, match=r"log\.csv, line 4"):
        open_data(source, options(log))
    assert not (log.parent / "cache").exists()
    made = open_data(source, asked)
    assert sum(part.rows for part in made.splits.values()) == 98
    rows = [json.loads(line) for line in asked.quarantine.read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in rows] == [(4, "5 values"), (10, "click is 7")]
    assert "2 bad rows were left out" in made.notes[0]
    asked.quarantine.unlink()
    again = open_data(source, asked)  # nothing is read, and yet they are reported
    assert len(counted) == 1
    assert [json.loads(line) for line in asked.quarantine.read_text().splitlines()] == rows
    assert again.notes == made.notes
    with pytest.raises(DataFormatError, match="line 4"):
        open_data(source, options(log))  # what was left out before is not left out now
    place = made.notes[0].rpartition(" ")[2]
    assert Path(place).read_text() == asked.quarantine.read_text()


def test_a_clean_log_leaves_no_file_of_bad_rows(log):
    open_data(own(log), options(log, bad_rows="quarantine"))
    open_data(own(log), options(log, bad_rows="quarantine"))
    assert not (log.parent / "bad.jsonl").exists()


# ---- refusals leave nothing behind


def test_what_cannot_be_prepared_leaves_nothing(log, tmp_path):
    frame = make_log(100, 0)[0]
    cases: list[tuple[Any, type[Exception]]] = [
        (from_files(tmp_path / "nowhere.csv", SPEC), DataMissingError),
        (from_files({"train": log, "test": log}, SPEC), SplitError),
    ]
    frame.with_columns(click=pl.lit(1)).write_csv(tmp_path / "ones.csv")
    cases.append((own(tmp_path / "ones.csv"), LabelError))
    for source, error in cases:
        with pytest.raises(error):
            open_data(source, options(log))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.csv", "ones.csv"]


def test_a_missing_split_is_named(log):
    with pytest.raises(SplitError) as caught:
        open_data(from_files({"train": log, "test": log}, SPEC), options(log))
    assert "valid" in caught.value.fix


def test_damage_that_shows_while_reading_is_named(tmp_path):
    path = tmp_path / "log.parquet"
    make_log(5000, 0)[0].write_parquet(path, compression="zstd")
    start = pq.ParquetFile(path).metadata.row_group(0).column(2).data_page_offset
    content = bytearray(path.read_bytes())
    content[start + 40 : start + 240] = b"\xff" * 200  # in the prices; the footer is as it was
    path.write_bytes(content)
    with pytest.raises(DataFormatError) as caught:
        open_data(own(path), DataOptions(cache=tmp_path / "cache"))
    assert "log" in caught.value.where
    assert not (tmp_path / "cache").exists()


def test_a_column_of_another_type_is_named(tmp_path):
    path = tmp_path / "log.parquet"
    frame = make_log(100, 0)[0].with_columns(price=pl.lit([1.0]))
    frame.write_parquet(path)
    with pytest.raises(SchemaError, match="price"):
        open_data(own(path), DataOptions(cache=tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_names_are_found_and_misspelt_ones_suggested():
    assert find_dataset("frappe").NAME == "frappe"
    with pytest.raises(UnknownNameError, match="did you mean 'frappe'"):
        find_dataset("frape")
    with pytest.raises(UnknownNameError, match="no NAME, SPEC, FOLDERS, load"):
        find_dataset("json.decoder")
    source = from_files(Path("a.csv"), Spec(columns=(Number(name="x"),)))
    assert find_dataset(source) is source
