"""Frappe: which app a phone user opens in which context, 2015.

One row is an app and a context, `label` 1 where the user used the app there and 0 for a drawn app
that the user never used. Values are the published feature indices, each field its own range.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from fullrank.data.datasets._sample import sampled
from fullrank.data.home import RemoteFile, find
from fullrank.data.spec import Category, Spec, Target
from fullrank.data.split import Splits
from fullrank.data.text import BadRows, read_libfm

NAME = "frappe"
FOLDERS = (NAME,)  # below the data root
TITLE = "Frappe mobile app usage (split Frappe_x1)"
LICENCE = "research use with acknowledgement; no redistribution; no commercial use"
HOME = "https://github.com/hexiangnan/neural_factorization_machine"
NOTE = (
    "train negatives re-drawn where frappe.train_redrawn.libfm is read:"
    " valid and test are the published files, training is not the original one"
)
_BASE = (
    "https://raw.githubusercontent.com/hexiangnan/neural_factorization_machine/master/data/frappe/"
)
FILES = (
    # No checksums were published: those of validation and test were measured on files whose csv
    # form has the MD5 sums that reczoo/Datasets gives for Frappe_x1; that of train is unknown.
    RemoteFile(url=_BASE + "frappe.train.libfm", path="frappe/frappe.train.libfm"),
    RemoteFile(
        url=_BASE + "frappe.validation.libfm",
        path="frappe/frappe.validation.libfm",
        sha256="fdf4be563a7dd9b15f7a6e8b32671e90e6e7a2a2bd3af4e10bf13c5ad7e76e9e",
        bytes=4_163_044,
    ),
    RemoteFile(
        url=_BASE + "frappe.test.libfm",
        path="frappe/frappe.test.libfm",
        sha256="a2ebaef3a9af8e55f8bb0d08bc4923965e42e43760ebd7635ac2f8c5db99e097",
        bytes=2_081_389,
    ),
)
SPEC = Spec(
    columns=(
        Category(name="user", side="user"),  # 957 users
        Category(name="item", side="item"),  # 4,082 apps
        Category(name="daytime"),  # morning, noon, ... 7 values
        Category(name="weekday"),  # 7 values
        Category(name="isweekend"),  # weekend or workday
        Category(name="homework"),  # at home, at work, unknown
        Category(name="cost"),  # free or paid app
        Category(name="weather"),  # 9 values
        Category(name="country"),  # 80 values
        Category(name="city"),  # 233 numbers; names were not published
        Target(name="label"),  # the user used the app in this context
    ),
    item="item",
    group="user",
)
FIELDS = tuple(c.name for c in SPEC.columns if isinstance(c, Category))
_SPLITS = {
    "train": ("frappe.train_redrawn.libfm", "frappe.train.libfm"),
    "valid": ("frappe.validation.libfm",),
    "test": ("frappe.test.libfm",),
}
_SIZES = (957, 4082, 7, 7, 2, 3, 2, 9, 80, 233)  # values of each field


def load(root: Path, bad_rows: BadRows) -> Splits:
    """Reads the published splits from `frappe/`, plain or gzipped."""
    paths = {name: find(NAME, root / "frappe", files, LICENCE) for name, files in _SPLITS.items()}
    return {
        name: read_libfm(path, FIELDS, bad_rows).select(*FIELDS, "label")
        for name, path in paths.items()
    }


def note(root: Path) -> str:
    """Returns what a report must say about the files in this root; "" for the original ones."""
    path = find(NAME, root / "frappe", _SPLITS["train"], LICENCE)
    return "train negatives re-drawn" if "redrawn" in path.name else ""


def sample() -> pl.DataFrame:
    """Returns invented rows: what `load` yields for "train"."""
    return sampled(write_sample, load)


def write_sample(root: Path) -> None:
    """Writes an invented log in the true format."""
    folder = root / "frappe"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    offsets = np.cumsum((0, *_SIZES[:-1]))
    for file, rows in zip(_SPLITS.values(), (200, 60, 30), strict=True):
        values = random.integers(0, np.minimum(_SIZES, 30), (rows, len(_SIZES)))
        liked = (values[:, 0] + values[:, 1]) % 3 == 0
        lines = [
            " ".join([("1" if y else "-1"), *(f"{i}:1" for i in row)])
            for y, row in zip(liked, values + offsets, strict=True)
        ]
        (folder / file[-1]).write_text("\n".join(lines) + "\n")
