from __future__ import annotations

import pytest
import torch

from fullrank.batch import Batch, Columns, Jagged
from fullrank.embedding import Embeddings
from fullrank.errors import BatchError, SchemaError
from fullrank.schema import (
    Bag,
    Categorical,
    Dense,
    Label,
    Numeric,
    Schema,
    Sequence,
    Table,
)

SCHEMA = Schema(
    tables=(Table("u", 5), Table("i", 7, grows=True), Table("g", 4)),
    fields=(
        Numeric("n"),
        Categorical("u", "u", "user"),
        Bag("g", "g"),
        Dense("d", (2, 2)),
        Categorical("i", "i", "item"),
        Numeric("m"),
    ),
    sequences=(Sequence("past", (("item", "i"), ("time", None)), 3),),
    labels=(Label("click"),),
)


def batch(users=(1, 2, 0), items=(3, 9, 1)) -> Batch:
    ids = torch.tensor([users, items], dtype=torch.int32).T.contiguous()
    generator = torch.Generator().manual_seed(0)
    return Batch(
        categorical=Columns(("u", "i"), ids),
        numeric=Columns(("n", "m"), torch.randn(3, 2, generator=generator)),
        labels=Columns(("click",), torch.ones(3, 1)),
        observed=Columns(("click",), torch.ones(3, 1, dtype=torch.bool)),
        weight=torch.ones(3),
        group=torch.zeros(3, dtype=torch.int64),
        time=torch.zeros(3, dtype=torch.int64),
        bags={
            "g": Jagged(
                {"value": torch.tensor([1, 2, 3], dtype=torch.int32)}, torch.tensor([0, 2, 2, 3])
            )
        },
        dense={"d": torch.randn(3, 2, 2, generator=generator)},
        sequences={
            "past": Jagged(
                {"item": torch.tensor([1, 2, 3, 8, 5], dtype=torch.int32), "time": torch.arange(5)},
                torch.tensor([0, 4, 4, 5]),
            )
        },
    )


def slow_fields(e: Embeddings, b: Batch) -> torch.Tensor:
    """Row by row, field by field, from the definition."""
    rows = []
    for i in range(len(b)):
        row = []
        for f in SCHEMA.fields:
            match f:
                case Categorical(name, table, _):
                    known = SCHEMA.table(table).size
                    value = int(b.categorical[name][i])
                    row.append(e.weight(table)[value if value < known else 0])
                case Numeric(name, _):
                    at = [n.name for n in SCHEMA.numeric()].index(name)
                    row.append(b.numeric[name][i] * e.number_weight[at] + e.number_bias[at])
                case Bag(name, table, _, _):
                    bag = b.bags[name]
                    start, stop = bag.offsets[i], bag.offsets[i + 1]
                    values = [e.weight(table)[int(v)] for v in bag.values["value"][start:stop]]
                    row.append(sum(values) / len(values) if values else torch.zeros(e.dim))
                case Dense(name, _, _):
                    linear = e.projections[name]
                    row.append(linear.weight @ b.dense[name][i].flatten() + linear.bias)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_fields_equal_a_slow_twin_in_schema_order() -> None:
    torch.manual_seed(1)
    e = Embeddings(SCHEMA, 4, sequences=["past"], std=1.0)
    torch.testing.assert_close(e.fields(batch()), slow_fields(e, batch()))


def test_a_subset_of_fields_equals_those_columns() -> None:
    torch.manual_seed(1)
    whole = Embeddings(SCHEMA, 4, std=1.0)
    part = Embeddings(SCHEMA, 4, fields=["i", "m"], std=1.0)  # schema order wins: i before m
    with torch.no_grad():
        part.weight("i").copy_(whole.weight("i"))
        part.number_weight.copy_(whole.number_weight[1:])
        part.number_bias.copy_(whole.number_bias[1:])
    torch.testing.assert_close(part.fields(batch()), whole.fields(batch())[:, 4:])


def test_past_its_size_a_growing_table_reads_unknown_and_another_refuses() -> None:
    e = Embeddings(SCHEMA, 4, sequences=["past"], std=1.0)
    assert torch.equal(e.fields(batch())[1, 4], e.weight("i")[0])
    with pytest.raises(BatchError) as caught:
        e.fields(batch(users=(1, 5, 0)))
    assert "row 5" in str(caught.value)
    assert "'u'" in caught.value.where
    with pytest.raises(BatchError):
        e.fields(batch(users=(1, -1, 0)))


def test_sequence_keeps_the_newest_and_zeroes_padding() -> None:
    e = Embeddings(SCHEMA, 4, sequences=["past"], std=1.0)
    x, valid = e.sequence(batch(), "past", "item")
    table = e.weight("i")
    assert valid.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    torch.testing.assert_close(x[0], torch.stack([table[2], table[3], table[0]]))  # 8 is unknown
    assert x[1].abs().sum() == 0
    torch.testing.assert_close(x[2, 0], table[5])


def test_sparse_and_dense_gradients_agree() -> None:
    grads = []
    for sparse in (False, True):
        torch.manual_seed(1)
        e = Embeddings(SCHEMA, 4, std=1.0)
        e.sparse = sparse
        e.fields(batch()).square().sum().backward()
        grad = e.rows.grad
        assert grad is not None
        assert grad.is_sparse == sparse
        grads.append(grad.to_dense() if sparse else grad)
    torch.testing.assert_close(*grads)


def test_unknown_rows_start_at_zero_and_the_rest_does_not() -> None:
    e = Embeddings(SCHEMA, 4, std=0.5)
    for name in ("u", "i", "g"):
        assert e.weight(name)[0].abs().sum() == 0
        assert e.weight(name)[1:].abs().sum(1).min() > 0


def test_refuses_unknown_names_and_nothing_at_all() -> None:
    with pytest.raises(SchemaError, match="no such field"):
        Embeddings(SCHEMA, 4, fields=["nope"])
    with pytest.raises(SchemaError, match="nothing to embed"):
        Embeddings(SCHEMA, 4, fields=[])
