"""A dataset becomes prepared data: read, checked for leaks, encoded, and kept for the next run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fullrank import __version__
from fullrank.data.checks import check
from fullrank.data.datasets import dataset
from fullrank.data.home import cache_folder, data_root
from fullrank.data.prepare import Prepared, Progress, prepare
from fullrank.data.spec import Spec
from fullrank.data.spec_json import spec_to_dict
from fullrank.data.text import BadRows
from fullrank.errors import ArtifactError


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
    """Returns the dataset behind a name; an object that is one already passes through."""
    return dataset(named) if isinstance(named, str) else named


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
    spec = spec_of(source, root)
    cache = options.cache or cache_folder() / "prepared"
    folder = cache / f"{source.NAME}-{_key(source, spec, root, options.bad_rows)}"
    if folder.exists():
        try:
            return Prepared.open(folder)
        except ArtifactError:  # an older format, or damaged: it can be made again
            shutil.rmtree(folder)
    bad_rows = BadRows(
        options.bad_rows, options.quarantine if options.bad_rows == "quarantine" else None
    )
    splits = source.load(root, bad_rows)
    notes = tuple(n for n in (getattr(source, "NOTE", ""),) if n)
    notes += tuple(check(splits, spec, name=source.NAME))
    if bad_rows.count:
        notes += (f"{bad_rows.count:,} bad rows were left out: see {options.quarantine}",)
    made = prepare(splits, spec, folder, notes=notes, progress=progress)
    if bad_rows.count:  # the file of bad rows belongs to this reading, not to the next
        shutil.copy(options.quarantine, made.folder / "bad_rows.jsonl")
    return made


def is_there(source: Any, root: Path) -> bool:
    """Returns whether the raw files of a dataset are on this machine."""
    return any((root / folder).exists() for folder in source.FOLDERS)


def _key(source: Any, spec: Spec, root: Path, bad_rows: str) -> str:
    """Returns a name that changes with the spec, the reader and every raw file."""
    reader = Path(getattr(source, "__file__", None) or __file__)
    parts = {
        "fullrank": __version__,
        "spec": spec_to_dict(spec),
        "reader": hashlib.sha256(reader.read_bytes()).hexdigest(),
        "bad_rows": bad_rows,
        "files": [
            [str(path), path.stat().st_size, path.stat().st_mtime_ns]
            for path in sorted(_files([root / folder for folder in source.FOLDERS]))
        ],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _files(places: list[Path]) -> list[Path]:
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += [Path(d) / f for d, _, names in os.walk(place) for f in names]
        elif place.exists():
            found.append(place)
    return found
