from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from fullrank.errors import ConfigError
from fullrank.evaluate.compare import Promise, compare
from fullrank.evaluate.page import (
    answer,
    as_data,
    frontier_svg,
    markdown,
    short_names,
    svg,
    write_comparison,
)
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


def test_popularity_alone_stands_beside_the_models_where_it_was_measured() -> None:
    alone = {"auc": 0.61234, "gauc": 0.5871}
    results = [replace(result, popularity=alone) for result in _results()]
    page = markdown(compare(results, "auc"), "x", COMMAND)
    assert page.count("Popularity alone: AUC 0.6123, GAUC 0.5871") == 1
    header, rows = _cells(page)
    assert {row[header.index("popularity alone")] for row in rows} == {"0.6123"}
    assert as_data(compare(results, "auc"))["recipes"][0]["popularity"] == alone
    assert "opularity" not in markdown(compare(_results(), "auc"), "x", COMMAND)


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


PROMISES = (
    Promise(recipe="rankmixer", over="dcnv2", paper=0.0042, source="a paper"),
    Promise(recipe="rankmixer", over="odd|name", metric="logloss"),
    Promise(recipe="dcnv2", over="rankmixer"),
    Promise(recipe="dcnv2", over="absent"),
)


def test_gains_have_a_table_and_a_sentence() -> None:
    page = markdown(compare(_results(), "auc", promises=PROMISES), "frappe", COMMAND)
    _, gains = page.split("## Gains")
    header, rows = _cells(gains)
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    assert [c["verdict"] for c in cells] == ["holds", "holds", "does not hold"]
    assert [c["seeds better"] for c in cells] == ["3/3", "3/3", "0/3"]
    assert [c["paper's gain"] for c in cells] == ["+0.00420", "-", "-"]
    assert cells[0]["parameters of both"] == "- / 1,234,567"
    assert cells[1]["gain"].startswith("+0.03000 [")
    assert "Bonferroni over 3" in gains
    assert "`dcnv2` over `absent`: not tested, absent is not among" in gains
    assert "published in a paper" in gains
    assert "Gains that do not hold: `dcnv2` over `rankmixer`." in page
    both = "`rankmixer` over `dcnv2` and `rankmixer` over `odd\\|name` in `logloss`"
    assert f"Gains that hold: {both}." in page
    assert "## Gains" not in markdown(compare(_results(), "auc"), "frappe", COMMAND)


def test_the_answer_names_the_leader_and_whoever_may_be_as_good() -> None:
    compared = compare(_results(), "auc")
    assert answer(compared)[0].startswith("`rankmixer` leads: `auc` 0.8104 ±")
    assert "over `dcnv2`, the next" in answer(compared)[0]
    close = [r for r in _results() if r.recipe != "rankmixer"]
    for i, seed in enumerate((0, 1, 2)):
        metrics = {"auc": 0.8 + (0.004, -0.003, 0.004)[i], "logloss": 0.4}
        close.append(
            RunResult(recipe="close", seed=seed, metrics=metrics, parameters=10, step_seconds=0.001)
        )
    first, second, third = answer(compare(close, "auc"))
    assert first.startswith("Undecided: `close` has the best mean")
    assert "lead over `dcnv2`, the next, +0.00133 [" in first
    assert first.endswith("], may be chance.")
    assert "odd" not in first
    also = [replace(r, recipe="also") for r in close if r.recipe == "dcnv2"]
    # One rival more makes every interval wider, and the third is among them too.
    assert answer(compare([*close, *also], "auc"))[0].endswith(
        "may be chance; so may those over `also` and `odd\\|name`."
    )
    assert second == (
        "Of these, `close` has the fewest parameters (10) and the shortest step (1 ms)."
    )
    assert third == "Behind with 95 % confidence: `odd\\|name`."
    alone = answer(compare(_results()[:3], "auc"))
    assert alone == ["`dcnv2` reaches `auc` 0.8003 ± 0.0038."]


def test_the_frontier_has_four_panels_and_names_what_nothing_beats() -> None:
    results = [
        replace(r, parameters={"dcnv2": 100, "rankmixer": 200, "odd|name": 300}[r.recipe])
        for r in _results()
    ]
    root = ET.fromstring(frontier_svg(compare(results, "auc")))
    words = [t.text or "" for t in root.iter("{http://www.w3.org/2000/svg}text")]
    for metric in ("auc", "logloss"):
        for cost in ("parameters", "ms per step"):
            assert f"{metric} against {cost}" in words
    assert words.count("rankmixer") == 4
    bare = [replace(r, parameters=None, step_seconds=None) for r in results]
    assert frontier_svg(compare(bare, "auc")) == ""
    assert "What it costs" not in markdown(compare(bare, "auc"), "x", COMMAND)


def test_data_holds_what_the_page_says() -> None:
    data = as_data(compare(_results(), "auc", baseline="dcnv2", promises=PROMISES))
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    first, mixer, _ = data["recipes"]
    assert (first["recipe"], first["parameters"], first["step_ms"]) == ("dcnv2", 1234567, 12.5)
    assert first["metrics"]["auc"]["values"] == [0.8, 0.802, 0.799]
    assert first["metrics"]["auc"]["mean"] == pytest.approx(0.8 + 0.001 / 3)
    assert mixer["paper"] == {"auc": 0.8123}
    assert data["baseline"] == "dcnv2"
    assert [d["verdict"] for d in data["differences"]] == ["holds", "does not hold"]
    tested, *_, absent = data["gains"]
    assert tested["parameters"] == [None, 1234567]
    assert tested["seeds_better"] == 3
    assert tested["gains"] == pytest.approx([0.01, 0.0101, 0.0102])
    assert absent["untested"].startswith("absent is not among")
    assert "verdict" not in absent


def test_short_names_leave_the_common_words_out() -> None:
    assert short_names(["frappe_fm", "frappe_sfg_fm"]) == {
        "frappe_fm": "fm",
        "frappe_sfg_fm": "sfg_fm",
    }
    assert short_names(["a_b_c"]) == {"a_b_c": "a_b_c"}
    assert short_names(["a", "a_b"]) == {"a": "a", "a_b": "a_b"}
    assert short_names(["fm", "fmfm"]) == {"fm": "fm", "fmfm": "fmfm"}


def test_files_are_written_whole(tmp_path: Path) -> None:
    compared = compare(_results(), "auc", baseline="dcnv2")
    inside = {"dcnv2": {"end": 0.5}}
    paths = write_comparison(compared, tmp_path / "results", "frappe", COMMAND, inside=inside)
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == [
        "frappe.json",
        "frappe.md",
        "frappe.svg",
        "frappe_frontier.svg",
    ]
    assert paths["table"].read_text(encoding="utf-8").startswith("# frappe\n")
    assert "(frappe_frontier.svg)" in paths["table"].read_text(encoding="utf-8")
    for picture in ("picture", "frontier"):
        assert paths[picture].read_text(encoding="utf-8").startswith("<svg")
    data = json.loads(paths["data"].read_text(encoding="utf-8"))
    assert data["inside"] == inside
    assert data["command"] == COMMAND
    with pytest.raises(ConfigError):
        write_comparison(compare(_results(), "auc"), tmp_path, "a/b", COMMAND)


def _cells(page: str) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of the first table."""
    lines = next(b for b in page.split("\n\n") if b.startswith("| recipe")).splitlines()
    split = [line.replace("\\|", "\0").strip("| ").split(" | ") for line in lines]
    restored = [[cell.replace("\0", "\\|") for cell in row] for row in split]
    return restored[0], restored[2:]
