from __future__ import annotations

import pytest
import torch

from fullrank.errors import ConfigError
from fullrank.models.xdeepfm import XDeepFM, XDeepFMConfig
from fullrank.testing import planted


def test_score_is_linear_part_plus_head_on_cin_and_deep_network() -> None:
    schema, batch, _ = planted(2, 7, torch.Generator().manual_seed(0))
    config = XDeepFMConfig(dim=3, maps=(2,), hidden=(4,), batch_norm=False, dropout=0.0)
    model = XDeepFM(schema, config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    v = model.embeddings.fields(batch)  # [B, 3, 3]
    w = model.cin.weights[0].reshape(2, 3, 3)
    pooled = [
        sum(w[h, i, j] * (v[:, i] * v[:, j]).sum(1) for i in range(3) for j in range(3))
        for h in range(2)
    ]  # eqs. 6 and 8
    layer = model.deep.layers[0]
    deep = (v.reshape(7, 9) @ layer.weight.T + layer.bias).clamp(min=0)
    h = torch.cat([torch.stack(pooled, 1), deep], 1)
    first = model.linear.fields(batch).reshape(7, 3).sum(1)
    twin = first + h @ model.head.weight[0] + model.head.bias[0]
    torch.testing.assert_close(model.score(batch)["click"], twin)


def test_a_cin_without_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="impossible"):
        XDeepFMConfig(maps=())
