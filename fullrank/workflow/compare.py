"""`fullrank compare`: recipes over seeds, in processes of one thread each, resumable.

A run that is finished is never made again, however its comparison ended: processes that outlived it
are waited for, and what they finished is taken.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as EtaColumn

from fullrank.config import require
from fullrank.data.prepare import Prepared
from fullrank.errors import RunFolderError
from fullrank.evaluate.compare import Comparison, Promise, compare
from fullrank.evaluate.page import answer, write_comparison
from fullrank.evaluate.results import RunResult, finished, write_result
from fullrank.evaluate.tables import TESTS, main_grid, untested
from fullrank.train.state import has_state
from fullrank.workflow.console import console, preparing, table
from fullrank.workflow.cost import step_seconds
from fullrank.workflow.data import DataOptions, open_data
from fullrank.workflow.diagnosis import diagnosed, run_line
from fullrank.workflow.folder import RunFolder
from fullrank.workflow.popularity import popularity_alone
from fullrank.workflow.recipe import Recipe, load_recipe
from fullrank.workflow.which import inside_all, write_which

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
    data: Prepared

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
    firsts = [job for job in jobs if job.seed == 1]
    with console.status("timing a training step of every model"):
        cost = step_seconds({j.recipe.name: (j.folder, j.data, j.recipe.train) for j in firsts})
    found = [r for j in jobs if (r := _finished(j)) is not None]
    alone = _popularity(firsts)
    results = [replace(r, step_seconds=cost[r.recipe], popularity=alone[r.recipe]) for r in found]
    first = recipes[0]
    comparison = compare(
        sorted(results, key=lambda r: names.index(r.recipe)),
        first.claim.metric if first.claim else "auc",
        baseline=first.name if len(recipes) > 1 else None,
        promises=_promises(recipes),
    )
    paths = _write(asked, comparison, firsts)
    runs = [run for of in comparison.runs.values() for run in of]
    return {
        **{what: str(path) for what, path in paths.items()},
        "runs": [run.metrics | {"recipe": run.recipe, "seed": run.seed} for run in runs],
    }


def _popularity(jobs: list[Job]) -> dict[str, dict[str, float]]:
    """Returns recipe -> what popularity alone reaches; measured anew, as old results lack it."""
    folders = {job.data.folder: job.data for job in jobs}
    alone = {folder: popularity_alone(data).get("test", {}) for folder, data in folders.items()}
    return {job.recipe.name: alone[job.data.folder] for job in jobs}


def _promises(recipes: list[Recipe]) -> list[Promise]:
    return [
        Promise(recipe=r.name, over=g.over, metric=g.metric, paper=g.paper, source=g.source)
        for r in recipes
        for g in r.gains
    ]


def _write(asked: Compare, comparison: Comparison, firsts: list[Job]) -> dict[str, Path]:
    """Writes the page, looks into the models of the first seed, and writes which one, and why."""
    command = "fullrank compare " + " ".join(asked.recipes) + f" --seeds {asked.seeds}"
    command += "".join(f" --set {s}" for s in asked.set) + f" --name {asked.name}"
    findings = {}
    if not asked.no_diagnose:
        for job in firsts:
            with console.status(f"looking into {job.recipe.name}"):
                findings[job.recipe.name] = diagnosed(job.folder, job.data)
    paths = write_comparison(
        comparison, asked.out, asked.name, command, inside=inside_all(findings)
    )
    page = asked.out / f"{asked.name}.html"
    if asked.no_diagnose:
        page.unlink(missing_ok=True)  # it would tell of an earlier comparison
    else:
        about = run_line(RunFolder(firsts[0].folder).read_result())
        write_which(page, comparison, findings, name=asked.name, command=command, about=about)
        paths["page"] = page
    _show(comparison, paths)
    return paths


def _show(comparison: Comparison, paths: dict[str, Path]) -> None:
    """Prints what people want to know at once, and where the rest is."""
    shown = main_grid(comparison).without("seeds", "floor", "paper", "difference", *TESTS)
    table("recipes", list(shown.heading), [list(row) for row in shown.rows])
    for sentence in [*answer(comparison), *untested(comparison)]:
        console.print(sentence.replace("`", ""), markup=False)
    for what, path in paths.items():
        console.print(f"{what:<10}{path}", markup=False)


def _finished(job: Job) -> RunResult | None:
    """Returns the result of a run, also of one whose comparison did not live to see its end."""
    found = finished(job.folder.parent, job.recipe.name, job.seed, job.fingerprint)
    if found is None and RunFolder(job.folder).result.exists():
        return _kept(job)
    return found


def _jobs(asked: Compare, recipes: list[Recipe]) -> Iterator[Job]:
    """Yields every run, seed by seed; prepares data once, before processes need it.

    A recipe or data that changes has another folder, so that its results are never mixed with
    older ones, and both are kept. What a recipe promises (`gains`) is no part of its runs.
    """
    places = []
    for name, recipe in zip(asked.recipes, recipes, strict=True):
        with preparing() as advance:
            data = open_data(recipe.dataset, asked.options(), advance)
        plain = {k: v for k, v in recipe.to_dict().items() if k not in ("seed", "gains")}
        text = json.dumps([plain, data.featurizer.fingerprint()], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        places.append((name, recipe, digest, asked.runs / f"{recipe.name}-{digest}", data))
    for seed in range(1, asked.seeds + 1):
        for name, recipe, digest, place, data in places:
            yield Job(name, recipe, seed, digest, place / f"seed-{seed}", data)


def _run_all(jobs: list[Job], asked: Compare) -> None:
    """Keeps every core busy; stops all of them when one fails or the user asks for the end.

    Each recipe once, then those that take longest first, so that all cores end together: for ten
    recipes of five seeds 1 % sooner on two cores, 7 % on eight.
    """
    limit = asked.processes or os.cpu_count() or 1  # None: one per core
    left = list(jobs)
    running: dict[subprocess.Popen[bytes], Job] = {}
    seconds: dict[str, float] = {}
    said = TextColumn("{task.description}")
    columns = (said, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with _stoppable(), Progress(*columns, EtaColumn(), console=console) as bar:
        task = bar.add_task("training", total=len(jobs))
        try:
            while left or running:
                # A comparison that was killed may have left processes, which end what they began.
                free = [j for j in left if not RunFolder(j.folder).is_held()]
                room = limit - len(running) - (len(left) - len(free))
                free.sort(key=lambda j: -seconds.get(j.recipe.name, math.inf))
                for job in free[: max(0, room)]:
                    left.remove(job)
                    if _finished(job) is None:
                        running[_start(job, asked)] = job
                    else:
                        bar.advance(task)
                waiting = left and not running
                bar.update(task, description="waiting for others" if waiting else "training")
                time.sleep(_POLL_SECONDS)
                for process in [p for p in running if p.poll() is not None]:
                    job = running.pop(process)
                    folder = RunFolder(job.folder)
                    if process.returncode and (folder.is_held() or folder.result.exists()):
                        left.append(job)  # another process was there first
                        continue
                    _finish(process, job)
                    seconds[job.recipe.name] = folder.read_result()["train_seconds"]
                    bar.advance(task)
        finally:
            for process in running:
                process.terminate()  # each saves a state to go on from
            for process in running:
                process.wait()


@contextmanager
def _stoppable() -> Iterator[None]:
    """Lets SIGTERM end a comparison as Ctrl-C does, so that no run is left alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    _kept(job)


def _kept(job: Job) -> RunResult:
    """Writes the result of a run beside its folder, and returns it."""
    result = RunFolder(job.folder).read_result()
    claim = job.recipe.claim
    kept = RunResult(
        recipe=job.recipe.name,
        seed=job.seed,
        metrics=_metrics(result["test"]),
        fingerprint=job.fingerprint,
        parameters=result["parameters"],
        paper={claim.metric: claim.paper} if claim else {},
        notes=tuple(result["notes"]),
        floor={claim.metric: claim.floor} if claim and claim.floor is not None else {},
    )
    write_result(job.folder.parent, kept)
    return kept


def _metrics(test: dict[str, float]) -> dict[str, float]:
    """Returns the main label's metrics, and of other labels what a gain may be promised in."""
    main = next((name.partition("/")[0] for name in test if "/" in name), "")
    told = ("auc", "logloss")
    return {
        name: value
        for name, value in test.items()
        if "/" not in name or (name.partition("/")[0] != main and name.rpartition("/")[2] in told)
    }
