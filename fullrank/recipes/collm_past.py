"""The CoLLM cut of MovieLens 1M with its histories: real dislikes, split by time."""

from __future__ import annotations

from fullrank.recipes._interests import Interests
from fullrank.train.config import TrainConfig

RECIPES: Interests = Interests(
    dataset="collm_ml1m",
    prefix="collm_past",
    train=TrainConfig(epochs=20, batch_size=1024, patience=3, optimizer="adam", table_l2=0.001),
    dim=16,
    hidden=(128, 64),
    dropout=0.2,
    window=20,
)
