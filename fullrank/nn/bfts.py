"""Bottom-Full-Top-Sliding: which layer sees what, and when field tokens leave the stream.

TokenFormer, arXiv:2604.13737. In a sliding layer nobody but the field tokens sees field tokens. So
above the last layer that is not of that kind they are dropped, with equal results for all others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fullrank.config import require
from fullrank.nn.attention_mask import Visibility, attention_flops
from fullrank.nn.interaction_block import InteractionBlock, Sight
from fullrank.nn.packed_attention import Packing
from fullrank.nn.rotary import Rotary
from fullrank.nn.token_sequence import Stream, TokenSequence, between
from fullrank.nn.windowed_attention import full_attention, sliding_attention

_PACK_BELOW = 0.9  # share of real tokens
Look = Callable[[int, InteractionBlock, Stream, Sight], None]


def layers_of(schedule: str) -> str:
    """Returns one letter per layer from the bottom: "FFSS" for "2F2S".

    Raises:
        ConfigError: the schedule has other letters than F and S, or no layer.
    """
    parts = re.findall(r"(\d*)([FS])", schedule)
    layers = "".join(letter * int(count or 1) for count, letter in parts)
    require(
        bool(layers) and re.fullmatch(r"(\d*[FS])+", schedule) is not None,
        where="schedule",
        found=repr(schedule),
        expected="layers F (full) and S (sliding) from the bottom, with how many of each",
        fix="write it like 2F2S",
    )
    return layers


def spread(windows: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Returns `count` windows, evenly from the first to the last of some; one is the last."""
    if len(windows) == count:
        return windows
    first, last = windows[0], windows[-1]
    steps = range(count - 1, -1, -1)
    return tuple(round(last + (first - last) * i / max(1, count - 1)) for i in steps)


