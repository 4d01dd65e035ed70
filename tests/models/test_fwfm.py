from __future__ import annotations

from typing import Any

import pytest
import torch

from fullrank.errors import SchemaError
from fullrank.models.fm import FM, FMConfig
from fullrank.models.fwfm import FwFM, FwFMConfig
from fullrank.testing import planted


@pytest.mark.parametrize("first_order", ["value", "field", "value_vector"])
def test_score_follows_the_definition(first_order: Any) -> None:
    schema, batch, _ = planted(2, 7, torch.Generator().manual_seed(0))
    model = FwFM(schema, FwFMConfig(dim=3, first_order=first_order)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    tables = [t.name for t in schema.tables]
    v = [model.embeddings.weight(name).tolist() for name in tables]
    twin = []
    for row in batch.categorical.block.tolist():
        x = [v[i][row[i]] for i in range(3)]
        y, r = model.bias.item(), iter(model.r[:, 0].tolist())
        for i in range(3):
            if first_order == "value":
                y += model.linear.weight(tables[i])[row[i], 0].item()
            elif first_order == "field":
                w = model.field_vectors.reshape(3, 3)[i].tolist()
                y += sum(x[i][d] * w[d] for d in range(3))
            else:
                w = model.linear.weight(tables[i])[row[i]].tolist()
                y += sum(x[i][d] * w[d] for d in range(3))
            for j in range(i + 1, 3):
                y += next(r) * sum(x[i][d] * x[j][d] for d in range(3))
        twin.append(y)
    torch.testing.assert_close(model.score(batch)["click"], torch.tensor(twin).double())


def test_a_fresh_fwfm_is_an_fm() -> None:
    schema, batch, _ = planted(2, 7, torch.Generator().manual_seed(0))
    fwfm, fm = FwFM(schema, FwFMConfig(embedding_std=1.0)), FM(schema, FMConfig())
    fm.load_state_dict({k: v for k, v in fwfm.state_dict().items() if k != "r"})
    assert torch.allclose(fwfm.score(batch)["click"], fm.score(batch)["click"], atol=1e-5)
    with torch.no_grad():
        fwfm.r[0] = 0.0
    assert not torch.allclose(fwfm.score(batch)["click"], fm.score(batch)["click"], atol=1e-2)


def test_one_field_is_refused() -> None:
    schema, _, _ = planted(2, 1, torch.Generator())
    with pytest.raises(SchemaError, match="no pair of fields"):
        FwFM(schema.select(["a"]), FwFMConfig())
