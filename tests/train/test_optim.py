from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import nn

from fullrank.embedding import Embeddings
from fullrank.errors import DivergedError
from fullrank.schema import Bag, Categorical, Schema, Sequence, Table
from fullrank.train.config import TrainConfig
from fullrank.train.optim import (
    BREAK_EVEN,
    LazyAdam,
    RowWiseAdagrad,
    build_optimizers,
    choose_table_optimizer,
    clip_gradients,
    lookups_per_row,
)


def stepped(world: ModuleType, **settings: object) -> dict[str, torch.Tensor]:
    """Weights after one step on a loss of zero: only decay moves anything."""
    net = world.net()
    config = TrainConfig(learning_rate=0.1, **settings)  # type: ignore[arg-type]
    optimizers = build_optimizers(net, config)
    (0.0 * sum(net(world.rows(64)).values())).backward()
    optimizers.step(1.0)
    return {name: p.detach() for name, p in net.named_parameters()}


def test_weight_decay_moves_matrices_and_table_l2_moves_tables(world: ModuleType) -> None:
    start = {name: p.detach() for name, p in world.net().named_parameters()}
    decayed = stepped(world, weight_decay=0.5)
    moved = {name for name, x in decayed.items() if not torch.equal(x, start[name])}
    assert moved == {"hidden.weight", "head.weight"}
    torch.testing.assert_close(decayed["head.weight"], start["head.weight"] * (1 - 0.1 * 0.5))
    penalised = stepped(world, table_l2=0.5)
    moved = {name for name, x in penalised.items() if not torch.equal(x, start[name])}
    assert moved == {"embeddings.rows"}


def test_coupled_decay_is_lambda_w_in_the_gradient(world: ModuleType) -> None:
    by_setting, by_hand = world.net(), world.net()
    data = world.rows(64)
    optimizers = build_optimizers(
        by_setting, TrainConfig(table_l2=0.3, optimizer="adam", weight_decay=0.2)
    )
    plain = torch.optim.Adam(by_hand.parameters(), lr=1e-3)
    for _ in range(3):
        sum(by_setting(data).values()).backward()
        optimizers.step(1.0)
        optimizers.zero_grad()
        penalty = 0.3 / 2 * by_hand.embeddings.rows.square().sum()
        for layer in (by_hand.hidden, by_hand.head):
            penalty = penalty + 0.2 / 2 * layer.weight.square().sum()
        plain.zero_grad()
        (sum(by_hand(data).values()) + penalty).backward()
        plain.step()
    for a, b in zip(by_setting.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_auto_takes_the_lazy_one_past_break_even(world: ModuleType) -> None:
    config = TrainConfig(batch_size=8)
    per_row = 2
    small = int(BREAK_EVEN * 8 * per_row) - world.USERS - world.ADS
    assert choose_table_optimizer(world.net(extra_rows=small), config) == "adam"
    assert choose_table_optimizer(world.net(extra_rows=small + 1), config) == "lazy_adam"


def test_bags_and_sequences_count_at_their_longest() -> None:
    schema = Schema(
        tables=(Table("t", 9),),
        fields=(Categorical("c", "t"), Bag("b", "t", max_length=5)),
        sequences=(Sequence("s", (("x", "t"), ("at", None), ("y", "t")), 7),),
    )
    assert lookups_per_row(Embeddings(schema, 2, sequences=["s"])) == 1 + 5 + 2 * 7


@pytest.mark.parametrize(
    ("name", "kind"), [("lazy_adam", LazyAdam), ("rowwise_adagrad", RowWiseAdagrad)]
)
def test_named_sparse_optimiser_gets_the_table(
    world: ModuleType, name: str, kind: type[torch.optim.Optimizer]
) -> None:
    net = world.net()
    config = TrainConfig(table_optimizer=name, table_learning_rate=0.5)  # type: ignore[arg-type]
    optimizers = build_optimizers(net, config)
    assert net.embeddings.sparse
    (mine,) = [o for o in optimizers.each if isinstance(o, kind)]
    assert mine.param_groups[0]["params"] == [net.embeddings.rows]
    optimizers.step(0.5)
    assert mine.param_groups[0]["lr"] == 0.25
    build_optimizers(net, TrainConfig(table_optimizer="adam"))
    assert not net.embeddings.sparse


def test_every_parameter_is_in_exactly_one_group(world: ModuleType) -> None:
    for name in ("adam", "lazy_adam"):
        net = world.net()
        optimizers = build_optimizers(net, TrainConfig(table_optimizer=name))  # type: ignore[arg-type]
        grouped = [id(p) for o in optimizers.each for g in o.param_groups for p in g["params"]]
        assert sorted(grouped) == sorted(id(p) for p in net.parameters())


def test_a_model_without_tables_has_dense_optimisers_alone() -> None:
    optimizers = build_optimizers(nn.Linear(2, 1), TrainConfig())
    assert optimizers.tables == "none"
    assert len(optimizers.each) == 1


def test_an_infinite_gradient_is_named() -> None:
    good, bad = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    good.grad, bad.grad = torch.ones(2), torch.tensor([1.0, torch.inf])
    with pytest.raises(DivergedError, match="infinite") as error:
        clip_gradients([("good", good), ("bad", bad)], 1.0, "step 7")
    assert "'bad'" in error.value.found
    assert error.value.where == "step 7"
