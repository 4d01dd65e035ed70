"""IPA: one form for the models that multiply fields, and its known models as named points.

arXiv:2411.12441 names three parts, interaction function, layer pooling and layer aggregator; the
tensors are our reading, see `nn/interaction.py` and `nn/aggregate.py`. A preset has its paper's
structure and our widths.
Deviations: one embedding width for all fields (FmFM allows one each); AutoInt's layers keep that
width; FiBiNET's matrices are per pair or shared, on the right operand; with several labels all
share the layers and each has its own head (a plain sum becomes `LabelSum`).
A field-only model: the sequences of a schema are not read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import refuse_idle, require, require_between, require_positive
from fullrank.embedding import Embeddings
from fullrank.errors import SchemaError
from fullrank.losses.binary import binary_losses
from fullrank.model import NO_ASSETS, Assets
from fullrank.nn.aggregate import (
    Aggregation,
    Aggregator,
    Attention,
    Attentive,
    Bias,
    Field,
    Filter,
    Global,
    Keep,
    Orientation,
    Pooling,
    SqueezeExcitation,
)
from fullrank.nn.head import LabelSum, num_labels, split_labels, zeroed
from fullrank.nn.interaction import InitScope, Interaction, Pairs, Product, product
from fullrank.nn.mlp import MLP, Activation, linear
from fullrank.schema import Schema
from fullrank.tap import Tap

# Longer than 250 lines, because every switch and every named point of the grid has its lines here.
_MATRICES = ("projected", "projected_shared", "projected_lowrank", "rank_one")
_READ_ONLY_WITH = (
    ("interaction", _MATRICES, ("init_scope",)),
    ("interaction", ("projected_lowrank",), ("rank",)),
    ("interaction", ("additive",), ("num_heads",)),
    ("interaction", get_args(Product), ("self_pairs", "orientation", "bias")),
    ("pooling", ("field",), ("orientation", "residual", "bias")),
    ("pooling", ("field", "filter"), ("self_pairs",)),
    ("pooling", ("filter",), ("maps",)),
    ("pooling", ("attention",), ("attention_dim",)),
    ("pooling", ("keep",), ("max_terms", "squeeze")),
    ("aggregator", ("layer_weight", "field_weight", "element_weight"), ("alpha_norm",)),
    ("classifier", ("mlp", "parallel_mlp"), ("hidden", "activation", "batch_norm", "dropout")),
)


@dataclass(frozen=True, kw_only=True)
class IPAConfig:
    """Settings: a point of the grid; the defaults are PFL's.

    A setting that another one leaves without effect is refused.

    Args:
        dim: D, width of a field embedding.
        embedding_std: standard deviation of the initial embedding rows. Layer l is of the order
            of its power l: without residual, 1e-4 leaves every layer but the first dead.
        interaction: W_ij, see `nn/interaction.py`; "additive" is AutoInt's attention, which is no
            product and pools by "field" alone.
        init_scope: how matrices start: Xavier per "pair", per "layer", of the whole "stack";
            "yahoo", 0.01; "identity". "auto": "layer" where all partners are summed before the
            product, "pair" elsewhere.
        rank: of "projected_lowrank".
        num_heads: of "additive"; divides `dim`.
        pooling: from pairs to the terms of the next layer, see `nn/aggregate.py`.
        orientation: of "field": the raw field or the previous term survives the sum.
        self_pairs: of "field" and of the first "filter": whether a field meets itself.
        residual: of "field": adds the previous layer.
        bias: of "field": "inside" the product (DCN-V2) or "outside" (DCN).
        maps: H of each "filter"; a single one serves all layers.
        attention_dim: hidden units of the "attention" network.
        squeeze: "keep" the pairs of SENet-scaled fields as well.
        max_terms: the most terms that "keep" may make.
        num_layers: L, the raw fields counted: L - 1 interactions, degree up to L.
        aggregator: from layers to what the classifier reads, see `Aggregator`.
        alpha_norm: the weights of the layers add up to one.
        layer_rms: divide each layer by its root mean square before it is aggregated.
        join_raw: the classifier also reads the raw fields.
        classifier: "sum" (no weights), "linear", "mlp", or "parallel_mlp", linear beside a network
            on the raw fields.
        use_lr: first-order terms: a weight per "id", per element of the "embedding", or "off".
        hidden: widths of the network.
        activation: of the network.
        batch_norm: of the network.
        dropout: of the network.
    """

    dim: int = 10
    embedding_std: float = 0.1
    interaction: Product | Literal["additive"] = "projected"
    init_scope: Literal["auto"] | InitScope = "auto"
    rank: int = 4
    num_heads: int = 2
    pooling: Pooling = "field"
    orientation: Orientation = "keep_raw"
    self_pairs: bool = True
    residual: bool = False
    bias: Bias = "none"
    maps: tuple[int, ...] = (64,)
    attention_dim: int = 8
    squeeze: bool = False
    max_terms: int = 1024
    num_layers: int = 4
    aggregator: Aggregation = "layer_weight"
    alpha_norm: bool = False
    layer_rms: bool = False
    join_raw: bool = False
    classifier: Literal["sum", "linear", "mlp", "parallel_mlp"] = "mlp"
    use_lr: Literal["id", "embedding", "off"] = "off"
    hidden: tuple[int, ...] = (400, 400)
    activation: Activation = "relu"
    batch_norm: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "dim", "embedding_std", "rank", "num_heads", "maps", "hidden")
        require_positive(self, "attention_dim", "max_terms")
        require_between(self, 2, 100, "num_layers")
        require_between(self, 0.0, 0.95, "dropout")
        refuse_idle(self, _READ_ONLY_WITH)
        steps, additive = self.num_layers - 1, self.interaction == "additive"
        heads = (self.dim // self.num_heads + 1) * self.num_heads
        # fmt: off
        rules = (
            (self.pooling != "filter" or len(self.maps) in (1, steps),
             ("maps", "num_layers"), f"one width, or {steps}, one per interaction",
             f"set num_layers={len(self.maps) + 1}"),
            (self.orientation == "keep_raw" or steps > 1,
             ("orientation", "num_layers"), "'keep_raw': the first terms are the raw fields",
             "leave orientation out, or set num_layers=3"),
            (not self.squeeze or steps == 1,
             ("squeeze", "num_layers"), "a single interaction, between fields", "set num_layers=2"),
            (self.init_scope != "identity" or self.interaction in _MATRICES[:2],
             ("init_scope", "interaction"), "a matrix of full rank", "interaction='projected'"),
            (not additive or self.pooling == "field",
             ("interaction", "pooling"), "pooling='field': attention keeps one term per field",
             "set pooling='field', or pool a product, such as 'projected'"),
            (not additive or self.dim % self.num_heads == 0,
             ("dim", "num_heads"), "heads that divide the width",
             f"set dim={heads}, or num_heads=1"),
        )
        # fmt: on
        for holds, names, expected, fix in rules:
            found = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
            require(holds, where=f"IPAConfig.{names[0]}", found=found, expected=expected, fix=fix)

    @classmethod
    def tiny(cls) -> IPAConfig:
        """Returns a small config with layers of every order, a network and first-order terms."""
        return replace(
            cls.pfl(), dim=4, embedding_std=0.5, num_layers=3, residual=True, bias="inside",
            aggregator="element_weight", classifier="parallel_mlp", hidden=(8,), use_lr="id",
            dropout=0.1,
        )  # fmt: skip

    @classmethod
    def _pairs(cls, interaction: Product, **changes: Any) -> IPAConfig:
        """Scalar products of all pairs of fields, added up, beside a linear part."""
        settings: dict[str, Any] = {
            "pooling": "keep", "num_layers": 2, "aggregator": "sumpool_concat",
            "classifier": "sum", "use_lr": "id", "embedding_std": 0.01,
        }  # fmt: skip
        return cls(interaction=interaction, **{**settings, **changes})

    @classmethod
    def fm(cls) -> IPAConfig:
        """FM: Rendle, ICDM 2010."""
        return cls._pairs("naive")

    @classmethod
    def fwfm(cls) -> IPAConfig:
        """FwFM: Pan et al., WWW 2018."""
        return cls._pairs("weighted")

    @classmethod
    def fvfm(cls) -> IPAConfig:
        """FvFM: Sun et al., WWW 2021, arXiv:2102.12994."""
        return cls._pairs("diagonal")

    @classmethod
    def fmfm(cls) -> IPAConfig:
        """FmFM: Sun et al., WWW 2021, arXiv:2102.12994."""
        return cls._pairs("projected")

    @classmethod
    def ffm(cls, num_fields: int, width: int = 4) -> IPAConfig:
        """FFM: Juan et al., RecSys 2016. `width` is that of a vector; a row holds F of them."""
        return cls._pairs("field_block", dim=num_fields * width)

    @classmethod
    def ipnn(cls) -> IPAConfig:
        """IPNN: Qu et al., ICDM 2016, arXiv:1611.00144."""
        return cls._pairs("naive", classifier="mlp", use_lr="off", join_raw=True)

    @classmethod
    def fibinet(cls) -> IPAConfig:
        """FiBiNET: Huang et al., RecSys 2019, arXiv:1905.09433, bilinear "interaction" type."""
        return cls._pairs("projected", squeeze=True, aggregator="last", classifier="mlp")

    @classmethod
    def nfm(cls) -> IPAConfig:
        """NFM: He & Chua, SIGIR 2017, arXiv:1708.05027."""
        return cls._pairs("naive", pooling="global", aggregator="last", classifier="mlp")

    @classmethod
    def afm(cls) -> IPAConfig:
        """AFM: Xiao et al., IJCAI 2017, arXiv:1708.04617."""
        return cls._pairs("naive", pooling="attention", aggregator="last", classifier="linear")

    @classmethod
    def dcn(cls) -> IPAConfig:
        """DCN: Wang et al., ADKDD 2017, arXiv:1708.05123."""
        return replace(cls.dcn_v2(), interaction="rank_one", bias="outside")

    @classmethod
    def dcn_v2(cls) -> IPAConfig:
        """DCN-V2 with full matrices, in parallel: Wang et al., WWW 2021, arXiv:2008.13535."""
        return cls(
            embedding_std=0.01, residual=True, bias="inside", aggregator="last",
            classifier="parallel_mlp",
        )  # fmt: skip

    @classmethod
    def cin(cls) -> IPAConfig:
        """CIN, the explicit part of xDeepFM: Lian et al., KDD 2018, arXiv:1803.05170."""
        return cls(
            embedding_std=0.01, interaction="naive", pooling="filter", num_layers=3,
            aggregator="sumpool_concat", classifier="linear",
        )  # fmt: skip

    @classmethod
    def xdeepfm(cls) -> IPAConfig:
        """xDeepFM: a CIN, a network and a linear part."""
        return replace(cls.cin(), classifier="parallel_mlp", use_lr="id")

    @classmethod
    def autoint(cls) -> IPAConfig:
        """AutoInt: Song et al., CIKM 2019, arXiv:1810.11921; "parallel_mlp" makes it AutoInt+."""
        return cls(interaction="additive", residual=True, aggregator="last", classifier="linear")

    @classmethod
    def pfl(cls) -> IPAConfig:
        """PFL: projected, field pooling, layer weights; `models/pfl.py` is the same on its own."""
        return cls()


class IPA(nn.Module):
    """Layers of interactions, their aggregate, a classifier, and first-order terms.

    Taps: `embed`, `block{l}.mix` with l from 0, `head_in`, and under `block0.pool` the operands
    `left` and `right` of the first product.

    Args:
        schema: fields of all kinds; at least one label.
        config: settings.
        assets: not read.

    Raises:
        ConfigError: this number of fields makes too many terms, or layers that cannot be added.
    """

    Config = IPAConfig

    def __init__(self, schema: Schema, config: IPAConfig, assets: Assets = NO_ASSETS) -> None:
        super().__init__()
        self.schema, c = schema, config
        self.config, fields, labels = c, len(schema.fields), num_labels(schema)
        self.embeddings = Embeddings(schema, c.dim, std=c.embedding_std)
        self.embed = Tap("B F D")
        terms = [fields]
        for layer in range(c.num_layers - 1):
            pool = _pool(c, fields, terms[-1], layer)
            terms.append(pool.num_terms)
            axes = "B F D" if c.pooling == "field" else "B N D"
            self.add_module(f"block{layer}", nn.ModuleDict({"pool": pool, "mix": Tap(axes)}))
        self.aggregate = Aggregator(
            c.aggregator, terms, c.dim, softmax=c.alpha_norm, rms=c.layer_rms
        )
        raw = fields * c.dim
        width = self.aggregate.out_dim + raw * c.join_raw
        if c.classifier in ("mlp", "parallel_mlp"):
            self.deep = MLP(
                width if c.classifier == "mlp" else raw, c.hidden, activation=c.activation,
                batch_norm=c.batch_norm, dropout=c.dropout,
            )  # fmt: skip
            width = self.deep.out_dim + (width if c.classifier == "parallel_mlp" else 0)
        self.head_in = Tap("B D")
        if c.classifier == "sum":
            self.head: nn.Module = LabelSum(width, labels)
            self.bias = nn.Parameter(torch.zeros(labels))
        else:
            self.head = linear(width, labels)
        self.linear: nn.Module | None = None
        if c.use_lr == "id":
            self.linear = zeroed(Embeddings(schema, labels))
        elif c.use_lr == "embedding":
            self.linear = linear(raw, labels, bias=False)

    def layers(self, e: Tensor) -> list[Tensor]:
        """Returns the terms of all layers, [B, N_l, D], raw fields [B, F, D] first."""
        terms = [e]
        for layer in range(self.config.num_layers - 1):
            pool, mix = (self.get_submodule(f"block{layer}.{part}") for part in ("pool", "mix"))
            terms.append(mix(pool(e, terms[-1])))
        return terms

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        e: Tensor = self.embed(self.embeddings.fields(batch))  # [B, F, D]
        raw, v = e.flatten(1), self.aggregate(self.layers(e))  # [B, F*D], [B, q]
        if self.config.join_raw:
            v = torch.cat([raw, v], dim=1)
        if self.config.classifier == "mlp":
            v = self.deep(v)
        elif self.config.classifier == "parallel_mlp":
            v = torch.cat([v, self.deep(raw)], dim=1)
        logits: Tensor = self.head(self.head_in(v))  # [B, Y]
        if self.config.classifier == "sum":
            logits = logits + self.bias
        if isinstance(self.linear, Embeddings):
            logits = logits + self.linear.fields(batch).sum(dim=1)
        elif self.linear is not None:
            logits = logits + self.linear(raw)
        return split_labels(logits, self.schema)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-loss of each label."""
        return binary_losses(self.score(batch), batch)

    def pair_projection(self, i: int, j: int) -> Tensor | None:
        """Returns the matrix through which the rows of field i meet field j first, [D, D].

        None where W can at most scale them, or where the two never meet.
        """
        found = self.get_submodule("block0.pool")
        interaction = getattr(found, "interaction", None)
        return interaction.projection(i, j) if isinstance(interaction, Interaction) else None


