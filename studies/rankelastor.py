"""RankElastor (arXiv:2605.23191): what full mixing and the gate gain, alone, together, and in rank.

All models have 8 tokens of width 16, two blocks, one grouping and, unless said otherwise, one head;
they learn 80,000 rows of 8 fields for two epochs. Step times are those of bench/full_mixing.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.diagnose.accumulate import Moments, TokenSpectra
from fullrank.diagnose.probe import watch
from fullrank.diagnose.records import Record
from fullrank.models.rankelastor import RankElastor, RankElastorConfig
from fullrank.models.rankmixer import RankMixer, RankMixerConfig
from fullrank.ops.spectrum import erank, stable_rank
from studies.teacher import Sets, area_under_curve, field_aware, fit
from studies.trial import Trial

SIZES: dict[str, Any] = {"embedding_dim": 8, "num_tokens": 8, "token_dim": 16, "num_blocks": 2}
CODE = {"embedding_std": 0.01, "token_hidden": (), "hidden_units": (16,), **SIZES}
CHANGES: dict[str, dict[str, Any]] = {
    "full + GLU": {},
    "no mixing + GLU": {"mix": "identity"},
    "permutation + GLU": {"mix": "block_transpose"},
    "full + GELU": {"ffn": "gelu"},
    "permutation + GELU": {"mix": "block_transpose", "ffn": "gelu"},
    "full + wide GELU": {"ffn": "gelu", "expansion": 4.0},  # as many weights as the gated one
    "rank 64 + GLU": {"mix": "full_lowrank", "mix_rank": 64},  # as many weights as the full one
    "full + GLU, linear head": {"head": "flatten"},
    "no mixing + GLU, linear head": {"head": "flatten", "mix": "identity"},
}
PAPER = "paper preset"
RANKMIXER = "RankMixer"


def trained(name: str, seed: int) -> tuple[nn.Module, Sets]:
    """Returns a model by its name, trained, and the rows it was trained on."""
    sets = field_aware(seed, rows=80_000, fields=8)
    torch.manual_seed(seed)
    model: nn.Module
    if name == RANKMIXER:
        config = RankMixerConfig(
            grouping="shared_proj", token_norm=True, norm="hybrid", ffn_hidden=(48, 48),
            pool="flatten", head_hidden=(256,), **SIZES,
        )  # fmt: skip
        model = RankMixer(sets.schema, config)
    elif name == PAPER:
        model = RankElastor(sets.schema, RankElastorConfig.paper(**SIZES))
    else:
        model = RankElastor(sets.schema, RankElastorConfig.official(**CODE, **CHANGES[name]))
    fit(model, sets.train, seed=seed, epochs=2)
    return model, sets


def areas(names: tuple[str, ...], seed: int) -> dict[str, float]:
    """Returns name -> AUC on the test rows."""
    found = {}
    for name in names:
        model, sets = trained(name, seed)
        found[name] = area_under_curve(model, sets.test)
    return found


class TokenRanks:
    """A probe: stable and effective ranks of tokens after every part, per sample and over rows."""

    taps = "*"

    def __init__(self) -> None:
        self.rows: dict[str, Moments] = {}
        self.samples: dict[str, TokenSpectra] = {}

    def observe(self, name: str, x: Tensor, axes: str, batch: Batch | None) -> None:
        """Adds the tokens [B, N, D] of a tap that shows the state, not a branch."""
        if axes == "B N D" and not name.endswith("branch"):
            tokens, dim = x.shape[1:]
            self.rows.setdefault(name, Moments(dim, groups=tokens)).update(x.transpose(0, 1))
            self.samples.setdefault(name, TokenSpectra(tokens, dim)).update(x)

    def report(self) -> list[Record]:
        """Returns nothing; `least` has the figures."""
        return []

    def least(self) -> dict[str, float]:
        """Returns the smallest value over the taps of each measure; over rows, mean of tokens."""
        s = {name: m.singular_values(center=True) for name, m in self.rows.items()}
        stable = {name: float(stable_rank(v).mean()) for name, v in s.items()}
        return {
            "M5 stable": min(stable.values()),
            "M5 stable in blocks": min(v for name, v in stable.items() if name != "tokens"),
            "M5 erank": min(float(erank(v).mean()) for v in s.values()),
            "M4 stable": min(m.mean("stable_rank") for m in self.samples.values()),
            "M4 erank": min(m.mean("erank") for m in self.samples.values()),
        }


def ranks(names: tuple[str, ...], seed: int) -> dict[str, float]:
    """Returns the least ranks of each trained model."""
    found: dict[str, float] = {}
    for name in names:
        model, sets = trained(name, seed)
        probe = TokenRanks()
        with watch(model, probe) as seen:
            seen.score(sets.test.rows(torch.arange(8192)))
        found |= {f"{name}, {what}": value for what, value in probe.least().items()}
    return found


def beats(name: str, ours: str, theirs: str, reference: str, comment: str = "") -> Trial:
    """Returns a trial: one model's AUC above another's."""
    return Trial(
        name=name,
        claim=f"AUC: {ours} above {theirs}",
        reference=reference,
        measure=partial(areas, (ours, theirs)),
        gain=lambda f: f[ours] - f[theirs],
        seeds=10,
        comment=comment,
    )


def _together(figures: dict[str, float]) -> float:
    alone = max(figures["permutation + GLU"], figures["full + GELU"])
    return figures["full + GLU"] - alone


def _higher(measure: str, ours: str) -> Callable[[dict[str, float]], float]:
    return lambda f: f[f"{ours}, {measure}"] - f[f"{RANKMIXER}, {measure}"]


BOTH = "full + GLU"
TRIALS: list[Trial] = [
    beats("B1-mixing", BOTH, "no mixing + GLU", "Criteo .81482 > .81413, Avazu .79323 > .79289",
          "the head reads all tokens joined and can cross them itself"),
    beats("B1-linear-head", "full + GLU, linear head", "no mixing + GLU, linear head", "-",
          "here nothing but the mixing lets tokens meet"),
    beats("B1-gate", BOTH, "full + GELU", "Criteo .81482 > .81349, Avazu .79323 > .79288"),
    beats("B1-rankmixer", BOTH, RANKMIXER, "Criteo .81482 > .81375, Avazu .79323 > .79270"),
    beats("B1-paper", PAPER, RANKMIXER, "-", "the equations of the text instead of the code"),
    beats("control-rank", BOTH, "rank 64 + GLU", "-", "as many weights, W of half the rank"),
    beats("control-wide", BOTH, "full + wide GELU", "-", "as many weights, without a gate"),
    Trial(
        name="B2",
        claim="AUC: full mixing with the gate above the better of each alone",
        reference="Criteo: both .81482; full mixing alone .81349, gate alone .81393",
        measure=partial(
            areas, (BOTH, "permutation + GLU", "full + GELU", "permutation + GELU")
        ),
        gain=_together,
        comment="alone: with RankMixer's permutation, or without a gate",
    ),
    Trial(
        name="B3",
        claim="least centred stable rank of a token over rows (M5), all taps: above RankMixer's",
        reference="17 to 23 in the paper's figures, per sample (M4)",
        measure=partial(ranks, (BOTH, RANKMIXER)),
        gain=_higher("M5 stable", BOTH),
    ),
    Trial(
        name="B3-blocks",
        claim="the same without the tap `tokens`, where no block has acted yet",
        reference="-",
        measure=partial(ranks, (BOTH, RANKMIXER)),
        gain=_higher("M5 stable in blocks", BOTH),
    ),
    Trial(
        name="B3-paper",
        claim="the same as B3-blocks for the equations of the text",
        reference="-",
        measure=partial(ranks, (PAPER, RANKMIXER)),
        gain=_higher("M5 stable in blocks", PAPER),
    ),
]  # fmt: skip
