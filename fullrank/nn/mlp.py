"""Multi-layer perceptron: Linear, batch norm, activation, dropout, in this order."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.nn.dropout import Dropout

Activation = Literal["relu", "gelu"]


def linear(in_dim: int, out_dim: int, *, bias: bool = True) -> nn.Linear:
    """Returns a linear layer whose weights start Xavier-normal and whose bias starts at zero."""
    layer = nn.Linear(in_dim, out_dim, bias=bias)
    nn.init.xavier_normal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _activation(name: Activation) -> nn.Module:
    # In place: neither a linear layer nor a norm reads its own output when it differentiates.
    return nn.ReLU(inplace=True) if name == "relu" else nn.GELU()


class RowSafeBatchNorm(nn.BatchNorm1d):
    """Batch normalisation (Ioffe & Szegedy, 2015) that accepts a single row while training.

    One row has no spread, so torch refuses it. Here it is normalised by the running statistics,
    which it does not change: the last batch of an epoch may hold any number of rows.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, D] normalised, for [B, D]."""
        if self.training and x.shape[0] == 1:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class MLP(nn.Module):
    """Hidden layers without an output layer: what comes out is what a head reads.

    With batch norm the linear layers have no bias, which the norm would subtract again.

    Args:
        in_dim: width of the input.
        hidden: width of each layer; an empty tuple passes the input through.
        activation: "relu" or "gelu".
        batch_norm: normalise before each activation.
        dropout: probability of zeroing an activation while training.

    Attributes:
        out_dim: width of the output.
    """

    def __init__(
        self,
        in_dim: int,
        hidden: tuple[int, ...],
        *,
        activation: Activation = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers.append(linear(in_dim, width, bias=not batch_norm))
            if batch_norm:
                layers.append(RowSafeBatchNorm(width))
            layers.append(_activation(activation))
            if dropout > 0:
                layers.append(Dropout(dropout))
            in_dim = width
        self.layers = nn.Sequential(*layers)
        self.out_dim = in_dim

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, out_dim] for [B, in_dim]."""
        out: Tensor = self.layers(x)
        return out
