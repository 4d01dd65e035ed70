from __future__ import annotations

import errno
import os
import resource
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fullrank.errors import DiskFullError, StateError
from fullrank.train import state as state_module
from fullrank.train.config import TrainConfig
from fullrank.train.optim import build_optimizers
from fullrank.train.state import (
    TrainState,
    capture,
    has_state,
    load_state,
    load_weights,
    restore,
    save_state,
    weights_of,
    write_tensors,
)


def trained(world: ModuleType, name: str = "lazy_adam", steps: int = 3) -> TrainState:
    net = world.net()
    optimizers = build_optimizers(net, TrainConfig(table_optimizer=name))  # type: ignore[arg-type]
    for step in range(steps):
        sum(net(world.rows(16, step)).values()).backward()
        optimizers.step(1.0)
        optimizers.zero_grad()
    return TrainState(
        identity={"train": {"learning_rate": 0.1, "betas": [1, 2]}, "schema": "abc"},
        loader={"epoch": 1, "batch": 3},
        epoch=1,
        step=steps,
        tensors=capture(net, optimizers),
    )


@pytest.mark.parametrize("name", ["adam", "lazy_adam", "rowwise_adagrad"])
def test_round_trip_gives_the_same_bits(world: ModuleType, tmp_path: Path, name: str) -> None:
    before = trained(world, name)
    save_state(tmp_path, before)
    after = load_state(tmp_path)
    assert after.tensors.keys() == before.tensors.keys()
    assert all(torch.equal(x, after.tensors[n]) for n, x in before.tensors.items())
    assert any(n.startswith("optimizer/embeddings.rows/") for n in after.tensors)
    for part in ("identity", "loader", "epoch", "step", "interrupted"):
        assert getattr(after, part) == getattr(before, part)


def test_restore_writes_weights_moments_and_random_state(world: ModuleType) -> None:
    saved = {n: x.clone() for n, x in trained(world).tensors.items()}
    expected = torch.rand(3)
    net = world.net(seed=9)
    optimizers = build_optimizers(net, TrainConfig(table_optimizer="lazy_adam"))
    restore(saved, net, optimizers)
    assert torch.equal(torch.rand(3), expected)
    again = capture(net, optimizers)
    assert all(torch.equal(x, again[n]) for n, x in saved.items() if n != "random/cpu")


def test_every_dtype_and_an_empty_or_transposed_tensor_survive(tmp_path: Path) -> None:
    tensors = {str(t): torch.arange(6).reshape(2, 3).to(t) for t in state_module._KINDS}
    tensors |= {"none": torch.empty(0, 4), "one": torch.tensor(3.5), "t": torch.rand(3, 2).T}
    write_tensors(tmp_path / "x.safetensors", tensors)
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, x in tensors.items():
        assert x.dtype == read[name].dtype
        assert torch.equal(x, read[name])


def test_tied_weights_are_saved_once_and_stay_tied(world: ModuleType) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            self.b.weight = self.a.weight

    net, other = Tied(), Tied()
    weights = weights_of(net)
    assert sorted(weights) == ["a.bias", "a.weight", "b.bias"]
    load_weights(other, weights)
    assert other.a.weight is other.b.weight
    assert torch.equal(other.b.weight, net.b.weight)


def test_only_the_newest_state_stays(world: ModuleType, tmp_path: Path) -> None:
    state = trained(world)
    for step in range(3):
        state.step = step
        save_state(tmp_path, state)
    assert [p.name for p in tmp_path.iterdir()] == ["000003"]
    assert load_state(tmp_path).step == 2


