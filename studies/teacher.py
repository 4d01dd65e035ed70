"""A teacher: rows of ids whose labels follow pair-specific interactions, with a known best AUC.

The logit of a row is a sum over pairs of fields of <u_ij[a], u_ji[b]>, where every field has
vectors of its own for every partner: what FmFM can express and FM cannot. Triples and gated pairs
can be added. Ids follow Zipf laws, and fields of 2 values stand beside fields of 1,024, so that the
embeddings of the large ones are under the pull towards collapse that the papers describe.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fullrank.batch import Batch, Columns
from fullrank.ops.ranking import area_under_curve as exact_auc
from fullrank.schema import Categorical, Label, Schema, Table

CARDINALITIES = (2, 1024, 8, 128, 2, 512, 16, 64, 4, 256, 32, 1024)
TEST_ROWS = 10_000


class Sets(NamedTuple):
    """What one seed of the teacher gives.

    Args:
        schema: its fields, `field_0` and so on, and the label `click`.
        train: rows to learn from, as one batch.
        test: rows to measure on, as one batch.
        best_auc: of the true probabilities on the test rows; no model does better for long.
    """

    schema: Schema
    train: Batch
    test: Batch
    best_auc: float


def field_aware(
    seed: int,
    *,
    rows: int = 40_000,
    fields: int = 12,
    width: int = 8,
    order: int = 2,
    context: float = 0.0,
    strength: float = 1.5,
) -> Sets:
    """Draws a teacher and its rows.

    Args:
        seed: of everything.
        rows: to learn from; 10,000 more are for measuring.
        fields: how many, at most 12.
        width: of the teacher's vectors.
        order: 2, or 3 for products of triples of fields beside those of pairs.
        context: weight of pairs whose sign a third field decides, beside the plain pairs.
        strength: standard deviation of the true logit.
    """
    g = torch.Generator().manual_seed(seed)
    sizes = CARDINALITIES[:fields]
    n = rows + TEST_ROWS
    ids = torch.stack([_zipf(size, n, g) for size in sizes], dim=1)  # [n, F], from 1
    logit = _standard(_pairs(ids, sizes, width, g))
    if order == 3:
        logit = logit + _standard(_triples(ids, sizes, width, g))
    if context > 0:
        logit = logit + context * _standard(_gated(ids, sizes, width, g))
    truth = torch.sigmoid(strength * _standard(logit))
    click = (torch.rand(n, generator=g) < truth).float()
    names = tuple(f"field_{i}" for i in range(fields))
    schema = Schema(
        tables=tuple(Table(name, size + 1) for name, size in zip(names, sizes, strict=True)),
        fields=tuple(Categorical(name, name) for name in names),
        labels=(Label("click"),),
    )
    whole = as_batch(names, ids, ("click",), click[:, None])
    cut, end = torch.arange(rows), torch.arange(rows, n)
    best = exact_auc(truth[end].double(), click[end].double(), 1.0 - click[end].double())
    return Sets(schema, whole.rows(cut), whole.rows(end), best)


def as_batch(
    names: tuple[str, ...], ids: Tensor, labels: tuple[str, ...], targets: Tensor
) -> Batch:
    """Returns a batch of categorical rows [n, F] with targets [n, Y], all of them observed."""
    n = ids.shape[0]
    return Batch(
        categorical=Columns(names, ids.int()),
        numeric=Columns((), torch.zeros(n, 0)),
        labels=Columns(labels, targets.float()),
        observed=Columns(labels, torch.ones(targets.shape, dtype=torch.bool)),
        weight=torch.ones(n),
        group=torch.arange(n),
        time=torch.zeros(n, dtype=torch.int64),
    )


def fit(
    model: nn.Module,
    batch: Batch,
    *,
    seed: int,
    epochs: int = 4,
    batch_size: int = 512,
    learning_rate: float = 1e-3,
) -> None:
    """Trains in place with Adam on shuffled rows, and leaves the model in eval mode."""
    g = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    model.train()
    for _ in range(epochs):
        for part in torch.split(torch.randperm(len(batch), generator=g), batch_size):
            optimizer.zero_grad()
            losses: dict[str, Tensor] = model(batch.rows(part))
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.eval()


@torch.no_grad()
def area_under_curve(model: nn.Module, batch: Batch, label: str = "click") -> float:
    """Returns the AUC of a model on a batch."""
    score = getattr(model, "score")  # noqa: B009  (nn.Module's own type has no such method)
    parts = [score(batch.rows(part))[label] for part in torch.split(torch.arange(len(batch)), 4096)]
    target = batch.labels[label].double()
    return exact_auc(torch.cat(parts).double(), target, 1.0 - target)


def _zipf(size: int, n: int, g: torch.Generator) -> Tensor:
    """Returns [n] ids 1..size, drawn by a Zipf law of exponent 1.1; rank is not id."""
    share = torch.arange(1, size + 1, dtype=torch.float64) ** -1.1
    order = torch.randperm(size, generator=g)
    return order[torch.multinomial(share, n, replacement=True, generator=g)] + 1


def _vectors(size: int, width: int, g: torch.Generator) -> Tensor:
    return torch.randn(size + 1, width, generator=g, dtype=torch.float64)


def _pairs(ids: Tensor, sizes: tuple[int, ...], width: int, g: torch.Generator) -> Tensor:
    """Returns [n]: the sum over pairs of products of vectors that know their partner."""
    out = torch.zeros(ids.shape[0], dtype=torch.float64)
    for i, j in combinations(range(len(sizes)), 2):
        left, right = _vectors(sizes[i], width, g), _vectors(sizes[j], width, g)
        out += (left[ids[:, i]] * right[ids[:, j]]).sum(1)
    return out


def _triples(ids: Tensor, sizes: tuple[int, ...], width: int, g: torch.Generator) -> Tensor:
    """Returns [n]: the sum of products over as many triples of fields as there are fields."""
    out = torch.zeros(ids.shape[0], dtype=torch.float64)
    every = list(combinations(range(len(sizes)), 3))
    for chosen in torch.randperm(len(every), generator=g)[: len(sizes)].tolist():
        product = torch.ones(ids.shape[0], width, dtype=torch.float64)
        for i in every[chosen]:
            product *= _vectors(sizes[i], width, g)[ids[:, i]]
        out += product.sum(1)
    return out


def _gated(ids: Tensor, sizes: tuple[int, ...], width: int, g: torch.Generator) -> Tensor:
    """Returns [n]: pairs whose product changes its sign with the value of a third field."""
    out = torch.zeros(ids.shape[0], dtype=torch.float64)
    every = list(combinations(range(len(sizes)), 3))
    for chosen in torch.randperm(len(every), generator=g)[: len(sizes)].tolist():
        i, j, gate = every[chosen]
        product = _vectors(sizes[i], width, g)[ids[:, i]] * _vectors(sizes[j], width, g)[ids[:, j]]
        sign = torch.randint(0, 2, (sizes[gate] + 1,), generator=g) * 2 - 1
        out += product.sum(1) * sign[ids[:, gate]]
    return out


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean()) / x.std(correction=0)
