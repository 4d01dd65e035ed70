"""Slow twin of SFG, arXiv:2512.14041: the logits of five rankers by loops over pairs and maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fullrank.batch import Batch
from fullrank.nn.operand import Generator


def generate(generator: Generator, source: Tensor) -> Tensor:
    linear = generator.encoder.linear
    h = source.flatten(1)
    return (generator.gamma * (h @ linear.weight.T + linear.bias).relu()).view(source.shape)


def first_order(base: Any, batch: Batch) -> Tensor:
    return base.linear.fields(batch).sum((1, 2))


def deep(base: Any, v: Tensor) -> Tensor:
    layer = base.deep.layers[0]
    return (v.flatten(1) @ layer.weight.T + layer.bias).relu()


def logits(base: Any, v: Tensor, batch: Batch, name: str, found: list[Generator]) -> Tensor:
    """Returns the logits [B] of a ranker with generated left operands.

    Args:
        base: the ranker, whose deep part has one hidden layer.
        v: [B, F, D].
        batch: the rows.
        name: of the ranker.
        found: the generators, first layer first.
    """
    F = v.shape[1]
    g = [generate(generator, v) for generator in found]
    if name == "dcnv2":
        x0 = x = v.flatten(1)
        for layer, generator in enumerate(found):
            linear = base.get_submodule(f"block{layer}.cross.linear")
            x = generate(generator, x0).flatten(1) * (x @ linear.weight.T + linear.bias) + x
        return torch.cat([x, deep(base, v)], 1) @ base.head.weight[0] + base.head.bias
    if name == "xdeepfm":
        x, pooled = v, []
        for k, weight in enumerate(base.cin.weights):
            w = weight.view(len(weight), x.shape[1], F)
            x = torch.stack([
                sum(w[h, i, j] * x[:, i] * g[k][:, j] for i in range(x.shape[1]) for j in range(F))
                for h in range(len(w))
            ], 1)  # fmt: skip
            pooled.append(x.sum(2))
        joined = torch.cat([*pooled, deep(base, v)], 1)
        return first_order(base, batch) + joined @ base.head.weight[0] + base.head.bias
    out = first_order(base, batch)
    r = iter(base.r[:, 0]) if name == "fwfm" else iter([1.0] * F * F)
    for i in range(F):
        for j in range(i + 1, F):
            out = out + next(r) * (g[0][:, i] * v[:, j]).sum(1)
    if name == "deepfm":
        return out + deep(base, v) @ base.head.weight[0] + base.head.bias
    return out + base.bias
