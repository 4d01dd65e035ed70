"""Frappe as each contestant wants it: the published libfm files turned into CSV and .inter.

Where the real files are absent, rows of the same shape are drawn from a planted factorisation
machine, in the same libfm form, so that every contestant still starts from the same raw file.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import polars as pl

from fullrank.data.prepare import Prepared, prepare

FIELDS = {
    "user": 957, "item": 4082, "daytime": 7, "weekday": 7, "isweekend": 2, "homework": 3,
    "cost": 2, "weather": 9, "country": 80, "city": 233,
}  # fmt: skip
FILES = {
    "train": "frappe.train_redrawn.libfm.gz",
    "valid": "frappe.validation.libfm.gz",
    "test": "frappe.test.libfm.gz",
}


def prepare_inputs(work: Path) -> tuple[Path, bool]:
    """Writes every contestant's input below `work`.

    Returns:
        The data root that holds frappe/*.libfm.gz, and True where these are the real files.
    """
    root = Path(os.environ.get("FULLRANK_DATA", ""))
    real = all((root / "frappe" / name).exists() for name in FILES.values())
    if not real:
        root = work / "simulated"
        _simulate(root / "frappe")
    (work / "csv").mkdir(parents=True, exist_ok=True)
    (work / "recbole" / "frappe").mkdir(parents=True, exist_ok=True)
    for part, name in FILES.items():
        rows = _read_libfm(root / "frappe" / name)
        rows.write_csv(work / "csv" / f"{part}.csv")
        header = {c: f"{c}:float" if c == "label" else f"{c}:token" for c in rows.columns}
        target = work / "recbole" / "frappe" / f"frappe.{part}.inter"
        rows.rename(header).write_csv(target, separator="\t")
    return root, real


def prepared(work: Path) -> tuple[Prepared, bool]:
    """Prepares Frappe below `work` with fullrank; True where these are the real files."""
    from fullrank.data.datasets import frappe
    from fullrank.data.text import BadRows

    root, real = prepare_inputs(work)
    shutil.rmtree(work / "prepared", ignore_errors=True)
    return prepare(frappe.load(root, BadRows()), frappe.SPEC, work / "prepared"), real


def _read_libfm(path: Path) -> pl.DataFrame:
    names = ["label", *FIELDS]
    raw = pl.read_csv(path, separator=" ", has_header=False, infer_schema=False, new_columns=names)
    return raw.select(
        (pl.col("label") == "1").cast(pl.Int8),
        *(pl.col(f).str.strip_suffix(":1").cast(pl.Int32) for f in FIELDS),
    )


def _simulate(folder: Path, rows: int = 288_609) -> None:
    """Draws skewed values and labels from a planted factorisation machine, split 7:2:1."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    values, vectors, logit = [], [], np.zeros(rows)
    for size in FIELDS.values():
        share = 1.0 / np.arange(1, size + 1) ** 0.8
        drawn = rng.choice(size, size=rows, p=share / share.sum())
        drawn[:size] = np.arange(size)
        values.append(drawn)
        logit += rng.normal(0, 0.5, size)[drawn]
        vectors.append(rng.normal(0, 0.55, (size, 6))[drawn])
    stacked = np.stack(vectors)  # [fields, rows, 6]
    logit += 0.5 * (stacked.sum(0) ** 2 - (stacked**2).sum(0)).sum(1)
    logit = (logit - np.quantile(logit, 2 / 3)) * 2.0
    label = rng.random(rows) < 1 / (1 + np.exp(-logit))
    starts = np.cumsum([0, *FIELDS.values()])
    frame = pl.DataFrame(
        {
            "label": np.where(label, "1", "-1"),
            **{f: values[i] + starts[i] for i, f in enumerate(FIELDS)},
        }
    ).with_columns(*(pl.format("{}:1", f).alias(f) for f in FIELDS))
    cuts = np.split(rng.permutation(rows), [int(rows * 0.7), int(rows * 0.9)])
    for name, part in zip(FILES.values(), cuts, strict=True):
        frame[part].write_csv(
            folder / name, separator=" ", include_header=False, compression="gzip"
        )
