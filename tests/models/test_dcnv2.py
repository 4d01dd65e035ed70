from __future__ import annotations

from typing import Any

import pytest
import torch

from fullrank.config import from_dict, to_dict
from fullrank.errors import ConfigError
from fullrank.models.dcnv2 import DCNv2, DCNv2Config, LowRank
from fullrank.tap import Tap
from fullrank.testing import planted


def built(**settings: Any) -> tuple[DCNv2, Any]:
    schema, batch, _ = planted(2, 7, torch.Generator().manual_seed(0))
    model = DCNv2(schema, DCNv2Config(dim=2, batch_norm=False, dropout=0.0, **settings))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.double().eval(), batch


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
def test_both_structures_follow_the_paper(structure: Any) -> None:
    model, batch = built(structure=structure, num_cross=2, hidden=(3,))
    x0 = model.embeddings.fields(batch).reshape(7, 6)
    x = x0
    for block in (model.block0, model.block1):
        x = x0 * (x @ block.cross.linear.weight.T + block.cross.linear.bias) + x  # eq. 1
    deep = model.deep.layers[0]
    read = x if structure == "stacked" else x0
    h = (read @ deep.weight.T + deep.bias).clamp(min=0)
    if structure == "parallel":
        h = torch.cat([x, h], 1)
    twin = h @ model.head.weight[0] + model.head.bias[0]
    torch.testing.assert_close(model.score(batch)["click"], twin)


def test_the_cross_network_alone_is_a_polynomial_of_the_stated_degree() -> None:
    # Along a line x0 * t, a network with L cross layers has degree L + 1 in t: its finite
    # difference of order L + 2 vanishes, and the one of order L + 1 does not.
    model, batch = built(structure="stacked", num_cross=2, hidden=())
    rows = model.embeddings.rows.detach().clone()
    values = []
    for t in range(5):
        model.embeddings.rows.data = rows * t
        values.append(model.score(batch)["click"].detach())
    differences = torch.stack(values)
    for _ in range(3):
        differences = differences.diff(dim=0)
    scale = differences.abs().max()
    assert scale > 1e-3
    assert differences.diff(dim=0).abs().max() < 1e-9 * scale


def test_low_rank_blocks_expose_their_experts() -> None:
    model, batch = built(low_rank=LowRank(rank=3, experts=2), hidden=(3,), num_cross=1)
    shapes = {}
    for name, module in model.named_modules():
        if isinstance(module, Tap):
            module.register_forward_hook(
                lambda _, __, out, name=name: shapes.update({name: tuple(out.shape)})
            )
    model.score(batch)
    assert shapes == {
        "embed": (7, 3, 2),
        "left": (7, 3, 2),
        "right": (7, 3, 2),
        "block0.cross.experts": (7, 2, 3),
        "block0.mix_branch": (7, 6),
        "block0.mix": (7, 6),
        "head_in": (7, 9),
    }


def test_the_parallel_structure_needs_a_deep_part() -> None:
    with pytest.raises(ConfigError, match="impossible") as caught:
        DCNv2Config(hidden=())
    assert "stacked" in caught.value.fix


def test_low_rank_settings_survive_storage_and_are_checked() -> None:
    config = DCNv2Config(low_rank=LowRank(rank=8, experts=1))
    assert from_dict(DCNv2Config, to_dict(config)) == config
    with pytest.raises(ConfigError, match="impossible"):
        LowRank(rank=0)
