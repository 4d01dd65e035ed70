"""MovieLens 100K with one training row per user, for models that learn from whole histories.

In user-centric training (TokenFormer, arXiv:2604.13737) a row is a user, and every event of its
history is a target of its own. So training holds the newest rating of each user alone, after a long
history that says which movies were liked; the labels of the older ratings stand there, once. Rows
for validation and testing are those of `ml_100k`, with histories as long. A model that learns from
the label of each row alone learns next to nothing here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl

from fullrank.data.datasets import _movielens as movielens
from fullrank.data.datasets import ml_100k
from fullrank.data.datasets._sample import sampled
from fullrank.data.spec import History
from fullrank.data.split import Splits
from fullrank.data.text import BadRows

NAME = "ml_100k_users"
FOLDERS = ml_100k.FOLDERS  # below the data root
TITLE = "MovieLens 100K, one training row per user"
LICENCE = ml_100k.LICENCE
HOME = ml_100k.HOME
NOTE = "training rows are the newest of each user: for models that learn from whole histories"
FILES = ml_100k.FILES
LENGTH = 200  # past events kept
SPEC = replace(
    ml_100k.SPEC,
    columns=tuple(
        replace(c, max_length=LENGTH) if isinstance(c, History) else c for c in ml_100k.SPEC.columns
    ),
)


def load(root: Path, bad_rows: BadRows) -> Splits:
    """Reads and splits as `ml_100k` does, then keeps the newest training row of each user."""
    splits = movielens.splits(*ml_100k.read(NAME, root, bad_rows), length=LENGTH)
    newest = splits["train"].group_by("user", maintain_order=True).last()  # rows are in time order
    columns = splits["train"].collect_schema().names()
    return {**splits, "train": newest.select(columns).sort("time", maintain_order=True)}


def sample() -> pl.DataFrame:
    """Returns invented rows: what `load` yields for "train"."""
    return sampled(write_sample, load)


def write_sample(root: Path) -> None:
    """Writes an invented log in the true format, of enough users."""
    folder = root / "ml-100k"
    ml_100k.write_sample(root)
    rows, num_users, _ = movielens.invented()
    copies = 10
    lines = [
        f"{user + copy * num_users}\t{item}\t{stars}\t{time + copy}"
        for copy in range(copies)
        for user, item, stars, time in rows
    ]
    users = [
        f"{u}|{20 + u % 40}|{'MF'[u % 2]}|writer|{u}" for u in range(1, copies * num_users + 1)
    ]
    (folder / "u.data").write_text("\n".join(lines) + "\n")
    (folder / "u.user").write_text("\n".join(users) + "\n")
