"""MovieLens 1M as cut by the CoLLM paper: ratings of 2000 to 2003 with histories, split by time.

One row is one rating; `label` is 1 above three stars. `his` holds the movies the user liked
earlier. Zhang et al., arXiv:2310.19488. Beside user, item and history, as in the source, stands the
year that the movie's title ends with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from fullrank.data.datasets import _movielens as movielens
from fullrank.data.datasets._sample import sampled
from fullrank.data.datasets.tabular import read_columnar
from fullrank.data.home import RemoteFile, find
from fullrank.data.spec import Category, Event, History, Spec, Tags, Target
from fullrank.data.split import Splits
from fullrank.data.text import BadRows, read_delimited

NAME = "collm_ml1m"
FOLDERS = (NAME,)  # below the data root
TITLE = "MovieLens 1M, CoLLM cut with histories"
LICENCE = "GroupLens: research use; no redistribution without permission; no commercial use"
HOME = "https://github.com/zyang1580/CoLLM"
NOTE = "rows of the same second can see each other in file order, as in the source"
FILES: tuple[RemoteFile, ...] = ()  # published as pickles, which are not read: see HOME
RECENT = 20  # movies of the history that models without sequences see, as a bag
SPEC = Spec(
    columns=(
        Category(name="uid", side="user"),  # user number
        Category(name="iid", side="item"),  # movie number
        movielens.YEAR,
        Tags(name="liked", table="iid", max_length=RECENT, side="user"),  # newest of the history
        History(  # movies liked before this row, oldest first; may be empty
            name="history", events=(Event(name="item", column="his", table="iid"),)
        ),
        Target(name="label"),  # rating above three stars
    ),
    item="iid",
    group="uid",
    time="timestamp",  # unix seconds of the rating
    identity=("uid", "iid", "timestamp"),
    ignore=(
        ("not_cold", "tells whether user and item occur in train: for reports, not for models"),
        ("title", "free text that names the movie again; for content models"),
    ),
)


def load(root: Path, bad_rows: BadRows) -> Splits:
    """Reads `collm_ml1m/{train,valid,test}.parquet` and the titles of `items.csv`."""
    folder = root / "collm_ml1m"
    items = find(NAME, folder, ("items.csv",), LICENCE, by_hand=HOME)
    titles = read_delimited(items, {"iid": "int", "title": "text"}, bad_rows).with_columns(
        pl.col("iid").cast(pl.Int32), year=movielens.year_of("title")
    )
    splits = {}
    for name in ("train", "valid", "test"):
        path = find(NAME, folder, (f"{name}.parquet",), LICENCE, by_hand=HOME)
        rows = read_columnar(path, {"label": "label"}, bad_rows)
        rows = rows.with_columns(liked=pl.col("his").list.tail(RECENT))
        splits[name] = rows.join(titles, on="iid", how="left", maintain_order="left")
    return splits


def sample() -> pl.DataFrame:
    """Returns invented rows: what `load` yields for "train"."""
    return sampled(write_sample, load)


def write_sample(root: Path) -> None:
    """Writes an invented log in the true format."""
    folder = root / "collm_ml1m"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    seen: dict[int, list[int]] = {}
    rows = []
    for place in range(270):
        user = int(random.integers(0, 4))
        item = int((place * 7 + user) % 60)
        liked = (user + item) % 2
        past = list(seen.get(user, []))
        rows.append((user, item, liked, 970_000_000 + place * 1000, past, 1))
        if liked:
            seen.setdefault(user, []).append(item)
    types = [pa.int32(), pa.int32(), pa.int8(), pa.int64(), pa.list_(pa.int32()), pa.int8()]
    names = ["uid", "iid", "label", "timestamp", "his", "not_cold"]
    cuts = {"train": rows[:200], "valid": rows[200:240], "test": rows[240:]}
    for name, part in cuts.items():
        columns = [pa.array(c, t) for c, t in zip(zip(*part, strict=True), types, strict=True)]
        pq.write_table(pa.table(columns, names=names), folder / f"{name}.parquet")
    lines = ["iid,title", *(f'{i},"Movie, The {i} ({1960 + i})"' for i in range(60))]
    (folder / "items.csv").write_text("\n".join(lines) + "\n")
