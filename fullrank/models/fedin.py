"""FEDIN: the spectrum of what a target matches in the past filters that past.

arXiv:2605.01726, SIGIR 2026, and its released code. Two branches forecast a few steps of *future
interest* from the normalised history, one from patches in time, one from the filtered spectrum; the
target attends to what they agree on.
Deviations: padding enters nothing, where the code normalises, scores and transforms it; along time
alone in the complex network, as in the paper's formula; initial embeddings of deviation .01, above
the epsilon of the normalisation. `FEDINConfig.code()` is the release, these three included.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.config import refuse_idle, require, require_between, require_positive
from fullrank.embedding import Embeddings
from fullrank.losses.binary import binary_losses
from fullrank.model import NO_ASSETS, Assets
from fullrank.nn.dropout import Dropout
from fullrank.nn.frequency import Axes, Extrapolation, Shares, SpectrumFilter, spectrum_shares
from fullrank.nn.head import num_labels, split_labels
from fullrank.nn.mlp import MLP, linear
from fullrank.nn.patches import PatchEncoder, PatchForecast
from fullrank.nn.reversible_norm import ReversibleNorm
from fullrank.nn.topk_attention import TopKAttention
from fullrank.schema import Schema
from fullrank.tap import Tap
from fullrank.target import TargetHistory

# Longer than 250 lines, because every switch of the ablations has its line in the config.
# Settings that are read only while another one has certain values.
_ONLY_WITH: tuple[tuple[str, tuple[bool, ...], tuple[str, ...]], ...] = (
    ("revin", (True,), ("revin_stats", "revin_target", "zero_pad_after_norm")),
    ("use_time", (True,), ("patch_sizes", "patch_hidden", "share_time_attention")),
    (
        "use_freq",
        (True,),
        ("freq_form", "fft_axes_filter", "fft_axes_mlp", "zero_pad_fft", "alpha_scale",
         "alpha_norm", "merge", "target_aware", "complex_hidden"),
    ),
)  # fmt: skip
_MERGE_HIDDEN = (64, 64)


@dataclass(frozen=True, kw_only=True)
class FEDINConfig:
    """Settings: the switches of the ablations. A setting without effect is refused.

    Args:
        history: name of the sequence; "" is the only one. Columns that no field shares a table
            with, such as feedback on an event, are not read.
        length: newest events to read; None for all that the data keeps.
        dim: width of a field embedding.
        embedding_std: its initial spread. Below .003 the normalisation does not reach deviation 1
            until the embeddings have grown, for some hundred steps.
        future: L', steps of future interest.
        heads: of the patch attention, and of the filter in the code's form.
        use_time, use_freq: the two branches; at least one.
        patch_sizes: events per patch; several sizes give several futures.
        patch_hidden: widths of the network over the patches.
        share_time_attention: one transformer block for all patch sizes.
        freq_form: "code" multiplies the spectrum by 1 + alpha, with scores per head over
            sqrt(d_h); "paper" by alpha, with one plain score.
        fft_axes_filter: of the filter; both give the same.
        fft_axes_mlp: of the complex network; with "channel_time" the order of channels matters.
        zero_pad_fft: filter in twice the window, so that its end does not wrap onto its beginning.
        alpha_scale: of alpha; 0 leaves the spectrum plain, and says merge "sum" or "gate_S",
            because the weights of the third are made of alpha.
        alpha_norm: magnitudes to alpha.
        target_aware: scores with the target; False: with the mean of the history as it was before
            it was normalised, for afterwards that mean is the target again, or nothing.
        complex_hidden: complex widths of the extrapolation.
        merge: of both branches: weights from alpha by a softmax, the plain "sum", or with the
            frequency branch times a gate from the magnitudes.
        revin: normalise history and target, and give the future back in their scale.
        revin_stats: steps that are measured: "valid" ones, or "all" with the padding.
        revin_target: measure and normalise the target along with its history.
        zero_pad_after_norm: padding is zero again afterwards.
        mask_scores: padding has no weight in the attention and no score in the spectrum.
        top_k: future steps that the target attends to; None for all.
        attention_dropout: on attention weights, alpha, and residuals of the patches.
        dropout: on hidden layers of all networks.
        hidden: widths of the head.
    """

    history: str = ""
    length: int | None = None
    dim: int = 32
    embedding_std: float = 0.01
    future: int = 5
    heads: int = 2
    use_time: bool = True
    use_freq: bool = True
    patch_sizes: tuple[int, ...] = (5,)
    patch_hidden: tuple[int, ...] = (256,)
    share_time_attention: bool = True
    freq_form: Literal["paper", "code"] = "code"
    fft_axes_filter: Axes = "time"
    fft_axes_mlp: Axes = "time"
    zero_pad_fft: bool = False
    alpha_scale: float = 0.4
    alpha_norm: Shares = "softmax_mag"
    target_aware: bool = True
    complex_hidden: tuple[int, ...] = (128, 128)
    merge: Literal["softmax_weights", "sum", "gate_S"] = "softmax_weights"
    revin: bool = True
    revin_stats: Literal["all", "valid"] = "valid"
    revin_target: bool = True
    zero_pad_after_norm: bool = True
    mask_scores: bool = True
    top_k: int | None = 3
    attention_dropout: float = 0.4
    dropout: float = 0.1
    hidden: tuple[int, ...] = (512, 256, 128)

    def __post_init__(self) -> None:
        require_positive(self, "dim", "embedding_std", "future", "heads", "patch_sizes")
        require_positive(self, "patch_hidden", "complex_hidden", "hidden")
        require_between(self, 0.0, 0.95, "attention_dropout", "dropout")
        require_between(self, 0.0, 100.0, "alpha_scale")
        if self.top_k is not None:
            require_between(self, 1, self.num_steps, "top_k")
        for name in ("patch_sizes", "complex_hidden"):
            value = getattr(self, name)
            require(
                len(value) > 0 and (name != "patch_sizes" or len(set(value)) == len(value)),
                where=f"FEDINConfig.{name}",
                found=value,
                expected="at least one, and no patch size twice",
                fix=f"use {name}=(5,)" if name == "patch_sizes" else f"use {name}=(128,)",
            )
        require(
            self.use_time or self.use_freq,
            where="FEDINConfig.use_time",
            found="use_time=False with use_freq=False",
            expected="one branch at least",
            fix="leave one of them on",
        )
        refuse_idle(self, _ONLY_WITH)
        self._refuse_without_effect()

    def _refuse_without_effect(self) -> None:
        """Refuses what only several settings together leave without effect."""
        plain = self.use_freq and self.alpha_scale == 0.0
        no_scores = plain and self.merge != "gate_S"
        zeroed = self.zero_pad_after_norm or not self.revin
        for idle, names, why in (
            (plain, ("freq_form",), "alpha_scale=0 leaves nothing of the paper's spectrum"),
            (plain, ("alpha_norm", "fft_axes_filter"), "alpha_scale=0 filters nothing"),
            (no_scores, ("zero_pad_fft", "target_aware"), "nothing reads the scores"),
            (len(self.patch_sizes) == 1, ("share_time_attention",), "there is one patch size"),
            (not self.use_time and zeroed, ("mask_scores",), "padding is zero already"),
            (not self.use_time and self.merge == "sum", ("merge",), "there is one branch"),
        ):
            for name in names:
                default = next(f.default for f in fields(self) if f.name == name)
                self._require_default(name, default, idle, why)
        require(
            not (plain and self.use_time and self.merge == "softmax_weights"),
            where="FEDINConfig.merge",
            found="'softmax_weights' with alpha_scale=0",
            expected="'sum' or 'gate_S': weights made of a zero alpha are always equal",
            fix="set merge='sum'",
        )

    def _require_default(self, name: str, default: Any, idle: bool, why: str) -> None:
        value = getattr(self, name)
        require(
            not idle or value == default,
            where=f"FEDINConfig.{name}",
            found=value,
            expected=f"{default!r}: {why}",
            fix=f"leave {name} out",
        )

    @property
    def num_steps(self) -> int:
        """Returns the steps of all futures together."""
        return self.future * (len(self.patch_sizes) if self.use_time else 1)

    @classmethod
    def tiny(cls) -> FEDINConfig:
        """Returns the smallest config that visits every branch."""
        return cls(
            dim=4, embedding_std=0.1, future=2, patch_sizes=(1, 2), patch_hidden=(8,),
            share_time_attention=False, complex_hidden=(8, 8), top_k=3, attention_dropout=0.1,
            hidden=(16,),
        )  # fmt: skip

    @classmethod
    def paper(cls) -> FEDINConfig:
        """Returns the form of the paper's figure: alpha alone as filter, and the resonance gate."""
        return cls(freq_form="paper", alpha_scale=1.0, merge="gate_S")

    @classmethod
    def code(cls) -> FEDINConfig:
        """Returns the release, in which padding leaks and channels mix in Fourier space."""
        return cls(
            embedding_std=1e-4, fft_axes_filter="channel_time", fft_axes_mlp="channel_time",
            revin_stats="all", zero_pad_after_norm=False, mask_scores=False,
        )  # fmt: skip


