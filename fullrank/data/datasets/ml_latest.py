"""MovieLens latest: about 100,000 ratings (small) or all there are (full), refreshed by its makers.

One row is one rating; it counts as a click from four stars up. Labels are known at once.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from fullrank.data.datasets import _movielens as movielens
from fullrank.data.datasets._sample import sampled
from fullrank.data.home import RemoteFile
from fullrank.data.split import Splits
from fullrank.data.text import BadRows

NAME = "ml_latest"
FOLDERS = ("ml-latest", "ml-latest-small")  # below the data root
TITLE = "MovieLens latest"
LICENCE = movielens.LICENCE
HOME = "https://grouplens.org/datasets/movielens/latest/"
NOTE = "the files change over time: quote the date of the download beside any number"
FILES = (
    RemoteFile(  # the release of 2018, by the checksum that TensorFlow Datasets pins
        url="https://files.grouplens.org/datasets/movielens/ml-latest-small.zip",
        path="downloads/ml-latest-small.zip",
        sha256="696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
        bytes=978_202,
        unpack=".",
    ),
)
SPEC = movielens.CSV_SPEC


def load(root: Path, bad_rows: BadRows) -> Splits:
    """Reads `ml-latest/` or else `ml-latest-small/`; splits 80 : 10 : 10 by time."""
    full = root / "ml-latest"
    folder = full if full.is_dir() else root / "ml-latest-small"
    return movielens.read_csv(NAME, folder, bad_rows)


def sample() -> pl.DataFrame:
    """Returns invented rows: what `load` yields for "train"."""
    return sampled(write_sample, load)


def write_sample(root: Path) -> None:
    """Writes an invented log in the true format."""
    movielens.write_csv(root / "ml-latest-small")
