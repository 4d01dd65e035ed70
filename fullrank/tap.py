"""Tap: a named place in a model where probes may look. It computes nothing."""

from __future__ import annotations

from torch import Tensor, nn


class Tap(nn.Identity):
    """Passes its input through. Probes hook it and read `axes` to know what they see.

    The dotted module path is the hook's name in every record, so a tap is stored under the name
    that the diagnostics contract gives it: `embed`, `tokens`, `block{l}.mix`, `block{l}.ffn`,
    `head_in`.

    Args:
        axes: "B F D" (fields), "B N D" (tokens), "B T D" (time steps), "B D" or "B E D" (experts).
    """

    def __init__(self, axes: str) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` unchanged."""
        return x

    def extra_repr(self) -> str:
        """Returns the axes for `print(model)`."""
        return self.axes
