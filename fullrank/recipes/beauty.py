"""Amazon Beauty as impressions: negatives as popular as positives, split by place."""

from __future__ import annotations

from dataclasses import replace

from fullrank.data.datasets.amazon_beauty import AmazonBeauty
from fullrank.recipes._interests import Interests
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Recipe

RECIPES: Interests = Interests(
    dataset=AmazonBeauty(length=20, newest=4),
    prefix="beauty",
    train=TrainConfig(epochs=20, batch_size=1024, patience=3, optimizer="adam", table_l2=0.01),
    dim=16,
    hidden=(128, 64),
    dropout=0.2,
    window=20,
)


def sim_hard() -> Recipe:
    """SIM with hard search: the newest events of the target's category."""
    soft = RECIPES.sim()
    return replace(soft, config=replace(soft.config, search="hard", category="category"))
