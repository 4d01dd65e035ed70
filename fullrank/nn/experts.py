"""Sparse mixture of experts per token, with ReLU routing or with top-k softmax.

RankMixer, arXiv:2507.15551, section on sparse MoE. ReLU gates leave open how many experts a token
uses; an L1 term holds their share at a budget. Dense training, sparse inference (DTSI): two
routers, of which only one carries the L1 term and serves.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.config import require
from fullrank.nn.token_ffn import PerTokenLinear, per_token_linear, xavier_slices

Routing = Literal["relu_dtsi", "relu_single", "topk_softmax"]
Router = Literal["h_infer", "h_train", "mean"]

BALANCE = 1e-2  # weight of the load-balance term of "topk_softmax"
_FIRST, _LEAST, _MOST = 1e-8, 1e-12, 10.0  # L1 weight: at first, and its bounds
# Gain of the error, of its change, and the most that an error alone adds to log(L1 weight).
_PULL, _BRAKE, _MOST_PULL = 0.05, 5.0, 0.1
_FLOOR = 0.1  # of the budget; a share below it reads as this, for zero has no logarithm


class SparseExperts(nn.Module):
    """v_t = sum over j of G_tj * e_tj(s_t); every token owns E experts, two-layer GELU
    networks, and its routers.

    A controller moves the L1 weight after each training step, with e = log(active share / budget):

        log(L1 weight) += 0.05 e, at most 0.1 either way, + 5 (e - e of the step before)

    inside [1e-12, 10]. The first term drives the error to zero; the second lets go as soon as
    experts begin to close, for what the routers have set out to do takes effect many steps later.
    Our choice, with gains that hold the share of a toy problem within 10 % under SGD and under
    Adam with rates of 0.001 and 0.01 (steps 800 to 1,000); the sign of e alone overshot and closed
    experts for good. The L1 weight is state, a buffer, so a resumed run continues with the same
    bits.
    trap: a gate that is closed for every row has no gradient and stays closed, and an L1 weight
    never below zero cannot open what the task itself closes: the share may stay below the budget.

    Routers start near a constant gate of 1/E, so that all experts take part at first.

    Args:
        num_tokens: N.
        dim: D.
        expert_dim: hidden width of one expert.
        num_experts: E.
        routing: "relu_dtsi" has a router for training and one for serving; "relu_single" has the
            latter only; "topk_softmax" keeps the largest E * target_share softmax gates.
        target_share: of active experts, in (0, 1].

    Attributes:
        l1_weight: scalar, the present L1 weight.
        active_share: [N], active experts per token in the last training step.

    Raises:
        ConfigError: "topk_softmax" would keep no expert.
    """

    l1_weight: Tensor
    active_share: Tensor

    def __init__(
        self,
        num_tokens: int,
        dim: int,
        expert_dim: int,
        num_experts: int,
        *,
        routing: Routing = "relu_dtsi",
        target_share: float = 0.25,
    ) -> None:
        super().__init__()
        self.top = round(num_experts * target_share)
        require(
            routing != "topk_softmax" or self.top >= 1,
            where="target_share",
            found=f"{target_share} of {num_experts} experts",
            expected="at least one active expert",
            fix=f"set target_share to {1 / num_experts:g} or more, "
            f"or num_experts to {round(1 / target_share)} or more",
        )
        self.num_experts, self.routing, self.target_share = num_experts, routing, target_share
        # Experts of a token lie side by side, so that all of them are one product.
        self.w1 = nn.Parameter(
            torch.cat([xavier_slices(num_tokens, dim, expert_dim) for _ in range(num_experts)], 2)
        )  # [N, D, E * H]
        self.b1 = nn.Parameter(torch.zeros(num_tokens, num_experts * expert_dim))
        self.w2 = nn.Parameter(
            torch.cat([xavier_slices(num_tokens, expert_dim, dim) for _ in range(num_experts)], 1)
        )  # [N, E * H, D]
        self.b2 = nn.Parameter(torch.zeros(num_tokens, num_experts, dim))
        names = ("h_infer", "h_train") if routing == "relu_dtsi" else ("h_infer",)
        self.routers = nn.ModuleDict({n: _router(num_tokens, dim, num_experts) for n in names})
        self.register_buffer("l1_weight", torch.tensor(_FIRST))
        self.register_buffer("active_share", torch.ones(num_tokens))

    def forward(self, x: Tensor, router: Router = "h_infer") -> tuple[Tensor, Tensor]:
        """Returns the output, and what `penalty` judges.

        Training computes all experts at once; serving computes only those with a gate above zero,
        with the same result up to rounding.

        Args:
            x: [B, N, D].
            router: "h_infer" is the one that serves; "h_train" and "mean", the mean of both gates,
                exist with "relu_dtsi".

        Returns:
            [B, N, D] output and [B, N, E] serving gates (softmax before the top-k).
        """
        serving = self._gates(x, "h_infer")  # [B, N, E]
        gates = serving
        if router != "h_infer":
            gates = self._gates(x, "h_train")
        if router == "mean":
            gates = 0.5 * (gates + serving)
        if self.routing == "topk_softmax":
            gates = torch.where(self._kept(serving), serving, 0.0)
        if self.training or torch.compiler.is_compiling():
            return self.dense(x, gates), serving
        return self.sparse(x, gates), serving

    def dense(self, x: Tensor, gates: Tensor) -> Tensor:
        """Returns [B, N, D]: all experts, weighed by gates [B, N, E]."""
        hidden = self.hidden(x) * gates.unsqueeze(-1)  # [B, N, E, H]
        out = torch.bmm(hidden.flatten(2).transpose(0, 1), self.w2)  # [N, B, D]
        return torch.baddbmm(out, gates.transpose(0, 1), self.b2).transpose(0, 1)

    def sparse(self, x: Tensor, gates: Tensor) -> Tensor:
        """Returns the same as `dense`, computing only pairs of row and expert with gate > 0."""
        width = self.w1.shape[2] // self.num_experts
        out = torch.zeros_like(x)
        for t in range(x.shape[1]):
            for j in range(self.num_experts):
                rows = gates[:, t, j].nonzero().squeeze(1)  # [M]
                if rows.numel() == 0:
                    continue
                part = slice(j * width, (j + 1) * width)
                before = torch.addmm(self.b1[t, part], x[rows, t], self.w1[t, :, part])
                hidden = F.gelu(before)  # [M, H]
                own = torch.addmm(self.b2[t, j], hidden, self.w2[t, part])  # [M, D]
                out[:, t].index_add_(0, rows, own * gates[rows, t, j, None])
        return out

    def hidden(self, x: Tensor) -> Tensor:
        """Returns the hidden layers of all experts, [B, N, E, H], for [B, N, D]."""
        flat = F.gelu(per_token_linear(x, self.w1, self.b1))  # [B, N, E * H]
        return flat.reshape(*x.shape[:2], self.num_experts, -1)

    def expert_means(self, x: Tensor) -> Tensor:
        """Returns what each expert puts out, without its gate, averaged over tokens: [B, E, D].

        cost: as much as another pass of all experts; for probes only.
        """
        tokens, _, dim = self.w2.shape
        weight = self.w2.view(tokens, self.num_experts, -1, dim)  # [N, E, H, D]
        total = torch.einsum("bneh,nehd->bed", self.hidden(x), weight)  # [B, E, D]
        return total / tokens + self.b2.mean(0)

    def penalty(self, serving: Tensor) -> Tensor:
        """Returns the term to add to the loss; in training it also moves the L1 weight.

        Args:
            serving: [B, N, E], the second result of `forward`.
        """
        active = self._kept(serving) if self.routing == "topk_softmax" else serving > 0
        share = active.float().mean(0)  # [N, E]
        if self.routing == "topk_softmax":
            # Fedus et al., 2021, eq. 4, per token: E * sum_j (share of rows) * (mean gate)
            balance = (share / self.top * serving.mean(0)).sum(1) * self.num_experts  # [N]
            term = BALANCE * balance.sum()
        else:
            term = self.l1_weight.clone() * serving.sum((1, 2)).mean()
        if self.training:
            self._control(share.mean(1))
        return term

    @torch.no_grad()
    def _control(self, share: Tensor) -> None:
        before, now = self._error(self.active_share), self._error(share)
        self.active_share.copy_(share)
        if self.routing != "topk_softmax":
            step = (_PULL * now).clamp(-_MOST_PULL, _MOST_PULL) + _BRAKE * (now - before)
            self.l1_weight.mul_(step.exp()).clamp_(_LEAST, _MOST)

    def _error(self, share: Tensor) -> Tensor:
        """Returns log(share / budget), a scalar, for shares [N]."""
        return (share.mean() / self.target_share).clamp_min(_FLOOR).log()

    def _gates(self, x: Tensor, router: Router) -> Tensor:
        logits: Tensor = self.routers[router](x)  # [B, N, E]
        return logits.softmax(2) if self.routing == "topk_softmax" else logits.relu()

    def _kept(self, gates: Tensor) -> Tensor:
        """True for the largest gates of each row and token, [B, N, E]."""
        top = gates.topk(self.top, dim=2).indices
        return torch.zeros_like(gates, dtype=torch.bool).scatter(2, top, True)


def _router(num_tokens: int, dim: int, num_experts: int) -> PerTokenLinear:
    """Returns h: D -> E that starts at 1/E, plus a tenth of that as noise for inputs of norm D."""
    router = PerTokenLinear(num_tokens, dim, num_experts)
    nn.init.normal_(router.weight, std=0.1 / num_experts / dim**0.5)
    assert router.bias is not None
    nn.init.constant_(router.bias, 1.0 / num_experts)
    return router
