"""MovieLens 1M: 1,000,209 ratings of 6,040 users, 2000 to 2003.

One row is one rating; it counts as a click from four stars up. Labels are known at once.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from fullrank.data.datasets import _movielens as movielens
from fullrank.data.datasets._sample import sampled
from fullrank.data.home import RemoteFile, find
from fullrank.data.spec import Category, Spec, Target
from fullrank.data.split import Splits
from fullrank.data.text import BadRows, Dialect, Kind, read_delimited

NAME = "ml_1m"
FOLDERS = ("ml-1m",)  # below the data root
NEEDS = ("ml-1m/ratings.dat",)  # the folder alone may hold an extract without ratings
TITLE = "MovieLens 1M"
LICENCE = movielens.LICENCE
HOME = "https://grouplens.org/datasets/movielens/1m/"
NOTE = ""
FILES = (
    RemoteFile(  # the checksum is the one that TensorFlow Datasets pins; GroupLens gives only MD5
        url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        path="downloads/ml-1m.zip",
        sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        bytes=5_917_549,
        unpack=".",
    ),
)
SPEC = Spec(
    columns=(
        Category(name="user", side="user"),  # user id
        Category(name="gender", side="user"),  # M or F
        Category(name="age", side="user"),  # code of an age group: 1, 18, 25, ... 56
        Category(name="occupation", side="user"),  # code 0 to 20
        movielens.ITEM,
        movielens.GENRES,
        movielens.YEAR,
        movielens.HISTORY,
        Target(name="click"),  # four stars or more
    ),
    item="item",
    group="user",
    time="time",  # unix seconds of the rating
    identity=("user", "item", "time"),
    ignore=(
        movielens.RATING,
        movielens.TITLE,
        ("zip", "almost one per user"),
    ),
)
_RATINGS: dict[str, Kind] = {"user": "int", "item": "int", "rating": "float", "time": "int"}
_USERS: dict[str, Kind] = {
    "user": "int",
    "gender": "text",
    "age": "text",
    "occupation": "text",
    "zip": "text",
}
_MOVIES: dict[str, Kind] = {"item": "int", "title": "text", "genres": "text"}


def load(root: Path, bad_rows: BadRows) -> Splits:
    """Reads `ml-1m/ratings.dat`, `users.dat` and `movies.dat`; splits 80 : 10 : 10 by time."""
    folder = root / "ml-1m"
    colons = Dialect(separator="::", quote="", header=False, encoding="latin-1")
    files = {"ratings.dat": _RATINGS, "movies.dat": _MOVIES, "users.dat": _USERS}
    paths = {name: find(NAME, folder, (name,), LICENCE) for name in files}
    return movielens.splits(
        *(read_delimited(paths[n], kinds, bad_rows, dialect=colons) for n, kinds in files.items())
    )


def sample() -> pl.DataFrame:
    """Returns invented rows: what `load` yields for "train"."""
    return sampled(write_sample, load)


def write_sample(root: Path) -> None:
    """Writes an invented log in the true format."""
    folder = root / "ml-1m"
    folder.mkdir(parents=True, exist_ok=True)
    rows, num_users, num_items = movielens.invented()
    genres = ("Comedy|Drama", "Action", "Sci-Fi|War")
    ratings = ["::".join(map(str, row)) for row in rows]
    users = [f"{u}::{'MF'[u % 2]}::25::{u % 5}::{10000 + u}" for u in range(1, num_users + 1)]
    movies = [
        f"{i}::Café, The: {i} ({1990 + i % 9})::{genres[i % 3]}" for i in range(1, num_items + 1)
    ]
    (folder / "ratings.dat").write_text("\n".join(ratings) + "\n")
    (folder / "users.dat").write_text("\n".join(users) + "\n")
    (folder / "movies.dat").write_text("\n".join(movies) + "\n", encoding="latin-1")
