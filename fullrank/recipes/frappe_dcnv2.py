"""DCN-V2 on Frappe, in the setting of BARS."""

from __future__ import annotations

from fullrank.models.dcnv2 import DCNv2
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Claim, Recipe


def recipe() -> Recipe:
    """Returns the run."""
    return Recipe(
        dataset="frappe",
        model="dcnv2",
        config=DCNv2.Config(
            dim=10, num_cross=4, hidden=(400, 400, 400), batch_norm=True, dropout=0.4
        ),
        train=TrainConfig(epochs=100, schedule="plateau", optimizer="adam", table_l2=0.05),
        claim=Claim(
            metric="auc", paper=0.9838, source="BARS, Frappe_x1, mean of 5 runs", floor=0.9356
        ),
    )
