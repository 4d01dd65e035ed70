"""Logistic regression on Frappe, in the setting of BARS."""

from __future__ import annotations

from fullrank.models.lr import LR
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Claim, Recipe


def recipe() -> Recipe:
    """Returns the run."""
    return Recipe(
        dataset="frappe",
        model="lr",
        config=LR.Config(),
        train=TrainConfig(epochs=100, schedule="plateau", optimizer="adam", table_l2=1e-5),
        claim=Claim(metric="auc", paper=0.9356, source="BARS, Frappe_x1, one run"),
    )
