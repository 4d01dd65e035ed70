"""The simulated ad logs: clicks, conversions and a known best."""

from __future__ import annotations

from fullrank.models.dcnv2 import DCNv2
from fullrank.models.rankmixer import RankMixer
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Recipe


def dcnv2() -> Recipe:
    """DCN-V2 on the simulated ad log."""
    return Recipe(
        dataset="simulated",
        model="dcnv2",
        config=DCNv2.Config(dim=10, num_cross=2, hidden=(128, 64), dropout=0.2),
        train=TrainConfig(epochs=10, schedule="plateau"),
    )


def rankmixer() -> Recipe:
    """RankMixer on the simulated ad log."""
    return Recipe(
        dataset="simulated",
        model="rankmixer",
        config=RankMixer.Config(embedding_dim=16, num_tokens=8, token_dim=64, expansion=2.0),
        train=TrainConfig(epochs=10, schedule="plateau"),
    )
