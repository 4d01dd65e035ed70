"""Drawn negatives: what may not be drawn, and by which law the rest is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.data.negatives import Excluded, popularity_groups, popularity_matched, uniform
from fullrank.errors import ConfigError, DataFormatError


def world(num_users: int = 40, num_items: int = 200, each: int = 30):
    """Users who choose by a steep law of popularity: [N] user, item, and [I] counts."""
    random = np.random.default_rng(0)
    law = 1.0 / np.arange(10, num_items + 10)
    picks = [
        random.choice(num_items, each, replace=False, p=law / law.sum()) for _ in range(num_users)
    ]
    user, item = np.repeat(np.arange(num_users), each), np.concatenate(picks)
    return user, item, np.bincount(item, minlength=num_items)


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_every_draw_is_one_that_a_loop_would_allow(data) -> None:
    """Small worlds, in which whole groups are often exhausted."""
    num_items = data.draw(st.integers(2, 8))
    items = st.lists(st.integers(0, num_items - 1), min_size=1, max_size=num_items - 1)
    taken = data.draw(st.lists(items, min_size=1, max_size=4))
    popularity = np.array(data.draw(st.lists(st.integers(0, 4), min_size=num_items,
                                             max_size=num_items)))  # fmt: skip
    who = np.repeat(np.arange(len(taken)), [len(t) for t in taken])
    item = np.concatenate([np.array(t) for t in taken])
    excluded = Excluded(who, who, item)
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    group = popularity_groups(popularity, 3)
    for drawn in (
        uniform(excluded, num_items, random),
        popularity_matched(excluded, item, popularity, random, num_groups=3, exhausted="nearest"),
    ):
        assert all(d not in taken[w] for w, d in zip(who, drawn, strict=True))
    for w, p, d in zip(who, item, drawn, strict=True):  # of the matched
        left = {group[i] for i in range(num_items) if i not in taken[w]}
        nearest = min(left, key=lambda g: (abs(g - group[p]), g))
        assert group[d] == nearest


def test_draws_have_the_stated_probabilities() -> None:
    """Against the definition: what is left of a decile, in proportion to popularity."""
    popularity = np.array([4, 0, 3, 3, 2, 0, 9, 7])
    taken = np.array([0, 6, 5])
    rows = np.zeros(30_000, dtype=np.int64)
    excluded = Excluded(rows, np.zeros(3, dtype=np.int64), taken)
    drawn = uniform(excluded, 8, np.random.default_rng(0))
    share = np.bincount(drawn, minlength=8) / len(drawn)
    assert share == pytest.approx([0, 0.2, 0.2, 0.2, 0.2, 0, 0, 0.2], abs=0.01)
    # one group above zero: items 2, 3, 4 and 7 are left of it
    matched = popularity_matched(
        excluded, np.full_like(rows, 6), popularity, np.random.default_rng(0), num_groups=1
    )
    share = np.bincount(matched, minlength=8) / len(matched)
    assert share == pytest.approx(np.array([0, 0, 3, 3, 2, 0, 0, 7]) / 15, abs=0.01)


def _misfit(drawn: np.ndarray, positive: np.ndarray, popularity: np.ndarray) -> float:
    """Chi-square per decile between the deciles of negatives and of positives."""
    group = popularity_groups(popularity)
    expected = np.bincount(group[positive], minlength=group.max() + 1).astype(float)
    found = np.bincount(group[drawn], minlength=len(expected))
    kept = expected > 0
    return float(np.mean((found[kept] - expected[kept]) ** 2 / expected[kept]))


def _above(positive: np.ndarray, drawn: np.ndarray, popularity: np.ndarray) -> float:
    """The AUC of popularity, from its definition."""
    return float(np.mean(np.sign(popularity[positive][:, None] - popularity[drawn]) / 2 + 0.5))


def test_matched_negatives_are_as_popular_as_positives_and_uniform_ones_are_not() -> None:
    user, item, popularity = world(num_users=400, num_items=300, each=8)
    excluded = Excluded(user, user, item)
    matched = popularity_matched(
        excluded, item, popularity, np.random.default_rng(1), exhausted="nearest"
    )
    even = uniform(excluded, 300, np.random.default_rng(1))
    assert _misfit(matched, item, popularity) < 1.0
    assert _misfit(even, item, popularity) > 30.0
    assert abs(_above(item, matched, popularity) - 0.5) < 0.03
    assert _above(item, even, popularity) > 0.75


def test_the_same_seed_gives_the_same_draws_and_another_does_not() -> None:
    user, item, popularity = world()
    excluded = Excluded(user, user, item)

    def both(seed: int) -> list[list[int]]:
        random = np.random.default_rng(seed)
        matched = popularity_matched(excluded, item, popularity, random, exhausted="nearest")
        return [matched.tolist(), uniform(excluded, 200, random).tolist()]

    assert both(3) == both(3)
    assert all(a != b for a, b in zip(both(3), both(4), strict=True))


def test_seen_items_may_be_drawn_where_only_the_positive_is_excluded() -> None:
    user, item, _ = world(num_items=40)
    drawn = uniform(Excluded.positives(item), 40, np.random.default_rng(0))
    assert not (drawn == item).any()
    seen = {*zip(user.tolist(), item.tolist(), strict=True)}
    share = np.mean([(u, d) in seen for u, d in zip(user.tolist(), drawn.tolist(), strict=True)])
    assert share == pytest.approx(29 / 39, abs=0.05)


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 10))
def test_groups_follow_popularity_and_never_part_equals(popularity, num_groups) -> None:
    counts = np.array(popularity)
    group = popularity_groups(counts, num_groups)
    assert len(np.unique(group)) == group.max() + 1 <= num_groups + 1
    for a in range(len(counts)):
        assert all(group[a] <= group[counts >= counts[a]])
        assert (counts[group == group[a]] == 0).all() == (counts[a] == 0)


def test_groups_share_the_positives_evenly() -> None:
    counts = np.arange(1, 2001)
    group = popularity_groups(counts)
    shares = np.bincount(group, weights=counts) / counts.sum()
    assert shares == pytest.approx(np.full(10, 0.1), abs=0.001)
    with pytest.raises(ConfigError, match="use 10"):
        popularity_groups(counts, 0)


def test_a_user_who_has_everything_is_named() -> None:
    user = np.array([0, 1, 1, 1])
    excluded = Excluded(user, user, np.array([1, 0, 1, 2]))
    with pytest.raises(DataFormatError, match="no item is left") as caught:
        uniform(excluded, 3, np.random.default_rng(0))
    assert "row 1, user number 1" in caught.value.where
    assert "all items of the catalogue (3 such rows)" in caught.value.found
    assert "allow_seen" in caught.value.fix
    popularity = np.array([1, 1, 9, 0])
    with pytest.raises(DataFormatError, match="no item is left") as caught:
        popularity_matched(excluded, excluded.item, popularity, np.random.default_rng(0))
    assert "a decile" in caught.value.found
    assert "exhausted='nearest'" in caught.value.fix
    drawn = popularity_matched(
        excluded, excluded.item, popularity, np.random.default_rng(0), exhausted="nearest"
    )
    assert drawn.tolist() == [0, 3, 3, 3]
