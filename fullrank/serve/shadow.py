"""Shadow log: every n-th served row on disk, to be scored again and compared to the bit.

A log is a folder of JSON lines. Each process writes files of its own; the first line of a file says
which artefact served, and with what:

    {"fullrank": "shadow log", "format": 1, "artifact": "90c1...", "threads": 1, ...}
    {"raw": {"price": 3.5}, "encoded": {"user": 7, "price": 0.25}, "scores": {"click": 0.125}}

`encoded` is all that a score depends on. `raw` lacks the columns that the spec redacts, and
whatever the spec does not know. A line is written in one piece, so that a killed process leaves at
most one half of a line, at the end of its last file.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl
import torch

from fullrank import __version__
from fullrank.batch import Batch, Jagged
from fullrank.config import require
from fullrank.data.spec import History, Spec, Target
from fullrank.serve.artifact import Artifact

RawRow: TypeAlias = Callable[[int], Mapping[str, Any]]  # row number -> raw column -> value
FORMAT = 1
KIND = "shadow log"
_FILES = 32  # of a full log: when a new one is begun, a thirty-second of the past is lost
_LEAST_BYTES = 1 << 20
_MOST_WAITING = 10_000  # rows between the server and the disk
_PAUSE_SECONDS = 1.0  # after the disk refused a file
_CLOSE_SECONDS = 10.0
_NAME = re.compile(r"shadow-\d+-[0-9a-f]+-\d+\.jsonl")


@dataclass(frozen=True, kw_only=True)
class ShadowConfig:
    """Where served rows are written, and how many.

    Args:
        folder: of the log; several processes may share one.
        every: of how many served rows one is written. With a divisor of the length of all requests
            it meets the same places of a request every time; the default, a prime, does not.
        max_bytes: of the folder, at least 1 MiB: 32 files, of which the oldest makes room for a
            new one. Meant for up to 16 processes, so that nobody removes what another one writes.

    Raises:
        ConfigError: `every` or `max_bytes` is too small.
    """

    folder: Path
    every: int = 1009
    max_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("max_bytes", _LEAST_BYTES)):
            require(
                getattr(self, name) >= least,
                where=f"ShadowConfig.{name}",
                found=getattr(self, name),
                expected=f"at least {least:,}",
                fix="raise it",
            )


class ShadowLog:
    """Writes every n-th served row, in a thread of its own.

    Offering a row never waits: what the disk cannot take in time is dropped and counted.

    Args:
        config: where, and how many.
        artifact: that serves.
        fingerprint: of its manifest.
        form: of the model that scores, as `Engine.load` names it.
        threads: of torch where it scores; the last bits of a score may depend on them.
    """

    def __init__(
        self,
        config: ShadowConfig,
        artifact: Artifact,
        fingerprint: str,
        form: str = "eager",
        threads: int = 1,
    ) -> None:
        header = _header(artifact, fingerprint)
        header |= {"every": config.every, "form": form, "threads": threads}
        self._files = _Files(config.folder, json.dumps(header) + "\n", config.max_bytes)
        self._every, self._kept = config.every, _keeper(artifact.featurizer.spec)
        self._seen = self._waiting = 0
        self._dropped = self.written = 0
        self._guard = threading.Lock()
        self._queue: queue.SimpleQueue[_Offer | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="shadow log", daemon=True)
        self._writer.start()

    @property
    def dropped(self) -> int:
        """Returns how many rows were due and were not written: no time, no room, or no JSON."""
        return self._dropped

    def offer(self, raw: RawRow, batch: Batch, scores: Mapping[str, np.ndarray]) -> None:
        """Takes every n-th of these rows, counted over all offers.

        Args:
            raw: row number -> its raw values as they arrived; see `raw_rows`.
            batch: B rows, encoded.
            scores: label -> [B] float32, as they are answered.
        """
        count = len(batch)
        with self._guard:
            due = range(-self._seen % self._every, count, self._every)
            self._seen += count
            if due and (self._waiting + len(due) > _MOST_WAITING or not self._writer.is_alive()):
                self._dropped += len(due)
                return
        if due:
            named = {label: values[list(due)] for label, values in scores.items()}
            offer = [dict(raw(i)) for i in due], batch.rows(torch.tensor(due)), named
            with self._guard:
                self._waiting += len(due)
            self._queue.put(offer)

    def close(self) -> None:
        """Writes what waits, for ten seconds at most, and ends the thread."""
        self._queue.put(None)
        self._writer.join(_CLOSE_SECONDS)

    def _write(self) -> None:
        while (offer := self._queue.get()) is not None:
            raw, batch, scores = offer
            written = 0
            rows = zip(raw, encoded_rows(batch), _score_rows(scores, len(raw)), strict=True)
            for values, encoded, score in rows:
                record = {"raw": self._kept(values), "encoded": encoded, "scores": score}
                written += self._files.write(record)
            with self._guard:
                self._waiting -= len(raw)
                self._dropped += len(raw) - written
                self.written += written
        self._files.close()


_Offer: TypeAlias = tuple[list[dict[str, Any]], Batch, dict[str, np.ndarray]]


class _Files:
    """The files of one process, none larger than its share of the folder."""

    def __init__(self, folder: Path, header: str, max_bytes: int) -> None:
        self.folder, self.header, self.most = folder, header.encode(), max_bytes // _FILES
        self._begun = f"{os.getpid()}-{time.time_ns():x}"
        self._number, self._size, self._handle = 0, 0, -1
        self._again = 0.0  # when the disk may be asked again

    def write(self, record: dict[str, Any]) -> bool:
        """Writes one record; returns whether it is on the disk, as far as this process knows."""
        try:
            line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        except (TypeError, ValueError):
            return False  # a raw value that no request can hold
        if len(self.header) + len(line) > self.most or time.monotonic() < self._again:
            return False
        try:
            if self._handle < 0 or self._size + len(line) > self.most or self._is_removed():
                self._begin()
            if os.write(self._handle, line) != len(line):
                raise OSError("no room for the whole line")
        except OSError:  # serving goes on; half a line may stand at the end of this file
            self.close()
            self._again = time.monotonic() + _PAUSE_SECONDS
            return False
        self._size += len(line)
        return True

    def close(self) -> None:
        """Closes the file that is open."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _begin(self) -> None:
        """Opens a new file, and removes the oldest of the folder until there is room for it."""
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._number += 1
        path = self.folder / f"shadow-{self._begun}-{self._number:06}.jsonl"
        # No draft and no renaming here: what a killed process has written is to be found.
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._size = len(self.header)
        if os.write(self._handle, self.header) != self._size:
            raise OSError("no room for the whole line")
        older = sorted((_age(p), p) for p in log_files(self.folder) if p != path)
        for _, old in older[: max(0, len(older) - (_FILES - 1))]:
            old.unlink(missing_ok=True)

    def _is_removed(self) -> bool:
        return os.name != "nt" and os.fstat(self._handle).st_nlink == 0


