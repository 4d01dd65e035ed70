"""Amazon Beauty, 5-core reviews of 2014, as impressions: 22,363 users, 12,101 items.

A row is an item that a user reviewed, or a drawn one, after the items that the user reviewed
before. There are no times; the order is that of the file, which S3-Rec (arXiv:2008.07873), FMLP-Rec
and BSARec share. Reviews of one day stand there in the order of product codes.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import polars as pl

from fullrank.data.datasets._impressions import Impressions, Sequences, read_sequences
from fullrank.data.home import find
from fullrank.data.spec import Category
from fullrank.data.text import BadRows
from fullrank.data.text.lines import open_text, refusing_damage
from fullrank.errors import DataFormatError


class AmazonBeauty(Impressions):
    """Amazon Beauty with any settings; see `Impressions`.

    Example:
        >>> AmazonBeauty(negatives="uniform", split="user").NAME
        'amazon_beauty-negatives=uniform-split=user'
    """

    BASE = "amazon_beauty"
    FOLDERS = ("amazon_beauty",)  # below the data root
    TITLE = "Amazon Beauty reviews as impressions"
    LICENCE = "published for research by J. McAuley's group; texts belong to their owners"
    HOME = "https://github.com/aHuiWang/CIKM2020-S3Rec"
    PRODUCT = (Category(name="category", side="item"),)  # last word of its path, 220 of them
    PAST = ("item", "category")
    IGNORE = (("title", "free text that names the item again; for content models"),)

    def read(self, root: Path, bad_rows: BadRows) -> tuple[Sequences, pl.DataFrame, pl.DataFrame]:
        """Reads `amazon_beauty/Beauty.txt` and `items.jsonl` (item_id, title, categories)."""
        folder = root / "amazon_beauty"
        paths = [
            find(NAME, folder, (file,), LICENCE, by_hand=HOME)
            for file in ("Beauty.txt", "items.jsonl")
        ]
        log = read_sequences(paths[0], bad_rows)
        return log, _items(paths[1]), pl.DataFrame({"user": log.user})

    def write_sample(self, root: Path) -> None:
        """Writes an invented log in the true format."""
        folder = root / "amazon_beauty"
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(0)
        lines = []
        for user in range(1, 41):
            chosen = random.permutation(60)[: 5 + user % 6] + 1
            lines.append(" ".join(map(str, [user, *chosen])))
        (folder / "Beauty.txt").write_text("\n".join(lines) + "\n")
        items = (
            {
                "item_id": i,
                "asin": f"B{i:09}",
                "title": f"Crème {i}, 2 oz",
                "categories": [["Beauty", "Skin Care", f"Kind {i % 7}"]],
            }
            for i in range(1, 61)
        )
        with gzip.open(folder / "items.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(json.dumps(item) for item in items) + "\n")


def _items(path: Path) -> pl.DataFrame:
    """Reads titles, and the last word of the first category path of every item."""
    with open_text(path) as file, refusing_damage(str(path)):
        text = file.read()
    paths = pl.List(pl.List(pl.String()))
    columns = pl.Schema({"item_id": pl.Int64(), "title": pl.String(), "categories": paths})
    try:
        rows = pl.read_ndjson(io.BytesIO(text), schema=columns)
    except pl.exceptions.PolarsError as cause:
        raise DataFormatError(
            "the properties of items cannot be read",
            where=str(path),
            found=str(cause).splitlines()[0][:300],
            expected="a JSON object per line with item_id, title and categories",
            fix="get the file again",
        ) from cause
    last = pl.col("categories").list.first().list.last()
    return rows.select("title", item="item_id", category=last)


_LOG = AmazonBeauty()
NAME, FOLDERS, TITLE, LICENCE, HOME = _LOG.NAME, _LOG.FOLDERS, _LOG.TITLE, _LOG.LICENCE, _LOG.HOME
NOTE, FILES, SPEC = _LOG.NOTE, _LOG.FILES, _LOG.SPEC
load, sample, write_sample = _LOG.load, _LOG.sample, _LOG.write_sample
