"""The demo's DCN-V2: fewer epochs than `frappe_dcnv2`."""

from __future__ import annotations

from fullrank.models.dcnv2 import DCNv2
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Recipe


def recipe() -> Recipe:
    """Returns the run."""
    return Recipe(
        dataset="frappe",
        model="dcnv2",
        config=DCNv2.Config(dim=10, num_cross=3, hidden=(400, 400), batch_norm=True, dropout=0.2),
        train=TrainConfig(
            epochs=5, batch_size=2048, optimizer="adam", table_l2=0.01, schedule="plateau"
        ),
    )
