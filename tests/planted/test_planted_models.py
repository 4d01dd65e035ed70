"""A cross of two fields that no single field gives away.

Whoever can cross fields must come near the best possible AUC; logistic regression must stay at
chance; and with the dial at zero everybody must.
"""

from __future__ import annotations

import pytest
import torch

from fullrank.model import list_models, model_class
from fullrank.testing import area_under_curve, fit, planted

CROSSING = [name for name in list_models() if name != "lr"]


def reached(name: str, strength: float) -> tuple[float, float]:
    """Returns the model's AUC on unseen rows and the best possible one."""
    torch.manual_seed(1)
    schema, seen, _ = planted(2, 4096, torch.Generator().manual_seed(1), strength)
    _, unseen, truth = planted(2, 4096, torch.Generator().manual_seed(2), strength)
    cls = model_class(name)
    model = cls(schema, cls.Config.tiny())
    fit(model, seen, steps=100)
    label = unseen.labels["click"]
    scores = model.score(unseen)["click"].detach()
    return area_under_curve(scores, label), area_under_curve(truth, label)


@pytest.mark.parametrize("name", CROSSING)
def test_models_that_cross_find_the_cross(name: str) -> None:
    mine, best = reached(name, strength=2.0)
    assert best > 0.85
    assert mine > best - 0.03, f"{mine:.3f}, best {best:.3f}"


def test_logistic_regression_cannot_see_it() -> None:
    mine, best = reached("lr", strength=2.0)
    assert best > 0.85
    assert 0.46 < mine < 0.54


@pytest.mark.parametrize("name", list_models())
def test_without_a_signal_everybody_stays_at_chance(name: str) -> None:
    mine, _ = reached(name, strength=0.0)
    assert 0.46 < mine < 0.54
