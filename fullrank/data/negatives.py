"""Negatives for logs that hold positives alone: items that were not chosen, by a stated law.

Every draw is exact and takes one random number; nothing is drawn again. All items stand on a line,
each as long as it is likely. What a row may not get is cut out, a point is drawn on what is left,
and binary search finds where on the whole line that point lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fullrank.config import require
from fullrank.errors import DataFormatError

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Excluded:
    """What may not be drawn for each of N rows: the items of its owner.

    Args:
        owner: [N] whose items a row may not get, 0 and up.
        who: [E] owners, in any order.
        item: [E] an item of each; a pair may stand there several times.
    """

    owner: Ints
    who: Ints
    item: Ints

    @classmethod
    def positives(cls, item: Ints) -> Excluded:
        """Excludes from each row its own positive [N] and nothing else."""
        rows = np.arange(len(item))
        return cls(rows, rows, item)


def uniform(excluded: Excluded, num_items: int, random: np.random.Generator) -> Ints:
    """Draws an item per row, all that may be drawn being equally likely.

    Args:
        excluded: N rows and what they may not get: their positives at least.
        num_items: I, items are 0 to I - 1.
        random: where the draws come from.

    Returns:
        [N] items.

    Raises:
        DataFormatError: an owner has all items.

    Example:
        >>> drawn = uniform(Excluded.positives(np.array([0, 1])), 2, np.random.default_rng(0))
        >>> drawn.tolist()
        [1, 0]
    """
    line = _Line.of(np.zeros(num_items, dtype=np.int64), np.zeros(num_items, dtype=np.int64))
    return line.draw(excluded, np.zeros(len(excluded.owner), dtype=np.int64), False, random)


def popularity_matched(
    excluded: Excluded,
    positive: Ints,
    popularity: Ints,
    random: np.random.Generator,
    *,
    num_groups: int = 10,
    exhausted: Literal["refuse", "nearest"] = "refuse",
) -> Ints:
    """Draws for each positive an item that is about as popular, so that popularity tells nothing.

    The item comes from the same decile of popularity (see `popularity_groups`), and within it in
    proportion to popularity: in training, negatives fall on items as positives do.

    Args:
        excluded: N rows and what they may not get: their positives at least.
        positive: [N] items.
        popularity: [I] positive training rows of each item.
        random: where the draws come from.
        num_groups: 10 for deciles.
        exhausted: where an owner has all items of the decile, "refuse", or take the "nearest"
            decile in which it has not, the less popular of two.

    Returns:
        [N] items.

    Raises:
        DataFormatError: an owner has all items, or all of the decile and `exhausted` is "refuse".
    """
    group = popularity_groups(popularity, num_groups)
    line = _Line.of(group, popularity)
    return line.draw(excluded, group[positive], exhausted == "nearest", random)


def popularity_groups(popularity: Ints, num_groups: int = 10) -> Ints:
    """Cuts a catalogue by popularity into groups that share the positives evenly.

    Items of equal popularity are never parted, so a few groups may be larger than others, or
    missing; items without positives are a group of their own.

    Args:
        popularity: [I] positives of each item.
        num_groups: how many groups share the positives.

    Returns:
        [I] group numbers, 0 the least popular.

    Example:
        >>> popularity_groups(np.array([0, 5, 1, 1, 1, 1, 1]), 2).tolist()
        [0, 2, 1, 1, 1, 1, 1]
    """
    require(
        num_groups >= 1,
        where="popularity_groups, num_groups",
        found=num_groups,
        expected="1 or more; 10 for deciles",
        fix="use 10",
    )
    value, rank, items = np.unique(popularity, return_inverse=True, return_counts=True)
    mass = value * items
    middle = np.cumsum(mass) - mass / 2  # positives of less popular items, and half of its own
    group = np.floor(num_groups * middle / max(1, mass.sum())) + 1
    return np.unique(np.where(value > 0, group, 0), return_inverse=True)[1][rank]


@dataclass(frozen=True, eq=False)
class _Line:
    """All items side by side, group by group.

    Args:
        order: [I] items as they stand.
        start: [I + 1] where each begins; the last is the length of the line.
        edge: [G + 1] place of the first item of each group.
    """

    order: Ints
    start: Ints
    edge: Ints

    @classmethod
    def of(cls, group: Ints, popularity: Ints) -> _Line:
        """Lays out items [I]; one that is never a positive is as long as one that is so once."""
        order = np.lexsort((popularity, group))
        start = np.append(0, np.cumsum(np.maximum(popularity, 1)[order]))
        edge = np.searchsorted(group[order], np.arange(group.max(initial=0) + 2))
        return cls(order, start, edge)

    def draw(
        self, excluded: Excluded, group: Ints, widen: bool, random: np.random.Generator
    ) -> Ints:
        """Draws an item per row from its group [N], or from the nearest one with any left."""
        cut = _Cut.of(self, excluded)
        before = cut.left(excluded.owner, self.edge)  # [N, G + 1]
        room = np.diff(before, axis=1)  # [N, G] what is left of each group
        distance = np.abs(np.arange(room.shape[1]) - group[:, None])
        distance[room == 0] = room.shape[1]
        chosen = distance.argmin(axis=1)  # the first: of two, the less popular
        rows = np.arange(len(group))
        far = distance[rows, chosen]
        _refuse_exhausted(excluded, far > (room.shape[1] - 1 if widen else 0), room)
        point = random.integers(before[rows, chosen], before[rows, chosen + 1])
        place = np.searchsorted(self.start, cut.on_line(excluded.owner, point), side="right") - 1
        return self.order[place]


@dataclass(frozen=True, eq=False)
class _Cut:
    """A line with the items of each owner cut out.

    Args:
        line: the whole.
        place: [E'] owner and place of each item that is cut out, as one rising number.
        start: [E'] owner, and where the item would begin were those before it gone, as one.
        gone: [E' + 1] length cut out before each, over all owners.
    """

    line: _Line
    place: Ints
    start: Ints
    gone: Ints

    @classmethod
    def of(cls, line: _Line, excluded: Excluded) -> _Cut:
        num_items, length = len(line.order), int(line.start[-1])
        place_of = np.empty(num_items, dtype=np.int64)
        place_of[line.order] = np.arange(num_items)
        place = np.unique(excluded.who * num_items + place_of[excluded.item])
        owner, at = np.divmod(place, num_items)
        gone = np.append(0, np.cumsum(line.start[at + 1] - line.start[at]))
        own = gone[:-1] - gone[np.searchsorted(place, owner * num_items)]
        return cls(line, place, owner * (length + 1) + line.start[at] - own, gone)

    def left(self, owner: Ints, places: Ints) -> Ints:
        """Returns [N, P]: how much of the line before each place [P] is left to an owner [N]."""
        first = (owner * len(self.line.order))[:, None]
        end = np.searchsorted(self.place, first + places)  # [N, P]
        gone: Ints = self.gone[end] - self.gone[self._first(owner)][:, None]
        return self.line.start[places] - gone

    def on_line(self, owner: Ints, point: Ints) -> Ints:
        """Returns where on the whole line a point [N] of what is left to an owner [N] lies."""
        end = np.searchsorted(self.start, owner * (self.line.start[-1] + 1) + point, side="right")
        gone: Ints = self.gone[end] - self.gone[self._first(owner)]
        return point + gone

    def _first(self, owner: Ints) -> NDArray[Any]:
        return np.searchsorted(self.place, owner * len(self.line.order))


def _refuse_exhausted(excluded: Excluded, bad: NDArray[np.bool_], room: Ints) -> None:
    if not bad.any():
        return
    row = int(bad.argmax())
    whole = not room[row].any()
    raise DataFormatError(
        "no item is left to draw as a negative",
        where=f"row {row:,}, user number {excluded.owner[row]:,}",
        found=f"a user who has all items of {'the catalogue' if whole else 'a decile'}"
        f" ({int(bad.sum()):,} such rows)",
        expected="at least one item that may be drawn for every row",
        fix="leave this user out, or allow items that the user has seen (allow_seen=True)"
        if whole
        else "take the nearest decile (exhausted='nearest'), or fewer groups (num_groups)",
    )
