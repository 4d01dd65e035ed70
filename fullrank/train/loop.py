"""The training loop: one flat function. The order of its lines is the behaviour."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn

from fullrank.batch import Batch
from fullrank.config import to_dict
from fullrank.train.card import card_table, model_card, save_card
from fullrank.train.config import HARMLESS, TrainConfig
from fullrank.train.display import Display
from fullrank.train.guard import Guard
from fullrank.train.keep import Keeper, require_unused
from fullrank.train.log import MetricsLog
from fullrank.train.memory import keep_freed_memory
from fullrank.train.optim import build_optimizers, clip_gradients
from fullrank.train.schedule import rate_factor
from fullrank.train.state import TrainState


class Batches(Protocol):
    """What the loop asks of a loader: iterated once, it yields what is left of one epoch."""

    @property
    def num_rows(self) -> int:
        """Rows per epoch."""
        ...

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...

    def state(self) -> dict[str, int]:
        """Returns "epoch", "batch" (the next one) and whatever else decides the order."""
        ...

    def resume(self, state: dict[str, int]) -> None:
        """Goes to a position that `state` returned."""
        ...


Validate = Callable[[nn.Module], dict[str, float]]
Monitor = Callable[[nn.Module, Batch, int, int], dict[str, float]]


def train(  # length: one flat function, so that the order of events is read in one place
    model: nn.Module,
    batches: Batches,
    config: TrainConfig,
    *,
    folder: Path | None = None,
    validate: Validate | None = None,
    monitor: Monitor | None = None,
    state: TrainState | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> TrainState:
    """Trains a model in place.

    The first SIGINT or SIGTERM lets the step finish, saves, and returns a state whose
    `interrupted` is True; a second SIGINT raises KeyboardInterrupt at once. A resumed run ends
    with the same bits as an unbroken one.

    Args:
        model: returns named scalar losses; their sum is minimised. Draws from torch's global
            random state, which the caller seeds.
        batches: the training rows.
        config: the settings.
        folder: of the run: `state/`, `best.safetensors`, `metrics.jsonl` and `card.json`. None
            keeps everything in memory.
        validate: called after each epoch in evaluation mode; `config.metric` picks from its values.
        monitor: called with model, batch, step and epoch after each epoch, and every
            `monitor_every` steps, in evaluation mode; its values go to the log. Neither of the
            two changes the course of training: random state and modes are put back.
        state: from `load_state(folder / "state")`, or from an earlier call, to go on from.
        identity: fingerprints of data, schema and model config; a state from others is refused.
        progress: True draws a bar, False is silent, None looks at the terminal.

    Returns:
        The state at the end. The model holds the best weights if there were validations and
        `restore_best` is set, else the last.

    Raises:
        StateError: the state belongs to another run.
        RunFolderError: the folder holds a state and none was given.
        DivergedError: a loss, gradient or parameter is not finite, or the loss exploded.
        DiskFullError: a state could not be saved; the one before is intact.
        ConfigError: `validate` does not return `config.metric`.
        ExtraMissingError: TensorBoard or MLflow is asked for and not installed.
    """
    if config.keep_memory:
        keep_freed_memory()
    device = next(model.parameters()).device
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    precision = resolve_precision(config, device)
    optimizers = build_optimizers(model, config)
    guard = Guard(model, config, device)
    keeper = Keeper(folder, model, optimizers, batches, guard)
    who = _identity(batches, config, identity)
    forward = torch.compile(model) if config.compile else model
    total_steps = config.epochs * math.ceil(len(batches) / config.accumulate)
    card = None
    if state is None:
        require_unused(folder)
        state = TrainState(identity=who, loader={**batches.state(), "epoch": 0, "batch": 0})
        card = model_card(model, config, optimizers, precision)
    else:
        state.require_same(who)
        keeper.resume(state)
    batches.resume(state.loader)

    with (
        MetricsLog(folder, config, state.step) as log,
        Display(progress, config.epochs, len(batches)) as display,
        _threads(config.threads),
        _interrupts() as stop,
    ):
        if card is not None:
            display.note(card_table(card))
            save_card(folder, card)
        for epoch in range(state.epoch, config.epochs):
            if state.progress.should_stop(config) or stop.asked():
                break
            model.train()
            display.start_epoch(epoch, state.batch)
            for batch in batches:
                # forward, sum of losses, backward; `accumulate` batches make one step
                where = f"step {state.step + 1:,}, epoch {epoch + 1}, batch {state.batch + 1:,}"
                batch = batch if device.type == "cpu" else batch.to(device)
                with _autocast(device, precision):
                    losses = forward(batch)
                stacked = torch.stack(tuple(losses.values()))  # [L]
                guard.add(losses, stacked, batch, where)
                first = state.batch - state.batch % config.accumulate
                group = min(config.accumulate, len(batches) - first)
                (stacked.sum() / group).backward()  # type: ignore[no-untyped-call]
                state.batch += 1
                display.advance(state.batch, len(batch))
                if state.batch - first < group:
                    continue

                # clip, step
                values = {}
                if config.clip_norm is not None:
                    values["gradient_norm"] = clip_gradients(named, config.clip_norm, where)
                factor = rate_factor(config, state.step, total_steps, state.progress.plateaus)
                optimizers.step(factor)
                optimizers.zero_grad()
                state.step += 1

                # log, monitor, save
                last = state.batch == len(batches)
                if state.step % config.log_every == 0 or last:
                    values |= guard.means()
                    values |= {"learning_rate": config.learning_rate * factor}
                    log.write("train", state.step, epoch, values | {"seconds": keeper.seconds()})
                    display.show_loss(values["loss"])
                if monitor and (last or _due(config.monitor_every, state.step)):
                    with _undisturbed(model, device):
                        found = monitor(model, batch, state.step, epoch)
                    optimizers.zero_grad()
                    log.write("monitor", state.step, epoch, found)
                if last:
                    continue  # runs the loader to its end; the end of an epoch saves by itself
                if stop.asked():
                    break
                if _due(config.save_every, state.step):
                    keeper.save(state)
            if state.batch < len(batches):
                break

            # validate, keep the best, save
            values = {}
            if validate:
                with _undisturbed(model, device):
                    values = validate(model)
                log.write("valid", state.step, epoch, values)
                if state.progress.update(config, values, epoch):
                    keeper.keep_best(state)
            state.epoch, state.batch = epoch + 1, 0
            display.end_epoch(epoch, values, config.metric)
            keeper.save(state)

        done = state.epoch == config.epochs or state.progress.should_stop(config)
        state.interrupted = not done
        keeper.save(state, final=True)
    if done and config.restore_best and state.progress.best_epoch is not None:
        keeper.restore_best()
    return state


def resolve_precision(config: TrainConfig, device: torch.device) -> str:
    """Returns "float32" or "bfloat16", by the device when the config says "auto"."""
    if config.precision != "auto":
        return config.precision
    capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bfloat16" if capable else "float32"


def _identity(
    batches: Batches, config: TrainConfig, given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a state must agree with: settings that change weights, rows, the caller's own."""
    free = {*HARMLESS}
    if config.schedule in ("none", "plateau"):
        free.add("epochs")  # nothing before the end depends on it, so a run may be prolonged
    settings = {k: v for k, v in to_dict(config).items() if k not in free}
    sizes = {"rows": batches.num_rows, "batches": len(batches)}
    return {"train": settings, "data": sizes, **(given or {})}


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Lets others use the model in evaluation mode; puts modes and random state back."""
    modes = [(m, m.training) for m in model.modules()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Stop:
    """Remembers that somebody asked for the end."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True

    def asked(self) -> bool:
        return self._asked


@contextmanager
def _interrupts() -> Iterator[_Stop]:
    """Catches SIGINT and SIGTERM; outside the main thread Python allows no handlers."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
