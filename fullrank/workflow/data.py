"""A dataset becomes prepared data: read, checked for leaks, encoded, and kept for the next run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import polars as pl
import pyarrow as pa

from fullrank import __version__
from fullrank.data.checks import check
from fullrank.data.datasets import dataset, note
from fullrank.data.home import cache_folder, data_root
from fullrank.data.prepare import Prepared, Progress, prepare
from fullrank.data.spec import Spec
from fullrank.data.spec_json import spec_to_dict
from fullrank.data.text import BadRows
from fullrank.disk import raise_if_full
from fullrank.errors import (
    ArtifactError,
    DataFormatError,
    SchemaError,
    SplitError,
    UnknownNameError,
)

_BAD_ROWS = "bad_rows.jsonl"  # beside prepared data: what was left out of it


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where data is and what happens to rows that cannot be read.

    Args:
        root: of the raw files; FULLRANK_DATA or the platform's cache folder when None.
        cache: where prepared data is kept; the platform's cache folder when None.
        bad_rows: "refuse" stops at the first; "quarantine" goes on and writes them all to a file.
        quarantine: that file.
    """

    root: Path | None = None
    cache: Path | None = None
    bad_rows: Literal["refuse", "quarantine"] = "refuse"
    quarantine: Path = Path("bad_rows.jsonl")


def find_dataset(named: Any) -> Any:
    """Returns the dataset behind a name; an object that is one already passes through.

    Raises:
        UnknownNameError: there is no such dataset, or the module or object is none.
    """
    found = dataset(named) if isinstance(named, str) else named
    spec = "spec_at" if hasattr(found, "spec_at") else "SPEC"
    absent = [name for name in ("NAME", spec, "FOLDERS", "load") if not hasattr(found, name)]
    if absent:
        raise UnknownNameError(
            "this is not a dataset",
            where=f"dataset {named if isinstance(named, str) else type(named).__name__}",
            found="no " + ", ".join(absent),
            expected="NAME, SPEC, FOLDERS (paths below the data root) and load(root, bad_rows)",
            fix="add them, or use fullrank.data.datasets.tabular.from_files",
        )
    return found


def spec_of(source: Any, root: Path) -> Spec:
    """Returns the spec of a dataset; one whose columns depend on its files says so itself."""
    spec_at = getattr(source, "spec_at", None)
    spec: Spec = spec_at(root) if spec_at is not None else source.SPEC
    return spec


def open_data(
    named: Any, options: DataOptions | None = None, progress: Progress | None = None
) -> Prepared:
    """Returns prepared data, made now or kept from an earlier run.

    Data is made anew when the spec, the reader or any raw file has changed.

    Args:
        named: a dataset's name, dotted module or object.
        options: where files are.
        progress: called with the split, the rows done and the rows in all.

    Raises:
        DataMissingError: the raw files are not there.
        DataFormatError, LabelError, LeakError, SplitError, SchemaError: the data is not fit.
    """
    options = options or DataOptions()
    source, root = find_dataset(named), data_root(options.root)
    cache = (options.cache or cache_folder() / "prepared").resolve()
    if hasattr(source, "ready"):  # a log that is simulated on first use
        root = source.ready(root, cache)
    spec = spec_of(source, root)
    folder = cache / f"{source.NAME}-{_key(source, spec, root, options.bad_rows)}"
    if folder.exists():
        try:
            kept = Prepared.open(folder)
        except ArtifactError:  # an older format, or damaged: it can be made again
            shutil.rmtree(folder)
        else:
            _report_again(folder / _BAD_ROWS, options.quarantine)
            return kept
    return _made(source, root, spec, folder, options, progress)


def _made(
    source: Any,
    root: Path,
    spec: Spec,
    folder: Path,
    options: DataOptions,
    progress: Progress | None,
) -> Prepared:
    if not spec.targets():
        raise SchemaError(
            "a spec names no label",
            where=f"spec of '{source.NAME}'",
            found="columns " + ", ".join(c.name for c in spec.columns),
            expected="at least one Target",
            fix="say which column is 0 or 1 for each row: Target(name=...)",
        )
    quarantining = options.bad_rows == "quarantine"
    bad_rows = BadRows(options.bad_rows, options.quarantine if quarantining else None)
    with refusing_broken(source.NAME):
        splits = source.load(root, bad_rows)
        _require_parts(splits, source.NAME)
        notes = tuple(n for n in (note(source, root),) if n)
        notes += tuple(check(splits, spec, name=source.NAME))
        if bad_rows.count:
            where = folder / _BAD_ROWS
            notes += (f"{bad_rows.count:,} bad rows were left out, with reasons in {where}",)
        try:
            made = prepare(splits, spec, folder, notes=notes, progress=progress)
        except OSError:
            if not folder.exists():
                raise
            return Prepared.open(folder)  # another process made the same at the same time
    if bad_rows.count:  # the next run, which reads nothing, can then report them too
        shutil.copy(options.quarantine, folder / _BAD_ROWS)
    return made


def _require_parts(splits: Mapping[str, pl.LazyFrame], name: str) -> None:
    absent = [part for part in ("train", "valid", "test") if part not in splits]
    if absent:
        raise SplitError(
            "a split is missing",
            where=f"dataset '{name}'",
            found=", ".join(splits),
            expected="train, valid and test",
            fix=f"give rows for {' and '.join(absent)} too, or one log that is then split",
        )


def _report_again(kept: Path, asked: Path) -> None:
    if kept.exists():
        asked.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(kept, asked)


@contextmanager
def refusing_broken(where: object) -> Iterator[None]:
    """Turns what Polars and Arrow raise on damaged data, found while it streams, into our error.

    Raises:
        DataFormatError: the data cannot be read to its end.
        DiskFullError: there is no room for what is written meanwhile.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, pa.ArrowException) as cause:
        raise_if_full(cause, Path(str(where)))
        raise DataFormatError(
            "data cannot be read to its end",
            where=str(where),
            found=str(cause).splitlines()[0][:300],
            expected="a complete file whose columns have the types that the spec says",
            fix="get or write the file again; `fullrank data inspect FILE` says what is in it",
        ) from cause


def is_there(source: Any, root: Path) -> bool:
    """Returns whether the raw files of a dataset are on this machine."""
    needs = getattr(source, "NEEDS", ())
    folders = any((root / folder).exists() for folder in source.FOLDERS)
    return folders and all((root / file).exists() for file in needs)


def _key(source: Any, spec: Spec, root: Path, bad_rows: str) -> str:
    """Returns a name that changes with the spec, the reader, its choices and every raw file."""
    module = source if isinstance(source, ModuleType) else sys.modules[type(source).__module__]
    reader = Path(module.__file__ or __file__)
    parts = {
        "fullrank": __version__,
        "spec": spec_to_dict(spec),
        "reader": hashlib.sha256(reader.read_bytes()).hexdigest(),
        "choices": {}
        if module is source
        else vars(source),  # which file is which split, how it is cut
        "bad_rows": bad_rows,
        "files": [
            [str(path), path.stat().st_size, path.stat().st_mtime_ns]
            for path in sorted(_files([root / folder for folder in source.FOLDERS]))
        ],
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _files(places: list[Path]) -> list[Path]:
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += [Path(d) / f for d, _, names in os.walk(place) for f in names]
        elif place.exists():
            found.append(place)
    return found
