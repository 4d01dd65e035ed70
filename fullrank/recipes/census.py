"""Census-Income: forty fields, two labels from one network."""

from __future__ import annotations

from fullrank.recipes._cures import Controls, Cures
from fullrank.train.config import TrainConfig

RECIPES: Cures = Cures(
    dataset="census_income",
    prefix="census",
    train=TrainConfig(
        epochs=12, batch_size=1024, schedule="plateau", optimizer="adam", table_l2=0.001
    ),
    table_l2_fm=0.001,
    dim=8,
    hidden=(128, 64),
    tokens=16,
    token_dim=32,
    labels=2,
    elastor=(16, 16),
    controls=Controls(fm=189, dcnv2=(636, 64), expert=10, expansion=5.9),
)
