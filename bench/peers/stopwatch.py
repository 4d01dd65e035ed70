"""Phases of one contestant's job in wall and CPU seconds, written as one JSON file.

Runs inside every peer's own environment, so it needs nothing but the standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def arguments(description: str) -> argparse.Namespace:
    """The options that every contestant understands."""
    parser = _parser(description)
    parser.add_argument("--raw", type=Path, required=True, help="data root with frappe/*.libfm.gz")
    parser.add_argument("--batch-norm", action="store_true")
    parser.add_argument("--extra-rows", type=int, default=0, help="unused rows of the item table")
    parser.add_argument("--sparse", action="store_true", help="plain loop: SparseAdam")
    parser.add_argument("--dense", action="store_true", help="fullrank: no row-wise optimiser")
    return _parsed(parser)


def history_arguments(description: str) -> argparse.Namespace:
    """The options of the contestants that read histories."""
    parser = _parser(description)
    parser.add_argument("--model", choices=("din", "dien", "dien_product"), default="din")
    parser.add_argument("--bare", action="store_true", help="fullrank: steps on ready batches")
    return _parsed(parser)


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder with csv/ and recbole/")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    return parser


def _parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    chosen = parser.parse_args()
    for name in {"data", "raw", "work", "out"} & set(vars(chosen)):
        setattr(chosen, name, getattr(chosen, name).resolve())
    chosen.work.mkdir(parents=True, exist_ok=True)
    return chosen


class Stopwatch:
    """Adds up phases; `spent` may be subtracted from a phase that has another one inside."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, float]] = {}
        self.samples = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of a block to a phase."""
        wall, cpu = time.perf_counter(), cpu_seconds()
        yield
        self.add(name, time.perf_counter() - wall, cpu_seconds() - cpu)

    def add(self, name: str, wall: float, cpu: float) -> None:
        """Adds to a phase; negative where an inner phase is taken off an outer one."""
        spent = self.phases.setdefault(name, {"wall": 0.0, "cpu": 0.0})
        spent["wall"] += wall
        spent["cpu"] += cpu

    def finish(self, out: Path, peer: str, auc: float, settings: dict[str, Any]) -> None:
        """Writes what `bench/peers.py` reads."""
        result = {
            "peer": peer,
            "auc": float(auc),
            "samples": self.samples,
            "phases": self.phases,
            "settings": settings,
        }
        out.write_text(json.dumps(result))
        print(json.dumps(result), flush=True)


def cpu_seconds() -> float:
    """CPU seconds of this process with all its threads and of its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
