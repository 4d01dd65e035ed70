"""Amazon Games as impressions: negatives as popular as positives, split by place."""

from __future__ import annotations

from fullrank.data.datasets.amazon_games import AmazonGames
from fullrank.recipes._interests import Interests
from fullrank.train.config import TrainConfig

RECIPES: Interests = Interests(
    dataset=AmazonGames(length=20, newest=4),
    prefix="games",
    train=TrainConfig(epochs=20, batch_size=1024, patience=3, optimizer="adam", table_l2=0.01),
    dim=16,
    hidden=(128, 64),
    dropout=0.2,
    window=20,
)
