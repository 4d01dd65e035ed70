"""A simulated ad log, as `fullrank simulate` writes it.

One row is one impression in one slot of a request. A click is known at once; a conversion only
when the window after its click has closed, until then `conversion_observed` is False. In the
training split that window must close before validation begins. The true probabilities lie in a
file of their own, which nothing here reads.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

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
from fullrank.errors import ConfigError, DataMissingError

NAME = "simulated"
_TINY: dict[str, Any] = {
    "num_rows": 250,
    "num_users": 12,
    "num_ads": 20,
    "num_categories": 4,
    "days": 10.0,
    "history_length": 6,
}


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
        History(  # clicks of this user before the hour of the impression, or a diary of habits
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


@dataclass(frozen=True)
class SimulatedLog:
    """A simulated log as a data set; a recipe may name one of any world.

    Args:
        NAME: of its folder; another world needs another name.
        world: what to simulate on first use; None is whatever `fullrank simulate` has written.
        HOME: the command that makes it.

    Example:
        >>> SimulatedLog("busy", World(click_rate=0.5)).FOLDERS
        ('busy',)
    """

    NAME: str
    world: World | None = None
    HOME: str = "fullrank train"

    TITLE = "Simulated ad log with a known best score"
    LICENCE = "none needed: made on this machine"
    NOTE = "simulated; every effect has a dial"
    FILES: ClassVar[tuple[RemoteFile, ...]] = ()

    @property
    def FOLDERS(self) -> tuple[str, ...]:  # noqa: N802
        """The folder below the data root."""
        return (self.NAME,)

    @property
    def SPEC(self) -> Spec:  # noqa: N802
        """What the columns mean."""
        return spec(self.world or World())

    def spec_at(self, root: Path) -> Spec:
        """Returns the spec of the log below a data root; it differs from SPEC where dials do.

        Raises:
            DataMissingError: the log is not there.
        """
        return spec(read_world(self._folder(root)))

    def note(self, root: Path) -> str:
        """Returns the best scores that any model can reach on the held-out split."""
        found = json.loads((root / self.NAME / "truth.json").read_text())["test"]
        scores = (
            f"{label} AUC {v['auc_realised']:.4f}, log-loss {v['log_loss_realised']:.4f}"
            for label, v in found.items()
            if v["auc_realised"] is not None
        )
        return "simulated; the best possible on the test split: " + "; ".join(scores)

    def load(self, root: Path, bad_rows: BadRows) -> dict[str, pl.LazyFrame]:
        """Reads `log.parquet` and `ads.parquet`, split by time into 80 : 10 : 10 of the days.

        Raises:
            DataMissingError: the log is not there.
        """
        folder = self._folder(root)
        splits = read_log(folder)
        ads = pl.scan_parquet(folder / "ads.parquet")
        return {
            name: rows.join(ads, on="ad", how="left", maintain_order="left")
            for name, rows in splits.items()
        }

    def _folder(self, root: Path) -> Path:
        folder = root / self.NAME
        if not folder.exists():
            raise DataMissingError(
                "the simulated log was not made yet",
                where=str(folder),
                found="no such folder",
                expected="what the simulator writes",
                fix=f"run `{self.HOME}`, which makes it",
            )
        return folder

    def ready(self, root: Path, cache: Path) -> Path:
        """Simulates the log into the cache, unless it lies below one of both already.

        Args:
            root: data root; nothing is written into it.
            cache: of files that can be made again.

        Returns:
            The folder to use as data root.

        Raises:
            ConfigError: the data root holds a log of another world under this name.
            DiskFullError: the disk has no room; nothing was kept.
        """
        if self.world is None:
            return root
        digest = hashlib.sha256(json.dumps(self.world.plain()).encode()).hexdigest()[:8]
        place = root if (root / self.NAME).exists() else cache / f"{NAME}-{digest}"
        try:
            ensure(place, self.world, name=self.NAME)
        except OSError:  # another process made the same at the same time
            ensure(place, self.world, name=self.NAME)
        return place

    def sample(self) -> pl.DataFrame:
        """Returns rows of a tiny world: what `load` yields for "train"."""
        with tempfile.TemporaryDirectory() as folder:
            self.write_sample(Path(folder))
            return self.load(Path(folder), BadRows())["train"].collect()

    def write_sample(self, root: Path) -> None:
        """Writes a tiny world with the same dials, in the true format."""
        ensure(root, _tiny(self.world or World()), name=self.NAME)


def _tiny(world: World) -> World:
    if not world.habits():
        return replace(world, **_TINY)
    habits = {"num_ads": 60, "num_categories": 12, "history_length": world.round_days()}
    return replace(world, **{**_TINY, **habits})


def ensure(
    root: Path,
    world: World | None = None,
    *,
    name: str = NAME,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Simulates a log below a data root unless the same one is there.

    Args:
        root: data root.
        world: the dials; the default world where None.
        name: of the folder.
        progress: called with the number of rows done since the last call.

    Returns:
        The folder of the log.

    Raises:
        ConfigError: a log of another world, or something else, is in the way.
        DiskFullError: the disk has no room; nothing was kept.
    """
    folder, wanted = root / name, world if world is not None else World()
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


_LOG = SimulatedLog(NAME, HOME="fullrank simulate")
FOLDERS, TITLE, LICENCE, HOME = _LOG.FOLDERS, _LOG.TITLE, _LOG.LICENCE, _LOG.HOME
NOTE, FILES, SPEC = _LOG.NOTE, _LOG.FILES, _LOG.SPEC
spec_at, note, load = _LOG.spec_at, _LOG.note, _LOG.load
sample, write_sample = _LOG.sample, _LOG.write_sample
