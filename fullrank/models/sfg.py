"""SFG: one operand of every interaction of a ranker is generated from all fields.

arXiv:2512.14041 and its released code. Raw embeddings that interact with each other collapse and
make both operands redundant. SFG builds any ranker whose operands pass through the slots of
`fullrank.nn.operand` and puts a generator into each: g = gamma * phi(h W + b), h being all fields
joined. The click is the only supervision: there is no reconstruction term, no detached copy, and
the loss is the ranker's own. Networks beside the interaction keep reading raw embeddings.
Deviations: cross layers keep the bias, and DCN-V2 its head, of the ranker as it ships; a target
mask leaves the classifier as wide as it was, where the code shrinks it; the code's hooks for a
covariance and an InfoNCE term, with weight zero in its settings, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast, get_args

from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import from_dict, refuse_idle, require, require_between, require_positive
from fullrank.embedding import Embeddings
from fullrank.errors import ConfigError, FullrankError
from fullrank.model import NO_ASSETS, Assets, Ranker, create, list_models, model_class
from fullrank.nn import operand as op
from fullrank.nn.dropout import Dropout
from fullrank.nn.operand import LayerOutput, Operand, PairOperands
from fullrank.schema import Schema
from fullrank.tap import Tap

_MASKS = tuple(kind for kind in get_args(op.Target) if kind != "all")
_ENCODERS = tuple(name for name in get_args(op.Encoder) if name != "own")
_GENERATION = (
    "phi", "encoder", "rank", "source", "pairing", "gamma", "gen_residual", "use_gen_rst",
    "raw_fields", "target",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SFGConfig:
    """Settings: the switches of the paper's ablations.

    Args:
        base: name of a ranker with slots, or the dotted path of your own.
        config: its settings, as its Config or as a mapping; None for its defaults.
        gen: False is the ranker as it ships, to the bit.
        phi: activation of the generator. Linear and saturating ones lose in the paper.
        encoder: see `make_encoder`; "own" skips it, so that every field sees only itself.
        rank: of the matrix of "field_wise"; None for a full one, the code's small transformation
            takes a quarter of its width.
        source: "all" or which half of the fields, by vocabulary, sees all fields; the other half
            sees only itself. Numbers and vectors count as the smallest vocabularies.
        pairing: of rankers over pairs of fields; see `PairGenerator`. With "upper" the last
            field's generated vector is not used, and results depend on the order of fields.
        gamma: scale of what is generated, fixed; the parameter to tune, in 0.01, 0.1, 1, 6, 36.
        gen_residual: add the source to what is generated.
        use_gen_rst: the source of cross layer l is X_l instead of the embeddings.
        cross_drop: dropout on the output of every cross layer, the residual included; also for
            the ranker as it ships, as a control.
        raw_fields: names of fields that keep their looked-up vectors; the code's groups are six
            neighbours by vocabulary.
        target: "all" or which k fields may be predicted; see `field_masks`.
        target_k: k.
        target_seed: of "random_k".
    """

    base: str = "dcnv2"
    config: Any = None
    gen: bool = True
    phi: op.Phi = "relu"
    encoder: op.Encoder = "field_wise"
    rank: int | None = None
    source: op.Source = "all"
    pairing: op.Pairing = "upper"
    gamma: float = 1.0
    gen_residual: bool = False
    use_gen_rst: bool = False
    cross_drop: float = 0.0
    raw_fields: tuple[str, ...] = ()
    target: op.Target = "all"
    target_k: int = 10
    target_seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", _base_config(self.base, self.config))
        require_positive(self, "gamma", "target_k")
        require_between(self, 0.0, 0.95, "cross_drop")
        if self.rank is not None:
            require_positive(self, "rank")
        idle = (
            ("gen", (True,), _GENERATION),
            ("encoder", ("field_wise",), ("rank",)),
            ("encoder", _ENCODERS, ("source",)),
            ("target", _MASKS, ("target_k",)),
            ("target", ("random_k",), ("target_seed",)),
        )
        refuse_idle(self, idle)

    @classmethod
    def tiny(cls) -> SFGConfig:
        """Returns the smallest config that visits every branch."""
        return cls(
            config=model_class("dcnv2").Config.tiny(), source="all_for_high_card",
            gen_residual=True, use_gen_rst=True, cross_drop=0.1,
        )  # fmt: skip


class SFG(nn.Module):
    """A ranker with generated operands.

    A tap that lies at the top of the ranker keeps its name; the others, and all parameters, get
    the prefix "base.".

    Args:
        schema: what the ranker needs.
        config: settings.
        assets: handed to the ranker.

    Raises:
        ConfigError: the ranker has no slots, or lacks what a setting is about.
    """

    Config = SFGConfig

    def __init__(self, schema: Schema, config: SFGConfig, assets: Assets = NO_ASSETS) -> None:
        super().__init__()
        self.schema = schema
        base = create(config.base, schema, config.config, assets)
        for name, child in base.named_children():
            if isinstance(child, Tap):
                self.add_module(name, child)
        self.base = base
        slots = {n: m for n, m in base.named_modules() if isinstance(m, Operand | PairOperands)}
        outputs = [n for n, m in base.named_modules() if isinstance(m, LayerOutput)]
        _check(schema, config, list(slots.values()), len(outputs))
        if config.gen:
            kinds = op.field_kinds(schema, config.encoder, config.source, config.raw_fields)
            masks = op.field_masks(
                schema, config.target, config.target_k, config.target_seed, len(slots)
            )
            for (name, slot), mask in zip(slots.items(), masks, strict=True):
                encoder = op.make_encoder(config.encoder, kinds, slot.dim, config.phi, config.rank)
                generator = op.Generator(
                    kinds, encoder, config.phi, config.gamma, config.gen_residual,
                    config.use_gen_rst,
                )  # fmt: skip
                base.set_submodule(name, slot.generated(generator, config.pairing, mask))
        if config.cross_drop > 0:
            for name in outputs:
                base.set_submodule(name, Dropout(config.cross_drop))

    @property
    def embeddings(self) -> Embeddings:
        """The ranker's embeddings."""
        return cast(Embeddings, self.base.embeddings)

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        return cast(Ranker, self.base).score(batch)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the ranker's losses. A training call draws fresh target masks first."""
        if self.training:
            for module in self.modules():
                if isinstance(module, op.FieldMask):
                    module.draw()
        return cast(dict[str, Tensor], self.base(batch))

    def pair_projection(self, i: int, j: int) -> Tensor | None:
        """Returns the ranker's, which the right operand, still looked up, passes; or None."""
        project: Any = getattr(self.base, "pair_projection", None)
        return None if project is None else cast("Tensor | None", project(i, j))


