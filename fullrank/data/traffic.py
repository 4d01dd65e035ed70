"""Traffic of a simulated world: requests, slates, clicks, delayed conversions, histories, ads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fullrank.data.truth import Floats, Impressions, Ints, Truth, draw
from fullrank.data.world import DEVICES, HIDDEN_DIM, PLACEMENTS, START

EVENTS = 2**22  # past events that are laid out at a time


def windows(truth: Truth) -> Iterator[tuple[pa.Table, pa.Table, int]]:
    """Draws a log, one refresh interval at a time.

    Args:
        truth: the world.

    Yields:
        Rows of the log in order of time, the same rows' true probabilities, and the number of
        impressions served, which is larger where negatives are dropped.
    """
    w = truth.world
    past = Diary(truth) if truth.habits is not None else Past(truth)
    length = max(1, round(w.refresh_hours * 3600))
    edges = np.append(np.arange(0, round(w.days * 86400), length), round(w.days * 86400))
    # Traffic follows the day: half as many requests at night as the mean.
    weight = np.diff(edges) * (1 - 0.5 * np.cos(2 * np.pi * (edges[:-1] + edges[1:]) / 172_800))
    requests = -(-w.num_rows // w.slots)
    counts = w.stream("traffic").multinomial(requests, weight / weight.sum())
    cumulative = np.cumsum(truth.user_share), np.cumsum(truth.ad_share)
    first_request = 0
    for number, count in enumerate(counts):
        if count == 0:
            continue
        rng = w.stream("window", number)
        bounds = START + int(edges[number]), START + int(edges[number + 1])
        x = _served(truth, rng, bounds, int(count), cumulative, past)
        served = min(len(x.user), w.num_rows - first_request * w.slots)
        if served < len(x.user):
            x = Impressions(**{name: value[:served] for name, value in vars(x).items()})
        outcome = _outcome(truth, rng, x)
        impression = first_request * w.slots + np.arange(served)
        for part in _parts(served, past.length):
            tables = _tables(
                truth,
                Impressions(**{name: value[part] for name, value in vars(x).items()}),
                {name: value[part] for name, value in outcome.items()},
                past,
                impression[part],
            )
            yield *tables, part.stop - part.start
        clicked = outcome["click"] == 1
        past.add(x.user[clicked], x.ad[clicked], x.time[clicked])
        first_request += int(count)


def _served(
    truth: Truth,
    rng: np.random.Generator,
    bounds: tuple[int, int],
    requests: int,
    cumulative: tuple[Floats, Floats],
    past: Past,
) -> Impressions:
    """Draws the requests of one interval and fills their slots with ads."""
    w, n = truth.world, requests * truth.world.slots

    def slots(x: Ints) -> Ints:
        return np.repeat(x, w.slots, axis=0)

    user = slots(draw(rng, cumulative[0], requests))
    ad = draw(rng, cumulative[1], n)
    time = slots(np.sort(rng.integers(*bounds, requests)))
    if truth.habits is not None:
        ad = truth.habits.served(rng, user, (time - START) // 86400)
    return Impressions(
        time=time,
        user=user,
        ad=ad,
        device=slots(rng.integers(0, len(DEVICES), requests)),
        placement=slots(rng.integers(0, len(PLACEMENTS), requests)),
        position=np.tile(np.arange(w.slots), requests),
        contexts=slots(rng.integers(0, w.context_size, (requests, w.num_contexts))),
        partner=slots(rng.integers(0, w.partner_size, requests)),
        match=past.match(user, truth.ad_category[ad], time),
    )


def _outcome(truth: Truth, rng: np.random.Generator, x: Impressions) -> dict[str, Any]:
    """Draws clicks, conversions and their delays from the true probabilities."""
    w, n = truth.world, len(x.user)
    p_click, p_conversion = truth.click_probability(x), truth.conversion_probability(x)
    click = rng.random(n) < p_click
    ever = rng.random(n) < p_conversion / w.share_in_window()
    delay = rng.exponential(1.0, n) * w.mean_delay_hours * 3600.0  # seconds
    converts = click & ever & (delay <= w.window_hours * 3600.0)
    at = x.time + delay.astype(np.int64)
    end = START + round((w.days * 24 + w.follow_up_hours) * 3600)
    kept = click | (rng.random(n) >= w.negatives_dropped)
    return {
        "click": click.astype(np.int8),
        "converts": converts.astype(np.int8),
        "conversion": (converts & (at <= end)).astype(np.int8),  # as far as the log knows
        "conversion_time": at,
        "conversion_observed": click & (x.time + round(w.window_hours * 3600) <= end),
        "weight": np.where(click, 1.0, 1.0 / (1.0 - w.negatives_dropped)).astype(np.float32),
        "kept": kept,
        "p_click": p_click,
        "p_conversion": p_conversion,
    }


def _tables(
    truth: Truth, x: Impressions, outcome: dict[str, Any], past: Past, impression: Ints
) -> tuple[pa.Table, pa.Table]:
    keep = np.flatnonzero(outcome["kept"])
    user, ad = x.user[keep], x.ad[keep]
    o = {name: value[keep] for name, value in outcome.items()}
    history_ad, history_category, history_time = past.lists(user, x.time[keep])
    log = {
        "impression": impression[keep],
        "request": impression[keep] // truth.world.slots,
        "time": x.time[keep],
        "user": user.astype(np.int32),
        "age": truth.age[user].astype(np.int32),
        "ad": ad.astype(np.int32),
        "campaign": truth.ad_campaign[ad].astype(np.int32),
        "advertiser": truth.ad_advertiser[ad].astype(np.int32),
        "category": truth.ad_category[ad].astype(np.int32),
        "bid": truth.bid[ad],
        "device": pa.array(DEVICES).take(pa.array(x.device[keep])),
        "placement": pa.array(PLACEMENTS).take(pa.array(x.placement[keep])),
        "position": (x.position[keep] + 1).astype(np.int32),
        "hour": x.hour()[keep].astype(np.int32),
        **{f"context_{i}": c.astype(np.int32) for i, c in enumerate(x.contexts[keep].T)},
        "partner": x.partner[keep].astype(np.int32),
        "history_ad": history_ad,
        "history_category": history_category,
        "history_time": history_time,
        "weight": o["weight"],
        "click": o["click"],
        "conversion": o["conversion"],
        "conversion_time": pa.array(o["conversion_time"], mask=o["conversion"] == 0),
        "conversion_observed": o["conversion_observed"],
    }
    hidden = {name: o[name] for name in ("p_click", "p_conversion", "converts")}
    return pa.table(log), pa.table({"impression": impression[keep], **hidden})


class Past:
    """The newest clicks of every user; memory is 12 bytes per user and event.

    Before the log each user has clicked a number of ads, seven in ten from one favourite
    category: a past that differs from user to user.
    """

    def __init__(self, truth: Truth) -> None:
        w, rng = truth.world, truth.world.stream("past")
        self.length, self.category = w.history_length, truth.ad_category.astype(np.int32)
        shape = (w.num_users, self.length)
        self.count = rng.integers(0, self.length + 1, w.num_users)
        any_ad = draw(rng, np.cumsum(truth.ad_share), w.num_users * self.length)
        order = np.argsort(truth.ad_category, kind="stable")
        size = np.bincount(truth.ad_category, minlength=w.num_categories)
        first = np.cumsum(size) - size
        like = np.repeat(truth.favourite, self.length)  # a category that has no ad gets any ad
        place = first[like] + (rng.random(len(like)) * size[like]).astype(np.int64)
        chosen = (rng.random(len(like)) < 0.7) & (size[like] > 0)
        own = order[np.minimum(place, len(order) - 1)]
        self.ad = np.where(chosen, own, any_ad).astype(np.int32).reshape(shape)
        ago = np.sort(rng.integers(1, 30 * 86400, shape), axis=1)[:, ::-1]
        self.time = START - ago  # oldest first; the newest `count` of each row are real

    def match(self, user: Ints, category: Ints, time: Ints) -> Floats:
        """Returns the share of each user's events that are in a category, NaN without events."""
        shares = np.full(len(user), np.nan)
        for part in _parts(len(user), self.length):
            ad, _, real = self._events(user[part], time[part])
            hits = ((self.category[ad] == category[part, None]) & real).sum(1)
            count = real.sum(1)
            np.divide(hits, count, out=shares[part], where=count > 0)
        return shares

    def lists(self, user: Ints, time: Ints) -> tuple[pa.Array, pa.Array, pa.Array]:
        """Returns ads, categories and times of the past events of each row."""
        ad, at, real = self._events(user, time)
        offsets = pa.array(np.append(0, np.cumsum(real.sum(1))).astype(np.int32))
        ads = ad[real]
        columns = (ads, self.category[ads], at[real])
        lists = (pa.ListArray.from_arrays(offsets, pa.array(c)) for c in columns)
        history_ad, history_category, history_time = lists
        return history_ad, history_category, history_time

    def _events(self, user: Ints, time: Ints) -> tuple[NDArray[np.int32], Ints, NDArray[np.bool_]]:
        """Returns ads and times [n, L] of the events before `time`, and which of them are real."""
        real = np.arange(self.length) >= self.length - self.count[user][:, None]
        return self.ad[user], self.time[user], real

    def add(self, user: Ints, ad: Ints, time: Ints) -> None:
        """Appends clicks, given in order of time."""
        if self.length == 0 or len(user) == 0:
            return
        order = np.argsort(user, kind="stable")
        touched, begin, new = np.unique(user[order], return_index=True, return_counts=True)
        end = np.repeat(begin + new, new)
        from_newest = end - 1 - np.arange(len(order))  # 0 for the newest click of a user
        place = self.length - 1 - from_newest
        kept = place >= 0
        source = np.minimum(np.arange(self.length) + new[:, None], self.length - 1)
        for ring, value in ((self.ad, ad), (self.time, time)):
            ring[touched] = np.take_along_axis(ring[touched], source, axis=1)
            ring[user[order][kept], place[kept]] = value[order][kept]
        self.count[touched] = np.minimum(self.count[touched] + new, self.length)


