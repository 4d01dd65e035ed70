"""The unified interaction block: attention, a gate on what it found, a feed-forward network.

TokenFormer, arXiv:2604.13737, here for one layer, RN a norm with a learned gain:

    Xn = RN_1(X)
    A  = concat_h softmax(q_h k_h^T / sqrt(d_h) + mask) v_h W_O,  q, k, v from Xn
    I  = X + sigmoid(X W_g) * A                                   (NLIR)
    Y  = I + (silu(Z W_1) * (Z W_2)) W_3,  Z = RN_2(I)

No map has a bias, so a place that is padding, and therefore zero, stays zero. Parameters, with
hidden width r D: 5 D^2 + 3 r D^2 + 2 D.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.config import require
from fullrank.nn.dropout import Dropout
from fullrank.nn.rms_norm import RMSNorm
from fullrank.nn.rotary import Rotary
from fullrank.tap import Tap

GateAct = Literal["sigmoid", "silu", "tanh", "identity"]
GateSource = Literal["raw", "normed", "attn_out"]
FeedForwardKind = Literal["swiglu", "gelu"]
NormKind = Literal["rms", "layer"]

_ACTS: dict[GateAct, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


class Sight(NamedTuple):
    """What the tokens of one layer see.

    Args:
        attend: queries, keys and values [B, H, N, d] -> [B, H, N, d], zeros at padding.
        angles: cosines and sines of the tokens' positions; None where positions are not rotary.
        span: the places of the T tokens of the sequence, for the taps.
        valid: [B, T] bool, True where such a token is real; None keeps the taps from looking.
    """

    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    angles: tuple[Tensor, Tensor] | None = None
    span: slice = slice(0)
    valid: Tensor | None = None


class SelfAttention(nn.Module):
    """Multi-head attention with rotary positions; which keys a query sees is up to the caller.

    Args:
        dim: D.
        num_heads: H.
        out_proj: whether there is W_O.

    Raises:
        ConfigError: H does not divide D, or D / H is odd.
    """

    def __init__(self, dim: int, num_heads: int, out_proj: bool = True) -> None:
        super().__init__()
        require(
            num_heads >= 1 and dim % (2 * num_heads) == 0,
            where="num_heads",
            found=f"{num_heads} heads for a width of {dim}",
            expected="a width that is a multiple of 2 H, because rotary positions turn pairs",
            fix=f"set dim to {_even(dim, max(1, num_heads))}, or num_heads to a smaller number",
        )
        self.num_heads, self.rotary = num_heads, Rotary(dim // num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)  # W_Q | W_K | W_V
        self.out = nn.Linear(dim, dim, bias=False) if out_proj else None

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        """Returns A [B, N, D] for [B, N, D]."""
        found = sight.attend(*self._projected(x, sight.angles))  # [B, H, N, d]
        found = found.transpose(1, 2).flatten(2)  # [B, N, D]
        return found if self.out is None else self.out(found)

    def weights(self, x: Tensor, sight: Sight, visible: Tensor) -> Tensor:
        """Returns the attention of every query on every key, [B, H, N, N], for measurements.

        Args:
            x: [B, N, D].
            sight: for its angles.
            visible: [B, 1, N, N] bool; a query that sees nothing gets zeros.
        """
        q, k, _ = self._projected(x, sight.angles)
        scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        seen: Tensor = scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0.0)
        return seen

    def _projected(self, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> list[Tensor]:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if angles is not None:
            q, k = (self.rotary.rotate(part, *angles) for part in (q, k))
        return [q, k, v]


class NLIR(nn.Module):
    """The one-sided gate: act(S W_g), which multiplies what attention found.

    Args:
        dim: D.
        source: S: "raw", the input of the block; "normed", behind its norm; "attn_out", A itself,
            which makes the gate a mere element-wise non-linearity.
        act: the activation.
        bias: None: there is none; else one that is learned and starts there.
        init: of W_g: "zero" starts every gate at act(bias), "normal" from N(0, 0.02^2).
    """

    def __init__(
        self,
        dim: int,
        source: GateSource = "raw",
        act: GateAct = "sigmoid",
        bias: float | None = None,
        init: Literal["zero", "normal"] = "zero",
    ) -> None:
        super().__init__()
        self.source, self.act = source, act
        self.linear = nn.Linear(dim, dim, bias=bias is not None)
        nn.init.normal_(self.linear.weight, std=0.02 if init == "normal" else 0.0)
        if bias is not None:
            nn.init.constant_(self.linear.bias, bias)

    def forward(self, raw: Tensor, normed: Tensor, attn_out: Tensor) -> Tensor:
        """Returns the gates [B, N, D]."""
        source = {"raw": raw, "normed": normed, "attn_out": attn_out}[self.source]
        return _ACTS[self.act](self.linear(source))


class FeedForward(nn.Module):
    """(silu(z W_1) * (z W_2)) W_3, or gelu(z W_1) W_3 of as many parameters.

    Args:
        dim: D.
        hidden: r D, width of the gated layer; "gelu" takes one and a half times as much.
        kind: which.
        dropout: on the output.
    """

    def __init__(
        self, dim: int, hidden: int, kind: FeedForwardKind = "swiglu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.kind = kind
        wide = hidden if kind == "swiglu" else max(1, round(1.5 * hidden))
        self.w_in = nn.Linear(dim, 2 * hidden if kind == "swiglu" else wide, bias=False)
        self.out = nn.Linear(wide, dim, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, z: Tensor) -> Tensor:
        """Returns [B, N, D] for [B, N, D]."""
        h = self.w_in(z)
        if self.kind == "swiglu":
            gate, value = h.chunk(2, dim=-1)  # W_1 | W_2
            h = F.silu(gate) * value
        else:
            h = F.gelu(h)
        out: Tensor = self.dropout(self.out(h))
        return out


class InteractionBlock(nn.Module):
    """One layer.

    Taps, of the tokens of the sequence alone: `seq`, the state behind the layer, and `nlir`, the
    gates, where there are any; `seq_valid` and `nlir_valid` tell padding.

    Args:
        attention: the attention.
        gate: NLIR; None for none.
        feed_forward: the feed-forward network.
        norm: "rms"; or "layer", without a bias.
        dropout: on what attention adds. deviates: not on its probabilities, which no fused kernel
            ever holds.
    """

    def __init__(
        self,
        attention: SelfAttention,
        gate: NLIR | None,
        feed_forward: FeedForward,
        norm: NormKind = "rms",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        dim = attention.qkv.in_features
        self.norm_in, self.norm_mid = (token_norm(dim, norm) for _ in range(2))
        self.attention, self.gate_map, self.feed_forward = attention, gate, feed_forward
        self.dropout = Dropout(dropout)
        if gate is not None:
            self.nlir_valid, self.nlir = Tap("B T"), Tap("B T D")
        self.seq_valid, self.seq = Tap("B T"), Tap("B T D")

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        """Returns Y [B, N, D] for X [B, N, D], zeros at padding where X has zeros there."""
        normed = self.norm_in(x)
        found = self.attention(normed, sight)  # A
        if self.gate_map is not None:
            gates = self.gate_map(x, normed, found)
            if sight.valid is not None:
                self.nlir_valid(sight.valid)
                self.nlir(gates[:, sight.span])
            found = gates * found
        mid = x + self.dropout(found)  # I
        out: Tensor = mid + self.feed_forward(self.norm_mid(mid))
        if sight.valid is not None:
            self.seq_valid(sight.valid)
            self.seq(out[:, sight.span])
        return out

    def initialise(self, depth: int, std: float = 0.02) -> None:
        """Draws all maps but W_g from N(0, std^2); what adds to X, divided by sqrt(2 L).

        Args:
            depth: L.
            std: standard deviation.
        """
        attention, feed_forward = self.attention, self.feed_forward
        for layer in (attention.qkv, attention.out, feed_forward.w_in, feed_forward.out):
            if layer is not None:
                adds = layer is attention.out or layer is feed_forward.out
                nn.init.normal_(layer.weight, std=std / (2 * depth) ** 0.5 if adds else std)


def _even(dim: int, num_heads: int) -> int:
    return max(1, round(dim / (2 * num_heads))) * 2 * num_heads


def small_linear(in_dim: int, out_dim: int, *, bias: bool = True) -> nn.Linear:
    """Returns a linear layer whose weights start from N(0, 0.02^2) and whose bias starts at zero.

    Our choice: TokenFormer's initial values are not published.
    """
    layer = nn.Linear(in_dim, out_dim, bias=bias)
    nn.init.normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def token_norm(dim: int, kind: NormKind) -> nn.Module:
    """Returns a norm over the width of a token that leaves zeros at zero."""
    return RMSNorm(dim) if kind == "rms" else nn.LayerNorm(dim, eps=1e-6, bias=False)
