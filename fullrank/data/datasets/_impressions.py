"""Item sequences as impressions: a row is an item and what its user chose before it.

Sequences hold what users chose and nothing that they refused, so negatives are drawn. Every event
but the first of a user gives two rows with the same past: the item that was chosen, and one that
was not. The protocol follows the release of FEDIN (arXiv:2605.01726) but for three things. It
tosses a coin whether an event becomes a positive or a negative row; here each becomes both, so that
every user has as many of one as of the other and an AUC of its own, also with a single event. It
draws negatives evenly, so that popularity alone tells much; here they are as popular as positives
by default, in deciles of training popularity. And it may draw what the user has chosen elsewhere.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from fullrank.config import require, require_between
from fullrank.data.home import RemoteFile
from fullrank.data.negatives import Excluded, Ints, popularity_matched, uniform
from fullrank.data.spec import Category, Column, Event, History, Spec, Target
from fullrank.data.split import PARTS, Splits, stable_hash
from fullrank.data.text import BadRow, BadRows
from fullrank.data.text.lines import open_text, refuse_binary, refusing_damage
from fullrank.errors import DataFormatError

LONGEST = 1_000  # past events that a row may hold
_CHUNK = 20_000  # rows built at a time; with 200 events of text each about 100 MB
_USER_ROWS = 4  # newest events of a user that become rows, by default of a split by user


@dataclass(frozen=True, eq=False)
class Sequences:
    """What users chose, oldest first.

    Args:
        user: [U] raw numbers, each once.
        offsets: [U + 1] where the events of each begin.
        event: [E] which of `items` each event is.
        items: [I] raw numbers of all items that occur, rising.
    """

    user: Ints
    offsets: Ints
    event: Ints
    items: Ints

    @classmethod
    def of(cls, user: Ints, lengths: Ints, item: Ints) -> Sequences:
        """Builds sequences of U users from raw numbers of items [E]."""
        items, event = np.unique(item, return_inverse=True)
        return cls(user, np.append(0, np.cumsum(lengths.astype(np.int64))), event, items)

    def owner(self) -> Ints:
        """Returns [E]: which of the users each event belongs to."""
        return np.repeat(np.arange(len(self.user)), np.diff(self.offsets))


def read_sequences(path: Path, bad_rows: BadRows) -> Sequences:
    """Reads lines `user item item ...`, oldest first, plain or gzipped.

    Raises:
        DataFormatError: a line is not numbers, holds no item, or repeats a user, and the policy is
            "refuse"; or no line is left.
    """
    with open_text(path) as file, refusing_damage(str(path)):
        data = file.read()
    refuse_binary(path, data)
    lines = pl.DataFrame({"text": data.decode("utf-8", "replace").split("\n")})
    lines = lines.with_row_index("line", 1).filter(pl.col("text").str.strip_chars() != "")
    parts = pl.col("text").str.extract_all(r"\S+").cast(pl.List(pl.Int64), strict=False)
    rows = lines.with_columns(parts=parts).with_columns(user=pl.col("parts").list.first())
    whole = pl.col("parts").list.eval(pl.element().is_null()).list.any()
    rows = rows.with_columns(
        why=pl.when(whole)
        .then(pl.lit("a value is not a whole number"))
        .when(pl.col("parts").list.len() < 2)
        .then(pl.lit("a user without items"))
        .when(~pl.col("user").is_first_distinct())
        .then(pl.lit("the user has a line already"))
    )
    expected = "a user and one item or more, as whole numbers, and each user once"
    bad = rows.filter(pl.col("why").is_not_null()).select("line", "why", "text")
    bad_rows.take([BadRow(str(path), n, why, text, expected, False) for n, why, text in bad.rows()])
    good = rows.filter(pl.col("why").is_null())
    if good.height == 0:
        raise DataFormatError(
            "a file holds no sequences",
            where=str(path),
            found=f"{bad.height:,} lines, none of them good",
            expected=expected,
            fix="get the file again",
        )
    past = good["parts"].list.slice(1)
    return Sequences.of(
        good["user"].to_numpy(), past.list.len().to_numpy(), past.explode().to_numpy()
    )


@dataclass(frozen=True, kw_only=True)
class Impressions(ABC):
    """A log of item sequences as a data set of impressions; a recipe may name one of any settings.

    Args:
        negatives: "popularity" draws an item of the same decile of training popularity as the
            positive, in proportion to popularity; where a user has all of it, of the nearest
            decile. "uniform" draws from all items alike.
        split: "place": the last event of each user is for testing, the one before it for
            validation. "user": 80 : 10 : 10 of the users, by a hash of their numbers.
        length: newest past events that a row holds.
        newest: only so many last events of a user become rows; all of them when None, and four
            in a split by user.
        allow_seen: negatives may be items that the user has chosen at another place.
        seed: of the negatives and of the split by user.

    Raises:
        ConfigError: a setting is impossible.
    """

    negatives: Literal["popularity", "uniform"] = "popularity"
    split: Literal["place", "user"] = "place"
    length: int = 50
    newest: int | None = None
    allow_seen: bool = False
    seed: int = 0

    BASE: ClassVar[str]  # the name with all settings at their defaults
    FOLDERS: ClassVar[tuple[str, ...]]
    TITLE: ClassVar[str]
    LICENCE: ClassVar[str]
    HOME: ClassVar[str]
    FILES: ClassVar[tuple[RemoteFile, ...]] = ()
    PERSON: ClassVar[tuple[Column, ...]] = ()  # what is known of users, beside their number
    PRODUCT: ClassVar[tuple[Column, ...]] = ()  # what is known of items, beside their number
    PAST: ClassVar[tuple[str, ...]] = ("item",)  # what a row holds of each past item
    IGNORE: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __post_init__(self) -> None:
        for name, known in (("negatives", ("popularity", "uniform")), ("split", ("place", "user"))):
            require(
                getattr(self, name) in known,
                where=f"{type(self).__qualname__}.{name}",
                found=repr(getattr(self, name)),
                expected=" or ".join(map(repr, known)),
                fix=f"use {known[0]!r}",
            )
        require_between(self, 1, LONGEST, "length")
        if self.newest is not None:  # by place, two of them are held out
            require_between(self, 3 if self.split == "place" else 1, 10**9, "newest")

    @abstractmethod
    def read(self, root: Path, bad_rows: BadRows) -> tuple[Sequences, pl.DataFrame, pl.DataFrame]:
        """Returns the sequences, what is known by `item`, and what is known by `user`."""

    @abstractmethod
    def write_sample(self, root: Path) -> None:
        """Writes an invented log in the true format."""

    @property
    def NAME(self) -> str:  # noqa: N802
        """The name in run folders; settings that were changed stand in it."""
        changed = ((f.name, getattr(self, f.name)) for f in fields(self))
        defaults = {f.name: f.default for f in fields(self)}
        return self.BASE + "".join(f"-{n}={v}" for n, v in changed if v != defaults[n])

    @property
    def NOTE(self) -> str:  # noqa: N802
        """What must be said beside any number."""
        law = "as popular as positives" if self.negatives == "popularity" else "uniform"
        seen = ", also among what the user has chosen elsewhere" if self.allow_seen else ""
        return f"negatives are drawn here, one per positive, {law}{seen}, seed {self.seed}"

    @property
    def SPEC(self) -> Spec:  # noqa: N802
        """What the columns mean."""
        # Users of a split by user never meet in training: their numbers would all be unknown.
        number = (Category(name="user", side="user"),) if self.split == "place" else ()
        past = History(
            name="history",  # what the user chose before, oldest first; never empty
            events=tuple(Event(name=c, column=f"history_{c}", table=c) for c in self.PAST),
            max_length=self.length,
            repeats=self.allow_seen,
        )
        item = Category(name="item", side="item")  # its table is shared with the history
        return Spec(
            columns=(*number, *self.PERSON, item, *self.PRODUCT, past, Target(name="click")),
            item="item",
            group="user",
            identity=("user", "place", "item"),  # place: of the event in the user's sequence
            ignore=self.IGNORE,
        )

    def load(self, root: Path, bad_rows: BadRows) -> Splits:
        """Reads the files, cuts them and draws the negatives.

        Raises:
            DataMissingError: they are not there.
            DataFormatError: a line is bad, or a user has chosen every item.
        """
        log, items, users = self.read(root, bad_rows)
        known = _aligned("item", log.items, items), _aligned("user", log.user, users)
        parts = self._events(log)
        popularity = np.bincount(log.event[parts["train"]], minlength=len(log.items))
        splits = {}
        for number, (name, events) in enumerate(parts.items()):
            random = np.random.default_rng([self.seed, number])
            drawn = self._drawn(log, events, popularity, random)
            judged = np.stack([log.event[events], drawn], axis=1).reshape(-1)
            splits[name] = _Rows(
                log, *known, self.PAST, self.length, np.repeat(events, 2), judged
            ).lazy()
        return splits

    def _events(self, log: Sequences) -> dict[str, Ints]:
        """Returns split -> the events that become rows, in file order."""
        owner = log.owner()
        place = np.arange(len(owner)) - log.offsets[owner]
        to_come = np.diff(log.offsets)[owner] - 1 - place  # later events of the same user
        newest = _USER_ROWS if self.split == "user" and self.newest is None else self.newest
        wanted = (place > 0) & (True if newest is None else to_come < newest)
        if self.split == "place":
            part = np.where(to_come > 1, 0, 2 - to_come)  # the last is for testing
        else:
            share = np.cumsum(list(PARTS.values()))[:-1]
            hashed = stable_hash(log.user, self.seed) / 2.0**64
            part = np.searchsorted(share, hashed, side="right")[owner]
        return {name: np.flatnonzero(wanted & (part == i)) for i, name in enumerate(PARTS)}

    def _drawn(
        self, log: Sequences, events: Ints, popularity: Ints, random: np.random.Generator
    ) -> Ints:
        positive, owner = log.event[events], log.owner()
        excluded = (
            Excluded.positives(positive)
            if self.allow_seen
            else Excluded(owner[events], owner, log.event)
        )
        if self.negatives == "uniform":
            return uniform(excluded, len(log.items), random)
        return popularity_matched(excluded, positive, popularity, random, exhausted="nearest")

    def sample(self) -> pl.DataFrame:
        """Returns invented rows: what `load` yields for "train"."""
        with tempfile.TemporaryDirectory() as folder:
            self.write_sample(Path(folder))
            return self.load(Path(folder), BadRows())["train"].collect()


def _aligned(key: str, raw: Ints, known: pl.DataFrame) -> pl.DataFrame:
    """Returns what is known in the order of the raw numbers; empty where nothing is."""
    numbers = pl.DataFrame({key: raw.astype(np.int32)})
    known = known.with_columns(pl.col(key).cast(pl.Int32)).unique(key, keep="first")
    return numbers.join(known, on=key, how="left", maintain_order="left")


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of a split; two by two they share their past, the positive first.

    Args:
        log: all sequences.
        items: a row per item of the log.
        users: a row per user of the log.
        past: columns of `items` that histories hold.
        length: newest events of a history.
        event: [M] the event behind each row.
        judged: [M] which item each row judges.
    """

    log: Sequences
    items: pl.DataFrame
    users: pl.DataFrame
    past: tuple[str, ...]
    length: int
    event: Ints
    judged: Ints

    def schema(self) -> pl.Schema:
        """Returns the columns of the rows."""
        lists = {f"history_{c}": pl.List(self.items.schema[c]) for c in self.past}
        columns: dict[str, pl.DataType] = {**self.users.schema, **self.items.schema}
        return pl.Schema({**columns, "place": pl.Int32(), **lists, "click": pl.Int8()})

    def frame(self, start: int, stop: int, columns: list[str]) -> pl.DataFrame:
        """Builds some columns of consecutive rows."""
        event, judged = self.event[start:stop], self.judged[start:stop]
        owner = np.searchsorted(self.log.offsets, event, side="right") - 1
        first = self.log.offsets[owner]
        begin = np.maximum(first, event - self.length)
        offsets = np.append(0, np.cumsum(event - begin))
        made = {}
        for name in columns:
            if name in self.users.columns:
                made[name] = self.users[name].gather(owner)
            elif name in self.items.columns:
                made[name] = self.items[name].gather(judged)
            elif name == "place":
                made[name] = pl.Series((event - first).astype(np.int32))
            elif name == "click":
                made[name] = pl.Series((np.arange(start, start + len(event)) % 2 == 0) * np.int8(1))
            else:
                at = np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], event - begin)
                values = self.items[name.removeprefix("history_")].gather(self.log.event[at])
                lists = pa.LargeListArray.from_arrays(pa.array(offsets), values.to_arrow())
                made[name] = pl.Series(name, lists)
        return pl.DataFrame(made)

    def lazy(self) -> pl.LazyFrame:
        """Returns the rows; they are built in chunks when they are read."""

        def chunks(
            with_columns: list[str] | None,
            predicate: pl.Expr | None,
            n_rows: int | None,
            batch_size: int | None,
        ) -> Iterator[pl.DataFrame]:
            shown = list(self.schema()) if with_columns is None else with_columns
            tested = [] if predicate is None else predicate.meta.root_names()
            built = list(dict.fromkeys([*shown, *tested])) or ["click"]
            total = len(self.event) if n_rows is None else min(n_rows, len(self.event))
            for start in range(0, total, _CHUNK):
                rows = self.frame(start, min(start + _CHUNK, total), built)
                yield (rows if predicate is None else rows.filter(predicate)).select(shown)

        return register_io_source(chunks, schema=self.schema())
