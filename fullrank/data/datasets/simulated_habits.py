"""A simulated ad log that only the order of the past explains: users with weekly habits.

Every user does one thing a day, each weekday in a category of its own. Ads come from these
categories, one in two on its day, and are clicked then. A user's past holds whole weeks, so each
category occurs in it equally often, and the days of training, validation and test are whole
weeks too: a model that does not read the past in order stays at chance, and so does popularity.
FEDIN (arXiv:2605.01726) claims that true interest is periodic. The log is simulated on first use.
"""

from __future__ import annotations

from dataclasses import replace

from fullrank.data.datasets.simulated import SimulatedLog
from fullrank.data.world import World

NAME = "simulated_habits"
WORLD = World(
    num_rows=60_000,
    num_users=500,
    num_ads=100,
    num_categories=12,
    days=70.0,  # the tenths of validation and test are a week each
    click_rate=0.5,
    main=0.0,
    taste=0.0,
    cross=0.0,
    position_bias=0.0,
    history_relevance=0.0,
    drift=0.0,
    history_length=49,
    refresh_hours=24.0,
    conversion_rate=0.0,
    weekly=3.0,
)


def at(
    *,
    weekly: float = WORLD.weekly,
    monthly: float = WORLD.monthly,
    noise: float = WORLD.habit_noise,
    main: float = WORLD.main,
    history_relevance: float = WORLD.history_relevance,
    context_taste: float = WORLD.context_taste,
    context_history: float = WORLD.context_history,
    num_contexts: int = WORLD.num_contexts,
    context_size: int = WORLD.context_size,
    num_rows: int = WORLD.num_rows,
    history_length: int | None = None,
    seed: int = WORLD.seed,
) -> SimulatedLog:
    """Returns the log at another setting of its dials; see `World`. A recipe may name it.

    Args:
        weekly: logits of a habit with a round of 7 days.
        monthly: logits of a habit with a round of 30 days; the log then lasts 300 days.
        noise: share of a user's days that follow no habit; 1 is the control, where the past says
            nothing and a click is a coin.
        main: logits of main effects, which any model can learn.
        history_relevance: logits between a past wholly in the ad's category and one without it.
        context_taste: logits of products between the context fields and the ad's category.
        context_history: logits of products between the context fields and the share of the past
            in the ad's category.
        num_contexts: context fields.
        context_size: values of each.
        num_rows: impressions.
        history_length: days that the past goes back: whole rounds, of 7, 30, or 210 days with
            both habits. By default 49, 210 with a monthly habit.
        seed: of everything that is drawn.

    Example:
        >>> at(noise=1.0).NAME
        'simulated_habits-habit_noise=1.0'
    """
    usual = 210 if monthly else WORLD.history_length
    world = replace(
        WORLD,
        weekly=weekly,
        monthly=monthly,
        habit_noise=noise,
        main=main,
        history_relevance=history_relevance,
        context_taste=context_taste,
        context_history=context_history,
        num_contexts=num_contexts,
        context_size=context_size,
        num_rows=num_rows,
        days=300.0 if monthly else WORLD.days,
        history_length=usual if history_length is None else history_length,
        seed=seed,
    )
    changed = [n for n in vars(world) if getattr(world, n) != getattr(WORLD, n)]
    name = "".join(f"-{n}={getattr(world, n)}" for n in changed)
    return SimulatedLog(NAME + name, world)


_LOG = at()
FOLDERS, TITLE, LICENCE, HOME = (
    _LOG.FOLDERS,
    "Simulated ad log with habits",
    _LOG.LICENCE,
    _LOG.HOME,
)
NOTE, FILES, SPEC = _LOG.NOTE, _LOG.FILES, _LOG.SPEC
spec_at, note, load, ready = _LOG.spec_at, _LOG.note, _LOG.load, _LOG.ready
sample, write_sample = _LOG.sample, _LOG.write_sample
