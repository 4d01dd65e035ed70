"""TrainState: everything that a run needs to go on as if it had never stopped.

On disk a state is a numbered folder of two safetensors files and one JSON file, written under
another name, synced, and renamed; only then are older ones removed. So there is a complete state
at every moment, whatever kills the process.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fullrank.disk import written_whole
from fullrank.errors import StateError
from fullrank.train.optim import Optimizers
from fullrank.train.schedule import Progress

VERSION = 1
_KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(kw_only=True)
class TrainState:
    """Where a run stands.

    Args:
        identity: what the state belongs to: settings, shapes, data. `require_same` compares it.
        loader: position of the loader, as its `state()` returned it.
        epoch: complete passes.
        batch: batches used of the running pass.
        step: optimiser steps taken.
        seconds: wall time spent so far.
        progress: what validation has shown.
        tensors: "model/NAME", "optimizer/NAME/KEY" and "random/DEVICE"; in a run without a folder
            "best/NAME" too. Empty in what `train` returns when it was given a folder: they lie
            there.
        interrupted: True when the run was asked to stop; resume to finish it.
    """

    identity: dict[str, Any]
    loader: dict[str, int]
    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    progress: Progress = field(default_factory=Progress)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    interrupted: bool = False

    def require_same(self, identity: Mapping[str, Any]) -> None:
        """Raises a StateError that names both sides unless the state belongs to this run."""
        mine, theirs = _flat(self.identity), _flat(identity)
        for name in sorted({*mine, *theirs}):
            if mine.get(name) != theirs.get(name):
                raise StateError(
                    "a saved state belongs to another run",
                    where=f"'{name}'",
                    found=f"{mine.get(name)!r} in the state",
                    expected=f"{theirs.get(name)!r}, as asked for now",
                    fix="resume with the model, settings and data of the first run, or start anew "
                    "in another folder",
                )


def capture(model: nn.Module, optimizers: Optimizers) -> dict[str, Tensor]:
    """Returns every tensor that decides what happens next. Nothing is copied."""
    names = {id(p): name for name, p in model.named_parameters()}
    out = {f"model/{name}": x for name, x in _held(model).items()}
    for optimizer in optimizers.each:
        for parameter, values in optimizer.state.items():
            for key, x in values.items():
                out[f"optimizer/{names[id(parameter)]}/{key}"] = x
    out["random/cpu"] = torch.get_rng_state()
    for i, x in enumerate(torch.cuda.get_rng_state_all() if _on_cuda(model) else ()):
        out[f"random/cuda{i}"] = x
    return {name: x.detach() for name, x in out.items()}


def restore(tensors: Mapping[str, Tensor], model: nn.Module, optimizers: Optimizers) -> None:
    """Writes what `capture` returned back into a model, its optimisers and the random state.

    Raises:
        StateError: a name or a shape differs.
    """
    load_weights(model, {n[6:]: x for n, x in tensors.items() if n.startswith("model/")})
    parameters = dict(model.named_parameters())
    homes = {id(p): o for o in optimizers.each for g in o.param_groups for p in g["params"]}
    for name, x in tensors.items():
        if not name.startswith("optimizer/"):
            continue
        owner, _, key = name.removeprefix("optimizer/").rpartition("/")
        parameter = parameters.get(owner)
        if parameter is None or id(parameter) not in homes:
            raise _mismatch(name, "a moment of a parameter", "no such parameter is trained")
        homes[id(parameter)].state[parameter][key] = x.to(parameter.device, copy=True)
    torch.set_rng_state(tensors["random/cpu"])
    if _on_cuda(model):
        count = sum(name.startswith("random/cuda") for name in tensors)
        torch.cuda.set_rng_state_all([tensors[f"random/cuda{i}"] for i in range(count)])


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies weights into a model, in place.

    Raises:
        StateError: a name or a shape differs.
    """
    held = _held(model)
    for name in sorted({*held, *weights}):
        mine = tuple(held[name].shape) if name in held else None
        theirs = tuple(weights[name].shape) if name in weights else None
        if mine != theirs:
            raise _mismatch(name, f"shape {theirs} in the state", f"shape {mine} in the model")
    with torch.no_grad():
        for name, x in weights.items():
            held[name].copy_(x)


