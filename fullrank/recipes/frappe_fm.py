"""FM on Frappe, in the setting of BARS."""

from __future__ import annotations

from fullrank.models.fm import FM
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Claim, Recipe


def recipe() -> Recipe:
    """Returns the run."""
    return Recipe(
        dataset="frappe",
        model="fm",
        config=FM.Config(dim=10),
        train=TrainConfig(epochs=100, schedule="plateau", optimizer="adam", table_l2=5e-6),
        claim=Claim(metric="auc", paper=0.9671, source="BARS, Frappe_x1, one run", floor=0.9356),
    )
