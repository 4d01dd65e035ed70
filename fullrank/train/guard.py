"""Guard: notices a NaN, an infinity or an exploding loss, and says where it began."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import median

import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.errors import DivergedError
from fullrank.train.config import TrainConfig

WINDOW = 64  # losses per median
SMALLEST = 0.1  # a median nearer to zero counts as this, so that a loss of almost zero may jump
FLUSH = 16  # batches between two looks on a device where a look waits for the device


class Guard:
    """Reads the losses, averages them for the log, and stops a run that has diverged.

    A run has diverged when its loss or a parameter is NaN or infinite, or when the loss exceeded
    the median by `explode_factor` times the size of the median for `explode_steps` batches in a
    row. The median is that of the newest complete window of 64 batches; before the first window
    is full nothing counts as an explosion. Sizes below 0.1 count as 0.1.

    Args:
        model: whose parameters and gradients are named.
        config: holds the two thresholds.
        device: on the CPU every batch is looked at before its gradient is taken, elsewhere every
            sixteenth, because a look makes the program wait for the device.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, device: torch.device) -> None:
        self.model, self.config = model, config
        self.every = 1 if device.type == "cpu" else FLUSH
        self._pending: list[tuple[Tensor, str]] = []
        self._names: tuple[str, ...] = ()
        self._sums: list[float] = []
        self._batches = 0
        self._window: list[float] = []
        self._usual: float | None = None
        self._high = 0

    @property
    def calm(self) -> bool:
        """Is the newest loss within bounds?"""
        return self._high == 0

    def add(self, losses: Mapping[str, Tensor], stacked: Tensor, batch: Batch, where: str) -> None:
        """Takes the losses of one batch in.

        Args:
            losses: name -> scalar.
            stacked: [L], the same values.
            batch: that gave them.
            where: step, epoch and batch, for the message.

        Raises:
            DivergedError: see the class.
        """
        if self._names != tuple(losses):
            self._names, self._sums, self._batches = tuple(losses), [0.0] * len(losses), 0
        self._pending.append((stacked.detach(), where))
        if len(self._pending) >= self.every:
            self.flush(batch, stacked)

    def flush(self, batch: Batch | None = None, stacked: Tensor | None = None) -> None:
        """Looks at every batch that was not looked at yet."""
        if not self._pending:
            return
        rows = torch.stack([values for values, _ in self._pending]).tolist()
        pending, self._pending = self._pending, []
        for values, (_, where) in zip(rows, pending, strict=True):
            total = math.fsum(values) if all(map(math.isfinite, values)) else math.nan
            if not math.isfinite(total):
                raise self._not_finite(values, batch, stacked, where)
            self._look(total, where)
            self._sums = [a + b for a, b in zip(self._sums, values, strict=True)]
            self._batches += 1

    def means(self) -> dict[str, float]:
        """Returns the means since the last call: "loss" for the sum, and each loss of several."""
        self.flush()
        n = max(self._batches, 1)
        out = {f"loss/{k}": v / n for k, v in zip(self._names, self._sums, strict=True)}
        total = sum(self._sums) / n
        self._sums, self._batches = [0.0] * len(self._sums), 0
        return {"loss": total, **(out if len(out) > 1 else {})}

    def check_parameters(self, where: str) -> None:
        """Raises a DivergedError when a parameter is NaN or infinite; called before each save."""
        bad = _first_bad((n, p.detach()) for n, p in self.model.named_parameters())
        if bad is not None:
            raise _diverged("a parameter became NaN or infinite", where, f"parameter '{bad}'")

    def _look(self, loss: float, where: str) -> None:
        self._window.append(loss)
        if len(self._window) == WINDOW:
            self._usual, self._window = median(self._window), []
        if self._usual is None:
            return
        bound = self._usual + self.config.explode_factor * max(abs(self._usual), SMALLEST)
        self._high = self._high + 1 if loss > bound else 0
        if self._high >= self.config.explode_steps:
            raise _diverged(
                "the loss exploded",
                where,
                f"loss {loss:.4g}, above {bound:.4g} for {self._high} batches; usual "
                f"{self._usual:.4g}; largest parameter: {_largest(self.model)}",
            )

    def _not_finite(
        self, values: list[float], batch: Batch | None, stacked: Tensor | None, where: str
    ) -> DivergedError:
        """Names the first bad parameter, else the first bad gradient, else the bad input."""
        losses = ", ".join(f"{n} {v}" for n, v in zip(self._names, values, strict=True))
        parts = [f"loss {losses}"]
        bad = _first_bad((n, p.detach()) for n, p in self.model.named_parameters())
        if bad is not None:
            parts.append(f"first bad parameter '{bad}'")
        elif stacked is not None and stacked.requires_grad:
            stacked.sum().backward()  # type: ignore[no-untyped-call]
            grads = ((n, p.grad) for n, p in self.model.named_parameters() if p.grad is not None)
            bad = _first_bad((n, g._values() if g.is_sparse else g) for n, g in grads)
            parts.append(f"first bad gradient '{bad}'" if bad else "every gradient finite")
        if batch is not None and (field := _bad_input(batch)) is not None:
            parts.append(f"NaN or infinity in {field}")
        return _diverged("the loss became NaN or infinite", where, "; ".join(parts))


def _first_bad(named: Iterable[tuple[str, Tensor]]) -> str | None:
    for name, x in named:
        # A finite sum means finite members; only a bad one needs the slower look.
        if not math.isfinite(float(x.sum())) and not bool(torch.isfinite(x).all()):
            return name
    return None


def _bad_input(batch: Batch) -> str | None:
    columns = [(f"field '{n}'", batch.numeric[n]) for n in batch.numeric]
    columns += [(f"field '{n}'", x) for n, x in batch.dense.items()]
    columns += [(f"label '{n}'", batch.labels[n]) for n in batch.labels]
    columns.append(("the row weights", batch.weight))
    return next((name for name, x in columns if not bool(torch.isfinite(x).all())), None)


def _largest(model: nn.Module) -> str:
    sizes = [(float(p.detach().abs().max()), n) for n, p in model.named_parameters() if p.numel()]
    size, name = max(sizes)
    return f"'{name}', {size:.4g}"


def _diverged(what: str, where: str, found: str) -> DivergedError:
    return DivergedError(
        what,
        where=where,
        found=found,
        expected="finite numbers, and a loss near its usual size",
        fix="lower the learning rate, set clip_norm, or look at the batch; the last good state "
        "was kept",
    )
