"""Probes: look at what passes a model's taps, and leave no trace.

    with watch(model, probe) as seen:
        seen.score(batch)
    records = probe.report()

While watching, the model is in evaluation mode without gradients; afterwards every module is back
in the mode it had, the hooks are gone, and every random generator is where it was.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.diagnose.records import Record
from fullrank.errors import UnknownNameError, nearest
from fullrank.tap import Tap


class Probe(Protocol):
    """Something that looks at taps. `taps` is a glob over their dotted names, such as "block*"."""

    taps: str

    def observe(self, name: str, x: Tensor, axes: str, batch: Batch | None) -> None:
        """Sees one tensor.

        Args:
            name: dotted name of the tap.
            x: what passed, float64 on the CPU, detached; bool masks stay bool.
            axes: what the tap says about its axes, such as "B N D".
            batch: the rows that are being scored, when the watch was told.
        """
        ...

    def report(self) -> list[Record]:
        """Returns what was found."""
        ...


class Watch:
    """A model under observation; `watch` makes it.

    Args:
        model: with a `score` method.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.batch: Batch | None = None

    def score(self, batch: Batch) -> dict[str, Tensor]:
        """Scores rows and lets the probes know which rows they are. Returns label -> [B]."""
        self.batch = batch
        score: Any = self.model.score
        out: dict[str, Tensor] = score(batch)
        return out


@contextmanager
def watch(model: nn.Module, *probes: Probe) -> Iterator[Watch]:
    """Hooks every tap that a probe asks for.

    Args:
        model: an `nn.Module` with taps; one wrapped by `torch.compile` is looked at underneath.
        probes: each sees the taps whose dotted name matches its glob.

    Raises:
        UnknownNameError: a probe asks for taps and no tap matches.
    """
    model = plain(model)
    handles = []
    seen = Watch(model)
    with measuring(model):
        try:
            for probe in probes:
                for name, tap in _matching(model, probe.taps):
                    handles.append(tap.register_forward_hook(partial(_show, probe, name, seen)))
            yield seen
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, and random generators put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    torch_state, python_state, numpy_state = (
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state(),
    )
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if devices:
            torch.cuda.set_rng_state_all(devices)


def tap_names(model: nn.Module) -> list[str]:
    """Returns the dotted names of all taps, in the order in which they were built."""
    return [name for name, module in plain(model).named_modules() if isinstance(module, Tap)]


def plain(model: nn.Module) -> nn.Module:
    """Returns the module under `torch.compile`, or the model itself."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def _matching(model: nn.Module, glob: str) -> list[tuple[str, Tap]]:
    taps = {name: m for name, m in model.named_modules() if isinstance(m, Tap)}
    found = [(name, tap) for name, tap in taps.items() if fnmatchcase(name, glob)]
    if not found and glob != "*":  # "*" asks for whatever there is
        raise UnknownNameError(
            "no tap of the model matches",
            where=type(model).__name__,
            found=f"'{glob}'",
            expected="a glob over the dotted names of its taps",
            fix=nearest(glob, taps),
        )
    return found


def _show(
    probe: Probe, name: str, seen: Watch, tap: nn.Module, inputs: tuple[Any, ...], x: Tensor
) -> None:
    assert isinstance(tap, Tap)
    x = x.detach().cpu()
    probe.observe(name, x if x.dtype == torch.bool else x.double(), tap.axes, seen.batch)
