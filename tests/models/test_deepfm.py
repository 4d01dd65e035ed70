from __future__ import annotations

import pytest
import torch

from fullrank.errors import ConfigError
from fullrank.models.deepfm import DeepFM, DeepFMConfig
from fullrank.testing import planted


def test_score_is_the_sum_of_fm_and_deep_network() -> None:
    schema, batch, _ = planted(2, 7, torch.Generator().manual_seed(0))
    config = DeepFMConfig(dim=3, hidden=(4, 2), batch_norm=False, activation="gelu")
    model = DeepFM(schema, config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    v = model.embeddings.fields(batch)  # [B, 3, 3]
    h = v.reshape(7, 9)
    for layer in (model.deep.layers[0], model.deep.layers[3]):
        assert isinstance(layer, torch.nn.Linear)
        h = torch.nn.functional.gelu(h @ layer.weight.T + layer.bias)
    deep = h @ model.head.weight[0] + model.head.bias[0]
    pairs = sum((v[:, i] * v[:, j]).sum(1) for i, j in ((0, 1), (0, 2), (1, 2)))
    first = model.linear.fields(batch).reshape(7, 3).sum(1)
    torch.testing.assert_close(model.score(batch)["click"], first + pairs + deep)


def test_dropout_works_only_while_training() -> None:
    schema, batch, _ = planted(2, 64, torch.Generator().manual_seed(0))
    model = DeepFM(schema, DeepFMConfig(embedding_std=1.0, batch_norm=False, dropout=0.5))
    assert not torch.equal(model.score(batch)["click"], model.score(batch)["click"])
    model.eval()
    assert torch.equal(model.score(batch)["click"], model.score(batch)["click"])


def test_impossible_dropout_is_refused() -> None:
    with pytest.raises(ConfigError, match="impossible"):
        DeepFMConfig(dropout=1.0)