class BFTS:
    """Runs a stream through its layers. It has no parameters.

    Args:
        layers: one letter per layer, F or S.
        windows: of the sliding layers, the query included; 0 is the whole past.
        rule: of a sliding layer, but for its window; full layers discard nothing.
        tokens: laid the stream out.
        rotary: turns queries and keys; None where positions are not rotary.

    Attributes:
        rules: what each layer lets its tokens see.
        drop_at: the first layer that runs without static tokens; L if there is none.
        can_pack: whether every layer is plainly causal or slides over what is left.

    Raises:
        ConfigError: from the target, a window does not reach any behaviour.
    """

    def __init__(
        self,
        layers: str,
        windows: tuple[int, ...],
        rule: Visibility,
        tokens: TokenSequence,
        rotary: Rotary | None,
    ) -> None:
        smallest = tokens.tail + 1  # SEP2 and what follows it, and one behaviour
        require(
            all(w == 0 or w >= smallest for w in windows),
            where="windows",
            found=f"{windows} with {tokens.num_targets} target tokens",
            expected=f"at least {smallest}, or the target sees no behaviour",
            fix=f"set windows to {tuple(w and max(w, smallest) for w in windows)}",
        )
        self.tokens, self.rotary = tokens, rotary
        full, each = replace(rule, discard_static=False, discard_separator=False), iter(windows)
        self.rules = tuple(
            full if layer == "F" else replace(rule, window=next(each) or None) for layer in layers
        )
        self.drop_at = len(layers.rstrip("S")) if rule.discard_static else len(layers)
        mixed = "S" in layers[: self.drop_at] or (rule.static_bidirectional and rule.num_static > 0)
        self.can_pack = not mixed

    def __call__(
        self,
        blocks: Sequence[InteractionBlock],
        stream: Stream,
        *,
        pack: bool = False,
        look: Look | None = None,
    ) -> Stream:
        """Returns the stream behind the last layer.

        Args:
            blocks: L of them.
            stream: the tokens.
            pack: work on the real tokens alone where there is much padding. Results are the same,
                but taps of the blocks see nothing then.
            look: is called before each layer with its number, the block, the stream and its sight.
        """
        if pack and self.can_pack and float(stream.valid.float().mean()) < _PACK_BELOW:
            return self._packed(blocks, stream)
        angles = self._angles(stream.positions, stream.x.dtype)
        for layer, (rule, block) in enumerate(zip(self.rules, blocks, strict=True)):
            if layer == self.drop_at:
                stream = stream.without(rule.num_static, rule.discard_separator)
                angles = self._angles(stream.positions, stream.x.dtype)
            span = self.tokens.span(stream.events.shape[1] // self.tokens.per_event)
            sight = Sight(self._attend(layer, stream), angles, span, stream.events)
            if look is not None:
                look(layer, block, stream, sight)
            stream = stream._replace(x=block(stream.x, sight))
        return stream

    def _packed(self, blocks: Sequence[InteractionBlock], stream: Stream) -> Stream:
        """Runs [1, S, D], S the real tokens of all rows, through the layers."""
        packing = Packing(stream.valid)
        x, sight = self._packed_part(packing, stream)
        for layer, (rule, block) in enumerate(zip(self.rules, blocks, strict=True)):
            if layer == self.drop_at:
                stream = stream._replace(x=packing.unpack(x))
                stream = stream.without(rule.num_static, rule.discard_separator)
                packing = Packing(stream.valid)
                x, sight = self._packed_part(packing, stream)
            if rule.window is None:
                sight = sight._replace(attend=packing.full)
            else:
                sight = sight._replace(attend=partial(packing.sliding, window=rule.window))
            x = block(x, sight)
        return stream._replace(x=packing.unpack(x))

    def _packed_part(self, packing: Packing, stream: Stream) -> tuple[Tensor, Sight]:
        angles = self._angles(packing.pack(stream.positions), stream.x.dtype)
        return packing.pack(stream.x), Sight(packing.full, angles)

    def static_share(
        self, blocks: Sequence[InteractionBlock], stream: Stream
    ) -> tuple[Stream, Tensor]:
        """Runs the stream and measures how much attention static tokens get.

        Returns:
            What a call returns, and [L]: the mean share over heads and over the queries of
            behaviours and targets; 0 where static tokens are gone.
        """
        share = torch.zeros(len(self.rules), device=stream.x.device)

        def look(layer: int, block: InteractionBlock, stream: Stream, sight: Sight) -> None:
            if layer >= self.drop_at:
                return
            rule = self.rules[layer].matrix(stream.x.shape[1], stream.x.device)
            visible = between(rule, stream.valid) & stream.valid[:, None, None, :]
            weights = block.attention.weights(block.norm_in(stream.x), sight, visible)
            weights = weights[..., : self.rules[layer].num_static].sum(-1).mean(1)  # [B, N]
            asked = torch.zeros_like(stream.valid)
            asked[:, sight.span] = stream.events
            asked[:, self.tokens.target_span] = True
            share[layer] = weights[asked].mean()

        return self(blocks, stream, look=look), share

    def flops(self, length: int, dim: int) -> list[int]:
        """Returns what the attention scores of each layer cost for one row.

        Args:
            length: N, tokens in the stream, all of them real.
            dim: D.
        """
        return [
            attention_flops(length - rule.num_static * (layer >= self.drop_at), rule.window, dim)
            for layer, rule in enumerate(self.rules)
        ]

    def _angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        return None if self.rotary is None else self.rotary.angles(positions, dtype)

    def _attend(self, layer: int, stream: Stream) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        rule, valid, length = self.rules[layer], stream.valid, stream.x.shape[1]
        full = rule.window is None or rule.window >= length
        if layer >= self.drop_at:
            if full:
                return partial(full_attention, valid=valid)
            assert rule.window is not None
            return partial(sliding_attention, valid=valid, window=rule.window)
        if rule.window is None and not rule.discard_static:
            if not rule.static_bidirectional:
                return partial(full_attention, valid=valid)
            # Field tokens lead the rectangle in every row: padding behind them moves none.
            return partial(full_attention, valid=valid, visible=rule.matrix(length, valid.device))
        # cost: a window that field tokens take part in has other places in every row.
        visible = between(rule.matrix(length, valid.device), valid)
        return partial(full_attention, valid=valid, visible=visible)
