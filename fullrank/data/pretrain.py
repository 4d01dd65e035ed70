"""Vectors of users and items that were learnt before a model's training window begins.

The earliest part of the training split, by time, gives the vectors; the model then trains on the
rest alone, so that no vector knows a row of the model's own window, or a later one.
trap: a label that is decided long after its row, such as a conversion, may reach into that window.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fullrank.config import require, require_between, require_positive
from fullrank.data.prepare import Prepared, Split
from fullrank.errors import SplitError
from fullrank.lookup import Lookup, Provenance
from fullrank.schema import Categorical, Schema

_POWER_STEPS = 7  # of the randomised SVD; more than the usual 2, for spectra that fall slowly
_SPARE = 8  # columns beyond `dim` while it runs


@dataclass(frozen=True)
class Pretrained:
    """What was learnt, and where training may begin.

    Args:
        lookups: name -> values per row of a table.
        since: unix seconds; the lookups know nothing of rows from then on. None: they know no
            rows of this log at all.
    """

    lookups: dict[str, Lookup]
    since: int | None


@dataclass(frozen=True, kw_only=True)
class PretrainedVectors:
    """Vectors whose product says how much more often than by chance two had a positive label.

    With c the positive rows of a user and an item, c_u and c_i those of either and n of all,
    M = log(1 + c n / (c_u c_i)) is cut to its `dim` largest singular values, U S V'; users get
    U sqrt(S), items V sqrt(S). This is the factored pointwise mutual information of Levy and
    Goldberg (NeurIPS 2014), with 1 added so that no cell is negative (our choice), by the
    randomised SVD of Halko et al. (arXiv:0909.4061).

    Args:
        user: a categorical field.
        item: another one.
        dim: width of the vectors.
        share: of the training rows, the earliest; a time that is half inside stays outside.
        seed: of the randomised SVD.

    Raises:
        ConfigError: a setting is impossible.
    """

    user: str = "user"
    item: str = "item"
    dim: int = 16
    share: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "dim")
        require_between(self, 0.01, 0.99, "share")
        require_between(self, 0, 2**63 - 1, "seed")

    def make(self, data: Prepared) -> Pretrained:
        """Returns lookups "user_vectors" and "item_vectors", and where training may begin.

        A value without a positive row in the earliest part has the zero vector, and so has row 0.
        The first label is the one that counts, where it is observed.

        Raises:
            SchemaError: there is no such field.
            ConfigError: a field is not categorical, both share a table, or `dim` exceeds a table.
            SplitError: the log has no time, or its earliest part is empty or has no positive row.
        """
        split, schema = data.splits["train"], data.schema
        users, items = self._table(schema, self.user), self._table(schema, self.item)
        sizes = schema.table(users).size, schema.table(items).size
        self._require_room(users, items, sizes)
        since = _boundary(split, self.share)
        pairs = self._positive_pairs(split, split.blocks["time"] < since)
        vectors = _factors(pairs, sizes, self.dim, self.seed)
        day = datetime.datetime.fromtimestamp(since, datetime.UTC).isoformat()
        source = Provenance(made_by=repr(self), date=f"rows before {day}")
        named = zip(("user_vectors", "item_vectors"), (users, items), vectors, strict=True)
        return Pretrained({name: Lookup(key, x, source) for name, key, x in named}, since)

    def _table(self, schema: Schema, name: str) -> str:
        field = schema.field(name)
        fitting = [f.name for f in schema.categorical()]
        require(
            isinstance(field, Categorical),
            where="PretrainedVectors",
            found=f"field '{name}' of kind {type(field).__name__}",
            expected="a categorical field",
            fix="name one of: " + ", ".join(fitting),
        )
        assert isinstance(field, Categorical)
        return field.table

    def _require_room(self, users: str, items: str, sizes: tuple[int, int]) -> None:
        require(
            users != items,
            where="PretrainedVectors.item",
            found=f"'{self.user}' and '{self.item}', which share the table '{users}'",
            expected="fields with a table each",
            fix="name another field",
        )
        require(
            self.dim < min(sizes),
            where="PretrainedVectors.dim",
            found=f"{self.dim}, with {sizes[0] - 1:,} users and {sizes[1] - 1:,} items",
            expected="no more than there are users, and items",
            fix=f"set dim to {min(sizes) - 1} or less",
        )

    def _positive_pairs(self, split: Split, early: np.ndarray) -> Tensor:
        """Returns [2, P] row numbers of user and item, both known, of early positive rows."""
        positive = early & (split.blocks["labels"][:, 0] > 0)
        if "observed" in split.blocks:
            positive &= split.blocks["observed"][:, 0]
        names = [f.name for f in split.schema.categorical()]
        columns = (split.columns["categorical"][names.index(n)] for n in (self.user, self.item))
        pairs = np.stack([column[positive].astype(np.int64) for column in columns])
        pairs = pairs[:, (pairs > 0).all(0)]
        if pairs.shape[1] == 0:
            raise SplitError(
                "there is nothing to learn vectors from",
                where=f"the earliest {self.share:.0%} of split 'train'",
                found=f"no positive '{split.schema.labels[0].name}' of a known user and item",
                expected="at least one",
                fix="raise share",
            )
        return torch.from_numpy(pairs)


def later(split: Split, since: int) -> Split:
    """Returns the rows of a split from a time on, in their order.

    cost: rows that are not in order of time are copied into memory; others stay on disk.

    Raises:
        SplitError: there are none, or the log has no time.
    """
    keep = _times(split) >= since
    if not keep.any():
        raise SplitError(
            "no rows are left to train on",
            where="split 'train'",
            found="only rows before the one where pre-training ends",
            expected="at least one later row",
            fix="lower the share of rows for pre-training",
        )
    first = int(keep.argmax())
    whole = bool(keep[first:].all())
    pick: slice | np.ndarray = slice(first, None) if whole else keep
    flat, offsets = {}, {}
    for name, marks in split.offsets.items():
        lengths = np.diff(marks)
        spread = slice(int(marks[first]), None) if whole else np.repeat(keep, lengths)
        flat[name] = {c: v[spread] for c, v in split.flat[name].items()}
        offsets[name] = np.concatenate([[0], np.cumsum(lengths[pick])])
    return replace(
        split,
        rows=int(keep.sum()),
        columns={n: tuple(c[pick] for c in columns) for n, columns in split.columns.items()},
        blocks={n: block[pick] for n, block in split.blocks.items()},
        flat=flat,
        offsets=offsets,
    )


def _times(split: Split) -> np.ndarray:
    if "time" not in split.blocks:
        raise SplitError(
            "pre-training needs to know which rows came first",
            where="split 'train'",
            found="a log without a time, or with a single one",
            expected="Spec(time=...), a column of unix seconds",
            fix="name the column, or train without pre-trained vectors",
        )
    return split.blocks["time"]


def _boundary(split: Split, share: float) -> int:
    """Returns the time before which at most a share of the rows lies, and at least one row."""
    times = np.sort(_times(split))
    since = int(times[int(share * len(times))])
    if since == times[0]:
        raise SplitError(
            "the earliest part of the log is empty",
            where="split 'train'",
            found=f"{int((times == since).sum()):,} rows of {len(times):,} with the first time",
            expected=f"fewer than {share:.0%} of the rows",
            fix="raise share, or keep times of a finer grain",
        )
    return since


def _factors(pairs: Tensor, sizes: tuple[int, int], dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns U sqrt(S) and V sqrt(S), float32, for pairs [2, P] of row numbers."""
    places, counts = torch.unique(pairs, dim=1, return_counts=True)
    users, items = (torch.bincount(side).double() for side in pairs)
    chance = users[places[0]] * items[places[1]] / pairs.shape[1]
    values = torch.log1p(counts / chance)
    matrix = torch.sparse_coo_tensor(places, values, sizes, check_invariants=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        columns = min(dim + _SPARE, *sizes)
        u, s, v = torch.svd_lowrank(matrix, q=columns, niter=_POWER_STEPS)
    root = s[:dim].sqrt()
    found = []
    for x, seen in ((u, places[0]), (v, places[1])):
        vectors = torch.zeros(len(x), dim)
        vectors[seen] = (x[seen, :dim] * root).float()  # elsewhere only rounding is left
        found.append(vectors)
    return found[0], found[1]
