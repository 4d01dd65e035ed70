"""Equal bits in any company: the finding behind `score_in_blocks`, with its negative control."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fullrank.batch import Batch
from fullrank.errors import EmptyInputError
from fullrank.model import create
from fullrank.models.deepfm import DeepFM, DeepFMConfig
from fullrank.ops.blocks import score_in_blocks
from fullrank.testing import planted, random_batch, tiny_schema


def model_and_rows(rows: int) -> tuple[DeepFM, Batch]:
    torch.manual_seed(0)
    schema, batch, _ = planted(2, rows, torch.Generator().manual_seed(0))
    model = DeepFM(schema, DeepFMConfig(dim=16, embedding_std=1.0, hidden=(128, 64)))
    return model.eval(), batch


@torch.no_grad()
def test_scores_have_equal_bits_alone_and_in_any_order() -> None:
    model, batch = model_and_rows(150)
    scores = score_in_blocks(model.score, batch)["click"]
    order = torch.randperm(150)
    assert torch.equal(score_in_blocks(model.score, batch.rows(order))["click"], scores[order])
    for row in range(0, 150, 7):
        alone = score_in_blocks(model.score, batch.rows(torch.tensor([row])))["click"]
        assert torch.equal(alone, scores[row : row + 1])


@torch.no_grad()
def test_without_blocks_the_bits_differ() -> None:
    model, batch = model_and_rows(64)
    together = model.score(batch)["click"]
    alone = torch.cat([model.score(batch.rows(torch.tensor([row])))["click"] for row in range(64)])
    assert torch.allclose(alone, together, atol=1e-5)
    assert not torch.equal(alone, together)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["din", "dien", "sim", "fedin", "tokenformer"])
def test_histories_of_the_neighbours_change_no_bit(name) -> None:
    """Events of all rows lie one after the other: how many there are depends on the company."""
    torch.manual_seed(0)
    model = create(name, tiny_schema()).eval()
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        batch = random_batch(tiny_schema(), 512, generator)
        order = torch.randperm(512, generator=generator)
        scores = score_in_blocks(model.score, batch)
        for label, x in score_in_blocks(model.score, batch.rows(order)).items():
            assert torch.equal(x, scores[label][order])


def test_every_block_has_the_same_size_and_the_filling_is_dropped() -> None:
    _, batch = model_and_rows(10)
    sizes: list[int] = []

    def score(part: Batch) -> dict[str, Tensor]:
        sizes.append(len(part))
        return {"click": part.categorical["a"].float()}

    scores = score_in_blocks(score, batch, rows=4)["click"]
    assert sizes == [4, 4, 4]
    assert torch.equal(scores, batch.categorical["a"].float())


def test_no_rows_are_refused() -> None:
    model, batch = model_and_rows(3)
    with pytest.raises(EmptyInputError, match="nothing to score"):
        score_in_blocks(model.score, batch.rows(torch.empty(0, dtype=torch.int64)))
