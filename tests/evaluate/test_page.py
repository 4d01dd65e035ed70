from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from fullrank.errors import ConfigError
from fullrank.evaluate.compare import compare
from fullrank.evaluate.page import markdown, svg, write_comparison
from fullrank.evaluate.results import RunResult

COMMAND = "fullrank compare dcnv2 rankmixer odd|name --seeds 3"


def _results() -> list[RunResult]:
    made = []
    for recipe, gain in (("dcnv2", 0.0), ("rankmixer", 0.01), ("odd|name", -0.02)):
        for seed, noise in enumerate((0.0, 0.002, -0.001)):
            made.append(
                RunResult(
                    recipe=recipe,
                    seed=seed,
                    metrics={
                        "auc": 0.8 + gain + noise + 1e-4 * seed * bool(gain),
                        "logloss": 0.4 - gain,
                    },
                    parameters=1_234_567 if recipe == "dcnv2" else None,
                    step_seconds=0.0125,
                    paper={"auc": 0.8123} if recipe == "rankmixer" else {},
                )
            )
    return made


def test_table_says_what_was_measured() -> None:
    page = markdown(compare(_results(), "auc", baseline="dcnv2"), "frappe", COMMAND)
    assert COMMAND in page
    assert "(frappe.svg)" in page
    header, rows = _cells(page)
    assert header[:4] == ["recipe", "seeds", "auc", "paper"]
    assert "floor" not in header  # nobody told one
    cells = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert cells["`dcnv2`"]["verdict"] == "baseline"
    assert cells["`dcnv2`"]["parameters"] == "1,234,567"
    assert cells["`dcnv2`"]["ms per step"] == "12.5"
    assert cells["`rankmixer`"]["verdict"] == "holds"
    assert cells["`rankmixer`"]["paper"] == "0.8123"
    assert cells["`rankmixer`"]["parameters"] == "-"
    assert cells["`rankmixer`"]["difference"].startswith("+0.01010 [+0.00")
    assert cells["`rankmixer`"]["p, sign flip"] == "0.25"
    assert cells["`odd\\|name`"]["verdict"] == "does not hold"
    assert "97.5" not in page
    assert "`rankmixer`" in page.split("Other metrics")[1]
    assert "0.3900 ± 0.0000" in page


def test_seeds_left_out_are_named() -> None:
    page = markdown(compare(_results()[1:], "auc", baseline="dcnv2"), "frappe", COMMAND)
    assert "seeds 0 are left out" in page
    assert "left out" not in markdown(compare(_results(), "auc", baseline="dcnv2"), "x", COMMAND)


def test_what_the_data_is_not_is_said_once() -> None:
    caveat = "negatives drawn again"
    results = [replace(result, notes=(caveat,)) for result in _results()]
    assert markdown(compare(results, "auc"), "x", COMMAND).count(caveat) == 1
    assert "Data:" not in markdown(compare(_results(), "auc"), "x", COMMAND)


@pytest.mark.parametrize("baseline", ["dcnv2", None])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_picture_stands_alone(baseline: str | None, count: int) -> None:
    results = [r for r in _results() if r.seed < max(1, count // 3)]
    picture = svg(compare(results, "auc", baseline=baseline))
    root = ET.fromstring(picture)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "href" not in picture
    assert "rankmixer" in picture
    dots = [node for node in root.iter() if node.tag.endswith("circle")]
    assert len(dots) == (2 if baseline else 3)
    assert ("stroke-dasharray" in picture) == bool(baseline)  # the line that the claim must pass


def test_files_are_written_whole(tmp_path: Path) -> None:
    table, picture = write_comparison(
        compare(_results(), "auc", baseline="dcnv2"), tmp_path / "results", "frappe", COMMAND
    )
    assert sorted(p.name for p in table.parent.iterdir()) == ["frappe.md", "frappe.svg"]
    assert table.read_text(encoding="utf-8").startswith("# frappe\n")
    assert picture.read_text(encoding="utf-8").startswith("<svg")
    with pytest.raises(ConfigError):
        write_comparison(compare(_results(), "auc"), tmp_path, "a/b", COMMAND)


def _cells(page: str) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of the first table."""
    lines = page.split("\n\n")[3].splitlines()
    split = [line.replace("\\|", "\0").strip("| ").split(" | ") for line in lines]
    restored = [[cell.replace("\0", "\\|") for cell in row] for row in split]
    return restored[0], restored[2:]
