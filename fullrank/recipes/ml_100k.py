"""MovieLens 100K, split by time: seven fields."""

from __future__ import annotations

from fullrank.recipes._cures import Controls, Cures
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Recipe

_CURES = Cures(
    dataset="ml_100k",
    prefix="ml_100k",
    train=TrainConfig(epochs=40, batch_size=1024, patience=4, optimizer="adam", table_l2=0.1),
    table_l2_fm=0.001,
    dim=10,
    hidden=(128, 64),
    tokens=7,
    token_dim=35,
    labels=1,
    elastor=(7, 21),
    controls=Controls(fm=12, dcnv2=(201, 64), expert=22, expansion=4.0),
)


def lr() -> Recipe:
    """Logistic regression on MovieLens 100K."""
    return _CURES.lr()


def mlp() -> Recipe:
    """A plain network on MovieLens 100K."""
    return _CURES.mlp()


def fm() -> Recipe:
    """FM on MovieLens 100K."""
    return _CURES.fm()


def fm_wide() -> Recipe:
    """FM with as many parameters as `ml_100k_sfg_fm` on MovieLens 100K."""
    return _CURES.fm_wide()


def dcnv2() -> Recipe:
    """DCN-V2 on MovieLens 100K."""
    return _CURES.dcnv2()


def dcnv2_wide() -> Recipe:
    """DCN-V2 with as many parameters as `ml_100k_sfg_dcnv2` on MovieLens 100K."""
    return _CURES.dcnv2_wide()


def pfl() -> Recipe:
    """PFL on MovieLens 100K."""
    return _CURES.pfl()


def sfg_fm() -> Recipe:
    """SFG around FM on MovieLens 100K."""
    return _CURES.sfg_fm()


def sfg_dcnv2() -> Recipe:
    """SFG around DCN-V2 on MovieLens 100K."""
    return _CURES.sfg_dcnv2()


def dmoe() -> Recipe:
    """D-MoE on MovieLens 100K."""
    return _CURES.dmoe()


def multi_embedding() -> Recipe:
    """Three averaged DCN-V2 with tables of their own, the baseline of D-MoE, on MovieLens 100K."""
    return _CURES.multi_embedding()


def dmoe_wide() -> Recipe:
    """One wide expert with as many parameters as `ml_100k_dmoe` on MovieLens 100K."""
    return _CURES.dmoe_wide()


def rankmixer() -> Recipe:
    """RankMixer on MovieLens 100K."""
    return _CURES.rankmixer()


def rankup() -> Recipe:
    """RankUp on MovieLens 100K."""
    return _CURES.rankup()


def rankup_plain() -> Recipe:
    """RankUp without its parts and with tables twice as wide on MovieLens 100K."""
    return _CURES.rankup_plain()


def rankelastor() -> Recipe:
    """RankElastor on MovieLens 100K."""
    return _CURES.rankelastor()


def rankelastor_plain() -> Recipe:
    """RankElastor with RankMixer's mixing and a wider network on MovieLens 100K."""
    return _CURES.rankelastor_plain()
