"""Avazu click-through rate challenge: mobile ads over ten days of October 2014.

One row is an ad that was shown. Times are known to the hour; labels are known at once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from fullrank.data.datasets._sample import sampled
from fullrank.data.home import RemoteFile, missing
from fullrank.data.spec import Category, Spec, Target
from fullrank.data.split import Splits, by_time, in_order
from fullrank.data.text import BadRows, Kind, read_delimited

NAME = "avazu"
FOLDERS = ("avazu", "ctr_samples")  # below the data root
TITLE = "Avazu click-through rate prediction"
LICENCE = "competition rules: research use; no redistribution"
HOME = "https://www.kaggle.com/c/avazu-ctr-prediction"
NOTE = (
    "where avazu/train.csv is absent, 100 rows of ctr_samples/avazu_sample.txt are read, all of"
    " one hour and therefore cut by file order: a test of the format, not a result"
)
FILES: tuple[RemoteFile, ...] = ()  # behind a log-in: put train.gz or train.csv into `avazu`
SPEC = Spec(
    columns=(
        Category(name="hour_of_day"),  # 0 to 23, from `hour`
        Category(name="weekday"),  # 1 Monday to 7 Sunday, from `hour`
        Category(name="C1"),  # unpublished
        Category(name="banner_pos"),  # place of the banner
        Category(name="site_id"),
        Category(name="site_domain"),
        Category(name="site_category"),
        Category(name="app_id"),
        Category(name="app_domain"),
        Category(name="app_category"),
        Category(name="device_id", side="user"),
        Category(name="device_ip", side="user"),
        Category(name="device_model", side="user"),
        Category(name="device_type", side="user"),
        Category(name="device_conn_type", side="user"),
        *(Category(name=f"C{i}") for i in range(14, 22)),  # unpublished; C14 is nearly the ad
        Target(name="click"),  # the ad was clicked
    ),
    time="time",  # unix seconds of the beginning of the hour, from `hour`
    identity=("id",),
    ignore=(("hour", "read as hour_of_day, weekday and time"),),
)
_DERIVED = ("hour_of_day", "weekday")
_KINDS: dict[str, Kind] = {
    "id": "text",
    "click": "label",
    "hour": "int",  # YYMMDDHH
    **{c.name: "text" for c in SPEC.columns if isinstance(c, Category) and c.name not in _DERIVED},
}


def load(root: Path, bad_rows: BadRows) -> Splits:
    """Reads `avazu/train.csv` or, failing that, `ctr_samples/avazu_sample.txt`."""
    path, is_sample = _source(root)
    minute = pl.col("hour").cast(pl.String) + "00"  # an hour alone is not a time to the parser
    hour = minute.str.to_datetime("%y%m%d%H%M", strict=False)
    rows = read_delimited(path, _KINDS, bad_rows).with_columns(
        time=hour.dt.epoch("s"), hour_of_day=hour.dt.hour(), weekday=hour.dt.weekday()
    )
    return in_order(rows) if is_sample else by_time(rows, "time")


def note(root: Path) -> str:
    """Returns what a report must say about the files in this root."""
    return NOTE if _source(root)[1] else ""


def _source(root: Path) -> tuple[Path, bool]:
    names = ("train.csv", "train.gz", "train.csv.gz", "train")
    for name in (*(f"avazu/{n}" for n in names), "ctr_samples/avazu_sample.txt"):
        if (root / name).is_file():
            return root / name, name.startswith("ctr_samples")
    raise missing(NAME, root / "avazu", names[:2], LICENCE, by_hand=HOME)


def sample() -> pl.DataFrame:
    """Returns invented rows: what `load` yields for "train"."""
    return sampled(write_sample, load)


def write_sample(root: Path) -> None:
    """Writes an invented log in the true format."""
    folder = root / "avazu"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    lines = [",".join(_KINDS)]
    for place in range(250):
        draw = random.integers(0, 9, len(_KINDS))
        values = [f"{v:08x}" for v in draw]
        day, hour = divmod(place // 3, 24)
        values[:3] = [str(10**19 + place), str(int(draw[3] % 4 == 0)), f"1410{21 + day}{hour:02d}"]
        lines.append(",".join(values))
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
