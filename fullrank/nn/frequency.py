"""Sequences in the frequency domain: complex layers, filters of a spectrum, extrapolation.

FEDIN, arXiv:2605.01726. A complex vector of width K is a real one of width 2K, [real | imaginary].
The transforms of a window are products with a fixed matrix: their length is the configured one,
odd, prime or 1, and never guessed from a spectrum, which does not say whether it was even or odd.

cost: at 100 steps the product takes as long as torch.fft, and it merges with a linear layer beside
it, which a transform cannot.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.nn.cached_layers import relu_layers
from fullrank.nn.dropout import Dropout

Axes = Literal["time", "channel_time"]
Shares = Literal["softmax_mag", "sigmoid_mag", "mag_over_sum"]


def num_bins(n: int) -> int:
    """Returns how many frequencies the transform of n real steps has."""
    return n // 2 + 1


def _angles(n: int, start: int, stop: int) -> Tensor:
    """Returns [stop - start, num_bins] radians, float64."""
    steps = torch.arange(start, stop)[:, None] * torch.arange(num_bins(n))[None, :]
    return (steps % n).double() * (2.0 * math.pi / n)


def fourier(n: int, length: int) -> Tensor:
    """Returns W with x @ W = rfft(x, n), for x of `length` steps, the rest zeros.

    Returns:
        [length, 2 * num_bins], float32.
    """
    angle = _angles(n, 0, length)
    return torch.cat([angle.cos(), -angle.sin()], dim=1).float()


def inverse_fourier(n: int, start: int, stop: int) -> Tensor:
    """Returns W with v @ W = irfft(v, n)[start:stop].

    As in torch, the imaginary parts of the first bin, and of the last one of an even n, are not
    read.

    Returns:
        [2 * num_bins, stop - start], float32.
    """
    angle = _angles(n, start, stop).T
    twice = torch.full((num_bins(n), 1), 2.0, dtype=torch.float64)
    twice[0] = 1.0  # the other bins stand for their negative frequencies too
    if n % 2 == 0:
        twice[-1] = 1.0
    return (torch.cat([twice * angle.cos(), -twice * angle.sin()], dim=0) / n).float()


def over_channels(v: Tensor, *, inverse: bool = False) -> Tensor:
    """Returns the complex transform of [..., D, 2K] along the D channels."""
    real, imaginary = v.chunk(2, dim=-1)
    z = torch.complex(real.contiguous(), imaginary.contiguous())
    z = torch.fft.ifft(z, dim=-2) if inverse else torch.fft.fft(z, dim=-2)
    return torch.cat([z.real, z.imag], dim=-1)


class ComplexLinear(nn.Module):
    """y = (W_r + i W_i)(x_r + i x_i) + (b_r + i b_i).

    Both matrices start Xavier-normal and the bias at zero.

    Args:
        in_dim: complex width of the input.
        out_dim: complex width of the output.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.real = nn.Parameter(nn.init.xavier_normal_(torch.empty(out_dim, in_dim)))
        self.imaginary = nn.Parameter(nn.init.xavier_normal_(torch.empty(out_dim, in_dim)))
        self.bias = nn.Parameter(torch.zeros(2 * out_dim))

    def block(self) -> Tensor:
        """Returns the real form [2 * in_dim, 2 * out_dim], for rows: y = x @ block + bias."""
        real, imaginary = self.real.T, self.imaginary.T
        upper = torch.cat([real, imaginary], dim=1)
        return torch.cat([upper, torch.cat([-imaginary, real], dim=1)], dim=0)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [..., 2 * out_dim] for [..., 2 * in_dim]."""
        return F.linear(x, self.block().T, self.bias)


def spectrum_shares(magnitude: Tensor, kind: Shares) -> Tensor:
    """Turns magnitudes [..., F] into the weights alpha [..., F] of their frequencies."""
    if kind == "softmax_mag":
        return magnitude.softmax(dim=-1)
    if kind == "sigmoid_mag":
        return magnitude.sigmoid()
    return magnitude / (magnitude.sum(dim=-1, keepdim=True) + 1e-8)


class SpectrumFilter(nn.Module):
    """Weighs the frequencies of every channel: x -> irfft(gain * rfft(x)).

    Along time this is the circular convolution of x with irfft(gain). A transform over channels
    and time gives the same, because the gain is constant over the channels of a head; it is there
    to be compared.

    Args:
        length: T, steps of the window.
        linear: pad to 2T, so that the end of the window does not wrap onto its beginning.
        axes: of the transform.

    Attributes:
        num_bins: frequencies that a gain has.
    """

    to_spectrum: Tensor  # [T, 2 * num_bins]
    from_spectrum: Tensor  # [2 * num_bins, T]

    def __init__(self, length: int, *, linear: bool = False, axes: Axes = "time") -> None:
        super().__init__()
        n = 2 * length if linear else length
        self.num_bins, self.axes = num_bins(n), axes
        self.register_buffer("to_spectrum", fourier(n, length), persistent=False)
        self.register_buffer("from_spectrum", inverse_fourier(n, 0, length), persistent=False)

    def magnitudes(self, c: Tensor) -> Tensor:
        """Returns |rfft(c)| [..., num_bins] of scores [..., T]."""
        real, imaginary = (c @ self.to_spectrum).chunk(2, dim=-1)
        squares = torch.addcmul(real * real, imaginary, imaginary)
        # Below the smallest number nothing is learnt, where the derivative of a root is infinite.
        # cost: a norm over two numbers in a row takes ten times as long.
        return squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()

    def weighed(self, x: Tensor, gain: Tensor) -> Tensor:
        """Returns the spectrum whose product with `from_spectrum` is what `forward` returns.

        Args:
            x: [B, H, D, T].
            gain: [B, H, num_bins], real.

        Returns:
            [B, H, D, 2 * num_bins].
        """
        v = x @ self.to_spectrum  # [B, H, D, 2 * num_bins]
        both = torch.cat([gain, gain], dim=-1).unsqueeze(2)
        if self.axes == "channel_time":
            return over_channels(over_channels(v) * both, inverse=True)
        return v * both

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        """Filters the channels of each head, [B, H, D, T] by [B, H, num_bins]: see `weighed`."""
        return self.weighed(x, gain) @ self.from_spectrum


class Extrapolation(nn.Module):
    """Appends zeros to a window, changes its spectrum by a complex network, reads the new steps.

    Every channel passes the same network. With "channel_time", as in the released code, channels
    are transformed too; the network is not linear, so the order of channels then matters.

    Args:
        length: T, steps of the window.
        future: T', steps to append.
        hidden: complex widths, at least one.
        dropout: on hidden layers.
        axes: of the transform.
    """

    to_spectrum: Tensor  # [T, 2 * num_bins(T + T')]
    from_spectrum: Tensor  # [2 * num_bins(T + T'), T']

    def __init__(
        self,
        length: int,
        future: int,
        hidden: tuple[int, ...],
        *,
        dropout: float = 0.0,
        axes: Axes = "time",
    ) -> None:
        super().__init__()
        assert hidden
        n = length + future
        self.axes = axes
        widths = (num_bins(n), *hidden, num_bins(n))
        self.layers = nn.ModuleList(ComplexLinear(i, o) for i, o in pairwise(widths))
        self.dropout = Dropout(dropout)
        self.register_buffer("to_spectrum", fourier(n, length), persistent=False)
        self.register_buffer("from_spectrum", inverse_fourier(n, length, n), persistent=False)

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """Continues every channel.

        Args:
            x: [B, D, T].
            before: [K, T], applied to `x` [B, D, K] first.

        Returns:
            The future [B, D, T'].
        """
        B, D, _ = x.shape
        first, *middle, last = (m for m in self.layers if isinstance(m, ComplexLinear))
        entry = self.to_spectrum if before is None else before @ self.to_spectrum
        rows, out_block = x.reshape(B * D, -1), last.block()
        out_bias: Tensor = last.bias
        if self.axes == "time":
            # cost: transform and layer are both linear; their product is made once per batch.
            blocks = [entry @ first.block()]
            out_block, out_bias = out_block @ self.from_spectrum, out_bias @ self.from_spectrum
        else:
            rows = over_channels((rows @ entry).view(B, D, -1)).view(B * D, -1)
            blocks = [first.block()]
        z = relu_layers(
            rows,
            [*blocks, *(layer.block() for layer in middle), out_block],
            [first.bias, *(layer.bias for layer in middle), out_bias],
            dropout=self.dropout.now,
            parts=2,
        ).view(B, D, -1)
        if self.axes == "time":
            return z
        return over_channels(z, inverse=True) @ self.from_spectrum
