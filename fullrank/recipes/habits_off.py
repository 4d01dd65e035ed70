"""The log of `habits` without a habit: the past says nothing, and only main effects are left."""

from __future__ import annotations

from fullrank.data.datasets.simulated_habits import at
from fullrank.recipes._interests import Interests
from fullrank.train.config import TrainConfig

RECIPES: Interests = Interests(
    dataset=at(noise=1.0, main=0.5),
    prefix="habits_off",
    train=TrainConfig(epochs=4, batch_size=512, patience=2, optimizer="adam"),
    dim=16,
    hidden=(128, 64),
    dropout=0.0,
    windows=(24, 12),
)
