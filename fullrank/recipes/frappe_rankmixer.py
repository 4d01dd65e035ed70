"""RankMixer on Frappe: the paper's block at a CPU's size."""

from __future__ import annotations

from fullrank.models.rankmixer import RankMixer
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Recipe


def recipe() -> Recipe:
    """Returns the run."""
    return Recipe(
        dataset="frappe",
        model="rankmixer",
        config=RankMixer.Config(
            embedding_dim=16, num_tokens=8, token_dim=64, num_blocks=2, expansion=2.0, dropout=0.2
        ),
        train=TrainConfig(epochs=100, schedule="plateau", optimizer="adam", table_l2=0.01),
    )
