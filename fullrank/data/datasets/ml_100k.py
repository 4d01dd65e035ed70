"""MovieLens 100K: 100,000 ratings of 943 users, 1997 to 1998.

One row is one rating; it counts as a click from four stars up. Labels are known at once.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from fullrank.data.datasets import _movielens as movielens
from fullrank.data.datasets._sample import sampled
from fullrank.data.home import RemoteFile, find
from fullrank.data.spec import Category, Number, Spec, Target
from fullrank.data.split import Splits
from fullrank.data.text import BadRows, Dialect, Kind, read_delimited

NAME = "ml_100k"
FOLDERS = ("ml-100k",)  # below the data root
TITLE = "MovieLens 100K"
LICENCE = movielens.LICENCE
HOME = "https://grouplens.org/datasets/movielens/100k/"
NOTE = ""
FILES = (
    RemoteFile(  # the checksum is the one that TensorFlow Datasets pins; GroupLens gives only MD5
        url="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
        path="downloads/ml-100k.zip",
        sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        bytes=4_924_029,
        unpack=".",
    ),
)
SPEC = Spec(
    columns=(
        Category(name="user", side="user"),  # user id
        Number(name="age", side="user"),  # years
        Category(name="gender", side="user"),  # M or F
        Category(name="occupation", side="user"),  # one of 21 words
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
_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_RATINGS: dict[str, Kind] = {"user": "int", "item": "int", "rating": "float", "time": "int"}
_USERS: dict[str, Kind] = {
    "user": "int",
    "age": "int",
    "gender": "text",
    "occupation": "text",
    "zip": "text",
}
_MOVIES: dict[str, Kind] = {
    "item": "int",
    "title": "text",
    "release": "text",
    "video": "text",
    "url": "text",
    **dict.fromkeys(_GENRES, "label"),
}


def load(root: Path, bad_rows: BadRows) -> Splits:
    """Reads `ml-100k/u.data`, `u.user` and `u.item`; splits 80 : 10 : 10 by time."""
    return movielens.splits(*read(NAME, root, bad_rows))


def read(
    name: str, root: Path, bad_rows: BadRows
) -> tuple[pl.LazyFrame, pl.LazyFrame, pl.LazyFrame]:
    """Returns ratings, movies and users, for the data set of this name."""
    folder = root / "ml-100k"
    pipes = Dialect(separator="|", quote="", header=False, encoding="latin-1")
    tabs = Dialect(separator="\t", quote="", header=False)
    ratings = read_delimited(
        find(name, folder, ("u.data",), LICENCE), _RATINGS, bad_rows, dialect=tabs
    )
    users = read_delimited(
        find(name, folder, ("u.user",), LICENCE), _USERS, bad_rows, dialect=pipes
    )
    movies = read_delimited(
        find(name, folder, ("u.item",), LICENCE), _MOVIES, bad_rows, dialect=pipes
    )
    flags = [pl.when(pl.col(g) == 1).then(pl.lit(g)) for g in _GENRES]
    genres = pl.concat_list(flags).list.drop_nulls().list.join("|")
    return ratings, movies.select("item", "title", genres=genres), users


def sample() -> pl.DataFrame:
    """Returns invented rows: what `load` yields for "train"."""
    return sampled(write_sample, load)


def write_sample(root: Path) -> None:
    """Writes an invented log in the true format."""
    folder = root / "ml-100k"
    folder.mkdir(parents=True, exist_ok=True)
    rows, num_users, num_items = movielens.invented()
    data = ["\t".join(map(str, row)) for row in rows]
    users = [f"{u}|{20 + u}|{'MF'[u % 2]}|writer|{10000 + u}" for u in range(1, num_users + 1)]
    movies = []
    for i in range(1, num_items + 1):
        flags = "|".join("1" if g in (1 + i % 3, 8) else "0" for g in range(len(_GENRES)))
        movies.append(f"{i}|Café {i} ({1990 + i % 9})|01-Jan-1995||http://example.org/{i}|{flags}")
    (folder / "u.data").write_text("\n".join(data) + "\n")
    (folder / "u.user").write_text("\n".join(users) + "\n")
    (folder / "u.item").write_text("\n".join(movies) + "\n", encoding="latin-1")
