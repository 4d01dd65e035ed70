"""Models that read a user's past, their floors and their ablations, at one data set's size.

All runs of a data set share window and width, and all but TokenFormer's their training settings,
whose `table_l2` was chosen by DIN's validation AUC. TokenFormer has none, for its norms make that
of the tables' scale meaningless: on Beauty they shrank to nothing. The floors see the same fields
without the past; what popularity alone reaches is printed beside every result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fullrank.models.dcnv2 import DCNv2
from fullrank.models.dien import DIEN
from fullrank.models.din import DIN
from fullrank.models.dmoe import DMoE
from fullrank.models.fedin import FEDIN
from fullrank.models.sim import SIM
from fullrank.models.tokenformer import TokenFormer
from fullrank.models.two_tower import TwoTower
from fullrank.train.config import TrainConfig
from fullrank.workflow.recipe import Gain, Recipe

_FEDIN = "Taobao, arXiv:2605.01726"
_TOKENFORMER = "KuaiRand-27K, arXiv:2604.13737"


@dataclass(frozen=True, kw_only=True)
class Interests:
    """Sizes on one data set, and the runs that follow from them.

    Args:
        dataset: as in `Recipe`.
        prefix: of the recipes' names, the name of their file.
        train: settings of every run.
        dim: width of a field embedding.
        hidden: widths of deep parts.
        dropout: of deep parts and of TokenFormer's blocks.
        window: newest events that are read; None for all that the data keeps.
        token_dim: width of TokenFormer's tokens.
        windows: of its sliding layers.
    """

    dataset: Any
    prefix: str
    train: TrainConfig
    dim: int
    hidden: tuple[int, ...]
    dropout: float
    window: int | None = None
    token_dim: int = 32
    windows: tuple[int, int] = (12, 6)

    def mlp(self) -> Recipe:
        """A plain network without the past: the floor."""
        network = DMoE.Config(
            dim=self.dim, num_experts=1, experts=("dnn",), dnn_hidden=self.hidden[:-1],
            expert_dim=self.hidden[-1], gate="mean", decorrelation=None, tower_hidden=(),
            dropout=self.dropout,
        )  # fmt: skip
        return self._run("dmoe", network)

    def dcnv2(self) -> Recipe:
        """DCN-V2 without the past."""
        config = DCNv2.Config(dim=self.dim, hidden=self.hidden, dropout=self.dropout)
        return self._run("dcnv2", config)

    def two_tower(self) -> Recipe:
        """Two towers, which can also retrieve: the past is read without the target."""
        config = TwoTower.Config(embedding_dim=self.dim, hidden=self.hidden, dropout=self.dropout)
        return self._run("two_tower", config, self._gain("mlp"))

    def din(self) -> Recipe:
        """DIN."""
        config = DIN.Config(
            dim=self.dim, length=self.window, hidden=self.hidden, dropout=self.dropout
        )
        return self._run("din", config, self._gain("mlp"))

    def dien(self) -> Recipe:
        """DIEN."""
        config = DIEN.Config(
            dim=self.dim, length=self.window, hidden=self.hidden, dropout=self.dropout
        )
        return self._run("dien", config, self._gain("mlp"))

    def sim(self) -> Recipe:
        """SIM with soft search."""
        config = SIM.Config(
            dim=self.dim, length=self.window, hidden=self.hidden, dropout=self.dropout
        )
        return self._run("sim", config, self._gain("mlp"))

    def fedin(self) -> Recipe:
        """FEDIN."""
        config = FEDIN.Config(
            dim=self.dim, length=self.window, hidden=self.hidden, patch_hidden=(64,),
            complex_hidden=(32, 32),
        )  # fmt: skip
        gains = self._gain("din", 0.0065, _FEDIN), self._gain("fedin_time")
        return self._run("fedin", config, *gains)

    def fedin_time(self) -> Recipe:
        """FEDIN without its frequency branch."""
        config = FEDIN.Config(dim=self.dim, length=self.window, hidden=self.hidden, use_freq=False)
        return self._run("fedin", config)

    def tokenformer(self) -> Recipe:
        """TokenFormer: 2F2S, gated (A3)."""
        gains = (
            self._gain("tokenformer_a0", 0.01142, _TOKENFORMER),
            self._gain("tokenformer_a1", 0.00085, _TOKENFORMER),
            self._gain("din"),
        )
        return self._tokenformer("A3", *gains)

    def tokenformer_a0(self) -> Recipe:
        """A plain Transformer over fields and events: 4F, not gated."""
        return self._tokenformer("A0")

    def tokenformer_a1(self) -> Recipe:
        """TokenFormer with four full layers, gated."""
        return self._tokenformer("A1", self._gain("tokenformer_a10"))

    def tokenformer_a2(self) -> Recipe:
        """TokenFormer 2F2S without the gate."""
        return self._tokenformer("A2", self._gain("tokenformer_a0", 0.0049, _TOKENFORMER))

    def tokenformer_a4(self) -> Recipe:
        """TokenFormer with sliding layers alone."""
        return self._tokenformer("A4", self._gain("tokenformer", -0.03635, _TOKENFORMER))

    def tokenformer_a8(self) -> Recipe:
        """TokenFormer that drops static fields after two layers and has no windows."""
        return self._tokenformer("A8")

    def tokenformer_a9(self) -> Recipe:
        """The plain Transformer without static fields."""
        return self._tokenformer("A9")

    def tokenformer_a10(self) -> Recipe:
        """The plain Transformer with as many parameters as the gated one."""
        return self._tokenformer("A10")

    def _tokenformer(self, variant: str, *gains: Gain) -> Recipe:
        config = TokenFormer.Config.variant(
            variant, dim=self.token_dim, embedding_dim=self.dim, length=self.window,
            windows=self.windows, dropout=self.dropout,
        )  # fmt: skip
        train = replace(self.train, batch_size=256, epochs=8, patience=2, table_l2=0.0)
        return replace(self._run("tokenformer", config, *gains), train=train)

    def _gain(self, over: str, paper: float | None = None, source: str = "") -> Gain:
        return Gain(over=f"{self.prefix}_{over}", paper=paper, source=source)

    def _run(self, model: str, config: Any, *gains: Gain) -> Recipe:
        return Recipe(
            dataset=self.dataset, model=model, config=config, train=self.train, gains=gains
        )
