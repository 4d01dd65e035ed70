"""Side by side: shares that compare, in an order that agrees with every model."""

from __future__ import annotations

import itertools
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from fullrank.diagnose.collapse import Options, diagnose
from fullrank.diagnose.figures import Shown
from fullrank.diagnose.records import Findings, RunContext
from fullrank.diagnose.report import Opening, RunFindings, Table, render_report
from fullrank.diagnose.side_by_side import INSIDE, inside, merged, side_by_side
from fullrank.diagnose.verdict import judge, stage_ranks
from tests.diagnose.tiny_ranker import Tiny, make_batch


def measured(flat: bool, dim: int = 4) -> Findings:
    """Findings of a tiny model; a flat one has tables of rank one and tokens that are alike."""
    torch.manual_seed(0)
    model = Tiny(dim)
    if flat:
        with torch.no_grad():
            for name in ("t0", "t1", "t2"):
                weight = model.embeddings.weight(name)
                weight.copy_(weight[:, :1] * torch.ones(1, dim))
    context = RunContext(run_id="r", variant="tiny")
    options = Options(rows=300, information=False)
    return diagnose(model, [make_batch(300)], context=context, options=options)


@pytest.fixture(scope="module")
def both() -> tuple[Findings, Findings]:
    return measured(flat=False), measured(flat=True)


def shown(name: str, found: Findings) -> Shown:
    return Shown(name, found, found, judge(found), stage_ranks(found))


def test_a_planted_collapse_shows_in_the_numbers_of_a_model(both) -> None:
    good, bad = (inside(found) for found in both)
    assert set(good) == set(bad) == set(INSIDE)
    assert bad["tables"] == pytest.approx(np.mean([1 / 4, 1 / 4, 1 / 2]), abs=1e-6)
    assert good["tables"] > 1.5 * bad["tables"]
    assert bad["weakest_table"] == pytest.approx(0.25, abs=1e-6)
    assert bad["weakest"] < good["weakest"]
    assert bad["sample"] < good["sample"]
    assert bad["correlation"] > good["correlation"]
    assert all(0 <= v <= 1.1 for v in (*good.values(), *bad.values()) if v is not None)


def test_stages_are_ranked_with_their_mean_or_without(both) -> None:
    for centred in (True, False):
        last = stage_ranks(both[0], centred=centred)[-1]
        wanted = {"matrix_kind": "head_in", "metric": "erank", "centred": centred}
        assert last.name == "head_in"
        assert last.erank == both[0].value(**wanted)
        assert last.bound == both[0].find(**wanted)[0].bound


def test_what_a_model_does_not_have_is_none(both) -> None:
    scores = Findings(both[0].find(hook="score"))
    assert set(inside(scores).values()) == {None}


def test_a_share_does_not_depend_on_width() -> None:
    """Noise of any width is healthy, although its effective rank grows with the width."""
    narrow, wide = (inside(measured(flat=False, dim=d))["tables"] for d in (3, 6))
    assert narrow == pytest.approx(wide, abs=0.15)


def test_orders_are_merged_without_contradiction() -> None:
    orders = [
        ["embed", "block0.mix", "block1.mix", "block2.mix", "head_in"],
        ["embed", "tokens", "block0.mix", "block0.ffn", "block1.mix", "block1.ffn", "head_in"],
        ["embed", "head_in"],
    ]
    one = merged(orders)
    assert one == [
        "embed", "tokens", "block0.mix", "block0.ffn", "block1.mix", "block1.ffn", "block2.mix",
        "head_in",
    ]  # fmt: skip
    for order in orders:
        assert [name for name in one if name in order] == order
    assert sorted(merged([["a", "b"], ["b", "a"]])) == ["a", "b"]  # no order agrees with both
    for lists in itertools.permutations(orders):
        assert merged(lists) == one


def test_models_stand_in_one_figure_and_a_single_one_has_none(both) -> None:
    assert list(side_by_side([shown("alone", both[0])])) == []
    found = list(side_by_side([shown("good", both[0]), shown("bad", both[1])]))
    figures = [figure for section in found for figure in section.figures]
    assert len(figures) == 6  # three of rank, tables, correlation, redundancy
    for figure in figures:
        ElementTree.fromstring(figure.svg)
        assert "good" in figure.svg
        assert "bad" in figure.svg
    assert "not centred" in figures[1].svg
    tables = figures[3].svg
    assert tables.index("t2 (2)") < tables.index("t1 (11)") < tables.index("t0 (39)")


def test_sets_of_embeddings_stand_in_rows_of_their_own(both) -> None:
    records = [
        replace(r, hook=f"other/{r.hook}", matrix_kind=f"table:other/{r.hook}")
        for r in both[0].find(metric="ia")
        if r.matrix_kind.startswith("table:")
    ]
    two = Findings([*both[0].records, *records], both[0].arrays, both[0].labels)
    found = list(side_by_side([shown("two", two), shown("one", both[1])]))
    words = [t.text for t in ElementTree.fromstring(found[1].figures[0].svg).iter()]
    assert {"two #1", "two #2", "one"} <= set(words)


def test_a_page_opens_with_the_answer_and_folds_what_belongs_to_single_models(both) -> None:
    opening = Opening(
        sentences=["<b> leads."], tables=[Table("Gains", ["recipe"], [["a & b"]], ["a note"])]
    )
    few = [RunFindings(name=n, findings=both[0]) for n in "ab"]
    page = render_report(few, title="t", opening=opening)
    assert "&lt;b&gt; leads." in page
    assert page.index("leads.") < page.index("a &amp; b") < page.index("side by side")
    assert "<details>" not in page
    many = [RunFindings(name=n, findings=both[0]) for n in "abcde"]
    page = render_report(many, title="t")
    assert "<details>" in page
    assert page.index("side by side") < page.index("<details>")
    assert "Inside the models" not in page
