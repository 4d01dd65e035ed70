"""Scoring in blocks of one fixed size, so that a row's score is the same bits in any company.

A matrix product of another height may take another kernel, which adds in another order. With the
height fixed, the score of a row depends neither on how many rows stand beside it nor on where it
stands (measured for the widths of every model here, on one and two threads).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.model import Ranker

BLOCK_ROWS = 256


class BlockScorer:
    """Wraps a ranker; `score` runs it in evaluation mode, without gradients, block by block."""

    def __init__(self, model: nn.Module) -> None:
        assert isinstance(model, Ranker), f"{type(model).__name__} has no score()"
        self.model: nn.Module = model
        self._ranker: Ranker = model

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> logits [B]. The last block is filled up with copies of its first row."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                parts = [self._block(batch, start) for start in range(0, len(batch), BLOCK_ROWS)]
        finally:
            self.model.train(was_training)
        if not parts:
            return {name: torch.empty(0) for name in batch.labels.names}
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _block(self, batch: Batch, start: int) -> dict[str, Tensor]:
        rows = min(BLOCK_ROWS, len(batch) - start)
        index = torch.arange(start, start + BLOCK_ROWS, device=batch.weight.device)
        index[rows:] = start
        return {name: logit[:rows] for name, logit in self._ranker.score(batch.rows(index)).items()}
