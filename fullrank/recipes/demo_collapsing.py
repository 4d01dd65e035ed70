"""The demo's bad example: a deep RankMixer without mixing, residuals or a network per token.

Every switch is one of the paper's own ablations. Eight blocks of one shared network, each replacing
what came before it, keep the AUC respectable while the tokens fall into a few directions.
"""

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
            embedding_dim=10,
            num_tokens=4,
            token_dim=64,
            expansion=2.0,
            num_blocks=8,
            mix="none",
            ffn="shared",
            residual_ffn=False,
        ),
        train=TrainConfig(
            epochs=3, batch_size=2048, optimizer="adam", table_l2=0.001, schedule="plateau"
        ),
    )