def test_a_save_cut_off_anywhere_leaves_a_good_state(
    world: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops the process's work at the n-th system call of a save, for every n."""

    class Killed(BaseException):
        pass

    real = {name: getattr(os, name) for name in ("fsync", "replace", "open")}
    state = trained(world)
    for cut in range(40):
        folder = tmp_path / str(cut)
        state.step = 1
        save_state(folder, state)
        calls = 0

        def counted(name: str, cut: int = cut) -> object:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal calls
                calls += 1
                if calls > cut:
                    raise Killed
                return real[name](*args, **kwargs)

            return call

        for name in real:
            monkeypatch.setattr(os, name, counted(name))
        monkeypatch.setattr("fullrank.disk._remove", lambda path: None)  # the dead tidy nothing up
        state.step = 2
        try:
            save_state(folder, state)
            finished = True
        except Killed:
            finished = False
        monkeypatch.undo()
        assert load_state(folder).step in (1, 2)
        if finished:
            assert load_state(folder).step == 2
            break
        state.step = 3  # what a cut left behind is in nobody's way
        save_state(folder, state)
        assert load_state(folder).step == 3
        shutil.rmtree(folder)
    assert finished
    assert cut > 5


@pytest.mark.parametrize("limit", [100, 1500])
def test_no_room_keeps_the_state_before(world: ModuleType, tmp_path: Path, limit: int) -> None:
    """A real refusal by the kernel: the process may write no file above the limit."""
    state = trained(world)
    save_state(tmp_path, state)
    state.step = 99
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(DiskFullError) as error:
            save_state(tmp_path, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.strerror(errno.EFBIG) in error.value.found
    assert load_state(tmp_path).step == 3
    assert [p.name for p in tmp_path.iterdir()] == ["000001"]  # no half-written folder


def test_other_failures_keep_their_own_name(world: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file") as caught:
        write_tensors(tmp_path / "file" / "x.safetensors", {"x": torch.zeros(1)})
    assert not isinstance(caught.value, DiskFullError)


def test_what_a_killed_process_left_behind_is_cleared(world: ModuleType, tmp_path: Path) -> None:
    cut_off = tmp_path / ".000007.12345.part"
    cut_off.mkdir()
    (cut_off / "model.safetensors").write_bytes(b"half")
    assert not has_state(tmp_path)
    save_state(tmp_path, trained(world))
    assert [p.name for p in tmp_path.iterdir()] == ["000001"]


@pytest.mark.parametrize("change", ["learning_rate", "schema", "extra"])
def test_a_foreign_state_is_refused_with_both_sides(world: ModuleType, change: str) -> None:
    state = trained(world)
    mine = {"train": {"learning_rate": 0.1, "betas": [1, 2]}, "schema": "abc"}
    state.require_same(mine)
    if change == "learning_rate":
        mine = {**mine, "train": {"learning_rate": 0.2, "betas": [1, 2]}}
    else:
        mine = {**mine, change: "xyz"}
    with pytest.raises(StateError) as error:
        state.require_same(mine)
    assert change in error.value.where
    assert error.value.found.split()[0] != error.value.expected.split()[0]


def test_weights_of_another_shape_are_refused(world: ModuleType) -> None:
    weights = weights_of(world.net())
    bigger = world.net(extra_rows=1)
    before = weights_of(bigger)
    with pytest.raises(StateError) as error:
        load_weights(bigger, weights)
    assert "embeddings.rows" in error.value.where
    assert "(22, 4)" in error.value.found
    assert "(23, 4)" in error.value.expected
    assert all(torch.equal(x, before[n]) for n, x in weights_of(bigger).items())
    with pytest.raises(StateError, match="fit"):
        load_weights(world.net(), {n: x for n, x in weights.items() if n != "head.bias"})


def test_nothing_and_damage_are_said(world: ModuleType, tmp_path: Path) -> None:
    assert not has_state(tmp_path / "absent")
    with pytest.raises(StateError, match="no saved state"):
        load_state(tmp_path / "absent")
    save_state(tmp_path, trained(world))
    file = tmp_path / "000001" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(StateError, match="cannot be read"):
        load_state(tmp_path)
    (tmp_path / "000001" / "state.json").write_text("{")
    with pytest.raises(StateError, match="cannot be read"):
        load_state(tmp_path)
