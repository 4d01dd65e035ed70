"""Habits of a simulated world: interests that come round, each user at a phase of its own.

A user goes round a list of categories. In a weekly habit each of seven has one day; in a monthly
habit each of five has six days of thirty, in an order of the user's own. On every day before the
log and in it a user does one thing, an event in the category whose day it is, which a diary
keeps. A diary of whole rounds holds every category of a habit equally often: only its order tells
which one comes next.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fullrank.data.world import ROUNDS, World

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Habit(NamedTuple):
    """One habit of every user.

    Args:
        categories: [U, P] of each user.
        places: [U, R] which of them has which day of the round.
    """

    categories: Ints
    places: Ints

    def place(self, user: Ints, day: Ints) -> Ints:
        """Returns whose day it is, [n], as a place in `categories`."""
        return np.asarray(self.places[user, day % self.places.shape[1]])

    def sign(self, user: Ints, category: Ints, day: Ints) -> Floats:
        """Returns 1 for a category on its day, -1 on another's day, 0 outside the habit, [n]."""
        member = (self.categories[user] == category[:, None]).any(axis=1)
        due = self.categories[user, self.place(user, day)] == category
        return np.where(due, 1.0, np.where(member, -1.0, 0.0))


class Habits:
    """The habits of a world that are on.

    Args:
        world: with at least one.
        ad_category: [A].
        ad_share: [A] popularity, which decides among the ads of a category.
    """

    def __init__(self, world: World, ad_category: Ints, ad_share: Floats) -> None:
        self.world = world
        self.order = np.argsort(ad_category, kind="stable")
        self.cumulative = np.append(0.0, np.cumsum(ad_share[self.order]))
        size = np.bincount(ad_category, minlength=world.num_categories)
        self.first = np.append(0, np.cumsum(size))
        order = _orders(world.stream("habits"), world.num_users, world.num_categories)
        self.all: dict[str, Habit] = {}
        begin = 0
        for name, (days, count) in ROUNDS.items():
            categories, begin = order[:, begin : begin + count], begin + count
            places = np.tile(np.arange(days) % count, (world.num_users, 1))
            if days > count:
                rng = world.stream("habits " + name)
                shuffle = _orders(rng, world.num_users, days)
                places = np.take_along_axis(places, shuffle, axis=1)
            if name in world.habits():
                self.all[name] = Habit(categories, places)

    def signs(self, user: Ints, category: Ints, day: Ints) -> dict[str, Floats]:
        """Returns 1, -1 or 0 per habit, [n], see `Habit.sign`; 0 for a habit that is off."""
        off = {name: np.zeros(len(user)) for name in ROUNDS}
        return off | {name: habit.sign(user, category, day) for name, habit in self.all.items()}

    def served(self, rng: np.random.Generator, user: Ints, day: Ints) -> Ints:
        """Draws ads of the categories of a habit, half of them on their day, [n].

        Either half is spread evenly over the categories, so both are equally popular.
        """
        wrong = rng.random(len(user)) < 0.5

        def category(habit: Habit) -> Ints:
            count = habit.categories.shape[1]
            later = np.where(wrong, rng.integers(1, count, len(user)), 0)
            return np.asarray(habit.categories[user, (habit.place(user, day) + later) % count])

        return self._ads(rng, self._either(rng, [category(h) for h in self.all.values()]))

    def diary(self) -> Ints:
        """Returns the ad of every user's event on each day, [U, history_length + days].

        The first day is that which lies `history_length` days before the log.
        """
        w, rng = self.world, self.world.stream("diary")
        day = np.arange(-w.history_length, int(np.ceil(w.days)))
        user = np.repeat(np.arange(w.num_users), len(day))
        today = np.tile(day, w.num_users)
        due = [h.categories[user, h.place(user, today)] for h in self.all.values()]
        ad = self._ads(rng, self._either(rng, due))
        noise = rng.random(len(user)) < w.habit_noise
        anything = self.order[self._place(rng.random(len(user)) * self.cumulative[-1])]
        return np.where(noise, anything, ad).reshape(w.num_users, len(day))

    def _either(self, rng: np.random.Generator, of_habit: list[Ints]) -> Ints:
        choice = rng.integers(0, len(of_habit), len(of_habit[0]))
        return np.choose(choice, of_habit)

    def _ads(self, rng: np.random.Generator, category: Ints) -> Ints:
        """Draws an ad of each category by its popularity, [n]."""
        low, high = self.first[category], self.first[category + 1]
        mass = self.cumulative[low] + rng.random(len(low)) * (
            self.cumulative[high] - self.cumulative[low]
        )
        return np.asarray(self.order[np.clip(self._place(mass), low, high - 1)])

    def _place(self, mass: Floats) -> Ints:
        place = np.searchsorted(self.cumulative, mass, side="right") - 1
        return np.clip(place, 0, len(self.order) - 1).astype(np.int64)


def _orders(rng: np.random.Generator, rows: int, width: int) -> Ints:
    """Draws [rows, width], each row an order of 0 .. width - 1."""
    return np.asarray(rng.random((rows, width)).argsort(axis=1))
