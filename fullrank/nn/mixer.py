"""The block of RankMixer and its descendants: mixing, then a feed-forward network, with norms."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from fullrank.nn.dropout import Dropout
from fullrank.nn.experts import Router, SparseExperts
from fullrank.tap import Tap

NormPlacement = Literal["post", "pre", "none", "hybrid"]


class MixerBlock(nn.Module):
    """S = LN(Mix(X) + X), X' = LN(FFN(S) + S), and the other places for the norms.

    Taps: `mix_branch` and `ffn_branch` see what a sub-layer adds, `mix` and `ffn` the state after
    its residual and norm. Without a mixing there is no `mix_branch`. With experts, `experts` sees
    the output of each without its gate, averaged over tokens; that is computed only while a probe
    is hooked there, for it costs as much as the experts themselves.

    Args:
        dim: D.
        mixing: [B, N, D] -> [B, N, D]; None for no exchange between tokens.
        feed_forward: [B, N, D] -> [B, N, D], or experts.
        norm: "post" as above; "pre": Mix(LN(X)) + X and FFN(LN(S)) + S; "none"; "hybrid": LN after
            the mixing, and an RMS norm before both the feed-forward network and its residual.
        residuals: whether the mixing, and whether the feed-forward network, has a residual.
        dropout: on the output of the feed-forward network.
    """

    def __init__(
        self,
        dim: int,
        mixing: nn.Module | None,
        feed_forward: nn.Module,
        *,
        norm: NormPlacement = "post",
        residuals: tuple[bool, bool] = (True, True),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.mixing, self.feed_forward = mixing, feed_forward
        self.residual_mix, self.residual_ffn = residuals
        if mixing is not None:
            self.mix_norm_in = _norm(dim, norm == "pre")
            self.mix_norm_out = _norm(dim, norm in ("post", "hybrid"))
            self.mix_branch = Tap("B N D")
        self.mix = Tap("B N D")
        self.ffn_norm_both = nn.RMSNorm(dim) if norm == "hybrid" else nn.Identity()
        self.ffn_norm_in = _norm(dim, norm == "pre")
        self.ffn_norm_out = _norm(dim, norm == "post")
        self.ffn_branch, self.ffn = Tap("B N D"), Tap("B N D")
        self.dropout = Dropout(dropout)
        if isinstance(feed_forward, SparseExperts):
            self.experts = Tap("B E D")

    def forward(self, x: Tensor, router: Router = "h_infer") -> tuple[Tensor, Tensor | None]:
        """Runs the block.

        Args:
            x: [B, N, D].
            router: of the experts, if there are any.

        Returns:
            [B, N, D], and the gates [B, N, E] that `SparseExperts.penalty` judges, or None.
        """
        if self.mixing is not None:
            mixed = self.mix_branch(self.mixing(self.mix_norm_in(x)))
            x = self.mix_norm_out(mixed + x if self.residual_mix else mixed)
        x = self.ffn_norm_both(self.mix(x))  # [B, N, D]
        normed, gates = self.ffn_norm_in(x), None
        if isinstance(self.feed_forward, SparseExperts):
            out, gates = self.feed_forward(normed, router)
            if self.experts._forward_hooks:
                self.experts(self.feed_forward.expert_means(normed))
        else:
            out = self.feed_forward(normed)
        out = self.dropout(self.ffn_branch(out))
        return self.ffn(self.ffn_norm_out(out + x if self.residual_ffn else out)), gates

    def penalty(self, gates: Tensor) -> Tensor:
        """Returns the loss term of the experts for the gates that `forward` returned."""
        assert isinstance(self.feed_forward, SparseExperts), "without experts there are no gates"
        return self.feed_forward.penalty(gates)


def _norm(dim: int, wanted: bool) -> nn.Module:
    return nn.LayerNorm(dim) if wanted else nn.Identity()
