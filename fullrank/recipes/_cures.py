"""The rankers that keep their rank, their baselines and their controls, at one data set's size.

All runs of a data set share training settings and width. `table_l2` was chosen by validation AUC,
for DCN-V2 and for FM, which on the planted collapse needs a learning rate of its own as well; sets
of tables share it out (D-MoE). A control has about as many parameters as what it is held against,
and nothing of what should help.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fullrank.models.dcnv2 import DCNv2Config
from fullrank.models.dmoe import DMoE, DMoEConfig
from fullrank.models.fm import FM
from fullrank.models.lr import LR
from fullrank.models.pfl import PFL
from fullrank.models.rankelastor import RankElastorConfig
from fullrank.models.rankmixer import RankMixer
from fullrank.models.rankup import RankUpConfig
from fullrank.models.sfg import SFG
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Gain, Recipe

_SFG = "Criteo, arXiv:2512.14041"
_DMOE = "GMV +1.19 % online, arXiv:2505.17925"
_RANKUP = "Order task, arXiv:2604.17878"
_RANKELASTOR = "Criteo, arXiv:2605.23191"


@dataclass(frozen=True, kw_only=True)
class Controls:
    """Sizes of the controls.

    Args:
        fm: width of a field embedding, against SFG around FM.
        dcnv2: widths of the deep part, against SFG around DCN-V2.
        expert: width of a field embedding of the single expert, against D-MoE.
        expansion: of the gated networks, against RankElastor's full mixing.
    """

    fm: int
    dcnv2: tuple[int, ...]
    expert: int
    expansion: float


@dataclass(frozen=True, kw_only=True)
class Cures:
    """Sizes on one data set, and the runs that follow from them.

    Args:
        dataset: as in `Recipe`.
        prefix: of the recipes' names, the name of their file.
        train: settings of every run.
        table_l2_fm: instead of that of `train`, for what has no network: LR, FM and its SFG form.
        learning_rate_fm: for the same ones; None is that of `train`.
        dim: width of a field embedding of the models that multiply fields.
        hidden: widths of deep parts.
        tokens: T of the token models; RankUp's sparse tokens are T less the global token and one
            per label.
        token_dim: their width D.
        labels: number of labels.
        elastor: (T, D) of RankElastor; T divides the number of fields times 16.
        controls: sizes that give the controls as many parameters as what they are held against.
    """

    dataset: Any
    prefix: str
    train: TrainConfig
    table_l2_fm: float
    dim: int
    hidden: tuple[int, ...]
    tokens: int
    token_dim: int
    labels: int
    elastor: tuple[int, int]
    controls: Controls
    learning_rate_fm: float | None = None

    def lr(self) -> Recipe:
        """Logistic regression: the floor."""
        return self._run("lr", LR.Config())

    def mlp(self) -> Recipe:
        """A plain network: the floor of every model that multiplies fields."""
        network = DMoE.Config(
            dim=self.dim, num_experts=1, experts=("dnn",), dnn_hidden=self.hidden[:-1],
            expert_dim=self.hidden[-1], gate="mean", decorrelation=None, tower_hidden=(),
        )  # fmt: skip
        return self._run("dmoe", network)

    def fm(self) -> Recipe:
        """FM."""
        return self._run("fm", FM.Config(dim=self.dim))

    def fm_wide(self) -> Recipe:
        """FM, the control of its SFG form."""
        return self._run("fm", FM.Config(dim=self.controls.fm))

    def dcnv2(self) -> Recipe:
        """DCN-V2."""
        return self._run("dcnv2", self._dcnv2())

    def dcnv2_wide(self) -> Recipe:
        """DCN-V2, the control of its SFG form."""
        return self._run("dcnv2", replace(self._dcnv2(), hidden=self.controls.dcnv2))

    def pfl(self) -> Recipe:
        """PFL."""
        config = PFL.Config(
            dim=self.dim, num_layers=3, hidden=self.hidden, batch_norm=True, dropout=0.2
        )
        return self._run("pfl", config, self._gain("dcnv2", source="'competitive'"))

    def sfg_fm(self) -> Recipe:
        """SFG around FM."""
        config = SFG.Config(base="fm", config=FM.Config(dim=self.dim), gamma=1.0)
        gains = self._gain("fm", 0.00872, _SFG), self._gain("fm_wide")
        return self._run("sfg", config, *gains)

    def sfg_dcnv2(self) -> Recipe:
        """SFG around DCN-V2."""
        config = SFG.Config(
            base="dcnv2", config=self._dcnv2(), gamma=0.1, gen_residual=True, use_gen_rst=True,
            cross_drop=0.1,
        )  # fmt: skip
        gains = self._gain("dcnv2", 0.00054, _SFG), self._gain("dcnv2_wide")
        return self._run("sfg", config, *gains)

    def dmoe(self) -> Recipe:
        """D-MoE: three kinds of experts, tables of their own, and the loss."""
        gains = self._gain("multi_embedding", source=_DMOE), self._gain("dmoe_wide")
        return self._run("dmoe", self._experts(), *gains, sets=3)

    def multi_embedding(self) -> Recipe:
        """Three equal experts on tables of their own, averaged: the baseline of D-MoE."""
        config = replace(
            DMoE.Config.multi_embedding(num_experts=3, dim=self.dim), num_cross=2,
            expert_dim=self.hidden[0], tower_hidden=(self.hidden[0],),
        )  # fmt: skip
        return self._run("dmoe", config, sets=3)

    def dmoe_wide(self) -> Recipe:
        """One expert on one wider table."""
        config = replace(self._experts().step("C1"), dim=self.controls.expert)
        return self._run("dmoe", config)

    def rankmixer(self) -> Recipe:
        """RankMixer."""
        config = RankMixer.Config(
            embedding_dim=16, num_tokens=self.tokens, token_dim=self.token_dim, num_blocks=2,
            expansion=2.0, dropout=0.2,
        )  # fmt: skip
        return self._run("rankmixer", config)

    def rankup(self) -> Recipe:
        """RankUp: random sparse tokens, a global one, and one per task."""
        gains = self._gain("rankmixer", 0.0041, _RANKUP), self._gain("rankup_plain")
        return self._run("rankup", self._rankup(), *gains)

    def rankup_plain(self) -> Recipe:
        """RankUp without its parts: as many tokens, and tables twice as wide."""
        config = replace(
            self._rankup(), embedding_dim=32, split_mode="sequential", multi_embedding="off",
            global_token="none", task_tokens=False, sparse_tokens=self.tokens,
        )  # fmt: skip
        return self._run("rankup", config)

    def rankelastor(self) -> Recipe:
        """RankElastor: full mixing, and a gated network per token."""
        gains = (
            self._gain("rankmixer", 0.00107, _RANKELASTOR),
            self._gain("rankelastor_plain", 0.00069, _RANKELASTOR),
        )
        return self._run("rankelastor", self._rankelastor(), *gains)

    def rankelastor_plain(self) -> Recipe:
        """RankElastor with RankMixer's mixing and a wider network."""
        config = replace(
            self._rankelastor(), mix="block_transpose", expansion=self.controls.expansion
        )
        return self._run("rankelastor", config)

    def _dcnv2(self) -> DCNv2Config:
        return DCNv2Config(dim=self.dim, num_cross=2, hidden=self.hidden, dropout=0.2)

    def _experts(self) -> DMoEConfig:
        return DMoEConfig(
            dim=self.dim, experts=("cross", "cin", "dnn"), num_cross=2, dnn_hidden=self.hidden,
            expert_dim=32, tower_hidden=self.hidden[:1],
        )  # fmt: skip

    def _rankup(self) -> RankUpConfig:
        sparse = self.tokens - 1 - self.labels
        return RankUpConfig(
            embedding_dim=16, sparse_tokens=sparse, token_dim=self.token_dim, dropout=0.2
        )

    def _rankelastor(self) -> RankElastorConfig:
        tokens, dim = self.elastor
        return RankElastorConfig(
            embedding_dim=16, num_tokens=tokens, token_dim=dim, hidden_units=(dim,), dropout=0.2
        )

    def _gain(self, over: str, paper: float | None = None, source: str = "") -> Gain:
        return Gain(over=f"{self.prefix}_{over}", paper=paper, source=source)

    def _run(self, model: str, config: Any, *gains: Gain, sets: int = 1) -> Recipe:
        shallow = model in ("lr", "fm") or (model == "sfg" and config.base == "fm")
        train = replace(self.train, table_l2=self.train.table_l2 / sets)
        if shallow:
            rate = self.learning_rate_fm or self.train.learning_rate
            train = replace(self.train, table_l2=self.table_l2_fm, learning_rate=rate)
        return Recipe(dataset=self.dataset, model=model, config=config, train=train, gains=gains)
