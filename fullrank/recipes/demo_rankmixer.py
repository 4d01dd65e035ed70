"""The demo's RankMixer: the paper's block at a size for minutes on a CPU."""

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
            embedding_dim=10, num_tokens=4, token_dim=64, num_blocks=2, expansion=2.0
        ),
        train=TrainConfig(
            epochs=5, batch_size=2048, optimizer="adam", table_l2=0.001, schedule="plateau"
        ),
    )
