"""Gates: the weights with which the outputs of experts are added up.

The forms that D-MoE (arXiv:2505.17925) and its predecessors compare. Those with a softmax start
at equal weights, so that training begins at the mean of the experts.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fullrank.nn.head import zeroed

Gate = Literal["mean", "sum", "learned", "softmax_own", "softmax_shared", "elementwise"]
READS_EMBEDDINGS = ("softmax_own", "softmax_shared", "elementwise")


class ExpertGate(nn.Module):
    """Weights of E experts per row.

        mean             1 / E
        sum              1
        learned          a free weight per expert, at first 1
        softmax_own      softmax over the experts of v_k . x_k + c_k, x_k the embeddings it reads
        softmax_shared   softmax over the experts of one linear layer on all embedding sets joined
        elementwise      the same with a softmax for each of the D units

    Args:
        kind: which.
        num_experts: E.
        num_sets: S, embedding sets: E, or 1 where all experts share one.
        in_dim: I, width of one set.
        unit_dim: D, of the experts' outputs, read by "elementwise" only.
    """

    def __init__(
        self, kind: Gate, num_experts: int, *, num_sets: int, in_dim: int, unit_dim: int
    ) -> None:
        super().__init__()
        self.kind, self.num_experts, self.unit_dim = kind, num_experts, unit_dim
        match kind:
            case "learned":
                self.weight = nn.Parameter(torch.ones(num_experts))
            case "softmax_own":
                self.weight = nn.Parameter(torch.zeros(num_experts, in_dim))  # v
                self.bias = nn.Parameter(torch.zeros(num_experts))  # c
            case "softmax_shared":
                self.scores = zeroed(nn.Linear(num_sets * in_dim, num_experts))
            case "elementwise":
                self.scores = zeroed(nn.Linear(num_sets * in_dim, num_experts * unit_dim))

    def forward(self, sets: list[Tensor]) -> Tensor:
        """Returns weights [B, E], or [B, E, D] for "elementwise".

        Args:
            sets: S tensors [B, I].
        """
        rows = sets[0].shape[0]
        match self.kind:
            case "mean":
                return sets[0].new_full((rows, self.num_experts), 1.0 / self.num_experts)
            case "sum":
                return sets[0].new_ones(rows, self.num_experts)
            case "learned":
                return self.weight.expand(rows, -1)
            case "softmax_own":
                own = [sets[k % len(sets)] @ v for k, v in enumerate(self.weight)]  # E of [B]
                return torch.softmax(torch.stack(own, dim=1) + self.bias, dim=1)
            case "softmax_shared" | "elementwise":
                scores: Tensor = self.scores(torch.cat(sets, dim=1))  # [B, E] or [B, E * D]
                if self.kind == "elementwise":
                    scores = scores.view(rows, self.num_experts, self.unit_dim)
                return torch.softmax(scores, dim=1)
