"""Frappe, the raw log: app usage with raw values and the category of each app.

A line of the log is an app and a context in which a user used it: positives only. Negatives are
drawn by the rule that the published splits follow: two per positive of a (user, context), apps
drawn evenly from those the user never used, none twice in a (user, context). Then a random split
7 : 2 : 1. The rows are therefore not those of `frappe`.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import polars as pl

from fullrank.data.datasets._sample import sampled
from fullrank.data.home import RemoteFile, find
from fullrank.data.spec import Category, Spec, Target
from fullrank.data.split import Splits, at_random
from fullrank.data.text import BadRows, Dialect, Kind, read_delimited

NAME = "frappe_log"
FOLDERS = ("frappe",)  # below the data root
TITLE = "Frappe mobile app usage (raw log, negatives drawn here)"
LICENCE = "research use with acknowledgement; no redistribution; no commercial use"
HOME = "https://www.baltrunas.info/context-aware"
NOTE = "negatives and split are drawn here with a fixed seed: not comparable with Frappe_x1"
FILES: tuple[RemoteFile, ...] = ()  # no direct https address is known: see HOME
SEED = 20_240_501
SPEC = Spec(
    columns=(
        Category(name="user", side="user"),  # 957 users
        Category(name="item", side="item"),  # 4,082 apps
        Category(name="daytime"),  # morning, noon, ...
        Category(name="weekday"),
        Category(name="isweekend"),  # weekend or workday
        Category(name="homework"),  # at home, at work, unknown
        Category(name="cost"),  # free or paid app
        Category(name="weather"),
        Category(name="country"),
        Category(name="city"),  # numbers; names were not published
        Category(name="category", side="item"),  # of the app in its shop; unknown for 550 apps
        Target(name="label"),  # the user used the app in this context
    ),
    item="item",
    group="user",
    ignore=(
        ("name", "free text that names the app again; for content models"),
        ("description", "free text; for content models"),
    ),
)
_CONTEXT = ("daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")
_LOG: dict[str, Kind] = {"user": "int", "item": "int", "cnt": "int"}


def load(root: Path, bad_rows: BadRows) -> Splits:
    """Reads `frappe/frappe_log.csv` and `frappe/apps_meta.csv`, plain or gzipped."""
    folder = root / "frappe"
    tabs = Dialect(separator="\t", quote="")
    log_path = find(NAME, folder, ("frappe_log.csv", "frappe.csv"), LICENCE, by_hand=HOME)
    apps = ("apps_meta.csv", "apps.csv", "meta_app.csv")
    apps_path = find(NAME, folder, apps, LICENCE, by_hand=HOME)
    # cnt, how often the app was used, exists for positives only: it would tell the label
    log = read_delimited(log_path, _LOG, bad_rows, dialect=tabs).drop("cnt").collect()
    described = read_delimited(apps_path, {"item": "int"}, bad_rows, dialect=tabs)
    rows = with_negatives(log, described.select("item").collect().to_series(), SEED)
    shown = described.select("item", "category", "name", "description")
    joined = rows.lazy().join(shown, on="item", how="left", maintain_order="left")
    return at_random(joined, fractions={"train": 0.7, "valid": 0.2, "test": 0.1}, seed=SEED)


def with_negatives(log: pl.DataFrame, items: pl.Series, seed: int) -> pl.DataFrame:
    """Adds two drawn rows per row of a log of positives.

    Args:
        log: columns user, item and the context; one row per use.
        items: every app.
        seed: of the draws.

    Returns:
        The log with label 1, then the negatives with label 0 in the order of their positives. A
        (user, context) whose user leaves fewer unused apps than needed gets as many as there are.
    """
    random = np.random.default_rng(seed)
    catalogue = items.unique().sort().to_numpy()
    user = log["user"].to_numpy()
    group = log.select(pl.struct("user", *_CONTEXT).rank("dense")).to_series().to_numpy()
    num = len(catalogue)
    item_place = np.searchsorted(catalogue, log["item"].to_numpy())
    used = np.unique(user * num + item_place)  # (user, app) pairs as one number
    unused = num - np.bincount(used // num, minlength=user.max() + 1)  # apps by user
    source = np.repeat(np.arange(log.height), 2)  # the positive of each negative
    order = np.argsort(group[source], kind="stable")
    in_group = np.empty_like(source)
    starts = np.unique(group[source][order], return_index=True)[1]
    in_group[order] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    source = source[in_group < unused[user[source]]]
    drawn = np.full(len(source), -1)
    while (missing := np.flatnonzero(drawn < 0)).size:
        drawn[missing] = random.integers(0, num, missing.size)
        is_used = np.isin(user[source] * num + drawn, used)
        # A stable sort keeps the draw that came first: older draws stand before new ones.
        age = np.zeros(len(source), dtype=np.int8)
        age[missing] = 1
        key = group[source] * num + drawn
        by_key = np.lexsort((age, key))
        repeated = np.zeros(len(source), dtype=bool)
        repeated[by_key[1:]] = key[by_key[1:]] == key[by_key[:-1]]
        drawn[is_used | repeated] = -1
    contexts: pl.DataFrame = log[source]
    item, no = pl.Series(catalogue[drawn]), pl.lit(0, pl.Int8)
    negatives = contexts.with_columns(item=item, label=no)
    return pl.concat([log.with_columns(label=pl.lit(1, pl.Int8)), negatives])


def sample() -> pl.DataFrame:
    """Returns invented rows: what `load` yields for "train"."""
    return sampled(write_sample, load)


def write_sample(root: Path) -> None:
    """Writes an invented log in the true format."""
    folder = root / "frappe"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    log = ["user\titem\tcnt\tdaytime\tweekday\tisweekend\thomework\tcost\tweather\tcountry\tcity"]
    for _ in range(100):
        user, item, count = (int(x) for x in random.integers(0, (12, 40, 9)))
        time = ("morning", "evening")[item % 2]
        log.append(
            f"{user}\t{item}\t{count}\t{time}\tsunday\tweekend\tunknown\tfree\tsunny\tSpain\t0"
        )
    apps = [
        "item\tpackage\tcategory\tdownloads\tdeveloper\ticon\tlanguage\tdescription\tname\tprice"
        "\trating\tshort desc"
    ]
    for i in range(40):
        kind = ("Tools", "Games")[i % 2]
        apps.append(f'{i}\tp.{i}\t{kind}\t10\tme\t-\ten\t"An app\tApp {i}\tFree\t4.0\t-')
    for name, lines in (("frappe_log.csv.gz", log), ("apps_meta.csv.gz", apps)):
        with gzip.open(folder / name, "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
