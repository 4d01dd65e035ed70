"""MovieLens 1M as impressions with long histories: 6,040 users, 3,706 movies.

A row is a movie that a user rated, or a drawn one, after the movies that the user rated before;
stars and times are not used, so this log measures speed on long histories more than taste. Movies
rated within one second stand in no particular order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from fullrank.data.datasets import _movielens as movielens
from fullrank.data.datasets import ml_1m
from fullrank.data.datasets._impressions import Impressions, Sequences, read_sequences
from fullrank.data.home import find
from fullrank.data.spec import Category
from fullrank.data.text import BadRows, Dialect, Kind, read_delimited

_RATINGS: dict[str, Kind] = {"user": "int", "item": "int", "rating": "float", "time": "int"}
_USERS: dict[str, Kind] = {
    "user": "int",
    "gender": "text",
    "age": "text",
    "occupation": "text",
    "zip": "text",
}
_MOVIES: dict[str, Kind] = {"item": "int", "title": "text", "category": "text"}


@dataclass(frozen=True, kw_only=True)
class MovieLensImpressions(Impressions):
    """MovieLens 1M with any settings; see `Impressions`.

    Example:
        >>> MovieLensImpressions(length=1000).NAME
        'ml_1m_impressions-length=1000'
    """

    length: int = 200
    newest: int | None = 16

    BASE = "ml_1m_impressions"
    FOLDERS = ("ml-1m",)  # below the data root
    TITLE = "MovieLens 1M as impressions with long histories"
    LICENCE = movielens.LICENCE
    HOME = ml_1m.HOME
    FILES = ml_1m.FILES
    PERSON = (
        Category(name="gender", side="user"),  # M or F
        Category(name="age", side="user"),  # code of an age group: 1, 18, 25, ... 56
        Category(name="occupation", side="user"),  # code 0 to 20
    )
    PRODUCT = (
        Category(name="category", side="item"),  # its genres together, 301 combinations
        movielens.YEAR,
    )
    PAST = ("item", "category")
    IGNORE = (movielens.TITLE, ("zip", "almost one per user"))

    def read(self, root: Path, bad_rows: BadRows) -> tuple[Sequences, pl.DataFrame, pl.DataFrame]:
        """Reads `ml-1m/sequences.txt` or else `ratings.dat`, `movies.dat` and `users.dat`."""
        folder = root / "ml-1m"
        colons = Dialect(separator="::", quote="", header=False, encoding="latin-1")

        def read(name: str, kinds: dict[str, Kind]) -> pl.DataFrame:
            path = find(NAME, folder, (name,), LICENCE)
            return read_delimited(path, kinds, bad_rows, dialect=colons).collect()

        path = find(NAME, folder, ("sequences.txt", "ratings.dat"), LICENCE)
        if path.name.startswith("sequences"):
            log = read_sequences(path, bad_rows)
        else:
            rated = read("ratings.dat", _RATINGS).sort("user", "time", maintain_order=True)
            by_user = rated.group_by("user", maintain_order=True).len()
            user, lengths, item = by_user["user"], by_user["len"], rated["item"]
            log = Sequences.of(user.to_numpy(), lengths.to_numpy(), item.to_numpy())
        movies = read("movies.dat", _MOVIES).with_columns(year=movielens.year_of("title"))
        return log, movies, read("users.dat", _USERS)

    def write_sample(self, root: Path) -> None:
        """Writes an invented log in the true format."""
        ml_1m.write_sample(root)
        random = np.random.default_rng(2)
        chosen = [random.permutation(40)[: 20 + user % 9] + 1 for user in range(1, 13)]
        lines = [" ".join(map(str, [user, *items])) for user, items in enumerate(chosen, start=1)]
        (root / "ml-1m" / "sequences.txt").write_text("\n".join(lines) + "\n")


_LOG = MovieLensImpressions()
NAME, FOLDERS, TITLE, LICENCE, HOME = _LOG.NAME, _LOG.FOLDERS, _LOG.TITLE, _LOG.LICENCE, _LOG.HOME
NOTE, FILES, SPEC = _LOG.NOTE, _LOG.FILES, _LOG.SPEC
load, sample, write_sample = _LOG.load, _LOG.sample, _LOG.write_sample
