"""Writes docs/results/benchmarks.md from what the benchmarks left in bench/.work.

    python bench/report.py

Runs nothing: each section names the command that made it, the machine and the date.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from record import WORK, markdown_table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results" / "benchmarks.md"
ORDER = (
    "data_path",
    "peers",
    "preparation",
    "diagnostics_overhead",
    "compile",
    "dropout",
    "full_mixing",
    "histories",
    "padding",
    "recurrent",
    "attention",
    "forms",
    *(f"serving_{part}" for part in ("latency", "tail", "fastapi", "caching", "overload", "kill")),
)
HEAD = """# Benchmarks

Figures of one machine, with the commands that made them. CPU seconds count the whole process tree;
on a shared machine they are the figure to compare, wall seconds stand beside them. Ratios come from
interleaved runs, medians unless something else is said. A missed target is listed as missed.
"""


def main() -> None:
    sections = [HEAD]
    for name in ORDER:
        path = WORK / f"{name}.json"
        if path.exists():
            sections.append(section(json.loads(path.read_text())))
        else:
            script = "serving" if name.startswith("serving_") else name
            print(f"no figures yet: run python bench/{script}.py")
    utilisation = WORK / "rankmixer_utilisation.json"
    if utilisation.exists():
        sections.append(rankmixer(json.loads(utilisation.read_text())))
    else:
        print(f"no figures yet: run {RANKMIXER}")
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join(sections))
    print(f"wrote {PAGE.name}")


def section(found: dict[str, Any]) -> str:
    targets = [
        f"- {'reached' if target['met'] else '**missed**'}: {target['text']}"
        for target in found["targets"]
    ]
    machine = ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in found["machine"].items()
    )
    parts = [
        f"## {found['title']}",
        f"`{found['command']}`, {found['date']}",
        markdown_table(found["rows"]),
        "\n".join(targets),
        " ".join(found["notes"]),
        f"Machine: {machine}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


RANKMIXER = "python bench/rankmixer_utilisation.py --json bench/.work/rankmixer_utilisation.json"


def rankmixer(found: list[dict[str, Any]]) -> str:
    """The file of bench/rankmixer_utilisation.py, which has a form of its own."""
    rows = [
        {"threads": run["threads"], "subject": name, **values}
        for run in found
        for name, values in run["subjects"].items()
    ]
    peaks = ", ".join(
        f"{run['gemm_gflops_per_cpu_second']} GFLOP per CPU second with {run['threads']} thread(s)"
        for run in found
    )
    wanted = [
        f"- {'reached' if share >= 0.6 else '**missed**'}: RankMixer's share of the matrix-product "
        f"rate, {run['threads']} thread(s): {share:.3g} (wanted >= 0.6)"
        for run in found
        for share in [run["subjects"]["rankmixer"]["utilisation"]]
    ]
    parts = [
        "## RankMixer's share of the matrix-product rate",
        f"`{RANKMIXER}`",
        markdown_table(rows),
        "\n".join(wanted),
        f"The rate itself: {peaks}.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
