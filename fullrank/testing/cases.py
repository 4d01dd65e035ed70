"""Random schemas and batches, and small worlds whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fullrank.batch import Batch, Columns, Jagged
from fullrank.ops import ranking
from fullrank.schema import (
    Bag,
    Categorical,
    Dense,
    Field,
    Label,
    Numeric,
    Schema,
    Sequence,
    Table,
)


def tiny_schema() -> Schema:
    """Returns a schema with every kind of field, a shared and a growing table, two labels, and a
    history of items with feedback.
    """
    return Schema(
        tables=(
            Table("users", 9),
            Table("items", 7, grows=True),
            Table("tags", 5),
            Table("liked", 3),
        ),
        fields=(
            Categorical("user", "users", "user"),
            Numeric("age", "user"),
            Bag("tags", "tags", "item", max_length=4),
            Categorical("item", "items", "item"),
            Dense("vector", (2, 3), "item"),
        ),
        sequences=(
            Sequence(
                "history", (("item", "items"), ("liked", "liked"), ("time", None)), max_length=3
            ),
        ),
        labels=(Label("click"), Label("buy", given="click")),
        item="item",
    )


def random_schema(generator: torch.Generator) -> Schema:
    """Returns a schema of two to six fields of any kind, tables of one row included."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    tables = tuple(Table(f"t{i}", draw(1, 9), grows=draw(0, 1) == 1) for i in range(draw(1, 3)))
    fields: list[Field] = []
    for i in range(draw(2, 6)):
        table = tables[draw(0, len(tables) - 1)].name
        kinds: tuple[Field, ...] = (
            Categorical(f"f{i}", table),
            Numeric(f"f{i}"),
            Bag(f"f{i}", table, max_length=draw(1, 4)),
            Dense(f"f{i}", (draw(1, 2), draw(1, 3))),
        )
        fields.append(kinds[draw(0, 3)])
    sequences = tuple(
        Sequence(f"s{i}", (("item", tables[0].name), ("time", None)), draw(1, 4))
        for i in range(draw(0, 2))
    )
    labels = tuple(Label(f"y{i}") for i in range(draw(1, 2)))
    return Schema(tables, tuple(fields), sequences, labels)


def random_batch(
    schema: Schema,
    rows: int,
    generator: torch.Generator,
    *,
    unknown: bool = False,
    empty: bool = False,
) -> Batch:
    """Returns rows that fit a schema, with histories up to twice as long as their window.

    Args:
        schema: what to draw.
        rows: B.
        generator: where the randomness comes from.
        unknown: every row number is 0.
        empty: every bag and history is empty.
    """

    def ids(table: str | None, shape: tuple[int, ...]) -> Tensor:
        if table is None:
            return torch.randint(0, 10**9, shape, generator=generator)
        declared = schema.table(table)
        high = 1 if unknown else declared.size + 3 * declared.grows
        return torch.randint(0, high, shape, generator=generator, dtype=torch.int32)

    def jagged(columns: dict[str, str | None], longest: int) -> Jagged:
        high = 1 if empty else longest + 1
        offsets = torch.zeros(rows + 1, dtype=torch.int64)
        offsets[1:] = torch.randint(0, high, (rows,), generator=generator).cumsum(0)
        total = int(offsets[-1])
        return Jagged({name: ids(table, (total,)) for name, table in columns.items()}, offsets)

    def flags(count: int) -> Tensor:
        return torch.rand(rows, count, generator=generator) < 0.5

    categorical, labels = schema.categorical(), tuple(label.name for label in schema.labels)
    columns = [ids(f.table, (rows, 1)) for f in categorical]
    none = torch.empty(rows, 0, dtype=torch.int32)
    numeric = tuple(f.name for f in schema.numeric())
    return Batch(
        categorical=Columns(tuple(f.name for f in categorical), torch.cat([none, *columns], 1)),
        numeric=Columns(numeric, torch.randn(rows, len(numeric), generator=generator)),
        labels=Columns(labels, flags(len(labels)).float()),
        observed=Columns(labels, flags(len(labels))),
        weight=torch.rand(rows, generator=generator) + 0.5,
        group=torch.randint(0, 5, (rows,), generator=generator),
        time=torch.randint(0, 10**9, (rows,), generator=generator),
        bags={
            f.name: jagged({"value": f.table}, f.max_length)
            for f in schema.fields
            if isinstance(f, Bag)
        },
        dense={
            f.name: torch.randn(rows, *f.shape, generator=generator)
            for f in schema.fields
            if isinstance(f, Dense)
        },
        sequences={s.name: jagged(dict(s.columns), 2 * s.max_length) for s in schema.sequences},
    )


def planted(
    degree: int, rows: int, generator: torch.Generator, strength: float = 2.0
) -> tuple[Schema, Batch, Tensor]:
    """Returns a small world whose truth is known.

    Three fields of eight values, and a past that says nothing. A value of `a` or `b` carries a
    hidden sign, as often plus as minus. The log-odds are `strength` times the sign of `a` (degree
    1), or times the product of both signs (degree 2), where neither field alone says anything.

    Returns:
        The schema, the rows, and the true probabilities [B] that no model can beat.
    """
    names = ("a", "b", "noise")
    schema = Schema(
        tables=tuple(Table(name, 9) for name in names),
        fields=tuple(Categorical(name, name) for name in names),
        sequences=(Sequence("past", (("noise", "noise"),), max_length=3),),
        labels=(Label("click"),),
    )
    block = torch.randint(1, 9, (rows, 3), generator=generator, dtype=torch.int32)
    sign = (block[:, :2] % 2 * 2 - 1).float()  # [B, 2]
    truth = torch.sigmoid(strength * (sign[:, 0] if degree == 1 else sign.prod(dim=1)))
    label = (torch.rand(rows, generator=generator) < truth).float()
    blank = random_batch(schema, rows, generator)
    batch = replace(
        blank,
        categorical=Columns(names, block),
        labels=Columns(("click",), label[:, None]),
        observed=Columns(("click",), torch.ones(rows, 1, dtype=torch.bool)),
        weight=torch.ones(rows),
    )
    return schema, batch, truth


def area_under_curve(scores: Tensor, labels: Tensor) -> float:
    """Returns the chance that a positive row is above a negative one, ties counting half."""
    positive = labels.bool()
    return ranking.area_under_curve(scores, positive.double(), (~positive).double())


def fit(model: nn.Module, batch: Batch, steps: int, learning_rate: float = 0.03) -> None:
    """Trains on one batch with Adam, and leaves the model in eval mode."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack(list(model(batch).values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