class FEDIN(nn.Module):
    """Future interest from patches and from a filtered spectrum, read by the target.

    Where the past is empty the interest is zero. A step costs what the window holds, whatever the
    past: the transforms have its fixed length. bench/padding.py measures it.

    Taps: `embed`; `events` and `events_valid`, the past before it is normalised; `interest`;
    `head_in`.

    Args:
        schema: a history that shares a table with a categorical field; at least one label.
        config: settings.
        assets: not read.

    Raises:
        SchemaError: no such history.
        ConfigError: the heads do not divide the width of the target.
    """

    Config = FEDINConfig

    def __init__(self, schema: Schema, config: FEDINConfig, assets: Assets = NO_ASSETS) -> None:
        super().__init__()
        c = config
        self.schema, self.config = schema, c
        self.history = TargetHistory(schema, c.history, c.length)
        self.embeddings = Embeddings(
            self.history.reads(schema, feedback=False), c.dim,
            sequences=(self.history.name,), std=c.embedding_std,
        )  # fmt: skip
        D = c.dim * len(self.history.fields)
        require(
            D % c.heads == 0,
            where="FEDINConfig.heads",
            found=f"{c.heads} heads on a target of width {D}",
            expected="a divisor of that width",
            fix=f"use {max(h for h in range(1, c.heads) if D % h == 0) if c.heads > 1 else 1}",
        )
        self.norm = ReversibleNorm(D) if c.revin else None
        if c.use_time:
            self._add_time_branch(D)
        if c.use_freq:
            self._add_frequency_branch(D)
        self.attend = TopKAttention(c.top_k, c.attention_dropout)
        body = MLP(3 * D + c.dim * len(self.history.context), c.hidden, dropout=c.dropout)
        self.head = nn.Sequential(body, linear(body.out_dim, num_labels(schema)))
        self.embed, self.interest, self.head_in = Tap("B F D"), Tap("B D"), Tap("B D")
        self.events_valid, self.events = Tap("B T"), Tap("B T D")

    def _add_time_branch(self, D: int) -> None:
        c, T = self.config, self.history.length
        longest = [max(c.patch_sizes)] if c.share_time_attention else c.patch_sizes
        self.encoders = nn.ModuleList(
            PatchEncoder(D, c.heads, size, c.attention_dropout) for size in longest
        )
        self.forecasts = nn.ModuleList(
            PatchForecast(T, size, c.future, c.patch_hidden, c.dropout) for size in c.patch_sizes
        )

    def _add_frequency_branch(self, D: int) -> None:
        c, T = self.config, self.history.length
        self.filter_heads = c.heads if c.freq_form == "code" else 1
        self.alpha_dropout = Dropout(c.attention_dropout)
        self.filter = SpectrumFilter(T, linear=c.zero_pad_fft, axes=c.fft_axes_filter)
        self.extrapolate = Extrapolation(
            T, c.future, c.complex_hidden, dropout=c.dropout, axes=c.fft_axes_mlp
        )
        F = self.filter.num_bins
        if c.merge == "gate_S":
            body = MLP(F, _MERGE_HIDDEN)
            self.gate = nn.Sequential(body, linear(body.out_dim, D // self.filter_heads))
        elif c.merge == "softmax_weights" and c.use_time:
            widths = (F, *_MERGE_HIDDEN, 2)
            layers = [linear(i, o, bias=False) for i, o in pairwise(widths)]
            self.weigh = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]."""
        block = self.embed(self.embeddings.fields(batch))  # [B, F, dim]
        x, valid = self.history.padded(self.embeddings, batch)  # [B, T, D], [B, T]
        self.events_valid(valid)
        t = self.history.target(block)  # [B, D]
        u = self.interest(self.read(self.events(x), valid, t))  # [B, D]
        joined = torch.cat([u, u * t, t, self.history.others(block)], dim=1)
        return split_labels(self.head(self.head_in(joined)), self.schema)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the log-loss of each label."""
        return binary_losses(self.score(batch), batch)

    def read(self, x: Tensor, valid: Tensor, t: Tensor) -> Tensor:
        """Returns the future interest in a target.

        Args:
            x: [B, T, D] past events, the newest last; padding on the left.
            valid: [B, T] bool, True where an event is real.
            t: [B, D] the target.

        Returns:
            [B, D], zero where no event is real.
        """
        c, padding = self.config, ~valid.unsqueeze(2)
        xn, tn, moments = x, t, None
        if self.norm is not None:
            counted = valid if c.revin_stats == "valid" else None
            moments = self.norm.moments(x, counted, t if c.revin_target else None)
            xn = self.norm.normalise(x, moments)
            if c.revin_target:
                tn = self.norm.normalise(t.unsqueeze(1), moments).squeeze(1)
        if c.zero_pad_after_norm:
            # In place where it is new: no product behind a sum reads it when it differentiates.
            xn = xn.masked_fill(padding, 0.0) if xn is x else xn.masked_fill_(padding, 0.0)
        guide = tn
        if not c.target_aware:
            events = x.masked_fill(padding, 0.0).sum(1)
            guide = events / valid.sum(1, keepdim=True).clamp(min=1)  # [B, D]
        z = self._futures(xn, valid, tn, guide).transpose(1, 2)  # [B, S, D]
        if self.norm is not None and moments is not None:
            z = self.norm.restore(z, moments)
        u: Tensor = self.attend(t, z)
        return u.masked_fill(~valid.any(1, keepdim=True), 0.0)

    def _futures(self, x: Tensor, valid: Tensor, t: Tensor, guide: Tensor) -> Tensor:
        """Returns the merged futures of all patch sizes, [B, D, S]."""
        if not self.config.use_freq:
            return torch.cat(self._from_patches(x, valid, self._products(x, t, 1)), dim=2)
        products = self._products(x, guide, self.filter_heads)
        magnitude = self.filter.magnitudes(self._scores(products, valid))  # [B, H, F]
        shares = spectrum_shares(magnitude, self.config.alpha_norm)
        alpha = self.alpha_dropout(shares * self.config.alpha_scale)
        q = self._from_spectrum(x, alpha)  # [B, D, L']
        if self.config.merge == "gate_S":
            q = q * self.gate(magnitude).sigmoid().flatten(1).unsqueeze(2)
        if not self.config.use_time:
            return q
        if not self.config.target_aware:
            products = self._products(x, t, 1)
        parts = self._from_patches(x, valid, products)
        if self.config.merge != "softmax_weights":
            return torch.cat([part + q for part in parts], dim=2)
        weights = self.weigh(alpha).softmax(dim=2)  # [B, H, 2]
        weights = weights.repeat_interleave(q.shape[1] // weights.shape[1], dim=1)  # [B, D, 2]
        own, other = weights.split(1, dim=2)
        return torch.cat([own * part + other * q for part in parts], dim=2)

    def _products(self, x: Tensor, guide: Tensor, heads: int) -> Tensor:
        """Returns the product of every event and the guide in each head, [B, H, T]."""
        head = torch.eye(heads, dtype=x.dtype, device=x.device)
        head = head.repeat_interleave(x.shape[2] // heads, dim=0)  # [D, H]
        return (guide.unsqueeze(2) * head).mT @ x.mT  # [B, H, D] @ [B, D, T]: no copy

    def _scores(self, products: Tensor, valid: Tensor) -> Tensor:
        """Returns c, how much every event is like the guide, [B, H, T]."""
        c, H = products, self.filter_heads
        if self.config.freq_form == "code":
            c = c * (self.config.dim * len(self.history.fields) // H) ** -0.5
        return c.masked_fill(~valid.unsqueeze(1), 0.0) if self.config.mask_scores else c

    def _from_spectrum(self, x: Tensor, alpha: Tensor) -> Tensor:
        """Filters the history and extrapolates it to [B, D, L']."""
        x = torch.unflatten(x.transpose(1, 2), 1, (self.filter_heads, -1))  # [B, H, d_h, T]
        before = None
        if self.config.alpha_scale > 0:
            gain = alpha if self.config.freq_form == "paper" else 1.0 + alpha
            x, before = self.filter.weighed(x, gain), self.filter.from_spectrum
        out: Tensor = self.extrapolate(x.flatten(1, 2), before)
        return out

    def _from_patches(self, x: Tensor, valid: Tensor, products: Tensor) -> list[Tensor]:
        """Weighs the history by its products with the target, those of all heads together, and
        forecasts [B, D, L'] for each patch size.
        """
        scores = products.sum(dim=1) * x.shape[2] ** -0.5  # [B, T]
        if self.config.mask_scores:  # finite: an empty row, whose interest is zero, has no NaN
            scores = scores.masked_fill(~valid, torch.finfo(scores.dtype).min)
        x = x * scores.softmax(dim=1).unsqueeze(2)
        return [
            forecast(x, valid, self.encoders[i % len(self.encoders)])
            for i, forecast in enumerate(self.forecasts)
        ]


MODEL = FEDIN
