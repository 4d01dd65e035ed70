"""Two sides: a model whose user is known without an item costs a ranking only one user.

A request with 500 candidates of one user runs the user's side once; where an item index knows the
candidates, theirs is not run at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fullrank.batch import Batch
from fullrank.model import Retriever
from fullrank.ops.blocks import BLOCK_ROWS
from fullrank.serve.block_sizes import score_in_sizes
from fullrank.serve.engine import Engine
from fullrank.serve.predictor import calibrated
from fullrank.serve.retrieval import ItemIndex, retriever
from fullrank.serve.values import Values
from fullrank.serve.wire import Given

# Without stored vectors, fewer candidates than this are scored faster with others that wait:
# the user's side costs a block of its own.
PAYS_FROM = 4 * BLOCK_ROWS


class TwoSided:
    """Scores the candidates of one user, side by side.

    Args:
        engine: of an artefact whose model is a `Retriever`.
        index: vectors of items by the same artefact, if there are any.

    Raises:
        ArtifactError: the model does not tell users from items.
    """

    def __init__(self, engine: Engine, index: ItemIndex | None = None) -> None:
        self.engine, self.index = engine, index
        self.model: Retriever = retriever(engine.predictor)
        if index:
            index.places({}, 0)  # lays out its columns, before the first request

    def pays(self, candidates: int) -> bool:
        """Tells whether so many candidates are scored faster here than as rows of a batch."""
        return self.index is not None or candidates >= PAYS_FROM

    def rank(self, user: Given, candidates: Given) -> dict[str, np.ndarray]:
        """Scores the candidates of a request; equal to `Engine.score` to the bit.

        Known candidates are neither encoded nor run through the model. Where candidates bring
        context of their own, which is the user's side, everything is scored the ordinary way.

        Args:
            user: as `Wire.rank` reads it.
            candidates: B of them.

        Returns:
            label -> probabilities [B] float32.

        Raises:
            RequestError, SchemaError, DataFormatError: they cannot be encoded.
        """
        encode, items = self.engine.encode_rank, self.model.item_fields
        if candidates.columns.keys() - set(items):
            return self.engine.score(encode(user, candidates))
        if self.index is None:
            batch = encode(user, candidates)
            return self.matched(self.user(batch), self._items(batch))
        places = self.index.places(candidates.columns, candidates.rows)
        new = np.flatnonzero(places < 0)
        some = new if len(new) else np.zeros(1, dtype=np.int64)  # a user needs an item beside it
        columns: dict[str, Values] = {
            n: [v[i] for i in some.tolist()] for n, v in candidates.columns.items()
        }
        batch = encode(user, Given(columns, len(some)))
        vectors = self.index.vectors[places]  # [B, D]; rows with -1 are replaced
        if len(new):
            vectors[new] = self._items(batch)
        return self.matched(self.user(batch), vectors)

    def user(self, batch: Batch) -> dict[str, Tensor]:
        """Returns label -> [1, D] of the first row, in a block of copies as it is scored in."""
        block = batch.rows(torch.zeros(BLOCK_ROWS, dtype=torch.int64))
        with torch.inference_mode():
            return {label: x[:1] for label, x in self.model.encode_user(block).items()}

    def matched(self, user: Mapping[str, Tensor], items: np.ndarray) -> dict[str, np.ndarray]:
        """Returns label -> probabilities [B] for label -> [1, D] and [B, D]."""
        rows = len(items)
        if rows == 0:
            return {label: np.empty(0, dtype=np.float32) for label in user}
        blocks = -(-rows // BLOCK_ROWS)
        filled = np.zeros((blocks * BLOCK_ROWS, items.shape[1]), dtype=np.float32)
        filled[:rows] = items
        with torch.inference_mode():
            each = torch.from_numpy(filled.reshape(blocks, BLOCK_ROWS, -1))
            parts = [self.model.match(user, block) for block in each]
        logits = {label: torch.cat([p[label] for p in parts])[:rows].numpy() for label in user}
        return calibrated(logits, self.engine.artifact.calibration)

    def _items(self, batch: Batch) -> np.ndarray:
        """Returns [B, D], in the blocks whose sizes the whole model was tried in."""
        alone = replace(batch, sequences={})  # the past is the user's: it need not be copied

        def encode(block: Batch) -> dict[str, Tensor]:
            return {"item": self.model.encode_item(block)}

        with torch.inference_mode():
            return score_in_sizes(encode, alone, self.engine.blocks)["item"]
