"""Census-Income: two labels from one network."""

from __future__ import annotations

from fullrank.models.dcnv2 import DCNv2
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Recipe


def dcnv2() -> Recipe:
    """DCN-V2 on Census-Income."""
    return Recipe(
        dataset="census_income",
        model="dcnv2",
        config=DCNv2.Config(dim=8, num_cross=2, hidden=(128, 64), dropout=0.2),
        train=TrainConfig(
            epochs=20, batch_size=2048, schedule="plateau", optimizer="adam", table_l2=0.001
        ),
    )
