from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def skewed() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """200,000 rows per case: scores and labels that agree with them in part."""
    generator = torch.Generator().manual_seed(3)
    n = 200_000
    noise = torch.randn(n, generator=generator)
    chance = torch.rand(n, generator=generator)
    label = chance < torch.sigmoid(1.3 * noise - 3.0)
    heavy = torch.randn(n, generator=generator) / torch.rand(n, generator=generator)
    return {
        "spread": (noise, label),
        "rare": (noise * 2.0 - 9.0, label),
        "collapsed": (-1.2345 + 3e-5 * noise, label),
        "outlier": (torch.where(chance < 1e-4, 80.0, -2.0 + 1e-3 * noise), label),
        "extreme": (noise.sign() * 10.0 ** (8 * noise.abs()).clamp(max=37), label),
        "tiny": (1e-30 * noise, label),
        "heavy": (heavy + noise, label),
        "constant": (torch.full((n,), 0.3), label),
    }
