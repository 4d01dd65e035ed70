"""Rotary position embedding: queries and keys are turned, so that scores see only distances.

Su et al., arXiv:2104.09864, eq. 15 and 34. Coordinates are paired (0, 1), (2, 3), ... as there;
pair i of a token at position p is turned by the angle p * base^(-2 i / head_dim).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fullrank.config import require


class Rotary:
    """Turns queries and keys by their positions. It has no parameters.

    Args:
        head_dim: width of a head, even.
        base: of the wavelengths, which go from 2 pi up to nearly 2 pi * base positions.

    Raises:
        ConfigError: `head_dim` is odd.

    Example:
        >>> rotary = Rotary(4)
        >>> cos, sin = rotary.angles(torch.tensor([0, 1, 2]))  # once for queries, keys and layers
        >>> rotary.rotate(torch.ones(1, 1, 3, 4), cos, sin)[0, 0, 0].tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, head_dim: int, base: float = 10_000.0) -> None:
        require(
            head_dim > 0 and head_dim % 2 == 0,
            where="Rotary.head_dim",
            found=head_dim,
            expected="an even width, because coordinates are turned in pairs",
            fix=f"use {max(2, head_dim - 1)} or {max(2, head_dim + 1)}",
        )
        self.head_dim, self.base = head_dim, base

    def angles(
        self, positions: Tensor, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """Returns the cosines and sines that `rotate` wants.

        Args:
            positions: [N] or [B, N] int64.
            dtype: of the queries and keys; below single precision a position is not exact.

        Returns:
            Two tensors [N, head_dim / 2] or [B, 1, N, head_dim / 2].
        """
        dtype = torch.promote_types(dtype, torch.float32)
        even = torch.arange(0, self.head_dim, 2, device=positions.device, dtype=dtype)
        wave = self.base ** (-even / self.head_dim)  # [head_dim / 2]
        angle = positions.to(dtype).unsqueeze(-1) * wave  # [(B,) N, head_dim / 2]
        if positions.dim() == 2:
            angle = angle.unsqueeze(1)  # [B, 1, N, head_dim / 2]
        return angle.cos(), angle.sin()

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Returns queries or keys [..., B, H, N, head_dim], turned.

        Queries and keys in one tensor [2, B, H, N, head_dim] are turned in one go.
        """
        if torch.compiler.is_compiling() or x.dtype not in (torch.float32, torch.float64):
            a, b = x[..., 0::2], x[..., 1::2]  # [..., head_dim / 2] each
            turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1)
            return turned.flatten(-2).to(x.dtype)
        # A complex product takes 0.4 of the time of real ones and keeps the layout of x in memory.
        # Exported programs do without: other runtimes know no complex numbers.
        pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))  # [..., head_dim / 2]
        return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """Returns x turned.

        Args:
            x: [B, H, N, head_dim].
            positions: [N] or [B, N] int64.
        """
        return self.rotate(x, *self.angles(positions, x.dtype))
