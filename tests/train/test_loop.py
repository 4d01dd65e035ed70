# Longer than 400 lines, because the loop is one function and its order of events one subject.

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from fullrank.batch import Batch
from fullrank.errors import ConfigError, DivergedError, RunFolderError, StateError
from fullrank.train.config import TrainConfig
from fullrank.train.loop import resolve_precision, train
from fullrank.train.state import load_state, load_weights, trained_weights, weights_of

QUICK = TrainConfig(epochs=2, batch_size=32, learning_rate=0.01, log_every=1, patience=None)


def same(a: nn.Module, b: nn.Module) -> bool:
    other = weights_of(b)
    return all(torch.equal(x, other[n]) for n, x in weights_of(a).items())


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("tables", ["adam", "lazy_adam", "rowwise_adagrad"])
def test_finds_a_planted_truth_and_stays_at_chance_without_one(
    world: ModuleType, tables: str
) -> None:
    fresh = world.rows(1000, seed=1)
    scores = {}
    for shuffled in (False, True):
        net = world.net()
        config = TrainConfig(
            epochs=6,
            batch_size=64,
            learning_rate=0.02,
            table_optimizer=tables,  # type: ignore[arg-type]
            table_learning_rate=0.2 if tables == "rowwise_adagrad" else None,
        )
        data = world.Loader(world.rows(2000, shuffled=shuffled), 64)
        train(net, data, config, progress=False)
        scores[shuffled] = world.auc(net, fresh)
    assert scores[False] > 0.97
    assert abs(scores[True] - 0.5) < 0.12


def test_equals_a_loop_written_by_hand(world: ModuleType) -> None:
    ours, theirs = world.net(), world.net()
    torch.manual_seed(5)
    train(ours, world.Loader(world.rows(100), 32), QUICK, progress=False)
    plain = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.0)
    data = world.Loader(world.rows(100), 32)
    for _ in range(2):
        for batch in data:
            plain.zero_grad()
            theirs(batch)["click"].backward()
            plain.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("tables", ["adam", "lazy_adam"])
