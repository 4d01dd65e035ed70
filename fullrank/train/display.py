"""What a person sees while a run goes on: a bar on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

REFRESH_SECONDS = 0.25


class Display(AbstractContextManager["Display"]):
    """Writes progress to the standard error output.

    Args:
        show: True draws a bar, False writes nothing, None draws a bar on a terminal and writes
            one line per epoch elsewhere.
        epochs: of the whole run.
        batches: per epoch.
    """

    def __init__(self, show: bool | None, epochs: int, batches: int) -> None:
        self.epochs, self.batches = epochs, batches
        self.bar: Any = None
        self.silent = show is False
        if show or (show is None and sys.stderr.isatty()):
            self.bar = _bar()
            self.bar.start()
        self._task: Any = None
        self._rows, self._since, self._next = 0, 0.0, 0.0
        self._loss = "-"

    def start_epoch(self, epoch: int, batch: int) -> None:
        """Begins a pass, perhaps in its middle."""
        self._rows, self._since = 0, time.monotonic()
        if self.bar is not None:
            if self._task is not None:
                self.bar.remove_task(self._task)
            name = f"epoch {epoch + 1}/{self.epochs}"
            self._task = self.bar.add_task(
                name, total=self.batches, completed=batch, rate="", loss=self._loss
            )

    def advance(self, batch: int, rows: int) -> None:
        """Counts one batch; draws at most four times a second, and starts no thread."""
        self._rows += rows
        if self.bar is not None and (now := time.monotonic()) >= self._next:
            self._next = now + REFRESH_SECONDS
            rate = f"{self._rate():,.0f} rows/s"
            self.bar.update(self._task, completed=batch, rate=rate, loss=self._loss, refresh=True)

    def show_loss(self, loss: float) -> None:
        """Sets the loss that is shown from now on."""
        self._loss = f"{loss:.4f}"

    def end_epoch(self, epoch: int, values: Mapping[str, float], metric: str) -> None:
        """Says how the pass ended. `values` come from validation and may be empty."""
        found = {n: v for n, v in values.items() if n == metric or n.endswith(f"/{metric}")}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in found.items())
        line = f"epoch {epoch + 1}/{self.epochs}  loss {self._loss}  {shown}  "
        line += f"{self._rate():,.0f} rows/s"
        self.note(line)

    def note(self, text: Any) -> None:
        """Shows a line or a rich table, above the bar where there is one."""
        if self.silent:
            return
        from rich.console import Console

        console = Console(stderr=True) if self.bar is None else self.bar.console
        console.print(text, highlight=False, soft_wrap=isinstance(text, str))

    def __exit__(self, *_: object) -> None:
        """Takes the bar away."""
        if self.bar is not None:
            self.bar.stop()

    def _rate(self) -> float:
        return self._rows / max(time.monotonic() - self._since, 1e-9)


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
    )
