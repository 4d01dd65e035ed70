"""The sample of a dataset."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import polars as pl

from fullrank.data.split import Splits
from fullrank.data.text import BadRows


def sampled(
    write_sample: Callable[[Path], None], load: Callable[[Path, BadRows], Splits]
) -> pl.DataFrame:
    """Returns what `load` yields for "train" on the files that `write_sample` writes."""
    with tempfile.TemporaryDirectory() as folder:
        write_sample(Path(folder))
        return load(Path(folder), BadRows())["train"].collect()
