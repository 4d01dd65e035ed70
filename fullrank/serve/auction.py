"""Auction: bids in integer micro-units of currency and probabilities become slots and prices.

A bid is what an advertiser pays at most for one event, such as a click. Its expected value is that
of a thousand impressions, `probability * bid * 1000`, in micro-units, rounded half to even. Bids
are ordered by that integer, ties by order of arrival, so that whoever reads a log can repeat every
decision with whole numbers. A float is an exact fraction, so nothing is lost on the way, and
Python's integers do not overflow.

The second price is that of the generalised auction (Edelman, Ostrovsky & Schwarz, 2007): each
winner pays the least bid that would still hold its slot. With one slot it pays to bid what an
event is worth; with several it need not. All slots are taken to be seen alike.
"""

from __future__ import annotations

import heapq
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fullrank.config import require, require_positive
from fullrank.errors import AuctionError

PER = 1000  # impressions, that an expected value is told for


@dataclass(frozen=True, kw_only=True)
class AuctionRules:
    """How bids become prices.

    Args:
        pricing: "second": the least bid that still holds the slot; "first": the bid itself.
        slots: how many bids win at most.
        reserve_micros: least expected value of a thousand impressions that may win.

    Raises:
        ConfigError: there is no slot, or the reserve is negative.
    """

    pricing: Literal["second", "first"] = "second"
    slots: int = 1
    reserve_micros: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "slots")
        require(
            self.reserve_micros >= 0,
            where="AuctionRules.reserve_micros",
            found=self.reserve_micros,
            expected="0 or more",
            fix="use 0 for no reserve",
        )


@dataclass(frozen=True, slots=True)
class Award:
    """A slot and what it costs.

    Args:
        candidate: place of the bid in the order of arrival, from 0.
        bid_micros: what was bid for one event.
        price_micros: what is paid for one event; never above the bid.
        value_micros: expected value of a thousand impressions at the bid.
        charge_micros: the same at the price; never below the reserve.
    """

    candidate: int
    bid_micros: int
    price_micros: int
    value_micros: int
    charge_micros: int


def run_auction(
    bids_micros: Sequence[int], probabilities: Sequence[float], rules: AuctionRules
) -> list[Award]:
    """Gives the slots to the bids of highest expected value.

    Args:
        bids_micros: [B] in order of arrival; integers, 0 or more.
        probabilities: [B] calibrated, of the event that is paid for.
        rules: prices, slots and reserve.

    Returns:
        At most `rules.slots` awards, best slot first; none if no bid reaches the reserve.

    Raises:
        AuctionError: a bid is no whole number of micro-units, a probability lies outside [0, 1],
            or there are not as many of one as of the other.

    Example:
        >>> [award] = run_auction([500_000, 400_000], [0.02, 0.03], AuctionRules())
        >>> award.candidate, award.price_micros, award.value_micros
        (1, 333334, 12000000)
    """
    if len(bids_micros) != len(probabilities):
        raise _refused(
            "bids and probabilities do not belong together",
            "auction",
            f"{len(bids_micros)} bids and {len(probabilities)} probabilities",
            "one probability for each bid",
        )
    bids = [_whole(bid, i) for i, bid in enumerate(bids_micros)]
    chances = [_fraction(p, i) for i, p in enumerate(probabilities)]
    values = [_expected(bid, chance) for bid, chance in zip(bids, chances, strict=True)]
    eligible = (i for i, value in enumerate(values) if value >= rules.reserve_micros)
    # One more than there are slots: the last winner's price is set by the first loser.
    order = heapq.nsmallest(rules.slots + 1, eligible, key=lambda i: (-values[i], i))
    awards = []
    for slot, i in enumerate(order[: rules.slots]):
        price = bids[i]
        if rules.pricing == "second":
            price = _least_bid(chances[i], _to_beat(i, order[slot + 1 :], values, rules))
        charge = _expected(price, chances[i])
        awards.append(Award(i, bids[i], price, values[i], charge))
    return awards


def expected_value(bid_micros: int, probability: float) -> int:
    """Returns the expected value of a thousand impressions, in micro-units of currency.

    Args:
        bid_micros: for one event; an integer, 0 or more.
        probability: of the event.

    Raises:
        AuctionError: the bid is no whole number, or the probability lies outside [0, 1].
    """
    return _expected(_whole(bid_micros, 0), _fraction(probability, 0))


def _to_beat(winner: int, worse: list[int], values: list[int], rules: AuctionRules) -> int:
    """Returns the least expected value that still holds a slot."""
    if not worse:
        return rules.reserve_micros
    following = worse[0]
    tie_lost = following < winner  # who arrives first wins a tie
    return values[following] + tie_lost  # which reaches the reserve, or it would not be here


def _expected(bid: int, chance: tuple[int, int]) -> int:
    numerator, denominator = chance
    whole, rest = divmod(PER * bid * numerator, denominator)
    # Half to even: up if above a half, or at a half and odd.
    return whole + (2 * rest + whole % 2 > denominator)


def _least_bid(chance: tuple[int, int], value: int) -> int:
    """Returns the least bid whose expected value, rounded, reaches `value`."""
    if value == 0:
        return 0
    numerator, denominator = chance
    # A bid reaches the value from half a unit below it on; at the half itself, if it is even.
    bid, rest = divmod((2 * value - 1) * denominator, 2 * PER * numerator)
    return bid + (rest > 0 or value % 2 == 1)


def _whole(bid: int, place: int) -> int:
    # trap: numpy's integers wrap around; operator.index makes them Python's, and refuses floats.
    try:
        whole = operator.index(bid)
    except TypeError:
        whole = None
    if whole is None or whole < 0 or isinstance(bid, bool):
        raise _refused(
            "a bid cannot be used",
            f"bid {place}, counted from 0",
            "a negative number" if whole and whole < 0 else f"a {type(bid).__name__}",
            "an integer, 0 or more, in millionths of the currency's unit",
        )
    return whole


def _fraction(probability: float, place: int) -> tuple[int, int]:
    if not 0.0 <= probability <= 1.0:  # NaN is not
        raise _refused(
            "a probability cannot be used",
            f"probability {place}, counted from 0",
            "a number below 0" if probability < 0 else "a number above 1, or none",
            "a number from 0 to 1",
        )
    return float(probability).as_integer_ratio()


def _refused(what: str, where: str, found: str, expected: str) -> AuctionError:
    return AuctionError(
        what, where=where, found=found, expected=expected, fix="correct the request"
    )
