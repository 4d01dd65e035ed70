"""A tiny planted world for the training tests; also run by the subprocess that gets killed.

The label follows from the sign of taste[user] * quality[ad]: a cross of two fields, which no model
without an interaction can see.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullrank.batch import Batch, Columns
from fullrank.embedding import Embeddings
from fullrank.schema import Categorical, Label, Schema, Table

USERS, ADS = 12, 10


def schema(extra_rows: int = 0) -> Schema:
    return Schema(
        tables=(Table("user", USERS + extra_rows), Table("ad", ADS)),
        fields=(Categorical("user_id", "user"), Categorical("ad_id", "ad")),
        labels=(Label("click"),),
    )


def batch_of(ids: Tensor, label: Tensor, weight: Tensor | None = None) -> Batch:
    n = len(ids)
    return Batch(
        categorical=Columns(("user_id", "ad_id"), ids.to(torch.int32)),
        numeric=Columns.none(n, torch.float32),
        labels=Columns(("click",), label.reshape(-1, 1).float()),
        observed=Columns(("click",), torch.ones(n, 1, dtype=torch.bool)),
        weight=torch.ones(n) if weight is None else weight,
        group=torch.zeros(n, dtype=torch.int64),
        time=torch.zeros(n, dtype=torch.int64),
    )


def rows(count: int, seed: int = 0, *, shuffled: bool = False) -> Batch:
    """Draws rows; `shuffled` labels carry no information."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.Generator().manual_seed(123)
    taste, quality = torch.randn(USERS, generator=truth), torch.randn(ADS, generator=truth)
    users = torch.randint(0, USERS, (count,), generator=g)
    ads = torch.randint(0, ADS, (count,), generator=g)
    label = (taste[users] * quality[ads] > 0).float()
    if shuffled:
        label = label[torch.randperm(count, generator=g)]
    return batch_of(torch.stack([users, ads], 1), label)


class Loader:
    """The contract of the real loader, over rows in memory."""

    def __init__(self, data: Batch, size: int, *, shuffle: bool = True) -> None:
        self.data, self.size, self.shuffle = data, size, shuffle
        self.epoch, self._next = 0, 0

    @property
    def num_rows(self) -> int:
        return len(self.data)

    def __len__(self) -> int:
        return -(-len(self.data) // self.size)

    def state(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self._next, "size": self.size}

    def resume(self, state: dict[str, int]) -> None:
        assert state["size"] == self.size
        self.epoch, self._next = state["epoch"], state["batch"]

    def __iter__(self) -> Iterator[Batch]:
        g = torch.Generator().manual_seed(self.epoch)
        n = len(self.data)
        order = torch.randperm(n, generator=g) if self.shuffle else torch.arange(n)
        for i in range(self._next, len(self)):
            self._next = i + 1
            yield self.data.rows(order[i * self.size : (i + 1) * self.size])
        self.epoch, self._next = self.epoch + 1, 0


class Net(nn.Module):
    """Product of two embeddings and a small MLP; dropout makes random state matter."""

    def __init__(self, *, extra_rows: int = 0, dropout: float = 0.0, std: float = 0.3) -> None:
        super().__init__()
        self.embeddings = Embeddings(schema(extra_rows), 4, std=std)
        self.drop = nn.Dropout(dropout)
        self.hidden, self.head = nn.Linear(12, 8), nn.Linear(8, 1)

    def score(self, batch: Batch) -> dict[str, Tensor]:
        x = self.embeddings.fields(batch)  # [B, 2, 4]
        joined = torch.cat([x.flatten(1), x[:, 0] * x[:, 1]], 1)  # [B, 12]
        return {"click": self.head(self.drop(self.hidden(joined).relu())).squeeze(1)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        loss = F.binary_cross_entropy_with_logits(
            self.score(batch)["click"], batch.labels["click"], batch.weight, reduction="sum"
        )
        return {"click": loss / batch.weight.sum()}


def net(seed: int = 0, **settings: float) -> Net:
    torch.manual_seed(seed)
    return Net(**settings)  # type: ignore[arg-type]


def auc(model: nn.Module, data: Batch) -> float:
    """Share of pairs in the right order, from the definition."""
    with torch.no_grad():
        s = model.eval().score(data)["click"]  # type: ignore[operator]
    y = data.labels["click"] > 0
    gap = s[y][:, None] - s[~y][None, :]
    return float(((gap > 0).float() + 0.5 * (gap == 0).float()).mean())
