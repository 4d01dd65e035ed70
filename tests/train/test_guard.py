from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from fullrank.batch import Columns
from fullrank.errors import DivergedError
from fullrank.train.config import TrainConfig
from fullrank.train.guard import FLUSH, WINDOW, Guard

CPU, CONFIG = torch.device("cpu"), TrainConfig(explode_factor=10.0, explode_steps=3)


def feed(guard: Guard, world: ModuleType, *values: float) -> None:
    batch = world.rows(2)
    for i, value in enumerate(values):
        losses = {"click": torch.tensor(value)}
        guard.add(losses, torch.stack(tuple(losses.values())), batch, f"batch {i}")


def test_an_explosion_needs_several_batches_in_a_row(world: ModuleType) -> None:
    guard = Guard(world.net(), CONFIG, CPU)
    feed(guard, world, *[0.5] * WINDOW)
    feed(guard, world, 9.0, 9.0)  # bound: 0.5 + 10 * 0.5
    assert not guard.calm
    feed(guard, world, 0.5, 9.0, 9.0, 5.4)
    assert guard.calm
    with pytest.raises(DivergedError, match="exploded") as error:
        feed(guard, world, 9.0, 9.0, 9.0)
    assert error.value.where == "batch 2"
    assert "largest parameter" in error.value.found


def test_nothing_explodes_before_the_first_window_is_full(world: ModuleType) -> None:
    guard = Guard(world.net(), CONFIG, CPU)
    feed(guard, world, 0.1, *[1e6] * (WINDOW - 2))
    assert guard.calm


def test_a_loss_of_almost_zero_may_jump(world: ModuleType) -> None:
    guard = Guard(world.net(), CONFIG, CPU)
    feed(guard, world, *[1e-5] * WINDOW, *[0.9] * 10)
    with pytest.raises(DivergedError):
        feed(guard, world, *[1.1] * 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_a_number_stops_at_once(world: ModuleType, bad: float) -> None:
    with pytest.raises(DivergedError, match="NaN or infinite"):
        feed(Guard(world.net(), CONFIG, CPU), world, 0.5, bad)


def test_other_devices_are_looked_at_in_bundles_with_the_exact_batch(world: ModuleType) -> None:
    guard = Guard(world.net(), CONFIG, torch.device("cuda"))
    feed(guard, world, *[0.5] * 3, math.nan)  # nothing is read yet
    with pytest.raises(DivergedError) as error:
        feed(guard, world, *[0.5] * (FLUSH - 4))
    assert error.value.where == "batch 3"


def test_means_are_of_every_loss_since_the_last_call(world: ModuleType) -> None:
    guard, batch = Guard(world.net(), CONFIG, CPU), world.rows(2)
    for a, b in ((1.0, 10.0), (3.0, 30.0)):
        losses = {"a": torch.tensor(a), "b": torch.tensor(b)}
        guard.add(losses, torch.stack(tuple(losses.values())), batch, "here")
    assert guard.means() == {"loss": 22.0, "loss/a": 2.0, "loss/b": 20.0}
    losses = {"a": torch.tensor(5.0), "b": torch.tensor(5.0)}
    guard.add(losses, torch.stack(tuple(losses.values())), batch, "here")
    assert guard.means()["loss"] == 10.0


def test_the_bad_field_is_named(world: ModuleType) -> None:
    net = world.net()
    block = torch.tensor([[1.0, 2.0], [3.0, torch.nan]])
    batch = replace(world.rows(2), numeric=Columns(("age", "price"), block))
    losses = net(batch)
    stacked = torch.stack(tuple(losses.values())) * batch.numeric["price"].sum()
    with pytest.raises(DivergedError) as error:
        Guard(net, CONFIG, CPU).add(losses, stacked, batch, "step 3")
    assert "field 'price'" in error.value.found
    assert "gradient 'embeddings.rows'" in error.value.found


def test_the_first_bad_parameter_is_named(world: ModuleType) -> None:
    net = world.net()
    guard = Guard(net, CONFIG, CPU)
    guard.check_parameters("here")
    net.head.weight.data[0, 1] = math.nan
    with pytest.raises(DivergedError) as error:
        guard.check_parameters("here")
    assert error.value.found == "parameter 'head.weight'"
    net.hidden.bias.data[:] = 3e38  # the sum is infinite, the members are not
    net.head.weight.data[0, 1] = 0.0
    guard.check_parameters("here")
