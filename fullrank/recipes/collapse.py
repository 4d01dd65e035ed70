"""A simulated log whose user embeddings collapse: sixteen fields, two labels."""

from __future__ import annotations

from fullrank.recipes._cures import Controls, Cures
from fullrank.train.config import TrainConfig

RECIPES: Cures = Cures(
    dataset="simulated_collapse",
    prefix="collapse",
    train=TrainConfig(epochs=10, batch_size=1024, schedule="plateau", optimizer="adam"),
    table_l2_fm=0.0,
    dim=10,
    hidden=(128, 64),
    tokens=8,
    token_dim=32,
    labels=2,
    elastor=(8, 24),
    learning_rate_fm=1e-2,  # 1e-3 ends at a validation AUC of .867, with .9965 in reach
    controls=Controls(fm=52, dcnv2=(357, 64), expert=14, expansion=4.0),
)
