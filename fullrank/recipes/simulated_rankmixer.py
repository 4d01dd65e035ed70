"""RankMixer on the simulated ad log: clicks, conversions and a known best."""

from __future__ import annotations

from fullrank.models.rankmixer import RankMixer
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Recipe


def recipe() -> Recipe:
    """Returns the run."""
    return Recipe(
        dataset="simulated",
        model="rankmixer",
        config=RankMixer.Config(embedding_dim=16, num_tokens=8, token_dim=64, expansion=2.0),
        train=TrainConfig(epochs=10, schedule="plateau"),
    )
