"""The one output format of every benchmark: what ran, on what, the figures, and the targets.

A benchmark builds a `Record`, prints it and writes bench/.work/NAME.json; `bench/report.py` turns
all of them into one page. A missed target is said aloud and never changes the exit code: a shared
machine must not break a build.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

WORK = Path(__file__).resolve().parent / ".work"
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}


@dataclass
class Target:
    """One figure that was promised. `at_least` tells the direction."""

    what: str
    value: float
    wanted: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Whether the figure lies on the right side."""
        return self.value >= self.wanted if self.at_least else self.value <= self.wanted

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{self.what}: {self.value:.3g} (wanted {sign} {self.wanted:g})"


@dataclass
class Record:
    """One run of one benchmark.

    Args:
        name: of the file, without its ending.
        title: one line for the reader.
        rows: the table, one mapping per line, all with the same keys.
        notes: sentences that the reader needs in order not to be misled.
        targets: what was promised.
    """

    name: str
    title: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=lambda: machine())

    def finish(self, detail: Any = None) -> None:
        """Prints everything and writes bench/.work/NAME.json; `detail` is kept, not printed."""
        self.machine["load_at_end"] = round(os.getloadavg()[0], 1)
        written = {
            **asdict(self),
            "targets": [{**asdict(t), "met": t.met, "text": str(t)} for t in self.targets],
            "command": command(),
            "date": time.strftime("%Y-%m-%d"),
            "detail": detail,
        }
        WORK.mkdir(exist_ok=True)
        (WORK / f"{self.name}.json").write_text(json.dumps(written, indent=1))
        print(f"\n{self.title}\n\n{markdown_table(self.rows)}\n")
        for target in self.targets:
            print(("reached  " if target.met else "MISSED   ") + str(target))
        print("\n".join(self.notes))
        print(", ".join(f"{key} {value}" for key, value in self.machine.items()))


def command() -> str:
    """What to type to run this again, without machine paths."""
    here = Path(sys.argv[0]).resolve()
    arguments = [a for a in sys.argv[1:] if not a.startswith("/")]
    return " ".join(["python", f"bench/{here.name}", *arguments])


def machine() -> dict[str, Any]:
    """Processor, cores, threads, load and the versions that decide the speed."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "load_at_start": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
    for name in ("torch", "polars", "numpy", "fullrank"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            continue
    return facts


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or "unknown"
    lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    return lines[0].partition(":")[2].strip() if lines else "unknown"


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Lines up a table so that it reads well both printed and rendered."""
    if not rows:
        return "(no rows)"
    cells = [list(rows[0]), *[[_shown(value) for value in row.values()] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
