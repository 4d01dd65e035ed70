"""What the MovieLens releases share: past events of a user, and the split by time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from fullrank.data.home import find
from fullrank.data.spec import Category, Event, History, Spec, Tags, Target
from fullrank.data.split import Splits, by_time
from fullrank.data.text import BadRows, Kind, read_delimited

LICENCE = "GroupLens: research use; no redistribution without permission; no commercial use"
LIKED = 4.0  # stars from which a rating counts as a click
LENGTH = 50  # past events kept
_CHUNK = 100_000  # rows built at a time; with histories about 65 MB

ITEM = Category(name="item", side="item")  # movie id; its table is shared with the history
GENRES = Tags(name="genres", side="item")  # names separated by "|"
YEAR = Category(name="year", side="item")  # of release, from the title
HISTORY = History(
    name="history",
    events=(
        Event(name="item", column="history_item", table="item"),  # movies rated earlier
        Event(name="liked", column="history_liked", table="liked"),  # 1: with four stars or more
        Event(name="time", column="history_time"),  # unix seconds of that rating
    ),
    max_length=LENGTH,
)
RATING = ("rating", "the label is rating >= 4, so it would tell the answer")
TITLE = ("title", "free text that names the movie again; for content models")
CSV_SPEC = Spec(  # of ratings.csv and movies.csv
    columns=(
        Category(name="user", side="user"),  # user id; no demographics in these releases
        ITEM,
        GENRES,
        YEAR,
        HISTORY,
        Target(name="click"),  # four stars or more
    ),
    item="item",
    group="user",
    time="time",  # unix seconds of the rating
    identity=("user", "item", "time"),
    ignore=(RATING, TITLE),
)
_LISTS = {
    "history_item": pl.List(pl.Int32()),
    "history_liked": pl.List(pl.Int8()),
    "history_time": pl.List(pl.Int64()),
}
_SCHEMA: dict[str, pl.DataType] = {
    "user": pl.Int32(),
    "item": pl.Int32(),
    "rating": pl.Float32(),
    "time": pl.Int64(),
    "click": pl.Int8(),
    **_LISTS,
}


@dataclass(frozen=True)
class Ratings:
    """All ratings, sorted by user and time, and where the past of each begins and ends.

    The past of row i is [begin[i], end[i]): the newest ratings of the same user at earlier times.
    Ratings of one second do not see one another.

    Args:
        rows: columns user, item, rating, time, click; [N] rows.
        begin: [N] int64.
        end: [N] int64.
    """

    rows: pl.DataFrame
    begin: np.ndarray
    end: np.ndarray

    @classmethod
    def of(cls, ratings: pl.LazyFrame, length: int | None = None) -> Ratings:
        """Sorts ratings with columns user, item, rating, time.

        Args:
            ratings: in any order.
            length: past events kept, `LENGTH` when None.
        """
        typed = ratings.select(pl.col(name).cast(_SCHEMA[name]) for name in list(_SCHEMA)[:4])
        rows = typed.sort("user", "time", maintain_order=True).collect()
        rows = rows.with_columns(click=(pl.col("rating") >= LIKED).cast(pl.Int8))
        user, time = rows["user"].to_numpy(), rows["time"].to_numpy()
        new_user = np.append(True, user[1:] != user[:-1])
        new_time = new_user | np.append(True, time[1:] != time[:-1])
        place = np.arange(len(user))
        user_start = np.maximum.accumulate(np.where(new_user, place, 0))
        end = np.maximum.accumulate(np.where(new_time, place, 0))
        return cls(rows, np.maximum(user_start, end - (LENGTH if length is None else length)), end)

    def frame(self, index: np.ndarray, columns: list[str]) -> pl.DataFrame:
        """Returns rows with their past events, oldest first.

        Args:
            index: [M] row numbers.
            columns: names to build.
        """
        plain = [c for c in columns if c not in _LISTS]
        lists = [c for c in columns if c in _LISTS]
        frame = self.rows.select(plain)[index] if plain else pl.DataFrame()
        if lists:
            begin, length = self.begin[index], (self.end - self.begin)[index]  # [M]
            offsets = np.append(0, np.cumsum(length))  # [M + 1]
            events = np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], length)
            source = {"item": "item", "liked": "click", "time": "time"}
            for name in lists:
                values = self.rows[source[name.removeprefix("history_")]].to_numpy()[events]
                past = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))
                frame = frame.with_columns(pl.Series(name, past))
        return frame.select(columns)

    def lazy(self) -> pl.LazyFrame:
        """Returns all rows in time order; lists are built in chunks when rows are read."""
        order = np.argsort(self.rows["time"].to_numpy(), kind="stable")

        def chunks(
            with_columns: list[str] | None,
            predicate: pl.Expr | None,
            n_rows: int | None,
            batch_size: int | None,
        ) -> Iterator[pl.DataFrame]:
            shown = with_columns if with_columns is not None else list(_SCHEMA)
            tested = (
                list(dict.fromkeys(predicate.meta.root_names())) if predicate is not None else []
            )
            left = len(order) if n_rows is None else n_rows
            for start in range(0, min(len(order), left), _CHUNK):
                index = order[start : min(start + _CHUNK, left)]
                if predicate is not None:  # rows that are not wanted get no lists
                    index = index[self._wanted(index, tested, predicate)]
                yield self.frame(index, shown)

        return register_io_source(chunks, schema=_SCHEMA)

    def _wanted(self, index: np.ndarray, tested: list[str], predicate: pl.Expr) -> np.ndarray:
        wanted = self.frame(index, tested).select(predicate.alias("wanted"))
        kept: np.ndarray = wanted.to_series().fill_null(False).to_numpy()
        return kept


def splits(
    ratings: pl.LazyFrame,
    movies: pl.LazyFrame,
    users: pl.LazyFrame | None = None,
    *,
    length: int | None = None,
) -> Splits:
    """Returns rows with past events and joined properties, cut 80 : 10 : 10 by global time.

    Args:
        ratings: user, item, rating, time (unix seconds).
        movies: item, title, genres ("Action|Drama").
        users: user and demographics.
        length: past events kept, `LENGTH` when None.
    """
    movies = movies.with_columns(
        pl.col("item").cast(pl.Int32),
        year=year_of("title"),
    )
    cut = by_time(Ratings.of(ratings, length).lazy(), "time")
    joined = {}
    for name, rows in cut.items():
        rows = rows.join(movies, on="item", how="left", maintain_order="left")
        if users is not None:
            typed = users.with_columns(pl.col("user").cast(pl.Int32))
            rows = rows.join(typed, on="user", how="left", maintain_order="left")
        joined[name] = rows
    return joined


def year_of(title: str) -> pl.Expr:
    """Returns the year in brackets at the end of a title, null where there is none."""
    return pl.col(title).str.extract(r"\((\d{4})\)\s*$").cast(pl.Int32)


def read_csv(name: str, folder: Path, bad_rows: BadRows) -> Splits:
    """Reads `ratings.csv` and `movies.csv` of the 20M and later releases."""
    kinds: dict[str, Kind] = {
        "userId": "int",
        "movieId": "int",
        "rating": "float",
        "timestamp": "int",
    }
    ratings = read_delimited(find(name, folder, ("ratings.csv",), LICENCE), kinds, bad_rows)
    movies = read_delimited(
        find(name, folder, ("movies.csv",), LICENCE), {"movieId": "int"}, bad_rows
    )
    names = {"userId": "user", "movieId": "item", "timestamp": "time"}
    return splits(ratings.rename(names), movies.rename({"movieId": "item"}))


def write_csv(folder: Path) -> None:
    """Writes invented `ratings.csv` and `movies.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, _, num_items = invented()
    ratings = [f"{u},{i},{s - 0.5 if i % 2 else s},{t}" for u, i, s, t in rows]
    movies = [f'{i},"Café, The ""{i}"" ({1990 + i % 9})",Comedy|Drama' for i in range(1, num_items)]
    movies.append(f"{num_items},Without a year,(no genres listed)")
    head = "userId,movieId,rating,timestamp"
    (folder / "ratings.csv").write_text("\n".join([head, *ratings]) + "\n")
    (folder / "movies.csv").write_text(
        "\n".join(["movieId,title,genres", *movies]) + "\n", encoding="utf-8"
    )


def invented(seed: int = 0) -> tuple[list[tuple[int, int, int, int]], int, int]:
    """Returns invented ratings (user, item, stars, time), and how many users and movies there are.

    Some seconds hold several ratings of one user, as the real logs do.
    """
    random = np.random.default_rng(seed)
    num_users, num_items, each = 12, 40, 22
    rows = []
    for user in range(1, num_users + 1):
        items = random.permutation(num_items)[:each] + 1
        times = 978_300_000 + np.sort(random.integers(0, 5_000, each)) // 3 * 3 * 100
        times[1::5] = times[0::5][: len(times[1::5])]  # ties
        stars = np.clip(3 + (items + user) % 3 - 1 + random.integers(-1, 2, each), 1, 5)
        rows += [
            (user, int(i), int(s), int(t)) for i, s, t in zip(items, stars, times, strict=True)
        ]
    return rows, num_users, num_items
