"""The CoLLM cut of MovieLens 1M, split by time: user, movie, its year and recent likes."""

from __future__ import annotations

from fullrank.recipes._cures import Controls, Cures
from fullrank.train.config import TrainConfig

RECIPES: Cures = Cures(
    dataset="collm_ml1m",
    prefix="collm_ml1m",
    train=TrainConfig(epochs=40, batch_size=1024, patience=4, optimizer="adam", table_l2=0.1),
    table_l2_fm=0.001,
    dim=10,
    hidden=(128, 64),
    tokens=4,
    token_dim=32,
    labels=1,
    elastor=(4, 32),
    controls=Controls(fm=11, dcnv2=(160, 64), expert=28, expansion=3.0),
)
