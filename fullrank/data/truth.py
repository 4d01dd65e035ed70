"""What is hidden behind a simulated ad log: its tables, and the true probabilities.

Every hidden table is centred under the frequencies of the world, so that an interaction carries
no main effect, and scaled to unit deviation, so that a dial is a deviation in logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fullrank.data.habits import Habits
from fullrank.data.world import DEVICES, HIDDEN_DIM, PLACEMENTS, ROUNDS, START, World

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Impressions:
    """What decides a click, as numbers counted from 0, n rows.

    Args:
        time: [n] unix seconds.
        user: [n].
        ad: [n].
        device: [n] place in DEVICES.
        placement: [n] place in PLACEMENTS.
        position: [n] slot, the topmost is 0.
        contexts: [n, num_contexts].
        partner: [n].
        match: [n] share of past events in the ad's category; NaN where there is no past.
    """

    time: Ints
    user: Ints
    ad: Ints
    device: Ints
    placement: Ints
    position: Ints
    contexts: Ints
    partner: Ints
    match: Floats

    def hour(self) -> Ints:
        """Returns the hour of the day, UTC, [n]."""
        return self.time // 3600 % 24

    def day(self) -> Ints:
        """Returns the day of the log, the first is 0, [n]."""
        return (self.time - START) // 86400


class Truth:
    """The hidden tables of a world, and the true probabilities that follow from them.

    Args:
        world: the dials.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._draw_ads()
        self._draw_users()
        self._draw_main_effects()
        self._draw_interactions()
        self._draw_context_products()
        self.habits = Habits(world, self.ad_category, self.ad_share) if world.habits() else None
        self.click_intercept = self.conversion_intercept = 0.0
        self._calibrate()

    def _draw_ads(self) -> None:
        w, rng = self.world, self.world.stream("ads")
        campaigns = max(2, w.num_ads // 5)
        advertisers = max(2, campaigns // 4)
        self.ad_share = rng.permutation(_zipf(w.num_ads, w.popularity_skew))
        self.ad_campaign = rng.permutation(np.arange(w.num_ads) % campaigns)
        campaign_advertiser = rng.permutation(np.arange(campaigns) % advertisers)
        campaign_category = rng.permutation(np.arange(campaigns) % w.num_categories)
        self.ad_advertiser = campaign_advertiser[self.ad_campaign]
        self.ad_category = campaign_category[self.ad_campaign]
        self.category_share = _shares(self.ad_category, self.ad_share, w.num_categories)
        self.bid = np.round(np.exp(rng.normal(0.0, 0.7, w.num_ads)), 3)
        topic = rng.normal(size=(w.num_categories, HIDDEN_DIM))
        own = rng.normal(size=(w.num_ads, HIDDEN_DIM))
        hidden = topic[self.ad_category] + 0.7 * own
        self.ad_hidden = _standard(hidden, self.ad_share)  # [A, D]

    def _draw_users(self) -> None:
        w, rng = self.world, self.world.stream("users")
        self.user_share = rng.permutation(_zipf(w.num_users, w.activity_skew))
        self.age = rng.integers(18, 75, w.num_users)
        self.favourite = rng.integers(0, w.num_categories, w.num_users)
        self.user_hidden = _standard(rng.normal(size=(w.num_users, HIDDEN_DIM)), self.user_share)

    def _draw_main_effects(self) -> None:
        """Draws tables of mean 0 and deviation 1; together they have deviation `main`."""
        w, rng = self.world, self.world.stream("main")

        def effect(share: Floats) -> Floats:
            return _standard(rng.normal(size=len(share)), share)

        flat = {n: np.full(n, 1.0 / n) for n in (len(DEVICES), len(PLACEMENTS), 24)}
        self.user_main, self.ad_main = effect(self.user_share), effect(self.ad_share)
        self.user_main = self.user_main + _standard(self.age.astype(float), self.user_share)
        self.ad_main = self.ad_main - _standard(np.log(self.bid), self.ad_share)
        self.device_main = effect(flat[len(DEVICES)])
        self.placement_main = effect(flat[len(PLACEMENTS)])
        self.hour_main = effect(flat[24])
        even = np.full(w.context_size, 1.0 / w.context_size)
        self.context_main = np.array([effect(even) for _ in range(w.num_contexts)])
        self.context_main = self.context_main.reshape(w.num_contexts, w.context_size)
        self.main_scale = w.main / np.sqrt(7 + w.num_contexts)
        self.user_conversion, self.ad_conversion = effect(self.user_share), effect(self.ad_share)

    def _draw_interactions(self) -> None:
        w, rng = self.world, self.world.stream("interactions")
        # E[(u . a)^2] for independent u and a of mean 0 is the sum of Cov(u) * Cov(a).
        covariance = [
            (x * share[:, None]).T @ x
            for x, share in (
                (self.user_hidden, self.user_share),
                (self.ad_hidden, self.ad_share),
            )
        ]
        self.taste_scale = 1.0 / np.sqrt(float((covariance[0] * covariance[1]).sum()))
        places = np.full(len(PLACEMENTS), 1.0 / len(PLACEMENTS))
        self.cross = _interaction(
            rng.normal(size=(len(PLACEMENTS), w.num_categories)), places, self.category_share
        )
        self.drift = _standard(rng.normal(size=w.num_categories), self.category_share)
        even = np.full(w.partner_size, 1.0 / w.partner_size)
        keys = {"ad": np.arange(w.num_ads), "campaign": self.ad_campaign}
        keys["advertiser"] = self.ad_advertiser
        self.ad_partner = np.zeros((w.num_ads, w.partner_size))
        self.user_partner = np.zeros((w.num_users, w.partner_size))
        for name in w.low_rank_fields:
            part = w.stream("partner " + name)
            if name == "user":
                table = part.normal(size=(w.num_users, w.partner_size))
                self.user_partner += _interaction(table, self.user_share, even)
            else:
                key = keys[name]
                share = _shares(key, self.ad_share, 0)
                table = part.normal(size=(len(share), w.partner_size))
                self.ad_partner += _interaction(table, share, even)[key]

    def _draw_context_products(self) -> None:
        """Draws [C, V, K] context x category and [C, V], each sum over C of deviation 1."""
        w = self.world
        even = np.full(w.context_size, 1.0 / w.context_size)
        scale = 1.0 / np.sqrt(max(1, w.num_contexts))
        rng, shape = w.stream("context taste"), (w.context_size, w.num_categories)
        tables = [
            scale * _interaction(rng.normal(size=shape), even, self.category_share)
            for _ in range(w.num_contexts if w.context_taste else 0)
        ]
        self.context_taste = np.array(tables).reshape(-1, *shape)
        rng = w.stream("context history")
        gates = [
            scale * _standard(rng.normal(size=w.context_size), even)
            for _ in range(w.num_contexts if w.context_history else 0)
        ]
        self.context_history = np.array(gates).reshape(-1, w.context_size)

    def click_terms(self, x: Impressions) -> dict[str, Floats]:
        """Returns what each effect adds to the logit of a click, [n] per dial."""
        w, category = self.world, self.ad_category[x.ad]
        main = self.user_main[x.user] + self.ad_main[x.ad] + self.device_main[x.device]
        main = main + self.placement_main[x.placement] + self.hour_main[x.hour()]
        for i, table in enumerate(self.context_main):
            main = main + table[x.contexts[:, i]]
        taste = self._taste(x)
        usual = self.category_share[category]  # the share that a past at random would have
        past = np.where(np.isnan(x.match), 0.0, x.match - usual)
        partner = self.user_partner[x.user, x.partner] + self.ad_partner[x.ad, x.partner]
        phase = (x.time - START) / (
            w.days * 86400.0
        ) - 0.5  # -0.5 on the first day, 0.5 on the last
        factor = np.zeros(len(past))
        for i, gate in enumerate(self.context_history):
            factor = factor + gate[x.contexts[:, i]]
        return {
            "main": self.main_scale * main,
            "taste": w.taste * taste,
            "cross": w.cross * self.cross[x.placement, category],
            "position_bias": -w.position_bias * np.log1p(x.position),
            "history_relevance": w.history_relevance * past,
            "partner": w.partner / np.sqrt(max(1, len(w.low_rank_fields))) * partner,
            "drift": w.drift * phase * self.drift[category],
            **self._habit_terms(x, category),
            "context_taste": w.context_taste * self._context_taste(x, category),
            "context_history": w.context_history * factor * past,
        }

    def _habit_terms(self, x: Impressions, category: Ints) -> dict[str, Floats]:
        if self.habits is None:
            return {name: np.zeros(len(category)) for name in ROUNDS}
        seen = float(self.world.habit_noise < 1)
        signs = self.habits.signs(x.user, category, x.day())
        return {name: seen * getattr(self.world, name) * sign for name, sign in signs.items()}

    def _context_taste(self, x: Impressions, category: Ints) -> Floats:
        total = np.zeros(len(category))
        for i, table in enumerate(self.context_taste):
            total += table[x.contexts[:, i], category]
        return total

    def _taste(self, x: Impressions) -> Floats:
        product = np.einsum("nd,nd->n", self.user_hidden[x.user], self.ad_hidden[x.ad])
        return np.asarray(self.taste_scale * product)

    def click_probability(self, x: Impressions) -> Floats:
        """Returns the true probability of a click for each row, [n]."""
        return sigmoid(self._click_logit(x) + self.click_intercept)

    def _click_logit(self, x: Impressions) -> Floats:
        # One by one in this order: a term of zeros then leaves the last bit as it was.
        return np.asarray(sum(self.click_terms(x).values()))

    def conversion_probability(self, x: Impressions) -> Floats:
        """Returns the true probability that a click converts inside the window, [n].

        Conversions have main effects of their own and share half of the taste.
        """
        if self.world.conversion_rate == 0:
            return np.zeros(len(x.user))
        return self.world.share_in_window() * sigmoid(
            self._conversion_terms(x) + self.conversion_intercept
        )

    def _conversion_terms(self, x: Impressions) -> Floats:
        main = self.user_conversion[x.user] + self.ad_conversion[x.ad]
        taste = 0.5 * self.world.taste * self._taste(x)
        return np.asarray(self.world.main / np.sqrt(2.0) * main + taste)

    def _calibrate(self) -> None:
        """Finds the intercepts that give the asked rates on rows drawn at random."""
        w, rng, n = self.world, self.world.stream("calibration"), 50_000
        x = Impressions(
            time=START + rng.integers(0, max(1, int(w.days * 86400)), n),
            user=draw(rng, np.cumsum(self.user_share), n),
            ad=draw(rng, np.cumsum(self.ad_share), n),
            device=rng.integers(0, len(DEVICES), n),
            placement=rng.integers(0, len(PLACEMENTS), n),
            position=np.arange(n) % w.slots,
            contexts=rng.integers(0, w.context_size, (n, w.num_contexts)),
            partner=rng.integers(0, w.partner_size, n),
            match=np.full(n, np.nan),
        )
        if self.habits is not None:
            x = replace(x, ad=self.habits.served(rng, x.user, x.day()))
        logit = self._click_logit(x)
        self.click_intercept = _intercept(logit, np.ones(n), w.click_rate)
        if w.conversion_rate > 0:
            self.conversion_intercept = _intercept(
                self._conversion_terms(x),
                self.click_probability(x),  # only clicked rows can convert
                w.conversion_rate / w.share_in_window(),
            )


def draw(rng: np.random.Generator, cumulative: Floats, n: int) -> Ints:
    """Draws n numbers with the cumulative shares [V]."""
    place = np.searchsorted(cumulative, rng.random(n), side="right")
    return np.minimum(place, len(cumulative) - 1).astype(np.int64)  # rounding may end below 1


def sigmoid(x: Floats) -> Floats:
    """Returns 1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


def _zipf(n: int, exponent: float) -> Floats:
    share = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    return np.asarray(share / share.sum())


def _shares(key: Ints, share: Floats, size: int) -> Floats:
    return np.bincount(key, weights=share, minlength=size).astype(np.float64)


def _standard(x: Floats, share: Floats) -> Floats:
    """Returns x with mean 0 and deviation 1 along axis 0, where row i counts share[i]."""
    x = x - share @ x
    deviation = np.sqrt(share @ x**2)
    return np.asarray(x / np.where(deviation > 0, deviation, 1.0))


def _interaction(x: Floats, rows: Floats, columns: Floats) -> Floats:
    """Returns a table whose weighted row and column means are 0 and whose deviation is 1."""
    x = x - (rows @ x)[None, :] - (x @ columns)[:, None] + rows @ x @ columns
    deviation = float(np.sqrt(rows @ x**2 @ columns))
    return np.asarray(x / (deviation if deviation > 0 else 1.0))


def _intercept(logit: Floats, weight: Floats, rate: float) -> float:
    low, high = -60.0, 60.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        mean = float(np.average(sigmoid(logit + middle), weights=weight))
        low, high = (middle, high) if mean < rate else (low, middle)
    return 0.5 * (low + high)
