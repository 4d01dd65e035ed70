"""Replaying what was served: `fullrank predict --check`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from fullrank.batch import Batch
from fullrank.config import require
from fullrank.errors import DataMissingError, EmptyInputError
from fullrank.ops.blocks import score_in_blocks
from fullrank.serve.artifact import Artifact, read_manifest
from fullrank.serve.forms import Form, make_form
from fullrank.serve.predictor import Predictor, calibrated
from fullrank.serve.replay import BLOCK, Difference, Log, Replay
from fullrank.serve.shadow import environment, log_files
from fullrank.workflow.apply import artifact_folder
from fullrank.workflow.console import console, preparing, table

_MOST_THREADS = 256


def check_command(folder: Path, place: Path) -> dict[str, Any]:
    """Encodes and scores the rows of a shadow log again and compares them to the bit.

    Args:
        folder: an artefact, or a run that has one.
        place: a log, or one file of it. Of a folder, files of other artefacts are left out.

    Raises:
        ConfigError: all of the log is of another artefact.
        DataMissingError: there is no log.
        EmptyInputError: no row was served, or none was written to its end.
        DataFormatError: a file is damaged elsewhere than at its end.
    """
    folder = artifact_folder(folder)
    fingerprint: str = read_manifest(folder)["fingerprint"]
    artifact = Artifact.load(folder)
    logs = [Log.open(path) for path in _files(place)]
    mine = [log for log in logs if log.header.get("artifact") == fingerprint]
    others = sorted({str(log.header["artifact"]) for log in logs if log.header} - {fingerprint})
    require(
        bool(mine) or not others,
        where=f"--check {place}",
        found=f"rows that artefact {', '.join(others)[:200]} served",
        expected=f"rows of artefact {fingerprint}, which is {folder}",
        fix="name the artefact that served, or the log of this one",
    )
    began = time.perf_counter()
    said: dict[str, Any] = {"rows": 0, "encoded_again": 0, "unequal": 0, "first": None}
    total = sum(_lines(log.path) - 1 for log in mine)
    with preparing("checking") as advance:
        for log in mine:
            for rows, encoded, found in _checked(artifact, log):
                said["rows"] += rows
                said["encoded_again"] += encoded
                said["unequal"] += len(found)
                if found and said["first"] is None:
                    said["first"] = _plain(found[0], artifact)
                advance("rows", said["rows"], total)
    if not said["rows"]:
        raise _nothing(place)
    seconds = time.perf_counter() - began
    said |= {
        "artifact": fingerprint,
        "files": len(mine),
        "files_of_others": sum(bool(log.header) for log in logs) - len(mine),
        "half_lines": sum(log.half for log in logs),
        "other_environment": _differing(mine),
        "seconds": round(seconds, 3),
        "rows_per_second": round(said["rows"] / seconds),
    }
    _tell(said)
    return said


def _files(place: Path) -> list[Path]:
    files = log_files(place) if place.is_dir() else [place] if place.is_file() else []
    if not files:
        raise DataMissingError(
            "there is no shadow log here",
            where=str(place),
            found="a folder without one" if place.is_dir() else "nothing",
            expected="a folder that `fullrank serve` wrote, or one file of it",
            fix="check the path",
        )
    return files


def _nothing(place: Path) -> EmptyInputError:
    return EmptyInputError(
        "there is nothing to check",
        where=str(place),
        found="0 rows",
        expected="at least one served row",
        fix="serve for longer, or write more rows: every n-th one, with a smaller n",
    )


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 20), b""))


def _checked(artifact: Artifact, log: Log) -> Iterator[tuple[int, int, list[Difference]]]:
    """Yields rows, rows encoded again, and differences, block by block.

    Rows are scored by the form and with the threads that the header says served them.
    """
    threads, form = log.header["threads"], log.header["form"]
    require(
        0 < threads <= _MOST_THREADS and form in get_args(Form),
        where=f"{log.path}, line 1",
        found=f"{threads} threads, form '{form}'",
        expected=f"1 to {_MOST_THREADS} threads; one of: " + ", ".join(get_args(Form)),
        fix="check with the version of fullrank that served",
    )
    rows = log.rows()
    with _threads(threads):
        replay = Replay(artifact.featurizer, _scorer(artifact, form))
        while block := list(islice(rows, BLOCK)):
            before, found = replay.encoded, replay.check(block)
            yield len(block), replay.encoded - before, found


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _scorer(artifact: Artifact, form: Form) -> Callable[[Batch], dict[str, np.ndarray]]:
    predictor = Predictor(artifact)
    score = make_form(predictor.model, artifact.schema, form)

    def probabilities(batch: Batch) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            logits = score_in_blocks(score, batch)
        return calibrated({n: x.numpy() for n, x in logits.items()}, artifact.calibration)

    return probabilities


def _differing(logs: list[Log]) -> dict[str, list[str]]:
    """Returns what served -> what checks, where that may change the last bits of a score."""
    now, found = environment(), dict[str, list[str]]()
    now["versions"].pop("fullrank")
    for log in logs:
        pairs = {"machine": (log.header["machine"], now["machine"])}
        pairs |= {n: (log.header["versions"].get(n), v) for n, v in now["versions"].items()}
        found.update({n: [str(a), str(b)] for n, (a, b) in pairs.items() if a != b})
    return found


def _plain(difference: Difference, artifact: Artifact) -> dict[str, Any]:
    """Returns the row as people may see it: without what its spec redacts."""
    hidden = artifact.featurizer.spec.redacted()
    raw = {n: v for n, v in difference.row.raw.items() if n not in hidden}
    return {
        "at": difference.row.place,
        "raw": raw | dict.fromkeys(sorted(hidden), "(redacted)"),
        "encoded": {n: list(pair) for n, pair in difference.encoded.items()},
        "scores": {n: list(pair) for n, pair in difference.scores.items()},
    }


def _tell(said: dict[str, Any]) -> None:
    rows, unequal, rate = said["rows"], said["unequal"], said["rows_per_second"]
    console.print(
        f"{rows:,} served rows checked, {unequal:,} unequal ({rate:,} rows/s); raw values of "
        f"{said['encoded_again']:,} encoded again",
        markup=False,
    )
    if said["files_of_others"]:
        console.print(f"{said['files_of_others']:,} files of other artefacts left out")
    if said["half_lines"]:
        console.print(f"{said['half_lines']:,} half-written lines left out")
    for name, (served, here) in said["other_environment"].items():
        console.print(f"{name}: served by {served}, checked by {here}", markup=False)
    if first := said["first"]:
        pairs = {**first["encoded"], **first["scores"]}
        rows_shown = [[n, str(a), str(b)] for n, (a, b) in pairs.items()]
        table(f"first unequal row: {first['at']}", ["", "served", "replayed"], rows_shown)
        console.print(f"raw values: {first['raw']}", markup=False)
