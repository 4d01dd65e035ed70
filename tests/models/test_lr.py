from __future__ import annotations

import torch

from fullrank.models.lr import LR, LRConfig
from fullrank.testing import random_batch, tiny_schema


def test_score_is_the_bias_plus_one_weight_per_field() -> None:
    schema, g = tiny_schema(), torch.Generator().manual_seed(0)
    model = LR(schema, LRConfig()).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    batch = random_batch(schema, 6, g)
    batch.dense["vector"] = batch.dense["vector"].double()
    w = model.embeddings.fields(batch).tolist()
    for y, label in enumerate(("click", "buy")):
        twin = [model.bias[y].item() + sum(field[y] for field in row) for row in w]
        assert torch.allclose(model.score(batch)[label], torch.tensor(twin).double())


def test_a_fresh_model_gives_even_odds() -> None:
    schema = tiny_schema()
    batch = random_batch(schema, 6, torch.Generator().manual_seed(0))
    assert not LR(schema, LRConfig()).score(batch)["click"].any()
