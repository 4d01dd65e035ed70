"""MovieLens 100K, split by time."""

from __future__ import annotations

from fullrank.models.dcnv2 import DCNv2
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Recipe


def dcnv2() -> Recipe:
    """DCN-V2 on MovieLens 100K."""
    return Recipe(
        dataset="ml_100k",
        model="dcnv2",
        config=DCNv2.Config(dim=10, num_cross=2, hidden=(128, 64), dropout=0.2),
        train=TrainConfig(
            epochs=20, batch_size=1024, schedule="plateau", optimizer="adam", table_l2=0.01
        ),
    )
