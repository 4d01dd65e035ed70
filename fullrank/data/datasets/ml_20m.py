"""MovieLens 20M: 20,000,263 ratings of 138,493 users, 1995 to 2015.

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

NAME = "ml_20m"
FOLDERS = ("ml-20m",)  # below the data root
TITLE = "MovieLens 20M"
LICENCE = movielens.LICENCE
HOME = "https://grouplens.org/datasets/movielens/20m/"
NOTE = ""
FILES = (
    RemoteFile(  # the checksum is the one that TensorFlow Datasets pins; GroupLens gives only MD5
        url="https://files.grouplens.org/datasets/movielens/ml-20m.zip",
        path="downloads/ml-20m.zip",
        sha256="96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
        bytes=198_702_078,
        unpack=".",
    ),
)
SPEC = movielens.CSV_SPEC


def load(root: Path, bad_rows: BadRows) -> Splits:
    """Reads `ml-20m/ratings.csv` and `movies.csv`; splits 80 : 10 : 10 by time."""
    return movielens.read_csv(NAME, root / "ml-20m", bad_rows)


def sample() -> pl.DataFrame:
    """Returns invented rows: what `load` yields for "train"."""
    return sampled(write_sample, load)


def write_sample(root: Path) -> None:
    """Writes an invented log in the true format."""
    movielens.write_csv(root / "ml-20m")
