"""The time branch of FEDIN, arXiv:2605.01726: attention inside patches, a network across them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.nn.cached_block import Block, encode_patches
from fullrank.nn.cached_layers import relu_layers
from fullrank.nn.dropout import Dropout
from fullrank.nn.mlp import MLP, linear


def sinusoids(length: int, dim: int) -> Tensor:
    """Returns [length, dim]: sines at even units and cosines at odd ones (Vaswani et al., 2017)."""
    rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    angle = torch.arange(length)[:, None] * rate  # [length, ceil(dim / 2)]
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :dim].contiguous()


class PatchEncoder(nn.Module):
    """One transformer block inside each patch, then a linear layer and the sum over positions.

    Deviation: queries, keys and values have no bias. That of the keys moves no weight, and that of
    the values is one with the bias behind it.

    Args:
        dim: D, a multiple of `heads`.
        heads: H.
        longest: positions of the largest patch; a smaller one uses the last of them.
        dropout: on attention weights and on what the residuals add.
    """

    def __init__(self, dim: int, heads: int, longest: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Parameter(sinusoids(longest, dim))
        self.project = linear(dim, 3 * dim, bias=False)
        self.attended = linear(dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.up, self.down = linear(dim, dim), linear(dim, dim)
        self.out = linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Encodes patches.

        Args:
            x: [M, P, D].
            valid: [M, P] bool; a step that is not valid is seen by itself alone.

        Returns:
            [M, D].
        """
        P = x.shape[1]
        itself = torch.eye(P, dtype=torch.bool, device=x.device)
        seen = valid.unsqueeze(1) | itself  # [M, P, P], the key last
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            summed = self._cached(x, seen)
        else:
            summed = self._in_parts(x, seen)
        # cost: the sum before the linear layer instead of behind it, for a P-th of the products.
        return F.linear(summed, self.out.weight, P * self.out.bias)

    def _cached(self, x: Tensor, seen: Tensor) -> Tensor:
        block = Block(
            self.position[-x.shape[1] :], self.project.weight.T,
            self.attended.weight.T, self.attended.bias, self.norm1.weight, self.norm1.bias,
            self.up.weight.T, self.up.bias, self.down.weight.T, self.down.bias,
            self.norm2.weight, self.norm2.bias,
        )  # fmt: skip
        unseen = torch.zeros(seen.shape, dtype=x.dtype).masked_fill_(~seen, -torch.inf)
        unseen = unseen.permute(2, 0, 1).contiguous()  # the key first
        return encode_patches(x, unseen, block, self.heads, self.dropout.now)

    def _in_parts(self, x: Tensor, seen: Tensor) -> Tensor:
        M, P, D = x.shape
        x = x + self.position[-P:]
        mixed = self.attended(self._attention(x, seen).view(M * P, D))
        x = self.norm1(x.view(M * P, D) + self.dropout(mixed))
        y = self.down(F.leaky_relu(self.up(x)))
        out: Tensor = self.norm2(x + self.dropout(y)).view(M, P, D).sum(dim=1)
        return out

    def _attention(self, x: Tensor, seen: Tensor) -> Tensor:
        M, P, D = x.shape
        q, k, v = self.project(x).view(M, P, 3, self.heads, -1).unbind(2)  # [M, P, H, d]
        scores = torch.einsum("mihd,mjhd->mhij", q, k) * q.shape[-1] ** -0.5
        weights = self.dropout(scores.masked_fill(~seen.unsqueeze(1), -torch.inf).softmax(dim=-1))
        return torch.einsum("mhij,mjhd->mihd", weights, v).reshape(M, P, D)


class PatchForecast(nn.Module):
    """Cuts a window into patches, encodes each, and maps the patches to future steps.

    Args:
        length: T, steps of the window; padded on the left to a multiple of the patch.
        patch: P.
        future: T', steps to produce.
        hidden: widths of the network over the patches.
        dropout: of that network.
    """

    def __init__(
        self, length: int, patch: int, future: int, hidden: tuple[int, ...], dropout: float
    ) -> None:
        super().__init__()
        self.patch, self.missing = patch, -length % patch
        self.dropout = Dropout(dropout)
        over = MLP((length + self.missing) // patch, hidden)
        self.over_patches = nn.Sequential(over, linear(over.out_dim, future))

    def forward(self, x: Tensor, valid: Tensor, encoder: PatchEncoder) -> Tensor:
        """Returns the future [B, D, T'] of [B, T, D], where `valid` [B, T] says what is real."""
        if self.missing:
            x, valid = F.pad(x, (0, 0, self.missing, 0)), F.pad(valid, (self.missing, 0))
        patches = x.reshape(-1, self.patch, x.shape[2])  # [B * n, P, D]
        encoded = encoder(patches, valid.reshape(-1, self.patch))  # [B * n, D]
        B, D = x.shape[0], x.shape[2]
        by_channel = encoded.view(B, -1, D).transpose(1, 2).reshape(B * D, -1)  # [B * D, n]
        layers = [m for m in self.over_patches.modules() if isinstance(m, nn.Linear)]
        future = relu_layers(
            by_channel,
            [layer.weight.T for layer in layers],
            [layer.bias for layer in layers],
            dropout=self.dropout.now,
        )
        return future.view(B, D, -1)  # [B, D, T']
