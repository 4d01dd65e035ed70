from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fullrank.nn.dropout import Dropout
from fullrank.nn.mlp import MLP, RowSafeBatchNorm, linear


def test_layers_come_in_the_stated_order() -> None:
    mlp = MLP(3, (5, 2), activation="gelu", batch_norm=True, dropout=0.1)
    kinds = [type(layer) for layer in mlp.layers]
    assert kinds == [nn.Linear, RowSafeBatchNorm, nn.GELU, Dropout] * 2
    assert mlp.out_dim == 2
    assert all(layer.bias is None for layer in mlp.layers if isinstance(layer, nn.Linear))


def test_without_batch_norm_the_linear_layers_have_a_bias() -> None:
    mlp = MLP(3, (5,))
    assert [type(layer) for layer in mlp.layers] == [nn.Linear, nn.ReLU]
    assert mlp.layers[0].bias is not None


def test_no_layers_pass_the_input_through() -> None:
    x = torch.randn(2, 3)
    mlp = MLP(3, ())
    assert torch.equal(mlp(x), x)
    assert mlp.out_dim == 3


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_mlp_equals_its_twin(activation: str) -> None:
    torch.manual_seed(0)
    mlp = MLP(3, (4, 2), activation=activation, batch_norm=True, dropout=0.5).double()  # type: ignore[arg-type]
    mlp.train()(torch.randn(16, 3).double())  # moves the running statistics
    mlp.eval()
    x = torch.randn(5, 3).double()
    h = x.tolist()
    for at in (0, 4):
        weight, norm = mlp.layers[at].weight.tolist(), mlp.layers[at + 1]
        mean, var = norm.running_mean.tolist(), norm.running_var.tolist()
        h = [[sum(w * v for w, v in zip(row, r, strict=True)) for row in weight] for r in h]
        h = [
            [(v - m) / math.sqrt(s + norm.eps) for v, m, s in zip(r, mean, var, strict=True)]
            for r in h
        ]
        if activation == "relu":
            h = [[max(v, 0.0) for v in r] for r in h]
        else:
            h = [[v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in r] for r in h]
    torch.testing.assert_close(mlp(x), torch.tensor(h, dtype=torch.float64))


def test_one_row_is_normalised_by_running_statistics_and_leaves_them() -> None:
    norm = RowSafeBatchNorm(3).train()
    norm(torch.randn(8, 3) * 2 + 1)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    row = torch.randn(1, 3)
    out = norm(row)
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())
    assert torch.equal(out, norm.eval()(row))


def test_two_rows_are_normalised_by_their_own_statistics() -> None:
    norm, x = RowSafeBatchNorm(3).train(), torch.randn(2, 3)
    assert torch.allclose(norm(x), nn.BatchNorm1d(3).train()(x))


def test_linear_starts_xavier_normal() -> None:
    torch.manual_seed(0)
    layer = linear(300, 100)
    assert abs(layer.weight.std().item() / math.sqrt(2 / 400) - 1) < 0.02
    assert not layer.bias.any()
