"""The dials of a simulated ad log."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from fullrank.config import require, require_between, require_positive, to_dict

START = 1_704_067_200  # 2024-01-01T00:00:00Z, unix seconds
DEVICES = ("desktop", "phone", "tablet", "tv")
PLACEMENTS = ("banner", "feed", "search", "sidebar", "story")
HIDDEN_DIM = 8  # width of a taste, and of an item vector
ROUNDS = {"weekly": (7, 7), "monthly": (30, 5)}  # days of a round, categories in it
# Dials that are younger than logs which lie on disks: see World.plain.
_YOUNGER = ("weekly", "monthly", "habit_noise", "context_taste", "context_history")


@dataclass(frozen=True, kw_only=True)
class World:
    """The dials of a simulated ad log. Setting the dial of an effect to 0 removes the effect.

    A strength is the deviation, in logits, of what the effect adds to a click.

    Args:
        num_rows: impressions served; the log is shorter where negatives are dropped.
        num_users: users.
        num_ads: ads; five of them make a campaign, four campaigns make an advertiser.
        num_categories: topics of ads.
        slots: ads per request, and so values of `position`.
        days: from the first to the last request.
        seed: of everything that is drawn.
        click_rate: mean probability of a click, from which the intercept follows.
        main: strength of main effects (user, ad, device, hour, placement, context, age, bid).
        taste: strength of the inner product of hidden user and ad vectors.
        cross: strength of the planted second-order cross, placement x category.
        position_bias: logits lost per unit of log(position).
        history_relevance: logits between a past wholly in the ad's category and one without it.
        history_length: newest clicks that are kept; 0 leaves histories empty.
        refresh_hours: histories are brought up to date this often, and so look back at least
            to the last full interval.
        partner: strength of interactions with the field `partner`. With few values of it, what
            the fields of `low_rank_fields` can learn from it has rank `partner_size` - 1 at most;
            dominating all other effects, it makes their embeddings collapse.
        partner_size: values of the field `partner`.
        low_rank_fields: the fields that interact with `partner`.
        drift: logits that the appeal of categories moves from the first day to the last.
        popularity_skew: exponent of the Zipf law of ads; 0 draws them equally often.
        activity_skew: the same for users.
        num_contexts: further fields of low cardinality, `context_0` and so on.
        context_size: values of each of them.
        vector_noise: deviation of the noise in item vectors, whose signal has deviation 1.
        text_noise: share of the words of a title that say nothing about its topic.
        conversion_rate: mean probability of a conversion after a click; 0 removes conversions.
        mean_delay_hours: mean of the exponential delay between click and conversion.
        window_hours: a conversion later than this after its click does not count.
        follow_up_hours: time between the last request and the end of the log.
        negatives_dropped: share of impressions without click that the log leaves out; the others
            get weight 1 / (1 - share).
        weekly: strength of a habit with a round of 7 days, see `fullrank.data.habits`. With a
            habit, the past is a diary of one event a day instead of clicks, and ads come from the
            categories of the user's habits, half of them on their day: a click on one of these
            gains the strength, on another loses it.
        monthly: the same with a round of 30 days; with both, each has half of the days and slots.
        habit_noise: share of the diary that follows no habit; at 1 no habit has an effect.
        context_taste: strength of products between the fields `context_0` and so on and the ad's
            category.
        context_history: as `history_relevance`, times a factor of mean 0 and deviation 1 that
            these fields decide: a product of static fields with behaviour.

    Raises:
        ConfigError: a dial has an impossible value.
    """

    num_rows: int = 200_000
    num_users: int = 5_000
    num_ads: int = 1_000
    num_categories: int = 20
    slots: int = 4
    days: float = 10.0
    seed: int = 0
    click_rate: float = 0.2
    main: float = 0.5
    taste: float = 1.0
    cross: float = 0.7
    position_bias: float = 0.5
    history_relevance: float = 2.0
    history_length: int = 20
    refresh_hours: float = 1.0
    partner: float = 0.0
    partner_size: int = 4
    low_rank_fields: tuple[Literal["user", "ad", "campaign", "advertiser"], ...] = ("user", "ad")
    drift: float = 0.2
    popularity_skew: float = 0.8
    activity_skew: float = 0.3
    num_contexts: int = 2
    context_size: int = 8
    vector_noise: float = 0.5
    text_noise: float = 0.4
    conversion_rate: float = 0.15
    mean_delay_hours: float = 6.0
    window_hours: float = 24.0
    follow_up_hours: float = 12.0
    negatives_dropped: float = 0.0
    weekly: float = 0.0
    monthly: float = 0.0
    habit_noise: float = 0.3
    context_taste: float = 0.0
    context_history: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "num_rows", "slots", "days", "refresh_hours", "window_hours")
        for name in ("num_users", "num_ads", "num_categories", "partner_size", "context_size"):
            require_between(self, 2, 2**31 - 1, name)
        require_between(self, 0, 1000, "history_length", "num_contexts")
        require_between(self, 0, 2**63 - 1, "seed")
        require_between(self, 0.001, 0.999, "click_rate")
        require_between(self, 0.0, 0.999, "negatives_dropped")
        require_between(self, 0.0, 1.0, "text_noise", "habit_noise")
        require_between(self, 0.0, 1e6, "mean_delay_hours", "follow_up_hours", "vector_noise")
        require_between(self, 0.0, 5.0, "popularity_skew", "activity_skew")
        require_between(self, 0.0, 50.0, "main", "taste", "cross", "position_bias")
        require_between(self, 0.0, 50.0, "history_relevance", "partner", "drift")
        require_between(self, 0.0, 50.0, "weekly", "monthly", "context_taste", "context_history")
        require(
            0 <= self.conversion_rate < 0.99 * self.share_in_window(),
            where="World.conversion_rate",
            found=self.conversion_rate,
            expected=f"0 up to {0.99 * self.share_in_window():.3g}, the share of delays that end "
            "inside the window",
            fix="lower it, lower mean_delay_hours, or raise window_hours",
        )
        for name in ("context_taste", "context_history"):
            self._refuse_idle(name, self.num_contexts > 0, "num_contexts=2")
        self._refuse_idle("habit_noise", bool(self.habits()), "weekly=3.0")
        if self.habits():
            self._check_habits()

    def _refuse_idle(self, name: str, is_read: bool, fix: str) -> None:
        default = type(self).__dataclass_fields__[name].default
        require(
            is_read or getattr(self, name) == default,
            where=f"World.{name}",
            found=f"{getattr(self, name)}, which nothing reads",
            expected=f"{default}, or a world with {fix.split('=')[0]} above zero",
            fix=f"leave {name} out, or set {fix}",
        )

    def _check_habits(self) -> None:
        days = self.round_days()
        near = min(max(round(self.history_length / days), 1), 1000 // days) * days
        require(
            self.history_length % days == 0 < self.history_length,
            where="World.history_length",
            found=self.history_length,
            expected=f"whole rounds of the habits, {days} days: with a part of one, the past "
            "without its order would tell what comes next",
            fix=f"use {near}",
        )
        needed = sum(categories for _, categories in ROUNDS.values())
        topics = max(needed, min(self.num_categories, self.num_ads // 5))
        require(
            needed <= self.num_categories <= self.num_ads // 5,
            where="World.num_categories",
            found=f"{self.num_categories} with num_ads={self.num_ads}",
            expected=f"at least {needed} for the habits, and five ads for each",
            fix=f"use num_categories={topics} and num_ads={max(5 * topics, self.num_ads)}",
        )

    def habits(self) -> tuple[str, ...]:
        """Returns the habits that are on, of "weekly" and "monthly"."""
        return tuple(name for name in ROUNDS if getattr(self, name) > 0)

    def round_days(self) -> int:
        """Returns the days after which all habits that are on begin anew; 1 without any."""
        return math.lcm(*(ROUNDS[name][0] for name in self.habits()))

    def plain(self) -> dict[str, Any]:
        """Returns plain JSON types, for files and names of files; `from_dict` is the inverse.

        A dial that did not exist when the first logs were written is left out at its default, so
        that a log of old is still found as the log of the same world.
        """
        defaults = {f.name: f.default for f in fields(self)}
        whole: dict[str, Any] = to_dict(self)
        return {k: v for k, v in whole.items() if k not in _YOUNGER or v != defaults[k]}

    def share_in_window(self) -> float:
        """Returns the share of delays that are not longer than the window."""
        if self.mean_delay_hours == 0:
            return 1.0
        return float(-np.expm1(-self.window_hours / self.mean_delay_hours))

    def stream(self, name: str, number: int = 0) -> np.random.Generator:
        """Returns a random stream of its own, so that one dial does not shift another's draws."""
        key = np.random.SeedSequence(self.seed, spawn_key=(zlib.crc32(name.encode()), number))
        return np.random.Generator(np.random.PCG64(key))
