"""Metrics: counters, gauges and histograms in the text format of Prometheus.

Every worker keeps its own numbers and leaves a copy in the runtime folder each second, so that
whichever worker is asked tells those of all, each with the label `worker`, its process.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_ROWS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096)
_KINDS: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "fullrank_requests_total": ("counter", "answers by path and status", ()),
    "fullrank_request_seconds": ("histogram", "from request to answer, by path", _SECONDS),
    "fullrank_rows_total": ("counter", "rows that were scored, by path", ()),
    "fullrank_batch_rows": ("histogram", "rows of a forward pass", _ROWS),
    "fullrank_batch_seconds": ("histogram", "of a forward pass", _SECONDS),
    "fullrank_queue_rows": ("gauge", "rows that wait", ()),
    "fullrank_buffered_bytes": ("gauge", "bodies being read", ()),
    "fullrank_shadow_written_rows": ("gauge", "rows in the shadow log, of this artefact", ()),
    "fullrank_shadow_dropped_rows": ("gauge", "rows that the disk could not take in time", ()),
    "fullrank_reloads_total": ("counter", "attempts to swap the artefact, by result", ()),
    "fullrank_model_info": ("gauge", "1 for the artefact that is served", ()),
}

Snapshot = dict[str, dict[str, Any]]


class Metrics:
    """Numbers of one process. Labels come from closed sets, so that their number stays small."""

    def __init__(self) -> None:
        self._values: Snapshot = {name: {} for name in _KINDS}

    def add(self, name: str, by: float = 1, **labels: str) -> None:
        """Raises a counter."""
        series = self._values[name]
        key = _key(labels)
        series[key] = series.get(key, 0) + by

    def put(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge; other labels of the same gauge are forgotten."""
        self._values[name] = {_key(labels): value}

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Adds a value to a histogram."""
        bounds = _KINDS[name][2]
        counts = self._values[name].setdefault(_key(labels), [0] * (len(bounds) + 1) + [0.0])
        counts[bisect_left(bounds, value)] += 1
        counts[-1] += value

    def snapshot(self) -> Snapshot:
        """Returns all numbers as plain data."""
        return {name: dict(series) for name, series in self._values.items() if series}


def render(workers: Mapping[str, Snapshot]) -> str:
    """Returns worker -> numbers as Prometheus reads them."""
    lines: list[str] = []
    for name, (kind, text, bounds) in _KINDS.items():
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        for worker, snapshot in workers.items():
            for key, value in snapshot.get(name, {}).items():
                labels = ",".join(part for part in (f'worker="{worker}"', key) if part)
                if kind == "histogram":
                    lines += _histogram(name, labels, value, bounds)
                else:
                    lines.append(f"{name}{{{labels}}} {_number(value)}")
    return "\n".join(lines) + "\n"


def _histogram(name: str, labels: str, counts: list[float], bounds: tuple[float, ...]) -> list[str]:
    lines, total = [], 0.0
    for bound, count in zip((*bounds, math.inf), counts, strict=False):
        total += count
        lines.append(f'{name}_bucket{{{labels},le="{_number(bound)}"}} {_number(total)}')
    lines.append(f"{name}_sum{{{labels}}} {_number(counts[-1])}")
    lines.append(f"{name}_count{{{labels}}} {_number(total)}")
    return lines


def _key(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(float(value))
