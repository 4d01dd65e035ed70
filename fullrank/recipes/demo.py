"""The demo on Frappe: two good models and a collapsing one, in a minute."""

from __future__ import annotations

from fullrank.models.dcnv2 import DCNv2
from fullrank.models.rankmixer import RankMixer
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Recipe


def _train(table_l2: float, epochs: int = 5) -> TrainConfig:
    return TrainConfig(
        epochs=epochs, batch_size=2048, optimizer="adam", table_l2=table_l2, schedule="plateau"
    )


def dcnv2() -> Recipe:
    """The demo's DCN-V2: fewer epochs than `frappe_dcnv2`."""
    return Recipe(
        dataset="frappe",
        model="dcnv2",
        config=DCNv2.Config(dim=10, num_cross=3, hidden=(400, 400), batch_norm=True, dropout=0.2),
        train=_train(table_l2=0.01),
    )


def rankmixer() -> Recipe:
    """The demo's RankMixer: the paper's block at a size for minutes on a CPU."""
    return Recipe(
        dataset="frappe",
        model="rankmixer",
        config=RankMixer.Config(
            embedding_dim=10, num_tokens=4, token_dim=64, num_blocks=2, expansion=2.0
        ),
        train=_train(table_l2=0.001),
    )


def collapsing() -> Recipe:
    """The demo's bad example: a deep RankMixer without mixing, residuals or a network per token.

    Every switch is one of the paper's own ablations. Eight blocks of one shared network, each
    replacing what came before it, keep the AUC respectable while the tokens fall into a few
    directions.
    """
    return Recipe(
        dataset="frappe",
        model="rankmixer",
        config=RankMixer.Config(
            embedding_dim=10, num_tokens=4, token_dim=64, expansion=2.0, num_blocks=8,
            mix="none", ffn="shared", residual_ffn=False,
        ),
        train=_train(table_l2=0.001, epochs=3),
    )  # fmt: skip
