"""Random schemas and batches, and small worlds whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

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
    batch = _labelled(schema, Columns(names, block), truth, generator)
    return schema, batch, truth


def periodic(
    rows: int,
    generator: torch.Generator,
    *,
    length: int = 50,
    period: int = 7,
    noise: float = 0.3,
    num_categories: int = 20,
    strength: float = 3.0,
    wrong: Literal["phase", "scattered"] = "phase",
    phase: Literal["on", "off"] = "on",
) -> tuple[Schema, Batch, Tensor]:
    """Returns users with a habit that only the order of their past gives away.

    Every user goes round a cycle of `period` categories of its own. The past is a whole number of
    rounds, so each category of the cycle occurs equally often and a bag of events says nothing.
    A target is in phase if it is the category whose turn is next. Its log-odds are `strength` in
    phase and -`strength` out of it. Rows 2i and 2i + 1 are of one user, who is their `group`, and
    the first of them is in phase. The field `device` says nothing.

    Args:
        rows: B.
        generator: where the randomness comes from.
        length: of the window; the past has the largest whole number of rounds that fits.
        period: events of a round.
        noise: share of past events that are replaced by categories at random; 1 is a control.
        num_categories: of which each user's cycle takes `period`.
        strength: logits; 0 removes the effect.
        wrong: what a target out of phase is: another category of the cycle ("phase"), or, for
            every second place of the cycle, one that occurs as often but without a rhythm
            ("scattered"), whose spectrum is flat.
        phase: "off" is the control: each past is shuffled, which leaves its bag as it was.

    Returns:
        The schema, the rows, and the true probabilities [B], for whoever knows the phase.
    """
    assert 2 <= period <= min(length, num_categories), (period, length, num_categories)
    size, user = length // period * period, torch.arange(rows) // 2

    def shuffled(width: int) -> Tensor:  # [U, width], each row an order of its own
        return torch.rand((rows + 1) // 2, width, generator=generator).argsort(dim=1)

    cycle = shuffled(num_categories)[:, :period] + 1  # [U, period]; place 0 is next
    past = cycle.repeat(1, size // period)  # [U, size]
    choice = torch.arange(1, period)
    if wrong == "scattered":
        choice = choice[::2]
        free = torch.isin(torch.arange(size) % period, choice)
        past[:, free] = past[:, free].gather(1, shuffled(int(free.sum())))
    anything = torch.randint(1, num_categories + 1, past.shape, generator=generator)
    replaced = torch.rand(past.shape, generator=generator) < noise
    past = torch.where(replaced, anything, past)
    if phase == "off":
        past = past.gather(1, shuffled(size))

    place = choice[torch.randint(len(choice), (len(cycle), 1), generator=generator)]
    target = torch.cat([cycle[:, :1], cycle.gather(1, place)], dim=1).flatten()[:rows]
    hidden = phase == "off" or noise == 1.0  # nothing in the past tells whose turn is next
    truth = torch.sigmoid((0.0 if hidden else strength) * (1.0 - 2.0 * (torch.arange(rows) % 2)))
    schema = Schema(
        tables=(Table("category", num_categories + 1), Table("device", 5)),
        fields=(Categorical("category", "category", "item"), Categorical("device", "device")),
        sequences=(Sequence("past", (("category", "category"),), max_length=length),),
        labels=(Label("click"),),
        item="category",
    )
    device = torch.randint(1, 5, (rows,), generator=generator)
    columns = Columns(("category", "device"), torch.stack([target, device], 1).int())
    events = Jagged({"category": past[user].flatten().int()}, torch.arange(rows + 1) * size)
    batch = _labelled(schema, columns, truth, generator)
    return schema, replace(batch, group=user, sequences={"past": events}), truth


def _labelled(schema: Schema, columns: Columns, truth: Tensor, generator: torch.Generator) -> Batch:
    """Returns rows with these values and labels drawn from the truth [B]."""
    label = (torch.rand(len(truth), generator=generator) < truth).float()
    return replace(
        random_batch(schema, len(truth), generator),
        categorical=columns,
        labels=Columns(("click",), label[:, None]),
        observed=Columns(("click",), torch.ones(len(truth), 1, dtype=torch.bool)),
        weight=torch.ones(len(truth)),
    )


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
