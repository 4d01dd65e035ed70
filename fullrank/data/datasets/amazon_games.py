"""Amazon Video Games, 5-core reviews of 2018, as impressions: 50,546 users, 16,859 items.

A row is an item that a user reviewed, or a drawn one, after the items that the user reviewed
before. There are no times and no categories; the order is that of the file, made from LLMRank
(arXiv:2305.08845). It holds the last 50 items of each user: 440,264 of 452,989 reviews.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from fullrank.data.datasets._impressions import Impressions, Sequences, read_sequences
from fullrank.data.home import find
from fullrank.data.text import BadRows, Dialect, Kind, read_delimited

_COLUMNS: dict[str, Kind] = {"item_id:token": "int", "title:token_seq": "text"}


class AmazonGames(Impressions):
    """Amazon Video Games with any settings; see `Impressions`.

    Example:
        >>> AmazonGames(length=20).SPEC.histories()[0].max_length
        20
    """

    BASE = "amazon_games"
    FOLDERS = ("amazon_games",)  # below the data root
    TITLE = "Amazon Video Games reviews as impressions"
    LICENCE = "published for research by J. McAuley's group; texts belong to their owners"
    HOME = "https://github.com/RUCAIBox/LLMRank"
    IGNORE = (("title", "free text that names the item again; for content models"),)

    def read(self, root: Path, bad_rows: BadRows) -> tuple[Sequences, pl.DataFrame, pl.DataFrame]:
        """Reads `amazon_games/Games_sequences.txt` and `Games_items.tsv`."""
        folder = root / "amazon_games"
        paths = [
            find(NAME, folder, (file,), LICENCE, by_hand=HOME)
            for file in ("Games_sequences.txt", "Games_items.tsv")
        ]
        log = read_sequences(paths[0], bad_rows)
        tabs = Dialect(separator="\t", quote="")
        items = read_delimited(paths[1], _COLUMNS, bad_rows, dialect=tabs).collect()
        names = dict(zip(_COLUMNS, ("item", "title"), strict=True))
        return log, items.rename(names), pl.DataFrame({"user": log.user})

    def write_sample(self, root: Path) -> None:
        """Writes an invented log in the true format."""
        folder = root / "amazon_games"
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(1)
        chosen = [random.permutation(60)[: 5 + user % 6] for user in range(40)]
        lines = [" ".join(map(str, [user, *items])) for user, items in enumerate(chosen)]
        (folder / "Games_sequences.txt").write_text("\n".join(lines) + "\n")
        items = ["\t".join(_COLUMNS), *(f'{i}\tPokémon "{i}", The' for i in range(60))]
        (folder / "Games_items.tsv").write_text("\n".join(items) + "\n", encoding="utf-8")


_LOG = AmazonGames()
NAME, FOLDERS, TITLE, LICENCE, HOME = _LOG.NAME, _LOG.FOLDERS, _LOG.TITLE, _LOG.LICENCE, _LOG.HOME
NOTE, FILES, SPEC = _LOG.NOTE, _LOG.FILES, _LOG.SPEC
load, sample, write_sample = _LOG.load, _LOG.sample, _LOG.write_sample