def _pool(c: IPAConfig, fields: int, terms: int, layer: int) -> Any:
    """Returns interaction and pooling of one layer; `layer` counts from 0."""
    first = layer == 0
    if c.interaction == "additive":
        return Attentive(c.dim, c.num_heads, fields, residual=c.residual)
    if c.pooling in ("field", "filter"):
        own = c.self_pairs or (c.pooling == "filter" and not first)
        pairs = Pairs.every(terms, fields, self_pairs=own)
    else:
        pairs = Pairs.upper(fields) if first else Pairs.every(terms, fields)
    if pairs.count == 0:
        raise SchemaError(
            "there is no pair of fields",
            where="Schema.fields",
            found="one field",
            expected="at least two fields",
            fix="add a field, or use 'lr'",
        )
    made = pairs.count * (1 + c.squeeze)
    require(
        c.pooling != "keep" or made <= c.max_terms,
        where="IPAConfig.max_terms",
        found=f"{c.max_terms:,}, where layer {layer + 2} of {fields} fields has {made:,} terms",
        expected="a number of terms within it, as each is a vector per row",
        fix=f"num_layers={max(2, layer + 1)}, pooling='field', or max_terms={made}",
    )
    scope = c.init_scope
    if scope == "auto":
        scope = "layer" if c.pooling in ("field", "global") else "pair"
    f = product(c.interaction, pairs, c.dim, scope=scope, rank=c.rank)
    if c.pooling == "field":
        return Field(
            f, c.dim, orientation=c.orientation, residual=c.residual, bias=c.bias, tapped=first
        )
    if c.pooling == "global":
        return Global(f, tapped=first)
    if c.pooling == "filter":
        return Filter(f, c.maps[layer if len(c.maps) > 1 else 0], tapped=first)
    if c.pooling == "attention":
        return Attention(f, c.dim, c.attention_dim, tapped=first)
    return Keep(f, tapped=first, squeeze=SqueezeExcitation(fields) if c.squeeze else None)


MODEL = IPA
