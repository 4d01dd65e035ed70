"""What `fullrank compare` found on each log, as sections of one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from studies.pages import Page


def sections(folder: Path, page: Page) -> list[str]:
    """Returns the best of every log, and every gain on every log.

    Args:
        folder: where `PAGE_LOG.json` lie, as `fullrank compare` writes them; logs without one are
            named as not compared yet.
        page: whose.
    """
    found = {}
    for log in page.logs:
        path = folder / f"{page.name}_{log}.json"
        if path.exists():
            found[log] = json.loads(path.read_text())
    if not found:
        return []
    missing = ", ".join(title for log, title in page.logs.items() if log not in found)
    said = [f"Not compared yet: {missing}."] if missing else []
    return ["## On logs", *said, _leaders(found, page), _gains(found, page)]


def _leaders(found: dict[str, dict[str, Any]], page: Page) -> str:
    popularity = any(r.get("popularity") for data in found.values() for r in data["recipes"])
    heads = [*page.floor.values(), *(["popularity alone"] * popularity)]
    first = "| log | first by mean test AUC | AUC | "
    lines = [first + " | ".join(heads) + " |", "|---|---|---:|" + "---:|" * len(heads)]
    for log, data in found.items():
        auc = {_short(r["recipe"], log): r["metrics"]["auc"] for r in data["recipes"]}
        best = max(auc, key=lambda name: auc[name]["mean"])
        cells = [_mean(auc.get(name)) for name in (best, *page.floor)]
        if popularity:
            alone = data["recipes"][0].get("popularity", {}).get("auc")
            cells.append("-" if alone is None else f"{alone:.4f}")
        link = f"[{page.logs[log]}]({page.name}_{log}.md)"
        lines.append("| " + " | ".join([link, f"`{best}`", *cells]) + " |")
    return "\n".join(lines)


def _gains(found: dict[str, dict[str, Any]], page: Page) -> str:
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
    heading = ["gain in test AUC", "published", *(page.logs[log] for log in found)]
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
