"""A cut by file order, and the sample of a dataset."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import polars as pl

from fullrank.data.split import PARTS, Splits
from fullrank.data.text import BadRows
from fullrank.errors import SplitError


def in_order(rows: pl.LazyFrame, fractions: Mapping[str, float] = PARTS) -> Splits:
    """Cuts by file order, for logs that were written in time order without a time.

    Raises:
        SplitError: a split comes out empty.
    """
    total = int(rows.select(pl.len()).collect(engine="streaming").item())
    shares = list(fractions.values())
    edges = [round(total * sum(shares[:i])) for i in range(len(shares))] + [total]
    sizes = [b - a for a, b in pairwise(edges)]
    if 0 in sizes:
        raise SplitError(
            "a split is empty",
            where="the cut by file order",
            found=f"{total:,} rows, cut into {sizes}",
            expected="at least one row in every split",
            fix="use more rows or other fractions",
        )
    return {
        name: rows.slice(start, size)
        for name, start, size in zip(fractions, edges, sizes, strict=False)
    }


def sampled(
    write_sample: Callable[[Path], None], load: Callable[[Path, BadRows], Splits]
) -> pl.DataFrame:
    """Returns what `load` yields for "train" on the files that `write_sample` writes."""
    with tempfile.TemporaryDirectory() as folder:
        write_sample(Path(folder))
        return load(Path(folder), BadRows())["train"].collect()
