"""fullrank against the libraries one would try first, through their public interfaces.

    python bench/peers.py --setup                 # once: virtual environments in bench/.envs
    python bench/peers.py --repeats 3 --epochs 2

Everybody trains DCN-V2 in parallel form (three full-matrix cross layers, MLP 400-400-400, embedding
10 drawn from N(0, 0.01)) on the Frappe files with Adam 1e-3 and batches of 4,096, no L2, no
dropout, one thread, each in a process and an environment of its own. Three cases: without batch
norm (who can), with batch norm (everybody), and with batch norm and two million unused rows in the
item table. Repeats are interleaved with the plain loop first and last; figures are medians.

CPU seconds are those of the whole process tree, wall seconds stand beside them. A contestant starts
from the form of the raw file that it reads; turning libfm into that form is not charged to a peer.
fullrank reads the gzipped libfm itself.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

import environments  # noqa: E402
from record import THREADS, WORK, Record, Target  # noqa: E402

EXTRA_ROWS = 2_000_000
# case -> its options, and who runs in which order. RecBole and torch-rechub always use batch norm.
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": ((), ("plain", "fuxictr", "deepctr_torch", "fullrank", "plain")),
    "batch norm": (
        ("--batch-norm",),
        ("plain", "fuxictr", "recbole", "torch_rechub", "deepctr_torch", "fullrank", "plain"),
    ),
    "batch norm, 2M unused rows": (
        ("--batch-norm", "--extra-rows", str(EXTRA_ROWS)),
        (
            "plain",
            "plain_sparse",
            "fuxictr",
            "recbole",
            "torch_rechub",
            "deepctr_torch",
            "fullrank",
        ),
    ),
}
WIDE = "batch norm, 2M unused rows"
HISTORIES = "_histories"  # ends the scripts that read histories; their environments are the same


def main() -> None:
    options = parse()
    if options.setup:
        for peer in environments.REQUIREMENTS:
            environments.build(peer)
        return
    os.environ.update(THREADS)
    adopt_orphans()
    import frappe

    raw, real = frappe.prepare_inputs(WORK / "frappe")
    wanted = [c for c in CASES if not options.cases or c in options.cases]
    runs = []
    for repeat in range(options.repeats):
        for case in wanted:
            for name in CASES[case][1]:
                if options.only and name not in options.only:
                    continue
                epochs = options.wide_epochs if case == WIDE else options.epochs
                runs.append(run(name, case, repeat, epochs, raw))
    report([r for r in runs if "phases" in r], [r for r in runs if "failure" in r], real, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setup", action="store_true", help="build the environments and stop")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--wide-epochs", type=int, default=1, help="epochs with 2M unused rows")
    parser.add_argument("--cases", nargs="*", default=[], metavar="CASE")
    parser.add_argument("--only", nargs="*", default=[], metavar="CONTESTANT")
    return parser.parse_args()


def run(name: str, case: str, repeat: int, epochs: int, raw: Path) -> dict[str, Any]:
    """Runs one contestant of one case."""
    script, *_ = name.partition("_sparse")
    work = WORK / "run" / name
    reuses = case == WIDE and name == "fuxictr" and work.exists()
    if not reuses:  # its preparation takes longer than the training that this case is about
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    options = [*CASES[case][0], *(["--sparse"] if "_sparse" in name else [])]
    options += ["--data", str(WORK / "frappe"), "--raw", str(raw), "--epochs", str(epochs)]
    return launch(name, script, case, repeat, work, options)


def launch(
    name: str, script: str, case: str, repeat: int, work: Path, options: list[str]
) -> dict[str, Any]:
    """Runs a script once; a failure is returned, not raised, so that the others go on.

    Args:
        name: of the contestant.
        script: run_SCRIPT.py, and the peer of the same name is its environment.
        case: what is measured.
        repeat: from 0; one less than the seed.
        work: scratch folder, with the result and the log.
        options: all others that the script takes.
    """
    out = work / "result.json"
    out.unlink(missing_ok=True)
    python = sys.executable
    peer = script.removesuffix(HISTORIES)
    if peer in environments.REQUIREMENTS:
        python = str(environments.python_of(peer))
        if not environments.is_ready(peer):
            return {"name": name, "case": case, "failure": "no environment: run --setup first"}
    command = [
        *(python, str(HERE / "peers" / f"run_{script}.py"), "--work", str(work)),
        *("--out", str(out), "--seed", str(repeat + 1), *options),
    ]
    log = work / "log.txt"
    wall, cpu, code = measured(command, log)
    if code or not out.exists():
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        print(f"{case:28} {name:14} FAILED: {last}", flush=True)
        return {"name": name, "case": case, "failure": f"exit code {code}: {last}"}
    result: dict[str, Any] = json.loads(out.read_text())
    result |= {"name": name, "case": case, "repeat": repeat, "wall": wall, "cpu": cpu}
    result["speed"] = result["samples"] / result["phases"]["train"]["cpu"]
    print(
        f"{case:28} {name:14} {result['speed']:8,.0f} samples per CPU second, AUC "
        f"{result['auc']:.4f}, job {cpu:.1f} s CPU, {wall:.1f} s wall",
        flush=True,
    )
    return result


def adopt_orphans() -> None:
    """Makes processes that a contestant leaves behind children of this one.

    Ray's daemons outlive their parent. Their CPU time counts only if somebody waits for them.
    """
    if sys.platform == "linux":
        set_child_subreaper = 36
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def measured(command: list[str], log: Path) -> tuple[float, float, int]:
    """Returns wall seconds until the command ended, CPU seconds of its whole tree, exit code."""
    before = _children_cpu()
    started = time.perf_counter()
    with log.open("wb") as stream:
        code = subprocess.run(command, stdout=stream, stderr=stream, check=False).returncode
    wall = time.perf_counter() - started
    deadline = time.monotonic() + 10
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:  # nobody is left
            return wall, _children_cpu() - before, code
        if pid == 0:
            if time.monotonic() > deadline:
                for child in Path("/proc/self/task").glob("*/children"):
                    for left in child.read_text().split():
                        os.kill(int(left), signal.SIGKILL)
            time.sleep(0.1)


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def report(
    runs: list[dict[str, Any]],
    failures: list[dict[str, Any]],
    real: bool,
    options: argparse.Namespace,
) -> None:
    """Medians per contestant and case, with the promised ratios."""
    record = Record("peers", "fullrank against other libraries, DCN-V2 on Frappe, one thread")
    record.machine |= {"epochs": options.epochs, "epochs with 2M rows": options.wide_epochs}
    record.machine |= {"repeats": options.repeats, "data": "Frappe" if real else "simulated"}
    for case in dict.fromkeys(r["case"] for r in runs):
        groups = {
            n: [r for r in runs if (r["name"], r["case"]) == (n, case)] for n in CASES[case][1]
        }
        groups = {name: group for name, group in groups.items() if group}
        for name, group in groups.items():
            record.rows.append(_row(case, name, group, groups.get("fullrank", [])))
        if "fullrank" in groups:
            record.targets += _targets(case, groups)
    record.notes = [
        "The whole job runs from the start of the process to the test AUC: imports, preparation, "
        "training, validation where the library does it, test.",
        "FuxiCTR trains from npz in one process; its preparation on Ray is part of its job, except "
        "with 2M unused rows, where it starts from prepared data.",
        "RecBole, torch-rechub, FuxiCTR and fullrank validate after each epoch, the others do not; "
        "the time of it is in the job and not in the training speed.",
        *(f"{f['name']} ({f['case']}) did not run: {f['failure']}" for f in failures),
    ]
    frozen = {p: environments.freeze(p) for p in environments.REQUIREMENTS if _is_used(p, runs)}
    record.finish({"runs": runs, "failures": failures, "packages": frozen})


def _is_used(peer: str, runs: Iterable[dict[str, Any]]) -> bool:
    return any(r["name"] == peer for r in runs)


def _row(case: str, name: str, group: list[dict[str, Any]], ours: list[Any]) -> dict[str, Any]:
    speeds = [r["speed"] for r in group]
    prepare = [r["phases"].get("prepare", {"wall": 0.0, "cpu": 0.0}) for r in group]
    has_job = case != WIDE
    return {
        "case": case,
        "contestant": group[0]["peer"],
        "samples per CPU s": median(speeds),
        "lowest to highest": f"{min(speeds):,.0f} to {max(speeds):,.0f}",
        "fullrank is faster by": median(r["speed"] for r in ours) / median(speeds)
        if ours
        else None,
        "test AUC": f"{median(r['auc'] for r in group):.4f}",
        "preparation, wall s": median(p["wall"] for p in prepare) if has_job else None,
        "job, CPU s": median(r["cpu"] for r in group) if has_job else None,
        "job, wall s": median(r["wall"] for r in group) if has_job else None,
        "fullrank's job is shorter by (wall)": (
            median(r["wall"] for r in group) / median(r["wall"] for r in ours)
            if ours and has_job
            else None
        ),
    }


def _targets(case: str, groups: dict[str, list[dict[str, Any]]]) -> list[Target]:
    ours = groups["fullrank"]
    peers = [n for n in groups if n in environments.REQUIREMENTS]
    speed = {name: median(r["speed"] for r in group) for name, group in groups.items()}
    targets = []
    if peers:
        best = max(peers, key=speed.__getitem__)
        wanted = 3.5 if case == WIDE else 1.1
        ratio = speed["fullrank"] / speed[best]
        targets.append(Target(f"{case}: speed against the best peer, {best}", ratio, wanted))
        gap = median(r["auc"] for r in ours) - median(r["auc"] for r in groups[best])
        targets.append(Target(f"{case}: test AUC minus that of {best}", gap, -0.002))
    if case == WIDE:
        return targets
    if "plain" in groups:
        ratio = speed["fullrank"] / speed["plain"]
        targets.append(Target(f"{case}: speed against the plain loop", ratio, 1.0))
    for name in peers:
        for clock in ("wall", "cpu"):
            ratio = median(r[clock] for r in groups[name]) / median(r[clock] for r in ours)
            wanted = 5.0 if name == "fuxictr" else 1.0
            targets.append(Target(f"{case}: {clock} time of the job, {name}", ratio, wanted))
    return targets


def median(values: Iterable[float]) -> float:
    """The median as a float."""
    return float(statistics.median(values))


if __name__ == "__main__":
    main()