def _base_config(base: str, config: Any) -> Any:
    cls = model_class(base).Config
    if config is None:
        return cls()
    if isinstance(config, Mapping):
        return from_dict(cls, dict(config), "SFGConfig.config")
    require(
        isinstance(config, cls),
        where="SFGConfig.config",
        found=type(config).__name__,
        expected=f"{cls.__name__}, the settings of '{base}', or a mapping",
        fix=f"pass {cls.__name__}(...), or None for the defaults of '{base}'",
    )
    return config


def _check(
    schema: Schema, config: SFGConfig, slots: list[Operand | PairOperands], outputs: int
) -> None:
    """Refuses a ranker without slots, and settings about something that it has not got."""
    if not slots:
        raise ConfigError(
            "a ranker does not pass the operands of its interactions through slots",
            where="SFGConfig.base",
            found=f"'{config.base}'",
            expected="one of: " + ", ".join(_rankers_with_slots(schema)),
            fix="choose one of them, or give yours an Operand of fullrank.nn.operand",
        )
    widths = {slot.num_fields for slot in slots}
    require(
        widths == {len(schema.fields)},
        where="SFGConfig.base",
        found=f"'{config.base}', whose slots pass {sorted(widths)} vectors",
        expected=f"one vector for each of the {len(schema.fields)} fields",
        fix="choose another base, or place its slots before fields are joined or cut",
    )
    pairs = any(isinstance(slot, PairOperands) for slot in slots)
    layers = sum(isinstance(slot, Operand) and slot.layered for slot in slots)
    for name, idle, needed in (
        ("pairing", config.pairing != "upper" and not pairs, "an interaction over pairs"),
        ("use_gen_rst", config.use_gen_rst and layers < 2, "several cross layers"),
        ("cross_drop", config.cross_drop > 0 and outputs == 0, "cross layers"),
        ("target", config.target != "all" and not pairs and layers == 0, "predicted fields"),
        ("target", config.target == "field_masked_k" and len(slots) < 2, "several layers"),
    ):
        default = next(f.default for f in fields(config) if f.name == name)
        require(
            not idle,
            where=f"SFGConfig.{name}",
            found=f"{getattr(config, name)!r} with base '{config.base}'",
            expected=f"{default!r}: the setting is about {needed}, which this ranker has not got",
            fix=f"leave {name} out, or choose another base",
        )


def _rankers_with_slots(schema: Schema) -> list[str]:
    found = []
    for name in list_models():
        try:
            ranker = create(name, schema, model_class(name).Config.tiny())
        except FullrankError:  # it does not fit the schema
            continue
        if any(isinstance(m, Operand | PairOperands) for m in ranker.modules()):
            found.append(name)
    return found


MODEL = SFG
