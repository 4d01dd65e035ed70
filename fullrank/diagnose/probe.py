"""Probes: look at what passes a model's taps, and leave no trace.

    with watch(model, probe) as seen:
        seen.score(batch)
    records = probe.report()

Which rows they see is the fixed diagnostic subset: the first rows of a seeded shuffle, the same
for every model. While watching, the model is in evaluation mode without gradients; afterwards
every module is back in the mode it had, the hooks are gone, and every random generator is where it
was.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fullrank.batch import Batch, Columns, Jagged
from fullrank.diagnose.records import Record
from fullrank.errors import EmptyInputError, UnknownNameError, nearest
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


@dataclass(frozen=True)
class Subset:
    """Rows to diagnose.

    Args:
        batch: all of them.
        hash: 16 hex digits that change with any value in them.
    """

    batch: Batch
    hash: str

    def parts(self, size: int) -> Iterator[Batch]:
        """Yields the rows in pieces of at most `size`."""
        for start in range(0, len(self.batch), size):
            yield self.batch.rows(torch.arange(start, min(start + size, len(self.batch))))


def take_subset(batches: Iterable[Batch], rows: int, seed: int = 0) -> Subset:
    """Keeps the first `rows` rows of a seeded shuffle of a stream.

    Every row gets a hash of its place in the stream as its key, and the smallest keys stay. How
    the stream was cut into batches changes nothing, and at most twice `rows` are held.

    Args:
        batches: in a fixed order, such as an unshuffled loader over the validation split.
        rows: how many to keep; all when there are fewer.
        seed: of the shuffle.

    Raises:
        EmptyInputError: there is not one row.
    """
    kept: list[Batch] = []
    keys = np.zeros(0, np.uint64)
    seen = 0
    for batch in batches:
        fresh = _keys(seen, len(batch), seed)
        seen += len(batch)
        if len(keys) >= rows:
            chosen = np.flatnonzero(fresh < np.partition(keys, rows - 1)[rows - 1])
        else:
            chosen = np.arange(len(batch))
        if len(chosen):
            kept.append(batch.rows(torch.from_numpy(chosen)))
            keys = np.concatenate([keys, fresh[chosen]])
        if len(keys) > 2 * rows:
            kept, keys = _smallest(kept, keys, rows)
    if not len(keys):
        raise EmptyInputError(
            "there are no rows to diagnose",
            where="take_subset",
            found="0 rows",
            expected="at least one batch of the validation split",
            fix="pass an unshuffled loader over rows with labels",
        )
    kept, _ = _smallest(kept, keys, rows)
    return Subset(kept[0], fingerprint(kept[0]))


def joined(batches: Sequence[Batch]) -> Batch:
    """Returns the rows of several batches as one batch."""
    first = batches[0]

    def columns(part: Callable[[Batch], Columns]) -> Columns:
        return Columns(part(first).names, torch.cat([part(b).block for b in batches]))

    def jagged(parts: Sequence[Jagged]) -> Jagged:
        lengths = torch.cat([p.lengths() for p in parts])
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        values = {n: torch.cat([p.values[n] for p in parts]) for n in parts[0].values}
        return Jagged(values, offsets)

    return Batch(
        categorical=columns(lambda b: b.categorical),
        numeric=columns(lambda b: b.numeric),
        labels=columns(lambda b: b.labels),
        observed=columns(lambda b: b.observed),
        weight=torch.cat([b.weight for b in batches]),
        group=torch.cat([b.group for b in batches]),
        time=torch.cat([b.time for b in batches]),
        bags={n: jagged([b.bags[n] for b in batches]) for n in first.bags},
        dense={n: torch.cat([b.dense[n] for b in batches]) for n in first.dense},
        sequences={n: jagged([b.sequences[n] for b in batches]) for n in first.sequences},
    )


def fingerprint(batch: Batch) -> str:
    """Returns 16 hex digits that change with any value in a batch."""
    digest = hashlib.sha256()
    tensors = [c.block for c in (batch.categorical, batch.numeric, batch.labels, batch.observed)]
    for jagged in (*batch.bags.values(), *batch.sequences.values()):
        tensors += [jagged.offsets, *jagged.values.values()]
    for tensor in (*tensors, *batch.dense.values(), batch.weight):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _smallest(
    kept: list[Batch], keys: np.ndarray[tuple[int], np.dtype[np.uint64]], rows: int
) -> tuple[list[Batch], np.ndarray[tuple[int], np.dtype[np.uint64]]]:
    order = np.argsort(keys, kind="stable")[:rows]
    return [joined(kept).rows(torch.from_numpy(order))], keys[order]


def _keys(start: int, count: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """SplitMix64 of the row's place: well mixed, and independent of how the stream is cut."""
    x = np.arange(start, start + count, dtype=np.uint64)
    x += np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
