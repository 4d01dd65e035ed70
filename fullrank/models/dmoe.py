"""D-MoE: a dense mixture of interaction experts that are kept from saying the same.

arXiv:2505.17925; its baseline, Multi-Embedding, is arXiv:2310.04400, with released code. D-MoE's
own formulas are not public: loss, gate, list of experts and sizes are our reading or our choice.
Deviations: rows start normal, not Xavier-uniform; a linear layer before batch norm has no bias.
Several labels share the experts, the gate and the tower, and have an output each.
A field-only model: the sequences of a schema are not read.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import require, require_between, require_positive
from fullrank.embedding import Embeddings
from fullrank.errors import nearest
from fullrank.losses.binary import binary_losses
from fullrank.losses.decorrelation import Decorrelation, DecorrelationLoss
from fullrank.model import NO_ASSETS, Assets
from fullrank.nn.dropout import Dropout
from fullrank.nn.expert_bank import Interaction, interaction
from fullrank.nn.gating import READS_EMBEDDINGS, ExpertGate, Gate
from fullrank.nn.head import num_labels, split_labels
from fullrank.nn.mlp import MLP, Activation, linear
from fullrank.schema import Schema
from fullrank.tap import Tap

# Longer than 250 lines, because every switch of the progressive study has its line in the config.
Step = Literal["S0", "S1", "S1'", "S2", "S3", "S3a", "S3b", "C1", "C2"]

# Settings that are read by experts of one kind alone.
_READ_BY: dict[str, Interaction] = {"num_cross": "cross", "cin_maps": "cin", "dnn_hidden": "dnn"}


@dataclass(frozen=True, kw_only=True)
class DMoEConfig:
    """Settings.

    Args:
        dim, embedding_std: width and initial spread of a field embedding, in every set.
        num_experts: K.
        experts: the interaction of each expert in order, or one for all: "cross", "cin", "dnn",
            "ipnn", "fwfm", "fmfm", or "flatten" for the fields as they are.
        shared_embedding: all experts read one set of tables.
        shared_expert: one interaction and projection serves all sets (a control).
        num_cross, cin_maps, dnn_hidden: layers of the experts "cross", "cin" and "dnn".
        expert_dim: m, width of an expert's projected output.
        gate: see `ExpertGate`.
        gate_fields: names of the fields that the gate reads; () for all.
        gate_stopgrad: the gate does not move the embeddings.
        decorrelation: None for no such loss.
        aggregate_before_tower: False gives every expert a tower and weighs their logits.
        tower_hidden: widths of the tower; () is linear.
        activation, batch_norm: of every MLP: "dnn", projections, tower.
        dropout: inside "dnn" and the tower, and on the projected outputs on their way to the gate.
    """

    dim: int = 10
    embedding_std: float = 0.01
    num_experts: int = 3
    experts: tuple[Interaction, ...] = ("cross", "cin", "dnn")
    shared_embedding: bool = False
    shared_expert: bool = False
    num_cross: int = 3
    cin_maps: tuple[int, ...] = (16, 16)
    dnn_hidden: tuple[int, ...] = (400, 400)
    expert_dim: int = 64
    gate: Gate = "softmax_own"
    gate_fields: tuple[str, ...] = ()
    gate_stopgrad: bool = False
    decorrelation: Decorrelation | None = Decorrelation()  # noqa: RUF009 (it is frozen)
    aggregate_before_tower: bool = True
    tower_hidden: tuple[int, ...] = (400,)
    activation: Activation = "relu"
    batch_norm: bool = True
    dropout: float = 0.2

    def __post_init__(self) -> None:
        require_positive(self, "dim", "embedding_std", "num_experts", "num_cross", "cin_maps")
        require_positive(self, "dnn_hidden", "expert_dim", "tower_hidden")
        require_between(self, 0.0, 0.95, "dropout")
        count, known = len(self.experts), get_args(Interaction)
        for kind in self.experts:
            require(
                kind in known,
                where="DMoEConfig.experts",
                found=f"'{kind}'",
                expected="the name of an interaction",
                fix=nearest(kind, known),
            )
        require(
            count in (1, self.num_experts),
            where="DMoEConfig.experts",
            found=f"{count} names for {self.num_experts} experts",
            expected=f"{self.num_experts} names, or one for all",
            fix=f"set num_experts={max(1, count)}, or name {self.num_experts} experts",
        )
        require(
            bool(self.cin_maps),
            where="DMoEConfig.cin_maps",
            found=self.cin_maps,
            expected="at least one layer",
            fix="set (16,)",
        )
        for holds, name, only, reason in self._bound():
            require(
                not holds or getattr(self, name) == only,
                where=f"DMoEConfig.{name}",
                found=f"{getattr(self, name)!r} with {reason}",
                expected=f"{only!r}: anything else would have no effect, or none of its own",
                fix=f"set {name}={only!r}, or change {reason}",
            )

    def _bound(self) -> list[tuple[bool, str, object, str]]:
        """Lists (when, setting, its only value then, the reason)."""
        one, blind = self.num_experts == 1, self.gate not in READS_EMBEDDINGS
        alone, gate = "num_experts=1", f"gate='{self.gate}'"
        split = not self.aggregate_before_tower
        return [
            (one, "decorrelation", None, alone),
            (one, "gate", "mean", alone),
            (one, "aggregate_before_tower", True, alone),
            (one, "shared_embedding", False, alone),
            (one, "shared_expert", False, alone),
            (blind, "gate_fields", (), gate),
            (blind, "gate_stopgrad", False, gate),
            (split and self.gate == "elementwise", "gate", "softmax_own", "a tower per expert"),
            (self.shared_embedding, "shared_expert", False, "shared_embedding"),
            (self.shared_embedding and self.gate == "softmax_shared", "gate", "softmax_own",
             "shared_embedding"),
            (len(set(self.experts)) > 1, "shared_expert", False, f"experts={self.experts}"),
            *((kind not in self.experts, name, _default(name), f"experts={self.experts}")
              for name, kind in _READ_BY.items()),
        ]  # fmt: skip

    @classmethod
    def tiny(cls) -> DMoEConfig:
        """Returns the smallest config that visits every branch."""
        return cls(
            dim=4, embedding_std=0.1, num_cross=2, cin_maps=(3,), dnn_hidden=(8,), expert_dim=8,
            decorrelation=Decorrelation(weight=0.01, warmup_steps=2), tower_hidden=(8,),
            dropout=0.1,
        )  # fmt: skip

    @classmethod
    def multi_embedding(cls, num_experts: int = 4, dim: int = 10) -> DMoEConfig:
        """Returns Multi-Embedding DCN-V2, arXiv:2310.04400, as its released code has it."""
        return cls(
            dim=dim, num_experts=num_experts, experts=("cross",), num_cross=4, expert_dim=400,
            gate="mean", decorrelation=None,
        )  # fmt: skip

    def step(self, name: Step) -> DMoEConfig:
        """Returns a row of the progressive study at this config's sizes, loss and experts.

            S0   one shared set of tables, K times the first expert
            S1   a set per expert                S1'  different experts, shared set
            S2   both                            S3   S2 with the loss
            S3a  S0 with the loss                S3b  S1 with the loss
            C1   one expert on one set K times as wide
            C2   S1 with one expert for all sets

        Raises:
            ConfigError: the row has different experts, and this config names one kind only.
        """
        different, lossy = name in ("S1'", "S2", "S3"), name in ("S3", "S3a", "S3b")
        require(
            not different or len(set(self.experts)) > 1,
            where=f"DMoEConfig.step('{name}')",
            found=f"experts {self.experts}",
            expected="different kinds of experts",
            fix="name another kind, such as 'dnn'",
        )
        experts = self.experts if different else self.experts[:1]
        unread = {key: _default(key) for key, kind in _READ_BY.items() if kind not in experts}
        row = replace(
            self, experts=experts, shared_embedding=name in ("S0", "S1'", "S3a"),
            shared_expert=name == "C2",
            decorrelation=(self.decorrelation or Decorrelation()) if lossy else None,
            **unread,
        )  # fmt: skip
        if name != "C1":
            return row
        return replace(
            row, dim=self.num_experts * self.dim, num_experts=1, gate="mean", gate_fields=(),
            gate_stopgrad=False, aggregate_before_tower=True,
        )  # fmt: skip


class DMoE(nn.Module):
    """K embedding sets, an interaction and a projection on each, a gate, and a tower.

    Taps: `embed` (the first set), `experts` (h), `gate`, `head_in`.

    Args:
        schema: fields of all kinds; at least one label.
        config: settings.
        assets: not read.

    Raises:
        ConfigError: the loss compares interactions of different widths, or `gate_fields` names
            no field.
        SchemaError: an expert crosses pairs, and there is one field only.
    """

    Config = DMoEConfig

    def __init__(self, schema: Schema, config: DMoEConfig, assets: Assets = NO_ASSETS) -> None:
        super().__init__()
        self.schema, self.config, K = schema, config, config.num_experts
        sets = 1 if config.shared_embedding else K
        tables = [Embeddings(schema, config.dim, std=config.embedding_std) for _ in range(sets)]
        self.embeddings, self.more_embeddings = tables[0], nn.ModuleList(tables[1:])
        kinds = (config.experts * K)[: 1 if config.shared_expert else K]
        build = partial(
            interaction, num_cross=config.num_cross, cin_maps=config.cin_maps,
            deep=lambda dim: _mlp(dim, config.dnn_hidden, config, config.dropout),
        )  # fmt: skip
        built = [build(kind, len(schema.fields), config.dim) for kind in kinds]
        widths = [width for _, width in built]
        self.interactions = nn.ModuleList(module for module, _ in built)
        self.projections = nn.ModuleList(_mlp(q, (config.expert_dim,), config, 0.0) for q in widths)
        self.dropout = Dropout(config.dropout)
        names = tuple(f.name for f in schema.fields)
        self.gate_columns = _positions(config.gate_fields, names)
        self.gating = ExpertGate(
            config.gate, K, num_sets=sets, unit_dim=config.expert_dim,
            in_dim=len(config.gate_fields or names) * config.dim,
        )  # fmt: skip
        towers = 1 if config.aggregate_before_tower else K
        self.towers = nn.ModuleList(_tower(config, num_labels(schema)) for _ in range(towers))
        self.decorrelation = (
            None if config.decorrelation is None
            else DecorrelationLoss(config.decorrelation, dict(zip(kinds, widths, strict=True)))
        )  # fmt: skip
        self.embed, self.experts = Tap("B F D"), Tap("B E D")
        self.gate, self.head_in = Tap("B D"), Tap("B D")

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        return self._run(batch)[0]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-loss of each label, and "decorrelation" where the config asks for it.

        A training call also counts a step of the warm-up, which is part of the state.
        """
        scores, *compared = self._run(batch)
        losses = binary_losses(scores, batch)
        if self.decorrelation is not None:
            losses["decorrelation"] = self.decorrelation(*compared)
        return losses

    def _run(self, batch: Batch) -> tuple[dict[str, Tensor], list[Tensor], Tensor, Tensor]:
        """Returns scores, z (K of [B, Q_k]), h [B, K, m], and the gate [B, K, 1] or [B, K, m]."""
        sets = [self.embed(self.embeddings.fields(batch))]  # S of [B, F, D]
        sets += [e.fields(batch) for e in self.more_embeddings if isinstance(e, Embeddings)]
        z, h = [], []
        for k in range(self.config.num_experts):
            own = k % len(self.interactions)
            z.append(self.interactions[own](sets[k % len(sets)]))  # [B, Q_k]
            h.append(self.projections[own](z[k]))  # [B, m]
        stacked = self.experts(torch.stack(h, dim=1))  # [B, K, m]
        a = self._gates(sets)
        logits = self._mixed(self.dropout(stacked), a)  # [B, Y]
        return split_labels(logits, self.schema), z, stacked, a

    def _gates(self, sets: list[Tensor]) -> Tensor:
        read = [e[:, self.gate_columns].flatten(1) for e in sets]
        a: Tensor = self.gating([e.detach() for e in read] if self.config.gate_stopgrad else read)
        if a.ndim == 2:
            a = a.unsqueeze(2)  # [B, K, 1]
        self.gate(a.mean(2))  # [B, K]
        return a

    def _mixed(self, h: Tensor, a: Tensor) -> Tensor:
        if self.config.aggregate_before_tower:
            out: Tensor = self.towers[0](self.head_in((a * h).sum(1)))  # [B, Y]
            return out
        self.head_in(h.flatten(1))
        logits = [tower(x) for tower, x in zip(self.towers, h.unbind(1), strict=True)]
        return (a * torch.stack(logits, dim=1)).sum(1)  # [B, K, Y] to [B, Y]


def _default(name: str) -> Any:
    return next(f.default for f in fields(DMoEConfig) if f.name == name)


def _mlp(in_dim: int, hidden: tuple[int, ...], c: DMoEConfig, dropout: float) -> MLP:
    return MLP(in_dim, hidden, activation=c.activation, batch_norm=c.batch_norm, dropout=dropout)


def _tower(c: DMoEConfig, labels: int) -> nn.Module:
    body = _mlp(c.expert_dim, c.tower_hidden, c, c.dropout)
    return nn.Sequential(body, linear(body.out_dim, labels))


def _positions(chosen: tuple[str, ...], names: tuple[str, ...]) -> list[int] | slice:
    for name in chosen:
        require(
            name in names,
            where="DMoEConfig.gate_fields",
            found=f"'{name}'",
            expected="the name of a field",
            fix=nearest(name, names),
        )
    return [names.index(name) for name in chosen] if chosen else slice(None)


MODEL = DMoE
