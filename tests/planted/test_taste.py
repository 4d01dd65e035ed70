"""A past that reveals a taste: the target is liked when its category is that of the history.

Whoever compares the past with the target must come near the best possible AUC; a field-only model,
and any model whose rows have no past, must stay at chance. Items have no category column: that two
items are of a kind must be learnt from their vectors.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from fullrank.batch import Batch, Columns, Jagged
from fullrank.model import list_models, model_class
from fullrank.schema import Categorical, Label, Schema, Sequence, Table
from fullrank.testing import area_under_curve, fit, random_batch

KINDS, EACH, LONGEST = 4, 5, 8
READ_THE_PAST = ("dien", "din", "fedin", "sim", "tokenformer", "two_tower")
SCHEMA = Schema(
    tables=(Table("users", 6), Table("items", 1 + KINDS * EACH)),
    fields=(Categorical("user", "users", "user"), Categorical("item", "items", "item")),
    sequences=(Sequence("past", (("item", "items"),), LONGEST),),
    labels=(Label("click"),),
)


def world(rows: int, seed: int) -> tuple[Batch, torch.Tensor]:
    """Returns rows and true probabilities: 3/4 of a past is of one kind; a match is liked."""
    g = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=g)

    taste, kind = draw(KINDS, rows), draw(KINDS, rows)
    kind = torch.where(draw(2, rows) == 1, taste, kind)  # matches as often as not, nearly
    lengths = 4 + draw(LONGEST - 3, rows)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    events = int(offsets[-1])
    own = taste.repeat_interleave(lengths)
    past = torch.where(draw(4, events) > 0, own, draw(KINDS, events))
    truth = torch.where(taste == kind, 0.9, 0.1)
    block = torch.stack([1 + draw(5, rows), 1 + kind * EACH + draw(EACH, rows)], 1)
    items = (1 + past * EACH + draw(EACH, events)).int()
    blank = random_batch(SCHEMA, rows, g)
    clicks = (torch.rand(rows, generator=g) < truth).float()
    batch = replace(
        blank,
        categorical=Columns(("user", "item"), block.int()),
        labels=Columns(("click",), clicks[:, None]),
        observed=Columns(("click",), torch.ones(rows, 1, dtype=torch.bool)),
        weight=torch.ones(rows),
        sequences={"past": Jagged({"item": items}, offsets)},
    )
    return batch, truth


def without_past(batch: Batch) -> Batch:
    past = batch.sequences["past"]
    none = {name: values[:0] for name, values in past.values.items()}
    return replace(batch, sequences={"past": Jagged(none, torch.zeros_like(past.offsets))})


@cache
def reached(name: str, denied: bool) -> tuple[float, float]:
    """Returns the AUC on unseen rows and the best possible one."""
    torch.manual_seed(1)
    (seen, _), (unseen, truth) = world(4096, 1), world(4096, 2)
    if denied:
        seen, unseen = without_past(seen), without_past(unseen)
    cls = model_class(name)
    model = cls(SCHEMA, cls.Config.tiny())
    fit(model, seen, steps=150)
    label = unseen.labels["click"]
    scores = model.score(unseen)["click"].detach()
    return area_under_curve(scores, label), area_under_curve(truth, label)


SEQUENCE_MODELS = [name for name in READ_THE_PAST if name in list_models()]


@pytest.mark.parametrize("name", SEQUENCE_MODELS)
def test_models_that_read_the_past_find_the_taste(name: str) -> None:
    mine, best = reached(name, denied=False)
    assert best > 0.85
    assert mine > best - 0.05, f"{mine:.3f}, best {best:.3f}"


@pytest.mark.parametrize("name", SEQUENCE_MODELS)
def test_denied_the_past_they_stay_at_chance(name: str) -> None:
    mine, _ = reached(name, denied=True)
    assert 0.46 < mine < 0.54


def test_a_model_of_fields_alone_stays_at_chance() -> None:
    mine, _ = reached("fm", denied=False)
    assert 0.46 < mine < 0.54
