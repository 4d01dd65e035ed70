"""What a training step costs: every model takes the same batch, in turns, on one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from fullrank.data.prepare import Prepared
from fullrank.serve.artifact import Artifact
from fullrank.train.config import TrainConfig
from fullrank.train.memory import keep_freed_memory
from fullrank.train.optim import build_optimizers
from fullrank.workflow.folder import RunFolder

ROUNDS = 7


def step_seconds(
    runs: Mapping[str, tuple[Path, Prepared, TrainConfig]], rounds: int = ROUNDS
) -> dict[str, float]:
    """Measures a training step of finished runs: forward, backward and update.

    CPU seconds of one thread, the median of rounds in which every model has its turn, so that a
    busy machine meets all of them alike. Batches have the size that the model was trained with.

    Args:
        runs: name -> run folder, its data, and how it was trained.
        rounds: how many.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        with torch.random.fork_rng(devices=[]):
            steps = {name: _step(*run) for name, run in runs.items()}
            times = [{name: _seconds(step) for name, step in steps.items()} for _ in range(rounds)]
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.median(turn[name] for turn in times) for name in runs}


def _step(folder: Path, data: Prepared, config: TrainConfig) -> Callable[[], None]:
    """Returns a training step of a run's model, which has been taken once."""
    model = Artifact.load(RunFolder(folder).artifact).build().train()
    split = data.splits["train"]
    batch = split.batch(0, min(config.batch_size, split.rows))
    optimizers = build_optimizers(model, config)

    def step() -> None:
        optimizers.zero_grad()
        losses: dict[str, torch.Tensor] = model(batch)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizers.step(1.0)

    step()
    return step


def _seconds(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start
