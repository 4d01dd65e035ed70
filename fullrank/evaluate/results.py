"""Results of single runs as JSON files, one per recipe and seed, so that finished runs are kept."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from fullrank.config import from_dict, to_dict
from fullrank.disk import write_text
from fullrank.errors import (
    ConfigError,
    DataFormatError,
    IncomparableError,
    MetricUndefinedError,
)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What one recipe reached with one seed.

    Args:
        recipe: its name.
        seed: of the run.
        metrics: name -> value, finite.
        fingerprint: of everything that determines the run apart from its seed (recipe, data);
            a result with another fingerprint is stale.
        parameters: how many the model has.
        step_seconds: of a training step.
        paper: metric -> the number that the paper reports.
        floor: metric -> what a naive method reaches, such as the base rate.
        notes: what must be said beside any number, such as how the data differs.
        popularity: metric -> what the popularity of the judged item alone reaches.
    """

    recipe: str
    seed: int
    metrics: dict[str, float]
    fingerprint: str = ""
    parameters: int | None = None
    step_seconds: float | None = None
    paper: dict[str, float] = field(default_factory=dict)
    floor: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    popularity: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                raise MetricUndefinedError(
                    "a metric of a run is not finite",
                    where=f"recipe '{self.recipe}', seed {self.seed}, metric '{name}'",
                    found=str(value),
                    expected="a finite number",
                    fix="find out why the run diverged; leave the metric out where undefined",
                )


def result_path(folder: Path, recipe: str, seed: int) -> Path:
    """Returns where the result of a run lies; any recipe name gives a file name of its own."""
    return folder / f"{quote(recipe, safe='')}-seed{seed}.json"


def write_result(folder: Path, result: RunResult) -> Path:
    """Writes a result in one piece, replacing an older one of the same recipe and seed.

    Raises:
        DiskFullError: there is no room; the older file stays as it was.
    """
    path = result_path(folder, result.recipe, result.seed)
    write_text(path, json.dumps(to_dict(result), indent=2, sort_keys=True, allow_nan=False) + "\n")
    return path


def read_result(path: Path) -> RunResult:
    """Reads one result.

    Raises:
        DataFormatError: the file is not what `write_result` writes.
    """
    try:
        return from_dict(RunResult, json.loads(path.read_text(encoding="utf-8")), str(path))
    except (json.JSONDecodeError, UnicodeDecodeError, ConfigError) as cause:
        first_line = str(cause).splitlines()[0]
        raise DataFormatError(
            "a result of a run cannot be read",
            where=str(path),
            found=f"{type(cause).__name__}: {first_line}",
            expected="what write_result writes",
            fix="delete the file; the run is then made again",
        ) from cause


def finished(folder: Path, recipe: str, seed: int, fingerprint: str = "") -> RunResult | None:
    """Returns the result of a run that need not be made again, or None.

    Args:
        folder: where results lie.
        recipe: its name.
        seed: of the run.
        fingerprint: of the recipe and its data as they are now.

    Raises:
        IncomparableError: there is a result, but of a recipe or data that have changed since.
        DataFormatError: the file cannot be read.
    """
    path = result_path(folder, recipe, seed)
    if not path.exists():
        return None
    result = read_result(path)
    if result.fingerprint != fingerprint:
        raise IncomparableError(
            "a stored result belongs to another version of the recipe or its data",
            where=str(path),
            found=f"fingerprint '{result.fingerprint}'",
            expected=f"fingerprint '{fingerprint}'",
            fix="delete the file to make the run again, or use another folder",
        )
    return result
