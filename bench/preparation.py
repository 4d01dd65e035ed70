"""Preparing a wide log: peak memory, and time against a bare Polars job.

    python bench/preparation.py --rows 20000000

The log has 26 categorical columns with skewed vocabularies of 4 to 2 million values, 13 numeric
columns and a label, in one Parquet file. fullrank counts, encodes and writes columns ready for
training. The bare job only counts the vocabularies and joins them to the rows, one column after
the other with Polars' streaming engine, and writes nothing. Each runs in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from record import WORK, Record, Target

CATEGORICAL = [f"c{i + 1}" for i in range(26)]
NUMERIC = [f"n{i + 1}" for i in range(13)]
LABEL = "click"


def main() -> None:
    options = parse()
    folder = WORK / "wide"
    log, out = folder / f"log_{options.rows}.parquet", folder / "prepared"
    if options.job:
        JOBS[options.job](log, out, options.min_count)
        return
    folder.mkdir(parents=True, exist_ok=True)
    record = Record("preparation", f"Preparing {options.rows:,} rows of 26 + 13 columns")
    record.machine["threads"] = options.threads
    if not log.exists():
        spent = measured("write", options)
        print(f"wrote the log in {spent['wall']:.0f} s, {log.stat().st_size / 1e9:.2f} GB")
    runs: dict[str, list[dict[str, float]]] = {"fullrank": [], "bare Polars": []}
    for _ in range(options.repeats):
        for name, group in runs.items():
            group.append(measured(name, options))
            print(name, {k: round(v, 2) for k, v in group[-1].items()}, flush=True)
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    middle = {n: {k: _median(g, k) for k in g[0]} for n, g in runs.items()}
    record.rows = [
        {
            "job": name,
            "wall s": m["wall"],
            "CPU s": m["cpu"],
            "rows per CPU s": options.rows / m["cpu"],
            "peak resident GiB": m["peak"],
            "peak anonymous GiB": m["anonymous"],
        }
        for name, m in middle.items()
    ]
    ours, bare = middle["fullrank"], middle["bare Polars"]
    record.targets = [
        Target("peak resident memory, GiB", ours["peak"], 4.0, at_least=False),
        Target("wall time over the bare job", ours["wall"] / bare["wall"], 2.5, at_least=False),
        Target("CPU time over the bare job", ours["cpu"] / bare["cpu"], 2.5, at_least=False),
    ]
    record.notes = [
        f"fullrank wrote {size / 1e9:.2f} GB; values seen fewer than {options.min_count} times "
        "are unknown in both jobs.",
        "Resident memory counts pages of files that are mapped and can be dropped at any time; "
        "anonymous memory is what the job itself holds.",
    ]
    record.finish(runs)
    shutil.rmtree(out, ignore_errors=True)
    if not options.keep:
        log.unlink()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--min-count", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep the log for the next time")
    parser.add_argument("--job", choices=list(JOBS), help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(job: str, options: argparse.Namespace) -> dict[str, float]:
    """Runs a job in its own process; returns wall and CPU seconds and peaks in GiB."""
    threads = str(options.threads)
    variables = {"POLARS_MAX_THREADS": threads, "OMP_NUM_THREADS": threads}
    command = [
        *(sys.executable, __file__, "--job", job, "--rows", str(options.rows)),
        *("--min-count", str(options.min_count)),
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, **variables})
    anonymous: list[int] = [0]
    watcher = threading.Thread(target=_watch, args=(process.pid, anonymous))
    watcher.start()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    watcher.join()
    if process.returncode:
        raise SystemExit(f"the job '{job}' failed with exit code {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = used.ru_maxrss / (1 << 20 if sys.platform == "linux" else 1 << 30)
    return {"wall": wall, "cpu": cpu, "peak": peak, "anonymous": max(anonymous) / (1 << 20)}


def _watch(pid: int, anonymous: list[int]) -> None:
    """Samples anonymous memory in KiB until the process is gone; Linux alone says it."""
    path = Path(f"/proc/{pid}/status")
    while path.exists():
        try:
            lines = path.read_text().splitlines()
        except OSError:
            return
        found = [line for line in lines if line.startswith("RssAnon")]
        if not found:  # it has ended and waits to be collected
            return
        anonymous.append(int(found[0].split()[1]))
        time.sleep(0.02)


def write(log: Path, out: Path, min_count: int) -> None:
    from fullrank.data.synthetic import wide_log

    rows = int(log.stem.partition("_")[2])
    wide_log(log, rows, categorical=len(CATEGORICAL), numeric=len(NUMERIC))


def prepare(log: Path, out: Path, min_count: int) -> None:
    import polars as pl

    from fullrank.data.prepare import prepare
    from fullrank.data.spec import Category, Number, Spec, Target

    shutil.rmtree(out, ignore_errors=True)
    spec = Spec(
        columns=(
            *(Category(name=c, min_count=min_count) for c in CATEGORICAL),
            *(Number(name=n, transform="log") for n in NUMERIC),
            Target(name=LABEL),
        )
    )
    prepare({"train": pl.scan_parquet(log)}, spec, out)


def bare(log: Path, out: Path, min_count: int) -> None:
    import polars as pl

    rows = pl.scan_parquet(log)
    for name in CATEGORICAL:
        counted = rows.group_by(name).len().filter(pl.col("len") >= min_count)
        vocabulary = counted.sort("len", descending=True).with_row_index("row", offset=1)
        vocabulary = vocabulary.select(name, "row").collect(engine="streaming")
        joined = rows.select(name).join(vocabulary.lazy(), on=name, how="left")
        joined.select(pl.col("row").fill_null(0).sum()).collect(engine="streaming")


JOBS = {"write": write, "fullrank": prepare, "bare Polars": bare}


def _median(group: list[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in group)


if __name__ == "__main__":
    main()