def log_files(folder: Path) -> list[Path]:
    """Returns the files of a log, sorted by name; other files of the folder are left alone."""
    return sorted(p for p in folder.iterdir() if _NAME.fullmatch(p.name) and p.is_file())


def _age(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # another process removed it just now
        return 0


def raw_rows(*parts: Any) -> RawRow:
    """Returns the raw values of each row of a request.

    Args:
        parts: data frames, objects with `columns` (raw column -> values) such as `wire.Given`, or
            lists of mappings. Where another part has more, a part of one row stands for all rows:
            the user of a ranking.

    Example:
        >>> raw_rows([{"user": "u1"}], [{"ad": 1}, {"ad": 2}])(1)
        {'user': 'u1', 'ad': 2}
    """
    readers = [_reader(part) for part in parts]

    def row(i: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for count, read in readers:
            found.update(read(i if count > 1 else 0))
        return found

    return row


def _reader(part: Any) -> tuple[int, RawRow]:
    if isinstance(part, pl.DataFrame):
        return len(part), lambda i: part.row(i, named=True)
    if isinstance(part, Sequence):
        return len(part), lambda i: part[i]
    columns: Mapping[str, Sequence[Any]] = part.columns
    return part.rows, lambda i: {name: values[i] for name, values in columns.items()}


def _keeper(spec: Spec) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Returns what leaves of raw values those that a log may keep: of the spec, not redacted.

    A history of which a column is missing reads as empty, so that none of its columns is kept.
    Times, weights and groups enter no score.
    """
    hidden = spec.redacted()
    single = {c.name for c in spec.columns if not isinstance(c, History | Target)}
    pasts = [{e.column for e in h.events} for h in spec.histories()]

    def kept(raw: Mapping[str, Any]) -> dict[str, Any]:
        names = single.union(*(own for own in pasts if own <= raw.keys())) - hidden
        return {name: value for name, value in raw.items() if name in names}

    return kept


def encoded_rows(batch: Batch) -> list[dict[str, Any]]:
    """Returns each row as plain numbers: column of the spec -> value, list, or lists of a history.

    Every float32 is written as the float64 of the same value, which JSON brings back to the bit.
    """
    rows: list[dict[str, Any]] = [{} for _ in range(len(batch))]
    for columns in (batch.categorical, batch.numeric):
        for row, values in zip(rows, columns.block.tolist(), strict=True):
            row.update(zip(columns.names, values, strict=True))
    for name, block in batch.dense.items():
        for row, values in zip(rows, block.flatten(1).tolist(), strict=True):
            row[name] = values
    for name, bag in batch.bags.items():
        for row, values in zip(rows, _lists(bag, "value"), strict=True):
            row[name] = values
    for name, past in batch.sequences.items():
        for column in past.values:
            for row, values in zip(rows, _lists(past, column), strict=True):
                row.setdefault(name, {})[column] = values
    return rows


def _lists(jagged: Jagged, column: str) -> list[list[Any]]:
    flat, ends = jagged.values[column].tolist(), jagged.offsets.tolist()
    return [flat[a:b] for a, b in pairwise(ends)]


def _score_rows(scores: Mapping[str, np.ndarray], rows: int) -> list[dict[str, float]]:
    plain = {label: values.tolist() for label, values in scores.items()}
    return [{label: values[i] for label, values in plain.items()} for i in range(rows)]


def _header(artifact: Artifact, fingerprint: str) -> dict[str, Any]:
    return {
        "fullrank": KIND,
        "format": FORMAT,
        "artifact": fingerprint,
        "model": artifact.model,
        "redacted": sorted(artifact.featurizer.spec.redacted()),
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **environment(),
    }


def environment() -> dict[str, Any]:
    """Returns what, beside the artefact, the last bits of a score depend on."""
    return {
        "versions": {
            "fullrank": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "polars": pl.__version__,
        },
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
