"""What `fullrank compare` found on each log, as sections of one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LOGS = {
    "frappe": "Frappe",
    "ml_100k": "MovieLens 100K",
    "collm_ml1m": "MovieLens 1M, CoLLM cut",
    "census": "Census-Income",
    "collapse": "simulated, planted collapse",
    "healthy": "simulated, nothing planted",
}


def sections(folder: Path) -> list[str]:
    """Returns the best of every log, and every gain on every log.

    Args:
        folder: where `rankers_LOG.json` lie; logs without one are left out.
    """
    found = {}
    for log in LOGS:
        path = folder / f"rankers_{log}.json"
        if path.exists():
            found[log] = json.loads(path.read_text())
    if not found:
        return []
    missing = ", ".join(title for log, title in LOGS.items() if log not in found)
    said = [f"Not compared yet: {missing}."] if missing else []
    return ["## On logs", *said, _leaders(found), _gains(found)]


def _leaders(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| log | first by mean test AUC | AUC | floor, logistic regression | plain network |",
        "|---|---|---:|---:|---:|",
    ]
    for log, data in found.items():
        auc = {_short(r["recipe"], log): r["metrics"]["auc"] for r in data["recipes"]}
        best = max(auc, key=lambda name: auc[name]["mean"])
        cells = [_mean(auc.get(name)) for name in (best, "lr", "mlp")]
        page = f"[{LOGS[log]}](rankers_{log}.md)"
        lines.append("| " + " | ".join([page, f"`{best}`", *cells]) + " |")
    return "\n".join(lines)


def _gains(found: dict[str, dict[str, Any]]) -> str:
    """Returns a row per gain and a column per log."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    papers: dict[tuple[str, str], str] = {}
    for log, data in found.items():
        for gain in data["gains"]:
            pair = _short(gain["recipe"], log), _short(gain["over"], log)
            if gain["paper"] is not None:
                papers[pair] = f"{gain['paper']:+.5f}, {gain['source']}"
            elif gain["source"]:
                papers[pair] = gain["source"]
            if not gain["untested"]:
                cells.setdefault(pair, {})[log] = (
                    f"**{gain['verdict']}** {gain['mean']:+.4f} "
                    f"[{gain['low']:+.4f}, {gain['high']:+.4f}]"
                )
    heading = ["gain in test AUC", "published", *(LOGS[log] for log in found)]
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    for pair, row in cells.items():
        name = f"`{pair[0]}` over `{pair[1]}`"
        each = [row.get(log, "-") for log in found]
        lines.append("| " + " | ".join([name, papers.get(pair, "-"), *each]) + " |")
    return "\n".join(lines)


def _mean(value: dict[str, float] | None) -> str:
    return "-" if value is None else f"{value['mean']:.4f} ± {value['high'] - value['mean']:.4f}"


def _short(recipe: str, log: str) -> str:
    return recipe.removeprefix(f"{log}_")
