"""`fullrank compare`: recipes over seeds, in processes of one thread each, resumable."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as EtaColumn

from fullrank.config import require
from fullrank.errors import RunFolderError
from fullrank.evaluate.compare import compare
from fullrank.evaluate.page import markdown, write_comparison
from fullrank.evaluate.results import RunResult, finished, write_result
from fullrank.train.state import has_state
from fullrank.workflow.console import console, preparing
from fullrank.workflow.data import DataOptions, open_data
from fullrank.workflow.folder import RunFolder
from fullrank.workflow.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from fullrank.cli import Compare

_POLL_SECONDS = 0.5


class Job(NamedTuple):
    """One recipe with one seed, and what its result depends on."""

    asked: str
    recipe: Recipe
    seed: int
    fingerprint: str
    folder: Path

    @property
    def log(self) -> Path:
        """What the run said."""
        return self.folder.with_name(f"{self.folder.name}.log")


def compare_command(asked: Compare) -> dict[str, Any]:
    """Trains what is not trained yet, then writes the table and the picture."""
    require(
        asked.seeds >= 1,
        where="--seeds",
        found=asked.seeds,
        expected="at least 1; 5 for an interval that says something",
        fix="raise it",
    )
    require(
        asked.processes is None or asked.processes >= 1,
        where="--processes",
        found=asked.processes,
        expected="at least 1",
        fix="raise it, or leave it out for one per core",
    )
    recipes = [load_recipe(name, asked.set) for name in asked.recipes]
    names = [recipe.name for recipe in recipes]
    require(
        bool(names) and len({*names}) == len(names),
        where="fullrank compare",
        found=", ".join(names) or "no recipe",
        expected="one or more recipes, each name once",
        fix="name recipes of `fullrank recipes`, or files of your own with different names",
    )
    jobs = list(_jobs(asked, recipes))
    waiting = [j for j in jobs if _finished(j) is None]
    console.print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} finished already")
    if waiting:
        _run_all(waiting, asked)
    results = [_finished(j) for j in jobs]
    first = jobs[0].recipe
    comparison = compare(
        [r for r in results if r is not None],
        first.claim.metric if first.claim else "auc",
        baseline=first.name if len(asked.recipes) > 1 else None,
    )
    command = "fullrank compare " + " ".join(asked.recipes) + f" --seeds {asked.seeds}"
    command += "".join(f" --set {s}" for s in asked.set) + f" --name {asked.name}"
    table, picture = write_comparison(comparison, asked.out, asked.name, command)
    console.print(markdown(comparison, asked.name, command), markup=False)
    return {
        "table": str(table),
        "picture": str(picture),
        "runs": [r.metrics | {"recipe": r.recipe, "seed": r.seed} for r in results if r],
    }


def _finished(job: Job) -> RunResult | None:
    return finished(job.folder.parent, job.recipe.name, job.seed, job.fingerprint)


def _jobs(asked: Compare, recipes: list[Recipe]) -> Iterator[Job]:
    """Yields every run; prepares the data of each recipe once, before processes need it.

    A recipe or data that changes has another folder, so that its results are never mixed with
    older ones, and both are kept.
    """
    for name, recipe in zip(asked.recipes, recipes, strict=True):
        with preparing() as advance:
            data = open_data(recipe.dataset, asked.options(), advance)
        plain = {k: v for k, v in recipe.to_dict().items() if k != "seed"}
        text = json.dumps([plain, data.featurizer.fingerprint()], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        place = asked.runs / f"{recipe.name}-{digest}"
        for seed in range(1, asked.seeds + 1):
            yield Job(name, recipe, seed, digest, place / f"seed-{seed}")


def _run_all(jobs: list[Job], asked: Compare) -> None:
    """Keeps every core busy; stops all of them when one fails or the user asks for the end."""
    limit = asked.processes or os.cpu_count() or 1  # None: one per core
    left, running = list(jobs), dict[subprocess.Popen[bytes], Job]()
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, EtaColumn(), console=console) as bar:
        task = bar.add_task("runs", total=len(jobs))
        try:
            while left or running:
                while left and len(running) < limit:
                    job = left.pop(0)
                    running[_start(job, asked)] = job
                time.sleep(_POLL_SECONDS)
                for process in [p for p in running if p.poll() is not None]:
                    _finish(process, running.pop(process))
                    bar.advance(task)
        finally:
            for process in running:
                process.terminate()  # each saves a state to go on from
            for process in running:
                process.wait()


def _start(job: Job, asked: Compare) -> subprocess.Popen[bytes]:
    how = "--resume" if has_state(RunFolder(job.folder).state) else "--overwrite"
    settings = [*asked.set, f"seed={job.seed}"]
    command = [sys.executable, "-m", "fullrank", "train", job.asked, "--out", str(job.folder), how]
    command += [part for setting in settings for part in ("--set", setting)]
    command += ["--no-diagnose", *_data_flags(asked.options())]
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    log = job.log.open("wb")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    finally:
        log.close()


def _data_flags(options: DataOptions) -> list[str]:
    flags = ["--bad-rows", options.bad_rows, "--quarantine", str(options.quarantine)]
    if options.root is not None:
        flags += ["--data-root", str(options.root)]
    if options.cache is not None:
        flags += ["--cache", str(options.cache)]
    return flags


def _finish(process: subprocess.Popen[bytes], job: Job) -> None:
    if process.returncode != 0:
        raise RunFolderError(
            "a run of the comparison failed",
            where=f"recipe '{job.recipe.name}', seed {job.seed}",
            found="\n".join(job.log.read_text(errors="replace").splitlines()[-8:]),
            expected="exit code 0",
            fix=f"read {job.log}; finished runs are kept, the same command goes on",
        )
    result = RunFolder(job.folder).read_result()
    claim = job.recipe.claim
    write_result(
        job.folder.parent,
        RunResult(
            recipe=job.recipe.name,
            seed=job.seed,
            metrics={n: v for n, v in result["test"].items() if "/" not in n},
            fingerprint=job.fingerprint,
            parameters=result["parameters"],
            step_seconds=_step_seconds(job.folder / "metrics.jsonl"),
            paper={claim.metric: claim.paper} if claim else {},
            notes=tuple(result["notes"]),
            floor={claim.metric: claim.floor} if claim and claim.floor is not None else {},
        ),
    )


def _step_seconds(path: Path) -> float | None:
    """Returns the median wall seconds per step, validation and saving included."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "train"]
    spans = [
        (b["seconds"] - a["seconds"]) / (b["step"] - a["step"])
        for a, b in pairwise(lines)
        if b["step"] > a["step"] and b["seconds"] > a["seconds"]
    ]
    return statistics.median(spans) if spans else None
