"""Runs the studies of a page of results and writes it, with what comparisons on logs have found.

    python studies/run.py rankers                 all, five seeds or as many as a trial says
    python studies/run.py rankers --only dmoe sfg
    python studies/run.py sequence --seeds 1 --no-page     a quick look

Each (trial, seed) is one task in a process of one thread, as many at once as there are cores. What
is measured is kept in studies/.work under a name that changes with the code, so that a stopped run
goes on where it was and a changed trial is measured anew. Trials that measure the same share it.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import json
import math
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"

from fullrank.disk import write_text  # noqa: E402
from studies.logs import sections  # noqa: E402
from studies.pages import PAGES, Page  # noqa: E402
from studies.trial import Outcome, Trial, outcome  # noqa: E402

FIRST_SEED = 101  # trials were written while looking at seeds below
WORK = ROOT / "studies" / ".work"
RESULTS = ROOT / "docs" / "results"
_WORDS = ("claim", "reference", "comment")  # of a trial
_FOLLOWED = tuple(
    f"{package}."
    for package in (
        "studies", "fullrank.models", "fullrank.nn", "fullrank.losses", "fullrank.testing",
        "fullrank.diagnose",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One trial with one seed."""

    study: str
    trial: str
    seed: int

    @property
    def path(self) -> Path:
        """Where its figures lie; trials that measure the same share them."""
        mine = next(t for t in trials(self.study) if t.name == self.trial)
        first = next(t for t in trials(self.study) if _measured(t) == _measured(mine))
        return WORK / f"{self.study}-{first.name}-{_code(self.study)}-seed{self.seed}.json"


def main() -> None:
    """Runs what is missing and writes the page."""
    parser = argparse.ArgumentParser(description="behavioural claims of the papers")
    parser.add_argument("page", choices=list(PAGES))
    parser.add_argument("--only", nargs="+", metavar="STUDY", help="all of the page when left out")
    parser.add_argument("--trials", nargs="+", help="names, such as B1; all when left out")
    parser.add_argument("--seeds", type=int, help="instead of what each trial says")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-page", action="store_true", help="print only")
    asked = parser.parse_args()
    page = PAGES[asked.page]
    chosen = [study for study in page.studies if asked.only is None or study in asked.only]
    tasks = [
        Task(study, trial.name, seed)
        for study in chosen
        for trial in trials(study)
        if asked.trials is None or trial.name in asked.trials
        for seed in range(FIRST_SEED, FIRST_SEED + (asked.seeds or trial.seeds))
    ]
    _run(list({t.path: t for t in tasks if not t.path.exists()}.values()), asked.processes)
    parts = [_section(page, study, [t for t in tasks if t.study == study]) for study in chosen]
    if asked.no_page:
        print("\n".join(parts))
        return
    command = " ".join(["python studies/run.py", *sys.argv[1:]])
    found = "\n\n".join(sections(RESULTS, page))
    path = RESULTS / f"{page.name}.md"
    write_text(path, "\n".join([page.head, found, "", _head(page, command), *parts]))
    print(f"wrote {path.relative_to(ROOT)}")


def trials(study: str) -> list[Trial]:
    """Returns the trials of a study."""
    found: list[Trial] = importlib.import_module(f"studies.{study}").TRIALS
    return found


@cache
def _code(study: str) -> str:
    """Returns a name that changes with the study and with the models that it leads to."""
    files = sorted(_sources(ROOT / "studies" / f"{study}.py", set()))
    text = "".join(_without_words(path) for path in files)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _without_words(path: Path) -> str:
    """Returns the code of a file without what is said to people, which changes no figure."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            node.keywords = [k for k in node.keywords if k.arg not in _WORDS]
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def _measured(trial: Trial) -> object:
    """Returns what two trials that measure the same have in common."""
    m = trial.measure
    return (m.func, m.args, tuple(m.keywords.items())) if isinstance(m, partial) else m


def _sources(path: Path, seen: set[Path]) -> set[Path]:
    """Returns a file and what it imports of studies, models, layers and losses, by name too."""
    if path in seen or not path.exists():
        return seen
    seen.add(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module.startswith(_FOLLOWED):
                _sources(ROOT / f"{node.module.replace('.', '/')}.py", seen)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if not node.value.isidentifier():
                continue
            _sources(ROOT / "fullrank" / "models" / f"{node.value}.py", seen)
    return seen


def _measure(task: Task) -> Task:
    trial = next(t for t in trials(task.study) if t.name == task.trial)
    start = time.perf_counter()
    figures = trial.measure(task.seed)
    kept = {"figures": figures, "seconds": time.perf_counter() - start}
    write_text(task.path, json.dumps(kept, indent=1) + "\n")
    return task


def _run(tasks: list[Task], processes: int) -> None:
    WORK.mkdir(exist_ok=True)
    start, done = time.perf_counter(), 0
    # trap: a forked process inherits OpenMP's locks and may wait for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for future in as_completed([pool.submit(_measure, task) for task in tasks]):
            task, done = future.result(), done + 1
            spent = time.perf_counter() - start
            left = spent / done * (len(tasks) - done)
            print(
                f"{done}/{len(tasks)} {task.study} {task.trial} seed {task.seed}; "
                f"{60 * done / spent:.1f} per minute, {left / 60:.0f} min to go",
                flush=True,
            )


def _head(page: Page, command: str) -> str:
    total = sum(len(trials(study)) for study in page.studies)
    return f"""## On rows whose truth is known

Made by `{command}`. A figure is the mean over seeds. Gain: above zero agrees with the claim; its
interval is Student's at 95 %, each for itself, so that among {total} trials a few may be luck.
Worlds and training were chosen while looking at seeds below {FIRST_SEED}, which are not used here.
"""


def _section(page: Page, study: str, tasks: list[Task]) -> str:
    lines = [
        f"### {page.studies[study]}",
        "",
        "| | claim | reference | measured | gain | seeds | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    comments = []
    for trial in trials(study):
        mine = [t for t in tasks if t.trial == trial.name]
        if not mine:
            continue
        figures = [json.loads(t.path.read_text())["figures"] for t in mine]
        judged = outcome([trial.gain(f) for f in figures])
        lines.append(_row(trial, figures, judged))
        if trial.comment:
            comments.append(f"- {trial.name}: {trial.comment}")
    return "\n".join([*lines, "", *comments, ""])


def _row(trial: Trial, figures: list[dict[str, float]], judged: Outcome) -> str:
    measured = "; ".join(f"{name} {_figure([f[name] for f in figures])}" for name in figures[0])
    gain = f"{fmean(judged.gains):+.4g}"
    if judged.interval is not None:
        gain += f" [{judged.interval.low:+.4g}, {judged.interval.high:+.4g}]"
    agreeing = sum(g > 0 for g in judged.gains)
    cells = (trial.name, trial.claim, trial.reference, measured, gain)
    seeds = f"{agreeing}/{len(judged.gains)}"
    return "| " + " | ".join((*cells, seeds, judged.verdict)).replace("\n", " ") + " |"


def _figure(values: list[float]) -> str:
    finite = [v for v in values if math.isfinite(v)]
    return f"{fmean(finite):.4g}" if finite else "-"


if __name__ == "__main__":
    main()
