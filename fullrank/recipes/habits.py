"""A simulated log of weekly habits, which only the order of the past gives away."""

from __future__ import annotations

from fullrank.recipes._interests import Interests
from fullrank.train.config import TrainConfig

RECIPES: Interests = Interests(
    dataset="simulated_habits",
    prefix="habits",
    train=TrainConfig(epochs=4, batch_size=512, patience=2, optimizer="adam"),
    dim=16,
    hidden=(128, 64),
    dropout=0.0,
    windows=(24, 12),
)
