"""DCN-V2 on the simulated ad log: clicks, conversions and a known best."""

from __future__ import annotations

from fullrank.models.dcnv2 import DCNv2
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Recipe


def recipe() -> Recipe:
    """Returns the run."""
    return Recipe(
        dataset="simulated",
        model="dcnv2",
        config=DCNv2.Config(dim=10, num_cross=2, hidden=(128, 64), dropout=0.2),
        train=TrainConfig(epochs=10, schedule="plateau"),
    )
