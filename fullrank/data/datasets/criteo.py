"""Criteo display advertising challenge: clicks on ads over seven days, 2014.

One row is an ad that was shown: 13 counts and 26 hashed categories of unpublished meaning. Rows
stand in time order without a time, so the cut goes by file order. Labels are known at once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from fullrank.data.datasets._sample import sampled
from fullrank.data.home import RemoteFile, missing
from fullrank.data.spec import Category, Number, Spec, Target
from fullrank.data.split import Splits, in_order
from fullrank.data.text import BadRows, Dialect, Kind, read_delimited

NAME = "criteo"
FOLDERS = ("criteo", "ctr_samples")  # below the data root
TITLE = "Criteo display advertising challenge"
LICENCE = "Criteo's terms: research use, no commercial use"
HOME = "https://www.kaggle.com/c/criteo-display-ad-challenge"
NOTE = (
    "where criteo/train.txt is absent, 200 rows of ctr_samples/criteo_sample.txt are read: a test"
    " of the format, not a result"
)
FILES: tuple[RemoteFile, ...] = ()  # behind a log-in: put train.txt into the folder `criteo`
_COUNTS = tuple(f"I{i}" for i in range(1, 14))
_HASHED = tuple(f"C{i}" for i in range(1, 27))
SPEC = Spec(
    columns=(
        *(Number(name=name, transform="log") for name in _COUNTS),  # mostly counts; may be empty
        *(Category(name=name) for name in _HASHED),  # 32-bit hashes; may be empty
        Target(name="label"),  # the ad was clicked
    ),
)
_KINDS: dict[str, Kind] = {
    "label": "label",
    **dict.fromkeys(_COUNTS, "float"),
    **dict.fromkeys(_HASHED, "text"),
}


def load(root: Path, bad_rows: BadRows) -> Splits:
    """Reads `criteo/train.txt` or, failing that, `ctr_samples/criteo_sample.txt`."""
    path, is_sample = _source(root)
    if is_sample:
        rows = read_delimited(path, _KINDS, bad_rows)
    else:
        tabs = Dialect(separator="\t", quote="", header=False)
        rows = read_delimited(path, _KINDS, bad_rows, dialect=tabs)
    return in_order(rows)


def note(root: Path) -> str:
    """Returns what a report must say about the files in this root."""
    return NOTE if _source(root)[1] else ""


def _source(root: Path) -> tuple[Path, bool]:
    for name in ("criteo/train.txt", "criteo/train.txt.gz", "ctr_samples/criteo_sample.txt"):
        if (root / name).is_file():
            return root / name, name.startswith("ctr_samples")
    raise missing(NAME, root / "criteo", ("train.txt",), LICENCE, by_hand=HOME)


def sample() -> pl.DataFrame:
    """Returns invented rows: what `load` yields for "train"."""
    return sampled(write_sample, load)


def write_sample(root: Path) -> None:
    """Writes an invented log in the true format."""
    folder = root / "criteo"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    lines = []
    for _ in range(250):
        counts = random.integers(-2, 300, len(_COUNTS))
        hashes = random.integers(0, 12, len(_HASHED))
        label = int(hashes[0] % 3 == 0)
        shown = [str(c) if c % 7 else "" for c in counts]
        lines.append("\t".join([str(label), *shown, *(f"{h:08x}" if h else "" for h in hashes)]))
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
