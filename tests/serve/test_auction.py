"""Auctions against a twin that tries every bid, with fractions and loops."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullrank.errors import AuctionError, ConfigError
from fullrank.serve.auction import AuctionRules, Award, expected_value, run_auction

# Few different values, so that ties and halves are common.
COARSE = st.sampled_from([0.0, 0.0005, 0.001, 1 / 16, 3 / 16, 0.125, 0.25, 1.0])
BIDS = st.lists(st.tuples(st.integers(0, 12), COARSE), max_size=6)
ANY = st.lists(st.tuples(st.integers(0, 10**7), st.floats(0.0, 1.0)), max_size=8)


def twin_value(bid: int, probability: float) -> int:
    return round(Fraction(probability) * bid * 1000)  # of a Fraction: exact, half to even


def twin_slots(bids: list[tuple[int, float]], slots: int, reserve: int) -> list[int]:
    """Fills slot after slot with the best of those left."""
    left = [i for i, bid in enumerate(bids) if twin_value(*bid) >= reserve]
    won: list[int] = []
    while left and len(won) < slots:
        best = left[0]
        for i in left:
            if twin_value(*bids[i]) > twin_value(*bids[best]):
                best = i
        won.append(best)
        left.remove(best)
    return won


def twin_price(bids: list[tuple[int, float]], place: int, slots: int, reserve: int) -> int:
    """Bids 0, 1, 2, ... instead, until the slot of the true bid is held."""
    slot = twin_slots(bids, slots, reserve).index(place)
    for bid in range(bids[place][0] + 1):
        tried = [(bid, p) if i == place else (b, p) for i, (b, p) in enumerate(bids)]
        won = twin_slots(tried, slots, reserve)
        if place in won and won.index(place) == slot:
            return bid
    raise AssertionError("the true bid holds its own slot")


def auction(bids: list[tuple[int, float]], **rules: object) -> list[Award]:
    return run_auction([b for b, _ in bids], [p for _, p in bids], AuctionRules(**rules))  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(BIDS, st.integers(1, 4), st.integers(0, 2500))
def test_second_price_is_the_least_bid_that_holds_the_slot(
    bids: list[tuple[int, float]], slots: int, reserve: int
) -> None:
    awards = auction(bids, slots=slots, reserve_micros=reserve)
    assert [a.candidate for a in awards] == twin_slots(bids, slots, reserve)
    for a in awards:
        assert a.price_micros == twin_price(bids, a.candidate, slots, reserve)


@settings(max_examples=200, deadline=None)
@given(ANY, st.integers(1, 3), st.integers(0, 10**9))
def test_nobody_pays_more_than_it_bid_nor_less_than_the_reserve(
    bids: list[tuple[int, float]], slots: int, reserve: int
) -> None:
    rules = {"slots": slots, "reserve_micros": reserve}
    second, first = auction(bids, **rules), auction(bids, pricing="first", **rules)
    assert [a.candidate for a in second] == [a.candidate for a in first]
    values = [a.value_micros for a in second]
    assert values == sorted(values, reverse=True)
    for a, b in zip(second, first, strict=True):
        bid, p = bids[a.candidate]
        assert 0 <= a.price_micros <= bid == a.bid_micros == b.price_micros
        assert reserve <= a.charge_micros == twin_value(a.price_micros, p) <= a.value_micros
        assert a.value_micros == b.charge_micros == twin_value(bid, p)


@settings(max_examples=200, deadline=None)
@given(BIDS.filter(bool), st.integers(0, 20), st.integers(0, 2500))
def test_with_one_slot_it_pays_to_bid_what_an_event_is_worth(
    bids: list[tuple[int, float]], other: int, reserve: int
) -> None:
    worth, p = bids[0]

    def gain(bid: int) -> Fraction:
        won = auction([(bid, p), *bids[1:]], reserve_micros=reserve)
        paid = [a.price_micros for a in won if a.candidate == 0]
        return Fraction(p) * (worth - paid[0]) if paid else Fraction(0)

    assert gain(worth) >= gain(other)


def test_with_two_slots_it_can_pay_to_bid_less() -> None:
    """The generalised second price is not truthful, and nobody should think that ours is."""
    honest = auction([(10, 1.0), (9, 1.0), (1, 1.0)], slots=2)
    shaded = auction([(8, 1.0), (9, 1.0), (1, 1.0)], slots=2)
    paid = [next(a.price_micros for a in won if a.candidate == 0) for won in (honest, shaded)]
    assert paid[0] > paid[1]


def test_who_arrives_first_wins_a_tie_and_the_other_would_have_to_pay_more() -> None:
    assert [a.candidate for a in auction([(4, 0.5), (2, 1.0), (4, 0.5)], slots=2)] == [0, 1]
    [only] = auction([(5, 0.5), (5, 0.5)])
    assert (only.candidate, only.price_micros) == (0, 5)
    [later] = auction([(4, 1.0), (9, 1.0)])  # the tie at 4 would go to the other
    assert (later.candidate, later.price_micros) == (1, 5)


def test_whole_numbers_of_any_size_lose_nothing() -> None:
    huge = 10**40
    [award] = auction([(huge + 1, 1.0), (huge, 1.0)])
    assert (award.candidate, award.value_micros) == (0, 1000 * (huge + 1))
    assert award.price_micros == huge
    numpy_bids = np.array([2**62, 2**62 - 1])  # times a thousand, these wrap around
    [award] = run_auction(list(numpy_bids), [1.0, 1.0], AuctionRules())
    assert award.value_micros == 1000 * 2**62
    assert type(award.bid_micros) is int


def test_the_smallest_probabilities_and_none_at_all() -> None:
    assert auction([]) == []
    [award] = auction([(1, 5e-324)])
    assert (award.value_micros, award.price_micros) == (0, 0)
    assert auction([(10**9, 0.0)], reserve_micros=1) == []
    assert [a.candidate for a in auction([(0, 0.5)])] == [0]  # no reserve: a bid of 0 is a bid


@pytest.mark.parametrize(("bid", "value"), [(1, 62), (3, 188), (5, 312), (7, 438)])
def test_halves_go_to_the_even_side(bid: int, value: int) -> None:
    assert Fraction(1, 16) * bid * 1000 in (value + Fraction(1, 2), value - Fraction(1, 2))
    assert expected_value(bid, 1 / 16) == value


@pytest.mark.parametrize("bid", [-1, 1.5, 2.0, True, "3", None, -(10**400)])
def test_bids_that_are_no_whole_number_are_refused(bid: object) -> None:
    with pytest.raises(AuctionError, match="a bid cannot be used") as error:
        run_auction([1, bid], [0.5, 0.5], AuctionRules())  # type: ignore[list-item]
    assert error.value.where == "bid 1, counted from 0"


@pytest.mark.parametrize("p", [-0.1, 1.0000001, float("nan"), float("inf"), 10**400])
def test_probabilities_outside_the_interval_are_refused(p: float) -> None:
    with pytest.raises(AuctionError, match="a probability cannot be used"):
        expected_value(1, p)


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(AuctionError, match="do not belong together"):
        run_auction([1], [], AuctionRules())


def test_rules_without_a_slot_or_with_a_negative_reserve_are_refused() -> None:
    with pytest.raises(ConfigError, match="slots"):
        AuctionRules(slots=0)
    with pytest.raises(ConfigError, match="reserve_micros"):
        AuctionRules(reserve_micros=-1)