def save_state(folder: Path, state: TrainState) -> None:
    """Writes a state; the one before it stays until this one is complete.

    Raises:
        DiskFullError: there is no room; the state before is intact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = max(_numbers(folder), default=0) + 1
    target = folder / f"{number:06d}"
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "rest": {}}
    for name, x in state.tensors.items():
        parts["model" if name.startswith("model/") else "rest"][name] = x
    plain = {k: v for k, v in vars(state).items() if k not in ("tensors", "progress")}
    plain |= {"progress": asdict(state.progress), "version": VERSION}
    for cut_off in folder.glob(".*.part"):  # by a process that was killed while it saved
        shutil.rmtree(cut_off)
    with written_whole(target, durable=True) as draft:
        draft.mkdir()
        for part, tensors in parts.items():
            write_tensors(draft / f"{part}.safetensors", tensors)
        (draft / "state.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")
    for older in _numbers(folder):
        if older < number:
            shutil.rmtree(folder / f"{older:06d}")


def load_state(folder: Path) -> TrainState:
    """Reads the newest complete state of a folder that `save_state` wrote to.

    Raises:
        StateError: there is none, it is damaged, or another version wrote it.
    """
    newest = max(_numbers(folder), default=None)
    if newest is None:
        raise StateError(
            "there is no saved state",
            where=str(folder),
            found="no complete state",
            expected="a folder in which a run saved its state",
            fix="start the run anew, or name the folder of a run that was interrupted",
        )
    path = folder / f"{newest:06d}"
    try:
        plain = json.loads((path / "state.json").read_text(encoding="utf-8"))
        tensors = {
            **load_file(path / "model.safetensors"),
            **load_file(path / "rest.safetensors"),
        }
    except (OSError, ValueError, SafetensorError) as cause:
        raise _damaged(path, str(cause)) from cause
    if plain.pop("version", None) != VERSION:
        raise _damaged(path, "another version of the format")
    try:
        progress = Progress(**plain.pop("progress"))
        return TrainState(**plain, progress=progress, tensors=tensors)
    except (KeyError, TypeError) as cause:
        raise _damaged(path, str(cause)) from cause


def trained_weights(folder: Path, *, best: bool = True) -> dict[str, Tensor]:
    """Reads the weights of a run, for `load_weights`.

    Args:
        folder: of the run, as `train` had it.
        best: those of the best validation, if there was one; False for the last ones saved.

    Raises:
        StateError: the run saved nothing.
    """
    path = folder / "best.safetensors"
    if best and path.exists():
        return load_file(path)
    tensors = load_state(folder / "state").tensors
    return {n[6:]: x for n, x in tensors.items() if n.startswith("model/")}


def has_state(folder: Path) -> bool:
    """Returns True when a complete state lies in the folder."""
    return bool(_numbers(folder))


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns a copy of parameters and persistent buffers, a tied one once."""
    return {name: x.detach().clone() for name, x in _held(model).items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes one safetensors file atomically and syncs it.

    The format is written here, tensor by tensor: `safetensors.torch.save_file` first copies all
    of them, and took 2 to 5 times the CPU time on tables of two million rows.

    Raises:
        DiskFullError: there is no room; what was there before is intact.
    """
    header, end = {}, 0
    for name, x in tensors.items():
        start, end = end, end + x.numel() * x.element_size()
        kind = _KINDS[x.dtype]
        header[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with written_whole(path, durable=True) as draft, draft.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for x in tensors.values():
            flat = x.detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def _held(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tied one has its first name alone."""
    kept = model.state_dict(keep_vars=True)
    seen: set[int] = set()
    out = {}
    for name, x in kept.items():
        if isinstance(x, Tensor) and id(x) not in seen:
            seen.add(id(x))
            out[name] = x
    return out


def _numbers(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(p.name) for p in folder.iterdir() if re.fullmatch(r"\d{6,}", p.name)]


def _on_cuda(model: nn.Module) -> bool:
    return any(p.device.type == "cuda" for p in model.parameters())


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def _mismatch(name: str, found: str, expected: str) -> StateError:
    return StateError(
        "a saved state does not fit the model",
        where=f"'{name}'",
        found=found,
        expected=expected,
        fix="build the model with the config and schema of the first run",
    )


def _damaged(path: Path, found: str) -> StateError:
    return StateError(
        "a saved state cannot be read",
        where=str(path),
        found=found,
        expected="the files that fullrank wrote, unchanged",
        fix="remove this folder and resume from another, or start the run anew",
    )