@pytest.mark.parametrize("count", [128, 112])  # the second leaves half a group at the end
def test_two_half_batches_equal_a_whole_one(world: ModuleType, tables: str, count: int) -> None:
    whole, halves = world.net(), world.net()
    config = replace(QUICK, table_optimizer=tables, clip_norm=0.1)
    data = world.rows(count)
    train(whole, world.Loader(data, 32, shuffle=False), config, progress=False)
    state = train(
        halves, world.Loader(data, 16, shuffle=False), replace(config, accumulate=2), progress=False
    )
    assert state.step == 2 * 4
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_row_weights_matter_and_a_weight_of_zero_removes_a_row(world: ModuleType) -> None:
    data = world.rows(64)
    kept = torch.arange(64) < 32
    gone = replace(data, weight=kept.float())
    only, both, weighted = world.net(), world.net(), world.net()
    config = replace(QUICK, epochs=1, table_optimizer="adam")
    train(only, world.Loader(data.rows(torch.arange(32)), 32), config, progress=False)
    train(weighted, world.Loader(gone, 64), config, progress=False)
    train(both, world.Loader(data, 64), config, progress=False)
    for a, b in zip(only.parameters(), weighted.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert not same(both, weighted)


def test_sparse_equals_dense_when_every_row_is_read_at_each_step(world: ModuleType) -> None:
    users = torch.arange(240) % world.USERS
    ads = torch.arange(240) % world.ADS  # 60 rows in order hold every user and every ad
    data = world.batch_of(torch.stack([users, ads], 1), (users + ads) % 2)
    nets = {}
    for name in ("adam", "lazy_adam"):
        nets[name] = world.net()
        config = replace(QUICK, table_optimizer=name, table_l2=0.01)
        train(nets[name], world.Loader(data, 60, shuffle=False), config, progress=False)
    for a, b in zip(nets["adam"].parameters(), nets["lazy_adam"].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_unread_rows_are_left_as_they_are(world: ModuleType) -> None:
    net = world.net(extra_rows=50)
    before = net.embeddings.weight("user").detach()[world.USERS :].clone()
    config = replace(QUICK, table_optimizer="lazy_adam", table_l2=0.1)
    train(net, world.Loader(world.rows(200), 32), config, progress=False)
    assert torch.equal(net.embeddings.weight("user")[world.USERS :], before)


def test_the_schedule_and_the_norm_are_in_the_log(world: ModuleType, tmp_path: Path) -> None:
    config = replace(QUICK, schedule="linear", clip_norm=1e-3, warmup_steps=2)
    train(world.net(), world.Loader(world.rows(96), 32), config, folder=tmp_path, progress=False)
    rates = [x["learning_rate"] / 0.01 for x in lines(tmp_path)]
    assert rates == pytest.approx([0.5, 1.0, 0.75, 0.5, 0.25, 0.0])
    assert all(x["gradient_norm"] > 1e-3 for x in lines(tmp_path))


def test_loss_in_the_log_is_the_mean_since_the_line_before(
    world: ModuleType, tmp_path: Path
) -> None:
    every, third = tmp_path / "1", tmp_path / "3"
    for folder, n in ((every, 1), (third, 3)):
        config = replace(QUICK, epochs=1, log_every=n)
        data = world.Loader(world.rows(200), 32)
        train(world.net(), data, config, folder=folder, progress=False)
    single = [x["loss"] for x in lines(every)]
    assert len(single) == 7
    assert [x["step"] for x in lines(third)] == [3, 6, 7]
    means = [sum(single[:3]) / 3, sum(single[3:6]) / 3, single[6]]
    assert [x["loss"] for x in lines(third)] == pytest.approx(means)


def test_best_weights_come_back_and_patience_stops(world: ModuleType, tmp_path: Path) -> None:
    values = iter([0.6, 0.9, 0.7, 0.8, 0.5])
    seen: list[dict[str, torch.Tensor]] = []

    def validate(model: nn.Module) -> dict[str, float]:
        seen.append(weights_of(model))
        return {"auc": next(values)}

    for folder in (tmp_path / "run", None):
        values, net = iter([0.6, 0.9, 0.7, 0.8, 0.5]), world.net()
        seen.clear()
        config = replace(QUICK, epochs=9, patience=2)
        data = world.Loader(world.rows(64), 32)
        state = train(net, data, config, folder=folder, validate=validate, progress=False)
        assert len(seen) == 4
        assert state.epoch == 4
        assert state.progress.best_epoch == 1
        assert not state.interrupted
        assert all(torch.equal(x, seen[1][n]) for n, x in weights_of(net).items())
    other = world.net(seed=3)
    load_weights(other, trained_weights(tmp_path / "run"))
    assert same(other, net)
    load_weights(other, trained_weights(tmp_path / "run", best=False))
    assert all(torch.equal(x, seen[3][n]) for n, x in weights_of(other).items())


def test_last_weights_stay_when_asked(world: ModuleType) -> None:
    last: dict[str, torch.Tensor] = {}
    values = iter([0.9, 0.5])

    def validate(model: nn.Module) -> dict[str, float]:
        last.update(weights_of(model))
        return {"auc": next(values)}

    net = world.net()
    config = replace(QUICK, restore_best=False)
    train(net, world.Loader(world.rows(64), 32), config, validate=validate, progress=False)
    assert all(torch.equal(x, last[n]) for n, x in weights_of(net).items())


def test_monitor_and_validation_do_not_disturb(world: ModuleType, tmp_path: Path) -> None:
    calls: list[tuple[int, int, int]] = []

    def nosy(model: nn.Module, batch: Batch, step: int, epoch: int) -> dict[str, float]:
        assert not model.training
        calls.append((len(batch), step, epoch))
        torch.rand(7)
        torch.manual_seed(0)
        model.train()
        model(batch)["click"].backward()  # gradients that must not reach the next step
        return {"x": 1.5}

    def validate(model: nn.Module) -> dict[str, float]:
        assert not model.training
        torch.rand(3)
        return {"auc": 0.5}

    watched, alone = world.net(dropout=0.5), world.net(dropout=0.5)
    for net, extra in ((alone, {}), (watched, {"monitor": nosy, "validate": validate})):
        torch.manual_seed(3)
        config = replace(QUICK, monitor_every=2, restore_best=False)
        data = world.Loader(world.rows(90), 32)
        folder = tmp_path / str(len(extra))
        train(net, data, config, folder=folder, progress=False, **extra)
    assert same(watched, alone)
    assert calls == [(32, 2, 0), (26, 3, 0), (32, 4, 1), (26, 6, 1)]
    assert [x["step"] for x in lines(tmp_path / "2") if x["kind"] == "monitor"] == [2, 3, 4, 6]


def test_a_model_in_evaluation_mode_is_trained_in_training_mode(world: ModuleType) -> None:
    modes: list[bool] = []
    net = world.net().eval()
    net.hidden.register_forward_hook(lambda m, i, o: modes.append(net.drop.training))
    train(net, world.Loader(world.rows(8), 8), replace(QUICK, epochs=1), progress=False)
    assert modes == [True]


def interrupted_at(step: int, number: int = signal.SIGINT) -> object:
    def monitor(model: nn.Module, batch: Batch, at: int, epoch: int) -> dict[str, float]:
        if at == step:
            os.kill(os.getpid(), number)
        return {}

    return monitor


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [2, 3, 5, 6])  # in the first epoch, at its end, after, at the end
@pytest.mark.parametrize("on_disk", [True, False])
def test_an_interrupted_run_resumes_to_the_same_bits(
    world: ModuleType, tmp_path: Path, number: int, step: int, on_disk: bool
) -> None:
    folder = tmp_path if on_disk else None
    config = replace(QUICK, table_optimizer="lazy_adam", monitor_every=1, schedule="cosine")
    unbroken, first, second = (world.net(dropout=0.4) for _ in range(3))
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def run(net: nn.Module, **more: object) -> object:
        data = world.Loader(world.rows(90), 32)
        return train(net, data, config, validate=scored, progress=False, **more)  # type: ignore[arg-type]

    def scored(model: nn.Module) -> dict[str, float]:
        return {"auc": world.auc(model, world.rows(100, 4))}

    torch.manual_seed(1)
    run(unbroken)
    torch.manual_seed(1)
    state = run(first, folder=folder, monitor=interrupted_at(step, number))
    assert state.interrupted == (step < 6)
    assert state.step == step
    if step < 6:  # the model holds what a resumed run goes on from, not the best so far
        tensors = load_state(tmp_path / "state").tensors if on_disk else state.tensors
        assert all(torch.equal(x, tensors[f"model/{n}"]) for n, x in weights_of(first).items())
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    torch.manual_seed(77)  # the saved random state must win
    if on_disk:
        state = load_state(tmp_path / "state")
    done = run(second, folder=folder, state=state)
    assert not done.interrupted
    assert done.step == 6
    assert same(second, unbroken)
    if on_disk:
        kinds = [(x["kind"], x["step"]) for x in lines(tmp_path) if x["kind"] != "monitor"]
        assert kinds == sorted(set(kinds), key=lambda k: (k[1], k[0]))


def test_a_second_interrupt_ends_at_once(world: ModuleType) -> None:
    def twice(model: nn.Module, batch: Batch, at: int, epoch: int) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    with pytest.raises(KeyboardInterrupt):
        train(world.net(), world.Loader(world.rows(9), 3), QUICK, monitor=twice, progress=False)


KILLED = """
import importlib.util, sys, torch
from pathlib import Path
spec = importlib.util.spec_from_file_location("world", sys.argv[1])
world = importlib.util.module_from_spec(spec)
sys.modules["world"] = world
spec.loader.exec_module(world)
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from fullrank.train.config import TrainConfig
from fullrank.train.loop import train
torch.set_num_threads(1)
torch.manual_seed(1)
net = world.net(dropout=0.4)
config = TrainConfig(epochs=100000, batch_size=16, learning_rate=0.01, save_every=3,
                     table_optimizer="lazy_adam", log_every=1)
train(net, world.Loader(world.rows(150), 16), config, folder=Path(sys.argv[2]), progress=False)
"""


def test_a_killed_run_resumes_to_the_same_bits(world: ModuleType, tmp_path: Path) -> None:
    """A real kill -9, at whatever the process happens to be doing."""
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, world.__file__, str(run)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() or len(lines_so_far(run)) < 40:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    state = load_state(run / "state")
    logged = len(lines_so_far(run))
    assert 0 < state.step <= logged
    epochs = state.step // 10 + 2
    config = TrainConfig(
        epochs=epochs,
        batch_size=16,
        learning_rate=0.01,
        save_every=3,
        table_optimizer="lazy_adam",
        log_every=1,
    )
    resumed, unbroken = world.net(seed=5, dropout=0.4), world.net(dropout=0.4)
    data = world.rows(150)
    train(resumed, world.Loader(data, 16), config, folder=run, state=state, progress=False)
    torch.manual_seed(1)
    fresh = world.net(dropout=0.4)
    train(fresh, world.Loader(data, 16), config, folder=tmp_path / "unbroken", progress=False)
    assert same(resumed, fresh)
    assert not same(resumed, unbroken)
    assert [x["step"] for x in lines(run)] == list(range(1, epochs * 10 + 1))
    ours, theirs = ([x["loss"] for x in lines(f)] for f in (run, tmp_path / "unbroken"))
    assert ours == theirs


def lines_so_far(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_a_run_may_be_prolonged_where_the_schedule_allows_it(
    world: ModuleType, tmp_path: Path
) -> None:
    data, once, twice = world.rows(64), world.net(dropout=0.2), world.net(dropout=0.2)
    torch.manual_seed(2)
    train(once, world.Loader(data, 32), replace(QUICK, epochs=4), progress=False)
    torch.manual_seed(2)
    train(twice, world.Loader(data, 32), QUICK, folder=tmp_path, progress=False)
    state = load_state(tmp_path / "state")
    longer = replace(QUICK, epochs=4, log_every=7)
    train(twice, world.Loader(data, 32), longer, folder=tmp_path, state=state, progress=False)
    assert same(once, twice)
    cosine = replace(QUICK, schedule="cosine")
    state = train(world.net(), world.Loader(data, 32), cosine, progress=False)
    longer = replace(cosine, epochs=4)
    with pytest.raises(StateError, match="another run"):
        train(world.net(), world.Loader(data, 32), longer, state=state, progress=False)


def test_another_run_s_state_and_folder_are_refused(world: ModuleType, tmp_path: Path) -> None:
    data = world.rows(64)
    train(
        world.net(), world.Loader(data, 32), QUICK, folder=tmp_path, identity={"schema": "a"},
        progress=False,
    )  # fmt: skip
    state = load_state(tmp_path / "state")
    with pytest.raises(StateError) as error:
        train(
            world.net(), world.Loader(data, 32), QUICK, identity={"schema": "b"}, state=state,
            progress=False,
        )  # fmt: skip
    assert error.value.where == "'schema'"
    other = world.Loader(world.rows(65), 32)
    with pytest.raises(StateError) as error:
        train(world.net(), other, QUICK, identity={"schema": "a"}, state=state, progress=False)
    assert "data." in error.value.where
    with pytest.raises(RunFolderError):
        train(world.net(), world.Loader(data, 32), QUICK, folder=tmp_path, progress=False)


class Faulty(nn.Module):
    """Turns its loss into something else from some batch on."""

    def __init__(self, inner: nn.Module, start: int, factor: float) -> None:
        super().__init__()
        self.inner, self.start, self.factor, self.calls = inner, start, factor, 0

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        self.calls += 1
        losses: dict[str, torch.Tensor] = self.inner(batch)
        if self.calls >= self.start:
            return {n: x * self.factor for n, x in losses.items()}
        return losses


def test_a_nan_stops_the_run_and_the_good_state_stays(world: ModuleType, tmp_path: Path) -> None:
    net = Faulty(world.net(), start=9, factor=float("nan"))
    data = world.Loader(world.rows(160), 32)  # five batches an epoch
    with pytest.raises(DivergedError) as error:
        train(net, data, replace(QUICK, epochs=3, save_every=2), folder=tmp_path, progress=False)
    assert error.value.where == "step 9, epoch 2, batch 4"
    assert "gradient 'inner.embeddings.rows'" in error.value.found
    state = load_state(tmp_path / "state")
    assert state.step == 8
    assert all(torch.isfinite(x).all() for x in state.tensors.values())


def test_a_poisoned_parameter_is_named_and_never_saved(world: ModuleType, tmp_path: Path) -> None:
    net = world.net()

    def poison(model: nn.Module, batch: Batch, step: int, epoch: int) -> dict[str, float]:
        if step == 4:
            net.hidden.weight.data[0, 0] = float("inf")
        return {}

    data = world.Loader(world.rows(96), 32)
    config = replace(QUICK, monitor_every=1, save_every=1)
    with pytest.raises(DivergedError) as error:
        train(net, data, config, folder=tmp_path, monitor=poison, progress=False)
    assert "'hidden.weight'" in error.value.found
    assert load_state(tmp_path / "state").step == 3


def test_a_missing_metric_is_said(world: ModuleType) -> None:
    with pytest.raises(ConfigError, match="not measured"):
        train(
            world.net(), world.Loader(world.rows(8), 8), QUICK, validate=lambda m: {"ndcg": 1.0},
            progress=False,
        )  # fmt: skip


def test_precision_looks_at_the_device() -> None:
    cpu = torch.device("cpu")
    assert resolve_precision(TrainConfig(), cpu) == "float32"
    assert resolve_precision(TrainConfig(precision="bfloat16"), cpu) == "bfloat16"


def test_bfloat16_trains_with_float32_weights(world: ModuleType) -> None:
    kinds: list[torch.dtype] = []
    net = world.net()
    net.hidden.register_forward_hook(lambda m, i, o: kinds.append(o.dtype))
    config = replace(QUICK, precision="bfloat16", epochs=1)
    train(net, world.Loader(world.rows(64), 32), config, progress=False)
    assert set(kinds) == {torch.bfloat16}
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_threads_are_set_for_the_run_and_put_back(world: ModuleType) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    net = world.net()
    net.hidden.register_forward_hook(lambda m, i, o: seen.append(torch.get_num_threads()))
    train(net, world.Loader(world.rows(8), 8), replace(QUICK, threads=before + 1), progress=False)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inside torch itself
def test_compiled_equals_eager(world: ModuleType) -> None:
    eager, compiled = world.net(), world.net()
    for net, on in ((eager, False), (compiled, True)):
        config = replace(QUICK, epochs=1, compile=on)
        train(net, world.Loader(world.rows(64), 32), config, progress=False)
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
