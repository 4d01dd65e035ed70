"""Frappe: which app a person used, in which context; ten fields, 202,027 training rows.

The settings of the classic models are those of BARS (Frappe_x1).
"""

from __future__ import annotations

from fullrank.models.dcnv2 import DCNv2
from fullrank.models.deepfm import DeepFM
from fullrank.models.fm import FM
from fullrank.models.fwfm import FwFM
from fullrank.models.lr import LR
from fullrank.models.rankmixer import RankMixer
from fullrank.models.xdeepfm import XDeepFM
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Claim, Recipe

FLOOR = 0.9356  # test AUC of logistic regression in BARS


def _train(table_l2: float) -> TrainConfig:
    return TrainConfig(epochs=100, schedule="plateau", optimizer="adam", table_l2=table_l2)


def _bars(auc: float, runs: str, floor: float | None = FLOOR) -> Claim:
    return Claim(metric="auc", paper=auc, source=f"BARS, Frappe_x1, {runs}", floor=floor)


def lr() -> Recipe:
    """Logistic regression on Frappe, in the setting of BARS."""
    return Recipe(
        dataset="frappe",
        model="lr",
        config=LR.Config(),
        train=_train(table_l2=1e-5),
        claim=_bars(0.9356, "one run", floor=None),
    )


def fm() -> Recipe:
    """FM on Frappe, in the setting of BARS."""
    return Recipe(
        dataset="frappe",
        model="fm",
        config=FM.Config(dim=10),
        train=_train(table_l2=5e-6),
        claim=_bars(0.9671, "one run"),
    )


def fwfm() -> Recipe:
    """FwFM on Frappe, in the setting of BARS."""
    return Recipe(
        dataset="frappe",
        model="fwfm",
        config=FwFM.Config(dim=10, first_order="value_vector"),
        train=_train(table_l2=5e-6),
        claim=_bars(0.9776, "one run"),
    )


def deepfm() -> Recipe:
    """DeepFM on Frappe, in the setting of BARS."""
    return Recipe(
        dataset="frappe",
        model="deepfm",
        config=DeepFM.Config(dim=10, hidden=(400, 400, 400), batch_norm=True, dropout=0.2),
        train=_train(table_l2=0.05),
        claim=_bars(0.9839, "mean of 5 runs"),
    )


def xdeepfm() -> Recipe:
    """A CIN and a deep network (xDeepFM) on Frappe, in the setting of BARS."""
    return Recipe(
        dataset="frappe",
        model="xdeepfm",
        config=XDeepFM.Config(
            dim=10, maps=(64,), hidden=(400, 400, 400), batch_norm=True, dropout=0.2
        ),
        train=_train(table_l2=0.1),
        claim=_bars(0.9841, "mean of 5 runs"),
    )


def dcnv2() -> Recipe:
    """DCN-V2 on Frappe, in the setting of BARS."""
    return Recipe(
        dataset="frappe",
        model="dcnv2",
        config=DCNv2.Config(
            dim=10, num_cross=4, hidden=(400, 400, 400), batch_norm=True, dropout=0.4
        ),
        train=_train(table_l2=0.05),
        claim=_bars(0.9838, "mean of 5 runs"),
    )


def rankmixer() -> Recipe:
    """RankMixer on Frappe: the paper's block at a CPU's size."""
    return Recipe(
        dataset="frappe",
        model="rankmixer",
        config=RankMixer.Config(
            embedding_dim=16, num_tokens=8, token_dim=64, num_blocks=2, expansion=2.0, dropout=0.2
        ),
        train=_train(table_l2=0.01),
    )
