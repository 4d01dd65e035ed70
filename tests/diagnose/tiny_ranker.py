"""A tiny ranker with every kind of tap, and rows for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fullrank.batch import Batch, Columns, Jagged
from fullrank.embedding import Embeddings
from fullrank.losses.binary import binary_losses
from fullrank.schema import Categorical, Label, Numeric, Schema, Sequence, Table
from fullrank.tap import Tap

SIZES = (40, 12, 3)
SCHEMA = Schema(
    tables=tuple(Table(f"t{i}", size) for i, size in enumerate(SIZES)),
    fields=(*(Categorical(f"f{i}", f"t{i}") for i in range(3)), Numeric("x")),
    sequences=(Sequence("past", (("item", "t1"),), 4),),
    labels=(Label("click"),),
)


class Tiny(nn.Module):
    """Embeddings, tokens, experts with a gate, a masked sequence, dropout and a batch norm."""

    def __init__(self, dim: int = 4) -> None:
        super().__init__()
        self.embeddings = Embeddings(SCHEMA, dim, sequences=("past",), std=0.5)
        self.embed, self.tokens = Tap("B F D"), Tap("B N D")
        self.seq, self.seq_valid = Tap("B T D"), Tap("B T")
        self.experts, self.gate, self.head_in = Tap("B E D"), Tap("B D"), Tap("B D")
        self.gate_bias = [0.0, 0.0, 0.0]  # towards each expert
        self.mix = nn.Linear(dim, 6)
        self.norm, self.drop = nn.BatchNorm1d(24), nn.Dropout(0.2)
        self.head = nn.Linear(24 + dim, 1)
        self.pairs = nn.Parameter(torch.randn(4, 4, dim, dim))

    def pair_projection(self, i: int, j: int) -> Tensor | None:
        return self.pairs[i, j] if j != 3 else None

    def score(self, batch: Batch) -> dict[str, Tensor]:
        e = self.embed(self.embeddings.fields(batch))  # [B, 4, D]
        tokens = self.tokens(torch.relu(self.mix(e)))  # [B, 4, 6]
        self.experts(tokens[:, :3])
        self.gate(torch.softmax(tokens[:, :3].mean(2) + torch.tensor(self.gate_bias), 1))
        past, valid = self.embeddings.sequence(batch, "past", "item")
        self.seq_valid(valid)
        past = self.seq(past).sum(1)  # [B, D]
        h = self.drop(self.norm(tokens.flatten(1)))
        h = self.head_in(torch.cat([h, past], 1))
        return {"click": self.head(h).squeeze(1)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return binary_losses(self.score(batch), batch)


def make_batch(rows: int, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(0, s, (rows,), generator=g) for s in SIZES], 1).int()
    lengths = torch.randint(0, 5, (rows,), generator=g)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    past = torch.randint(1, SIZES[1], (int(offsets[-1]),), generator=g).int()
    label = ((ids[:, 0] + ids[:, 1]) % 2).float()[:, None]
    return Batch(
        Columns(("f0", "f1", "f2"), ids),
        Columns(("x",), torch.randn(rows, 1, generator=g)),
        Columns(("click",), label),
        Columns(("click",), torch.ones(rows, 1, dtype=torch.bool)),
        torch.ones(rows),
        torch.arange(rows),
        torch.zeros(rows, dtype=torch.int64),
        sequences={"past": Jagged({"item": past}, offsets)},
    )
