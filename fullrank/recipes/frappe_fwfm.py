"""FwFM on Frappe, in the setting of BARS."""

from __future__ import annotations

from fullrank.models.fwfm import FwFM
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Claim, Recipe


def recipe() -> Recipe:
    """Returns the run."""
    return Recipe(
        dataset="frappe",
        model="fwfm",
        config=FwFM.Config(dim=10, first_order="value_vector"),
        train=TrainConfig(epochs=100, schedule="plateau", optimizer="adam", table_l2=5e-6),
        claim=Claim(metric="auc", paper=0.9776, source="BARS, Frappe_x1, one run", floor=0.9356),
    )
