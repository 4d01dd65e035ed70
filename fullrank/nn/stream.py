"""The stream of tokens: parts that are computed and places that a learned constant holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Place(NamedTuple):
    """One part of a stream.

    Args:
        name: of the part.
        tokens: how many it takes.
        learned: whether they are learned constants, the same for every row, instead of computed.
    """

    name: str
    tokens: int = 1
    learned: bool = False


class TokenStream(nn.Module):
    """Joins parts in a fixed order. Constants start from N(0, 0.02^2).

    Args:
        places: in order.
        dim: D.

    Attributes:
        names: of the N tokens; parts of several tokens are numbered.
    """

    def __init__(self, places: tuple[Place, ...], dim: int) -> None:
        super().__init__()
        self.places = places
        self.names = tuple(
            p.name if p.tokens == 1 else f"{p.name}{i}" for p in places for i in range(p.tokens)
        )
        learned = [p.tokens for p in places if p.learned]
        if learned:
            self.constants = nn.Parameter(0.02 * torch.randn(sum(learned), dim))

    def forward(self, parts: Mapping[str, Tensor], rows: int) -> Tensor:
        """Returns [B, N, D].

        Args:
            parts: name -> [B, D], or [B, tokens, D], for every place that is not learned.
            rows: B.
        """
        taken, out = 0, []
        for place in self.places:
            if place.learned:
                constant = self.constants[taken : taken + place.tokens]
                out.append(constant.expand(rows, -1, -1))  # [B, tokens, D]
                taken += place.tokens
            else:
                out.append(parts[place.name].view(rows, place.tokens, -1))
        return torch.cat(out, dim=1)  # [B, N, D]
