"""A simulated ad log, as `fullrank simulate` writes it.

One row is one impression in one slot of a request. A click is known at once; a conversion only
when the window after its click has closed, until then `conversion_observed` is False. In the
training split that window must close before validation begins. The true probabilities lie in a
file of their own, which nothing here reads.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import polars as pl

from fullrank.data.home import RemoteFile
from fullrank.data.spec import (
    Category,
    Column,
    Event,
    History,
    Number,
    Spec,
    Tags,
    Target,
    Vector,
)
from fullrank.data.synthetic import read_log, read_world, simulate
from fullrank.data.text import BadRows
from fullrank.data.world import HIDDEN_DIM, World
from fullrank.errors import ConfigError

NAME = "simulated"
FOLDERS = (NAME,)  # below the data root
TITLE = "Simulated ad log with a known best score"
LICENCE = "none needed: made on this machine"
HOME = "fullrank simulate"
NOTE = "run `fullrank simulate` to make it; every effect has a dial"
FILES: tuple[RemoteFile, ...] = ()
_TINY = World(num_rows=250, num_users=12, num_ads=20, num_categories=4, days=10.0, history_length=6)


def spec(world: World) -> Spec:
    """Returns what the columns mean; dials that leave a column constant put it into `ignore`."""
    ignored = [("conversion_time", "known only after the impression")]
    columns: list[Column] = [
        Category(name="user", side="user"),  # the person
        Number(name="age", side="user"),  # years
        Category(name="ad", side="item", grows=True),  # the creative that was shown
        Category(name="campaign", side="item"),  # ads with one budget
        Category(name="advertiser", side="item"),  # campaigns with one payer
        Category(name="category", side="item"),  # topic of the ad
        Number(name="bid", side="item", transform="log"),  # currency units per click
        Category(name="device"),  # desktop, phone, tablet, tv
        Category(name="placement"),  # kind of page region
        Category(name="position"),  # slot in the request, 1 is the topmost
        Category(name="hour"),  # of the day, UTC
        *(Category(name=f"context_{i}") for i in range(world.num_contexts)),  # low cardinality
        Category(name="partner"),  # low cardinality; may dominate the interactions
        Tags(name="keywords", side="item"),  # words of the ad's title
        Vector(name="ad_vector", shape=(HIDDEN_DIM,), side="item"),  # noisy picture of the topic
        History(  # clicks of this user before the hour of the impression
            name="history",
            events=(
                Event(name="ad", column="history_ad", table="ad"),
                Event(name="category", column="history_category", table="category"),
                Event(name="time", column="history_time"),
            ),
            max_length=max(1, world.history_length),
            repeats=True,  # an ad may be shown again to someone who clicked it
        ),
        Target(name="click"),  # given the impression
    ]
    if world.slots == 1:
        columns = [c for c in columns if c.name != "position"]
        ignored.append(("position", "there is one slot"))
    if world.conversion_rate > 0:
        columns.append(Target(name="conversion", given="click", observed="conversion_observed"))
    else:
        ignored += [("conversion", "nothing converts"), ("conversion_observed", "nothing converts")]
    return Spec(
        columns=tuple(columns),
        item="ad",
        group="request",  # all slots of one call
        time="time",  # unix seconds of the request
        weight="weight",  # 1 / share of impressions like this one that the log keeps
        identity=("impression",),
        ignore=(*ignored, ("title", "its words are in keywords")),
    )


SPEC = spec(World())


def spec_at(root: Path) -> Spec:
    """Returns the spec of the log below a data root; it differs from SPEC where dials do.

    Raises:
        DataMissingError: there is no simulated log.
    """
    return spec(read_world(root / NAME))


def note(root: Path) -> str:
    """Returns the best scores that any model can reach on the held-out split."""
    found = json.loads((root / NAME / "truth.json").read_text())["test"]
    scores = (
        f"{label} AUC {v['auc_realised']:.4f}, log-loss {v['log_loss_realised']:.4f}"
        for label, v in found.items()
        if v["auc_realised"] is not None
    )
    return "simulated; the best possible on the test split: " + "; ".join(scores)


def load(root: Path, bad_rows: BadRows) -> dict[str, pl.LazyFrame]:
    """Reads `simulated/log.parquet` and `ads.parquet`, split by time into 80 : 10 : 10 of the days.

    Raises:
        DataMissingError: the folder is absent; `fullrank simulate` writes it.
    """
    folder = root / NAME
    splits = read_log(folder)
    ads = pl.scan_parquet(folder / "ads.parquet")
    return {
        name: rows.join(ads, on="ad", how="left", maintain_order="left")
        for name, rows in splits.items()
    }


def ensure(
    root: Path, world: World | None = None, *, progress: Callable[[int], None] | None = None
) -> Path:
    """Simulates a log below a data root unless the same one is there.

    Args:
        root: data root.
        world: the dials; the default world where None.
        progress: called with the number of rows done since the last call.

    Returns:
        The folder of the log.

    Raises:
        ConfigError: a log of another world, or something else, is in the way.
        DiskFullError: the disk has no room; nothing was kept.
    """
    folder, wanted = root / NAME, world if world is not None else World()
    if not folder.exists():
        return simulate(wanted, folder, progress=progress)
    found = read_world(folder)
    if found != wanted:
        names = [n for n in vars(wanted) if getattr(wanted, n) != getattr(found, n)]
        raise ConfigError(
            "another world was simulated here",
            where=str(folder),
            found=", ".join(f"{n}={getattr(found, n)}" for n in names),
            expected=", ".join(f"{n}={getattr(wanted, n)}" for n in names),
            fix="name another data root, or remove the folder",
        )
    return folder


def sample() -> pl.DataFrame:
    """Returns rows of a tiny world: what `load` yields for "train"."""
    with tempfile.TemporaryDirectory() as folder:
        write_sample(Path(folder))
        return load(Path(folder), BadRows())["train"].collect()


def write_sample(root: Path) -> None:
    """Writes a tiny world in the true format."""
    ensure(root, _TINY)
