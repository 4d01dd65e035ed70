"""SwiGLU over tokens, with weights of its own for every token.

RankUp, arXiv:2604.17878: the feed-forward network of its block. Biases, which it does not state,
are left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.nn.token_ffn import xavier_slices


class PerTokenSwiGLU(nn.Module):
    """v_t = (silu(x_t W1_t) * (x_t W2_t)) W3_t, independent weights per token, no biases.

    Parameters: 3 N D H.

    Args:
        num_tokens: N.
        dim: D.
        hidden: H.
    """

    def __init__(self, num_tokens: int, dim: int, hidden: int) -> None:
        super().__init__()
        both = [xavier_slices(num_tokens, dim, hidden) for _ in range(2)]
        self.weight_in = nn.Parameter(torch.cat([w.data for w in both], dim=2))  # W1 | W2
        self.weight_out = xavier_slices(num_tokens, hidden, dim)  # W3, [N, H, D]

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, N, D] for [B, N, D]."""
        gate, value = torch.bmm(x.transpose(0, 1), self.weight_in).chunk(2, dim=2)  # [N, B, H]
        out = torch.bmm(F.silu(gate) * value, self.weight_out)  # [N, B, D]
        return out.transpose(0, 1)
