"""The CoLLM cut of MovieLens 1M, split by time: user, movie, its year and recent likes."""

from __future__ import annotations

from fullrank.recipes._cures import Controls, Cures
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Recipe

_CURES = Cures(
    dataset="collm_ml1m",
    prefix="collm_ml1m",
    train=TrainConfig(epochs=40, batch_size=1024, patience=4, optimizer="adam", table_l2=0.1),
    table_l2_fm=0.001,
    dim=10,
    hidden=(128, 64),
    tokens=4,
    token_dim=32,
    labels=1,
    elastor=(4, 32),
    controls=Controls(fm=11, dcnv2=(160, 64), expert=28, expansion=3.0),
)


def lr() -> Recipe:
    """Logistic regression on the CoLLM cut of MovieLens 1M."""
    return _CURES.lr()


def mlp() -> Recipe:
    """A plain network on the CoLLM cut of MovieLens 1M."""
    return _CURES.mlp()


def fm() -> Recipe:
    """FM on the CoLLM cut of MovieLens 1M."""
    return _CURES.fm()


def fm_wide() -> Recipe:
    """FM with as many parameters as `collm_ml1m_sfg_fm` on the CoLLM cut of MovieLens 1M."""
    return _CURES.fm_wide()


def dcnv2() -> Recipe:
    """DCN-V2 on the CoLLM cut of MovieLens 1M."""
    return _CURES.dcnv2()


def dcnv2_wide() -> Recipe:
    """DCN-V2 with as many parameters as `collm_ml1m_sfg_dcnv2` on the CoLLM cut of MovieLens 1M."""
    return _CURES.dcnv2_wide()


def pfl() -> Recipe:
    """PFL on the CoLLM cut of MovieLens 1M."""
    return _CURES.pfl()


def sfg_fm() -> Recipe:
    """SFG around FM on the CoLLM cut of MovieLens 1M."""
    return _CURES.sfg_fm()


def sfg_dcnv2() -> Recipe:
    """SFG around DCN-V2 on the CoLLM cut of MovieLens 1M."""
    return _CURES.sfg_dcnv2()


def dmoe() -> Recipe:
    """D-MoE on the CoLLM cut of MovieLens 1M."""
    return _CURES.dmoe()


def multi_embedding() -> Recipe:
    """Three averaged DCN-V2 with tables of their own on the CoLLM cut."""
    return _CURES.multi_embedding()


def dmoe_wide() -> Recipe:
    """One wide expert with as many parameters as `collm_ml1m_dmoe` on the CoLLM cut."""
    return _CURES.dmoe_wide()


def rankmixer() -> Recipe:
    """RankMixer on the CoLLM cut of MovieLens 1M."""
    return _CURES.rankmixer()


def rankup() -> Recipe:
    """RankUp on the CoLLM cut of MovieLens 1M."""
    return _CURES.rankup()


def rankup_plain() -> Recipe:
    """RankUp without its parts and with tables twice as wide on the CoLLM cut of MovieLens 1M."""
    return _CURES.rankup_plain()


def rankelastor() -> Recipe:
    """RankElastor on the CoLLM cut of MovieLens 1M."""
    return _CURES.rankelastor()


def rankelastor_plain() -> Recipe:
    """RankElastor with RankMixer's mixing and a wider network on the CoLLM cut of MovieLens 1M."""
    return _CURES.rankelastor_plain()
