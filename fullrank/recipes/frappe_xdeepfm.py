"""xDeepFM on Frappe, in the setting of BARS."""

from __future__ import annotations

from fullrank.models.xdeepfm import XDeepFM
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Claim, Recipe


def recipe() -> Recipe:
    """Returns the run."""
    return Recipe(
        dataset="frappe",
        model="xdeepfm",
        config=XDeepFM.Config(
            dim=10, maps=(64,), hidden=(400, 400, 400), batch_norm=True, dropout=0.2
        ),
        train=TrainConfig(epochs=100, schedule="plateau", optimizer="adam", table_l2=0.1),
        claim=Claim(
            metric="auc", paper=0.9841, source="BARS, Frappe_x1, mean of 5 runs", floor=0.9356
        ),
    )
