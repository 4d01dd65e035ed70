"""Gated feed-forward networks, one per token: RankElastor's P-FFN, arXiv:2605.23191.

Two forms. The paper's is one stage without norms and biases, eq. (GLU P-FFN):

    Z_t = (GELU(M_t W1) * (M_t W2)) W3 + M_t W_r

The authors' code has stages of given widths behind one another, each with an RMS norm before it,
biases, and a linear skip S2 inside the gate:

    u = RMSNorm(x);  y = ((u S2 + GELU(u W1)) * (u W2)) W3 + u S1

All are [B, N, D] -> [B, N, D].
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.nn.dropout import Dropout
from fullrank.nn.mlp import Activation
from fullrank.nn.token_ffn import PerTokenLinear, activate

Gate = Literal["glu"] | Activation


class GLUStage(nn.Module):
    """((u S2 + GELU(u W1)) * (u W2)) W3 + u S1, independent weights per token.

    Args:
        num_tokens: N; 1 serves any number of tokens that were folded into the rows.
        dim: a, width of input and output.
        hidden: width of the gate. None: that of the input, and W3 and S2 go, as in the authors'
            code for r = 1: (u S1 + GELU(u W1)) * (u W2) + u S1.
        gate: "glu"; or the ablations "gelu" and "relu", act(u W1) W3 + u S1.
        skips: whether there are S2, which only "glu" has, and S1, which is the paper's W_r.
        bias: of every matrix.
    """

    def __init__(
        self,
        num_tokens: int,
        dim: int,
        hidden: int | None,
        *,
        gate: Gate = "glu",
        skips: tuple[bool, bool] = (True, True),
        bias: bool = True,
    ) -> None:
        super().__init__()

        def matrix(in_dim: int, out_dim: int, wanted: bool) -> nn.Module | None:
            return PerTokenLinear(num_tokens, in_dim, out_dim, bias=bias) if wanted else None

        wide, gated = hidden or dim, gate == "glu"
        self.gate: Gate = gate
        self.inner, self.outer = gated and skips[0], skips[1]
        self.w1 = PerTokenLinear(num_tokens, dim, wide, bias=bias)
        self.w2 = matrix(dim, wide, gated)
        self.w3 = matrix(wide, dim, hidden is not None)
        self.s1 = matrix(dim, dim, self.outer or (self.inner and hidden is None))
        self.s2 = matrix(dim, wide, self.inner and hidden is not None)

    def forward(self, u: Tensor) -> Tensor:
        """Returns [B, N, a] for [B, N, a]."""
        straight: Tensor = u if self.s1 is None else self.s1(u)  # [B, N, a]
        y = activate(self.w1(u), "gelu" if self.gate == "glu" else self.gate)
        if self.w2 is not None:
            inside = straight if self.s2 is None else self.s2(u)
            y = (inside + y if self.inner else y) * self.w2(u)  # [B, N, hidden]
        if self.w3 is not None:
            y = self.w3(y)  # [B, N, a]
        return straight + y if self.outer else y


class PerTokenRMSNorm(nn.Module):
    """RMS norm over the width, with a gain per token and coordinate.

    Args:
        num_tokens: N.
        dim: D.
    """

    def __init__(self, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_tokens, dim))  # [N, D]

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, N, D] for [B, N, D]."""
        return F.rms_norm(x, x.shape[-1:], eps=1e-12) * self.weight


class SharedTokens(nn.Module):
    """Sends all tokens through one network that was built for a single token.

    Args:
        network: [B * N, 1, D] -> [B * N, 1, D].
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, N, D] for [B, N, D]."""
        out: Tensor = self.network(x.reshape(-1, 1, x.shape[-1])).view_as(x)
        return out


def glu_ffn(
    num_tokens: int,
    dim: int,
    expansion: float,
    hidden_units: tuple[int, ...] = (),
    *,
    gate: Gate = "glu",
    skips: tuple[bool, bool] = (True, True),
    shared: bool = False,
    dropout: float = 0.0,
) -> nn.Module:
    """Builds the paper's form, or that of the authors' code.

    Args:
        num_tokens: N.
        dim: D.
        expansion: r; a stage of width a has a gate of width floor(r a). In the code's form r = 1
            drops W3.
        hidden_units: (): the paper's form. Otherwise the widths h of the stages of the code's: a
            linear layer a -> h follows a stage where they differ, and one to D follows the last.
        gate: "glu", "gelu" or "relu".
        skips: whether there are S2 and S1 (W_r).
        shared: one network for all tokens.
        dropout: behind every stage.
    """
    N, width = 1 if shared else num_tokens, dim
    layers: list[nn.Module] = []
    for h in hidden_units:
        hidden = None if expansion == 1 else max(1, int(expansion * width))
        layers += [PerTokenRMSNorm(N, width), GLUStage(N, width, hidden, gate=gate, skips=skips)]
        if h != width:
            layers.append(PerTokenLinear(N, width, h))
        layers.append(Dropout(dropout))
        width = h
    if hidden_units:
        layers.append(PerTokenLinear(N, width, dim))
    else:
        hidden = max(1, int(expansion * dim))
        stage = GLUStage(N, dim, hidden, gate=gate, skips=skips, bias=False)
        layers = [stage, Dropout(dropout)]
    network = nn.Sequential(*layers)
    return SharedTokens(network) if shared else network
