"""The grid of interactions on MovieLens 100K: which of them keep their tables from collapsing.

The collapse analysis of IPA, arXiv:2411.12441, as runs: every point has the same width, training
and, where it has one, network. `fullrank compare` draws the tables as they are (M1) and as their
partners see them (M9).
"""

from __future__ import annotations

from dataclasses import replace

from fullrank.models.ipa import IPA, IPAConfig
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Gain, Recipe


def _run(config: IPAConfig, *gains: Gain, table_l2: float = 0.001) -> Recipe:
    train = TrainConfig(epochs=40, batch_size=1024, patience=4, optimizer="adam", table_l2=table_l2)
    return Recipe(dataset="ml_100k", model="ipa", config=config, train=train, gains=gains)


def _deep(config: IPAConfig, *gains: Gain) -> Recipe:
    network = replace(config, hidden=(128, 64), batch_norm=True, dropout=0.2)
    return _run(network, *gains, table_l2=0.1)


def fm() -> Recipe:
    """FM: products of fields as they are."""
    return _run(IPA.Config.fm())


def fwfm() -> Recipe:
    """FwFM: a number per pair of fields."""
    return _run(IPA.Config.fwfm(), Gain(over="interactions_fm"))


def fvfm() -> Recipe:
    """FvFM: a diagonal matrix per pair of fields."""
    return _run(IPA.Config.fvfm(), Gain(over="interactions_fm"))


def fmfm() -> Recipe:
    """FmFM: a full matrix per pair of fields."""
    return _run(
        IPA.Config.fmfm(), Gain(over="interactions_fm"), Gain(over="interactions_fwfm"),
        Gain(over="interactions_fvfm"),
    )  # fmt: skip


def nfm() -> Recipe:
    """NFM: all products summed up below a network."""
    return _deep(IPA.Config.nfm())


def cin() -> Recipe:
    """CIN: weighted sums of products, without a network."""
    return _run(replace(IPA.Config.cin(), maps=(16,)))


def dcn() -> Recipe:
    """DCN: one vector per partner instead of a matrix."""
    return _deep(IPA.Config.dcn())


def dcn_v2() -> Recipe:
    """DCN-V2: a full matrix per pair, summed over partners, with residuals."""
    return _deep(replace(IPA.Config.dcn_v2(), num_layers=3), Gain(over="interactions_dcn"))


def autoint() -> Recipe:
    """AutoInt: attention, which adds instead of multiplying."""
    return _run(IPA.Config.autoint())


def pfl() -> Recipe:
    """PFL: a full matrix per pair, summed over partners, a weight per degree."""
    return _deep(
        replace(IPA.Config.pfl(), num_layers=3), Gain(over="interactions_dcn_v2"),
        Gain(over="interactions_nfm"),
    )  # fmt: skip
