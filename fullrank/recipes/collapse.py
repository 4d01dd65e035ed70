"""A simulated log whose user embeddings collapse: sixteen fields, two labels."""

from __future__ import annotations

from fullrank.recipes._cures import Controls, Cures
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Recipe

_CURES = Cures(
    dataset="simulated_collapse",
    prefix="collapse",
    train=TrainConfig(epochs=10, batch_size=1024, schedule="plateau", optimizer="adam"),
    table_l2_fm=0.0,
    dim=10,
    hidden=(128, 64),
    tokens=8,
    token_dim=32,
    labels=2,
    elastor=(8, 24),
    controls=Controls(fm=52, dcnv2=(357, 64), expert=14, expansion=4.0),
)


def lr() -> Recipe:
    """Logistic regression under a planted collapse."""
    return _CURES.lr()


def mlp() -> Recipe:
    """A plain network under a planted collapse."""
    return _CURES.mlp()


def fm() -> Recipe:
    """FM under a planted collapse."""
    return _CURES.fm()


def fm_wide() -> Recipe:
    """FM with as many parameters as `collapse_sfg_fm` under a planted collapse."""
    return _CURES.fm_wide()


def dcnv2() -> Recipe:
    """DCN-V2 under a planted collapse."""
    return _CURES.dcnv2()


def dcnv2_wide() -> Recipe:
    """DCN-V2 with as many parameters as `collapse_sfg_dcnv2` under a planted collapse."""
    return _CURES.dcnv2_wide()


def pfl() -> Recipe:
    """PFL under a planted collapse."""
    return _CURES.pfl()


def sfg_fm() -> Recipe:
    """SFG around FM under a planted collapse."""
    return _CURES.sfg_fm()


def sfg_dcnv2() -> Recipe:
    """SFG around DCN-V2 under a planted collapse."""
    return _CURES.sfg_dcnv2()


def dmoe() -> Recipe:
    """D-MoE under a planted collapse."""
    return _CURES.dmoe()


def multi_embedding() -> Recipe:
    """Three averaged DCN-V2 with tables of their own under a planted collapse."""
    return _CURES.multi_embedding()


def dmoe_wide() -> Recipe:
    """One wide expert with as many parameters as `collapse_dmoe` under a planted collapse."""
    return _CURES.dmoe_wide()


def rankmixer() -> Recipe:
    """RankMixer under a planted collapse."""
    return _CURES.rankmixer()


def rankup() -> Recipe:
    """RankUp under a planted collapse."""
    return _CURES.rankup()


def rankup_plain() -> Recipe:
    """RankUp without its parts and with tables twice as wide under a planted collapse."""
    return _CURES.rankup_plain()


def rankelastor() -> Recipe:
    """RankElastor under a planted collapse."""
    return _CURES.rankelastor()


def rankelastor_plain() -> Recipe:
    """RankElastor with RankMixer's mixing and a wider network under a planted collapse."""
    return _CURES.rankelastor_plain()
