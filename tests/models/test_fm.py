from __future__ import annotations

import pytest
import torch

from fullrank.errors import ConfigError
from fullrank.models.fm import FM, FMConfig
from fullrank.testing import planted, random_batch, tiny_schema


def test_score_follows_equation_1() -> None:
    schema, batch, _ = planted(2, 7, torch.Generator().manual_seed(0))
    model = FM(schema, FMConfig(dim=3)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    ids = batch.categorical.block.tolist()
    tables = [t.name for t in schema.tables]
    v = [model.embeddings.weight(name).tolist() for name in tables]
    w = [model.linear.weight(name).tolist() for name in tables]
    twin = []
    for row in ids:
        y = model.bias.item()
        for i in range(3):
            y += w[i][row[i]][0]
            for j in range(i + 1, 3):
                y += sum(v[i][row[i]][d] * v[j][row[j]][d] for d in range(3))
        twin.append(y)
    torch.testing.assert_close(model.score(batch)["click"], torch.tensor(twin).double())


def test_several_labels_share_the_products_at_first() -> None:
    schema = tiny_schema()
    scores = FM(schema, FMConfig.tiny()).score(
        random_batch(schema, 5, torch.Generator().manual_seed(0))
    )
    assert torch.allclose(scores["click"], scores["buy"])


def test_one_label_has_no_weights_on_the_products() -> None:
    schema, _, _ = planted(2, 1, torch.Generator())
    names = {name for name, _ in FM(schema, FMConfig()).named_parameters()}
    assert names == {"embeddings.rows", "linear.rows", "bias"}


@pytest.mark.parametrize("name", ["dim", "embedding_std"])
def test_impossible_settings_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="impossible"):
        FMConfig(**{name: 0})
