"""iPinYou, a small sample: clicks in real-time bidding, 2013.

One row is an ad that was shown; `click` is rare (255 of 26,773 in train). Values are read through
the index file, so they are the raw words ("android_safari"), not numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from fullrank.data.datasets._sample import sampled
from fullrank.data.home import RemoteFile, find
from fullrank.data.spec import Category, Spec, Target
from fullrank.data.split import Splits, at_random
from fullrank.data.text import BadRows, Dialect, read_delimited, read_libfm
from fullrank.errors import DataFormatError

NAME = "ipinyou_sample"
FOLDERS = (NAME,)  # below the data root
TITLE = "iPinYou (small sample)"
LICENCE = "competition data, research use; the repository states no licence"
HOME = "https://github.com/wnzhang/deep-ctr"
NOTE = (
    "a sample for testing an installation: 50 clicks in the test file leave AUC a standard error"
    " of about 0.04; valid is a random 15 % of the train file"
)
_BASE = "https://raw.githubusercontent.com/wnzhang/deep-ctr/master/data/"
FILES = (  # no checksums are published; these were measured on copies that were fully parsed
    RemoteFile(
        url=_BASE + "train.fm.txt",
        path="ipinyou_sample/train.fm.txt",
        sha256="9e7de462cfe384f3c694b8456d2bcb96013be4c1dd1fc3008bb8cfb97dc3481b",
        bytes=3_474_880,
    ),
    RemoteFile(
        url=_BASE + "test.fm.txt",
        path="ipinyou_sample/test.fm.txt",
        sha256="081cc6b7d8c891592bf792d6f6485a09d9b65bbe21262cc36f6fe58394f7f20a",
        bytes=2_752_736,
    ),
    RemoteFile(
        url=_BASE + "featindex.fm.txt",
        path="ipinyou_sample/featindex.fm.txt",
        sha256="378c58e56135890b1261f3d38d3fce53580a04e5d0d2ee08145de819c1bdbb3e",
        bytes=2_960_702,
    ),
)
SPEC = Spec(
    columns=(
        Category(name="weekday"),  # 0 to 6
        Category(name="hour"),  # 00 to 23
        Category(name="useragent", side="user"),  # system and browser
        Category(name="IP", side="user"),  # the last part is masked
        Category(name="region", side="user"),  # code
        Category(name="city", side="user"),  # code
        Category(name="adexchange"),  # code
        Category(name="domain"),  # of the page, hashed
        Category(name="slotid"),  # place on the page, hashed
        Category(name="slotwidth"),  # pixels
        Category(name="slotheight"),  # pixels
        Category(name="slotvisibility"),  # first view, second view, ...
        Category(name="slotformat"),  # code
        Category(name="creative", side="item"),  # the ad, hashed
        Category(name="advertiser", side="item"),  # code
        Category(name="slotprice"),  # floor price in ranges
        Target(name="click"),  # the ad was clicked
    ),
    item="creative",
)
FIELDS = tuple(c.name for c in SPEC.columns if isinstance(c, Category))
_SEED = 2013


def load(root: Path, bad_rows: BadRows) -> Splits:
    """Reads `ipinyou_sample/{train,test,featindex}.fm.txt`, plain or gzipped."""
    folder = root / "ipinyou_sample"
    files = [f"{name}.fm.txt" for name in ("featindex", "train", "test")]
    index, train, test = (find(NAME, folder, (file,), LICENCE) for file in files)
    tabs = Dialect(separator="\t", quote="", header=False)
    words = read_delimited(index, {"feature": "text", "index": "int"}, bad_rows, dialect=tabs)
    features = words.sort("index").collect()
    parts = at_random(
        _words(train, features, bad_rows), fractions={"train": 0.85, "valid": 0.15}, seed=_SEED
    )
    return {**parts, "test": _words(test, features, bad_rows)}


def _words(path: Path, features: pl.DataFrame, bad_rows: BadRows) -> pl.LazyFrame:
    """Reads libfm rows and puts the word of each index in its place."""
    rows = read_libfm(path, FIELDS, bad_rows)
    split = features["feature"].str.splitn(":", 2).struct.unnest()
    columns, misplaced = [], []
    for field in FIELDS:
        of_field = features.filter(split["field_0"] == field)["index"].to_list()
        values = split.filter(split["field_0"] == field)["field_1"]
        place = pl.col(field).replace_strict(
            of_field, pl.int_range(len(of_field), eager=True), default=None, return_dtype=pl.UInt32
        )
        columns.append(pl.lit(values).gather(place).alias(field))
        misplaced.append(place.is_null().any().alias(field))
    wrong = [n for n, v in rows.select(misplaced).collect().row(0, named=True).items() if v]
    if wrong:
        raise DataFormatError(
            "an index stands in the place of another field",
            where=str(path),
            found=f"in the places of {', '.join(wrong)}",
            expected="16 indices per row in the order of the index file",
            fix="get the three files from one release",
        )
    return rows.select(*columns, click="label")


def sample() -> pl.DataFrame:
    """Returns invented rows: what `load` yields for "train"."""
    return sampled(write_sample, load)


def write_sample(root: Path) -> None:
    """Writes an invented log in the true format."""
    folder = root / "ipinyou_sample"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    words = [f"{field}:{field[0]}:{i}" for field in FIELDS for i in range(5)]
    index = [f"{word}\t{i}" for i, word in enumerate(words)]
    (folder / "featindex.fm.txt").write_text("\n".join(index) + "\n")
    for name, count in (("train", 240), ("test", 60)):
        values = random.integers(0, 5, (count, 16))
        lines = [
            " ".join([str(int(row[2] == row[13])), *(f"{5 * j + v}:1" for j, v in enumerate(row))])
            for row in values
        ]
        (folder / f"{name}.fm.txt").write_text("\n".join(lines) + "\n")
