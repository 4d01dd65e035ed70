"""MovieLens 100K, split by time: seven fields."""

from __future__ import annotations

from fullrank.recipes._cures import Controls, Cures
from fullrank.train.config import TrainConfig

RECIPES: Cures = Cures(
    dataset="ml_100k",
    prefix="ml_100k",
    train=TrainConfig(epochs=40, batch_size=1024, patience=4, optimizer="adam", table_l2=0.1),
    table_l2_fm=0.001,
    dim=10,
    hidden=(128, 64),
    tokens=7,
    token_dim=35,
    labels=1,
    elastor=(7, 21),
    controls=Controls(fm=12, dcnv2=(201, 64), expert=22, expansion=4.0),
)
