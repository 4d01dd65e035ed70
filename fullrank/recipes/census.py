"""Census-Income: forty fields, two labels from one network."""

from __future__ import annotations

from fullrank.recipes._cures import Controls, Cures
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Recipe

_CURES = Cures(
    dataset="census_income",
    prefix="census",
    train=TrainConfig(
        epochs=12, batch_size=1024, schedule="plateau", optimizer="adam", table_l2=0.001
    ),
    table_l2_fm=0.001,
    dim=8,
    hidden=(128, 64),
    tokens=16,
    token_dim=32,
    labels=2,
    elastor=(16, 16),
    controls=Controls(fm=189, dcnv2=(636, 64), expert=10, expansion=5.9),
)


def lr() -> Recipe:
    """Logistic regression on Census-Income."""
    return _CURES.lr()


def mlp() -> Recipe:
    """A plain network on Census-Income."""
    return _CURES.mlp()


def fm() -> Recipe:
    """FM on Census-Income."""
    return _CURES.fm()


def fm_wide() -> Recipe:
    """FM with as many parameters as `census_sfg_fm` on Census-Income."""
    return _CURES.fm_wide()


def dcnv2() -> Recipe:
    """DCN-V2 on Census-Income."""
    return _CURES.dcnv2()


def dcnv2_wide() -> Recipe:
    """DCN-V2 with as many parameters as `census_sfg_dcnv2` on Census-Income."""
    return _CURES.dcnv2_wide()


def pfl() -> Recipe:
    """PFL on Census-Income."""
    return _CURES.pfl()


def sfg_fm() -> Recipe:
    """SFG around FM on Census-Income."""
    return _CURES.sfg_fm()


def sfg_dcnv2() -> Recipe:
    """SFG around DCN-V2 on Census-Income."""
    return _CURES.sfg_dcnv2()


def dmoe() -> Recipe:
    """D-MoE on Census-Income."""
    return _CURES.dmoe()


def multi_embedding() -> Recipe:
    """Three averaged DCN-V2 with tables of their own, the baseline of D-MoE, on Census-Income."""
    return _CURES.multi_embedding()


def dmoe_wide() -> Recipe:
    """One wide expert with as many parameters as `census_dmoe` on Census-Income."""
    return _CURES.dmoe_wide()


def rankmixer() -> Recipe:
    """RankMixer on Census-Income."""
    return _CURES.rankmixer()


def rankup() -> Recipe:
    """RankUp on Census-Income."""
    return _CURES.rankup()


def rankup_plain() -> Recipe:
    """RankUp without its parts and with tables twice as wide on Census-Income."""
    return _CURES.rankup_plain()


def rankelastor() -> Recipe:
    """RankElastor on Census-Income."""
    return _CURES.rankelastor()


def rankelastor_plain() -> Recipe:
    """RankElastor with RankMixer's mixing and a wider network on Census-Income."""
    return _CURES.rankelastor_plain()