class Diary(Past):
    """One event a day of every user, whatever is clicked; see `fullrank.data.habits`."""

    def __init__(self, truth: Truth) -> None:
        assert truth.habits is not None
        w = truth.world
        self.length, self.category = w.history_length, truth.ad_category.astype(np.int32)
        self.ad = truth.habits.diary().astype(np.int32)  # [U, L + days]
        second = w.stream("diary times").integers(0, 86400, self.ad.shape)
        self.time = START + (np.arange(self.ad.shape[1]) - self.length) * 86400 + second

    def _events(self, user: Ints, time: Ints) -> tuple[NDArray[np.int32], Ints, NDArray[np.bool_]]:
        day = (time - START) // 86400
        at = day[:, None] + np.arange(self.length)  # the day before the impression comes last
        real = np.ones(at.shape, dtype=np.bool_)
        return self.ad[user[:, None], at], self.time[user[:, None], at], real

    def add(self, user: Ints, ad: Ints, time: Ints) -> None:
        """Leaves the diary as it is: a click would shift what the order tells."""


def _parts(rows: int, length: int) -> Iterator[slice]:
    """Yields stretches of rows that have EVENTS past events or fewer."""
    step = max(1, EVENTS // max(1, length))
    for begin in range(0, rows, step):
        yield slice(begin, min(begin + step, rows))


def ads(truth: Truth) -> pa.Table:
    """Returns one row per ad, with a title of words that mostly belong to its topic."""
    w, rng = truth.world, truth.world.stream("text")
    num_words, of_topic, common = 8, 12, 40
    vocabulary = _words(rng, w.num_categories * of_topic + common)
    topical = truth.ad_category[:, None] * of_topic + rng.integers(
        0, of_topic, (w.num_ads, num_words)
    )
    empty = w.num_categories * of_topic + rng.integers(0, common, (w.num_ads, num_words))
    number = np.where(rng.random((w.num_ads, num_words)) < w.text_noise, empty, topical)
    words = vocabulary[number]  # [A, num_words]
    noise = w.vector_noise * w.stream("vectors").normal(size=truth.ad_hidden.shape)
    vector = pa.array((truth.ad_hidden + noise).astype(np.float32).ravel())
    offsets = pa.array(np.arange(w.num_ads + 1, dtype=np.int32) * HIDDEN_DIM)
    return pa.table(
        {
            "ad": np.arange(w.num_ads, dtype=np.int32),
            "title": [" ".join(row) for row in words],
            "keywords": [list(dict.fromkeys(row))[:4] for row in words.tolist()],
            "ad_vector": pa.ListArray.from_arrays(offsets, vector),
        }
    )


def _words(rng: np.random.Generator, n: int) -> NDArray[np.str_]:
    """Returns n distinct words that can be pronounced."""
    letters = np.array(list("bdfgklmnprstvz")), np.array(list("aeiou"))
    syllables = np.array([c + v for c in letters[0] for v in letters[1]])  # 70 of them
    length = max(2, int(np.ceil(np.log(2 * n) / np.log(len(syllables)))))
    number = rng.choice(len(syllables) ** length, n, replace=False)
    word = np.full(n, "", dtype=f"<U{2 * length}")
    for _ in range(length):
        word = np.char.add(word, syllables[number % len(syllables)])
        number = number // len(syllables)
    return word
