"""Keeper: saves states and the best weights of one run, on disk or in memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from fullrank.errors import RunFolderError
from fullrank.train.guard import Guard
from fullrank.train.optim import Optimizers
from fullrank.train.state import (
    TrainState,
    capture,
    has_state,
    load_weights,
    restore,
    save_state,
    trained_weights,
    weights_of,
    write_tensors,
)


class Position(Protocol):
    """The part of a loader that a state remembers."""

    def state(self) -> dict[str, int]:
        """Returns the position."""
        ...


class Keeper:
    """Keeps what a run must not lose.

    Args:
        folder: of the run; None keeps everything in memory.
        model: being trained.
        optimizers: of the model.
        loader: whose position is part of a state.
        guard: is asked before anything good is replaced.
    """

    def __init__(
        self,
        folder: Path | None,
        model: nn.Module,
        optimizers: Optimizers,
        loader: Position,
        guard: Guard,
    ) -> None:
        self.folder, self.model, self.optimizers = folder, model, optimizers
        self.loader, self.guard = loader, guard
        self._best: dict[str, Tensor] = {}  # in memory, without a folder
        self._started = time.monotonic()
        self._saved: tuple[int, int, bool] | None = None  # what lies in the folder

    def resume(self, state: TrainState) -> None:
        """Puts a model and its optimisers where a state left them."""
        restore(state.tensors, self.model, self.optimizers)
        self._best = {n[5:]: x for n, x in state.tensors.items() if n.startswith("best/")}
        self._started -= state.seconds
        state.tensors, state.interrupted = {}, False

    def seconds(self) -> float:
        """Returns the wall time of the run so far, earlier processes included."""
        return time.monotonic() - self._started

    def save(self, state: TrainState, *, final: bool = False) -> None:
        """Replaces the saved state, unless the loss is out of bounds just now.

        Args:
            state: its tensors, position and clock are filled in.
            final: the run ends here, so save in any case.

        Raises:
            DivergedError: a parameter is NaN or infinite.
            DiskFullError: there is no room; the state before is intact.
        """
        self.guard.flush()
        self.guard.check_parameters(f"step {state.step:,}, before saving")
        state.loader, state.seconds = self.loader.state(), self.seconds()
        place = state.epoch, state.step, state.interrupted
        if self.folder is not None and (self.guard.calm or final) and place != self._saved:
            state.tensors = capture(self.model, self.optimizers)
            save_state(self.folder / "state", state)
            state.tensors, self._saved = {}, place
        if self.folder is None and final:
            held = capture(self.model, self.optimizers)
            state.tensors = {name: x.clone() for name, x in held.items()}
            state.tensors |= {f"best/{name}": x for name, x in self._best.items()}

    def keep_best(self, state: TrainState) -> None:
        """Sets the weights aside as the best so far; raises as `save` does."""
        self.guard.check_parameters(f"step {state.step:,}, after validation")
        weights = weights_of(self.model)
        if self.folder is None:
            self._best = weights
        else:
            write_tensors(self.folder / "best.safetensors", weights)

    def restore_best(self) -> None:
        """Puts the weights that `keep_best` set aside into the model."""
        best = self._best if self.folder is None else trained_weights(self.folder)
        load_weights(self.model, best)


def require_unused(folder: Path | None) -> None:
    """Raises a RunFolderError when an earlier run saved its state in the folder."""
    if folder is not None and has_state(folder / "state"):
        raise RunFolderError(
            "a run folder is already in use",
            where=str(folder),
            found="the saved state of an earlier run",
            expected="an empty folder, or a state to resume from",
            fix='pass state=load_state(folder / "state") to go on, or choose another folder',
        )
