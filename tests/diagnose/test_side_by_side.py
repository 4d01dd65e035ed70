"""Side by side: shares that compare, in an order that agrees with every model."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from fullrank.diagnose.collapse import Options, diagnose
from fullrank.diagnose.figures import Shown, sections
from fullrank.diagnose.readings import projections
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
    assert bad["projected"] == pytest.approx(bad["tables"], abs=1e-6)  # rank one stays rank one
    assert good["projected"] > 1.5 * bad["projected"]
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
    assert len(figures) == 9  # four of rank, two of tables, experts, correlation, redundancy
    for figure in figures:
        ElementTree.fromstring(figure.svg)
        assert "good" in figure.svg
        assert "bad" in figure.svg
    assert "not centred" in figures[1].svg
    assert "token mean removed" in figures[3].svg
    for figure, letter in ((figures[4], "t"), (figures[5], "f")):  # by table, by field
        places = [figure.svg.index(f"{letter}{name}") for name in ("2 (2)", "1 (11)", "0 (39)")]
        assert places == sorted(places)
    assert "Gate weights: good 0." in figures[6].caption
    assert "; bad 0." in figures[6].caption


def cells(svg: str) -> dict[str, float]:
    """Returns "row, column" -> value of a heat map, from what a reader sees by hovering."""
    tips = re.findall(r"<rect [^>]*><title>([^<]*): ([^<:]*)</title>", svg)
    return {name: float(value) for name, value in tips}


def one_matrix_flat() -> Findings:
    """Healthy tables, of which one meets all its partners through matrices of rank one."""
    torch.manual_seed(0)
    model = Tiny()
    with torch.no_grad():
        model.pairs[1] = model.pairs[1, :, :, :1] * torch.ones(4)
    context = RunContext(run_id="r", variant="tiny")
    options = Options(rows=300, information=False)
    return diagnose(model, [make_batch(300)], context=context, options=options)


def test_a_planted_projection_of_rank_one_pales_one_row_behind_the_table() -> None:
    found = one_matrix_flat()
    (section,) = [s for s in sections([shown("m", found)]) if "after their projection" in s.heading]
    (figure,) = section.figures
    value = cells(figure.svg)
    for partner in ("f0", "f2"):
        assert value[f"f1, {partner}"] == pytest.approx(0.25, abs=1e-3)
    assert value["f1, table itself"] > 0.5
    assert min(value["f0, f1"], value["f0, f2"], value["f2, f0"]) > 0.4
    assert figure.svg.index(">f2<") < figure.svg.index(">f1<") < figure.svg.index(">f0<")
    both = list(side_by_side([shown("flat", found), shown("whole", measured(flat=False))]))
    value = cells(both[1].figures[1].svg)
    assert value["flat, f1 (11)"] == pytest.approx(0.25, abs=1e-3)
    assert value["whole, f1 (11)"] > 0.4
    assert inside(found)["projected"] < inside(found)["tables"]


def test_a_model_without_matrices_has_no_projected_tables() -> None:
    without = Findings(
        [r for r in measured(flat=False).records if not r.matrix_kind.startswith("sub_emb")]
    )
    assert inside(without)["projected"] is None
    assert list(projections(without)) == []


def test_only_the_largest_tables_are_drawn_and_the_caption_says_so() -> None:
    record = measured(flat=False).find(metric="ia", matrix_kind="table:t0", centred=False)[0]
    names = [f"f{i}" for i in range(30)]
    found = Findings(arrays={"map": torch.full((30, 30), 2.0)}, labels={"map": names})
    found.add(replace(record, matrix_kind="sub_emb", metric="ia_map", value=None, array="map"))
    for i, name in enumerate(names):
        found.add(replace(record, hook=name, matrix_kind=f"table:{name}", n=100 - i))
        found.add(replace(record, hook=name, matrix_kind=f"sub_emb:{name}->*", n=100 - i))
    (section,) = [s for s in sections([shown("m", found)]) if "after their projection" in s.heading]
    svg = section.figures[0].svg
    drawn = {name for name in names if f"{name}, table itself" in cells(svg)}
    assert drawn == set(names[:24])
    assert "24 largest of 30 fields" in section.figures[0].caption


def test_an_expert_that_says_one_thing_and_a_gate_that_ignores_it_show() -> None:
    torch.manual_seed(0)
    model = Tiny()
    model.gate_bias = [0.0, -9.0, 0.0]
    with torch.no_grad():  # the second expert reads a table of one direction
        weight = model.embeddings.weight("t1")
        weight.copy_(weight[:, :1].abs() * torch.ones(1, 4))
    context = RunContext(run_id="r", variant="tiny")
    options = Options(rows=300, information=False)
    bad = diagnose(model, [make_batch(300)], context=context, options=options)
    found = list(side_by_side([shown("bad", bad), shown("good", measured(flat=False))]))
    (figure,) = next(s for s in found if s.heading.startswith("Experts")).figures
    value = cells(figure.svg)
    assert value["bad, expert 1"] < 0.5 * value["good, expert 1"]
    assert value["bad, expert 0"] == pytest.approx(value["good, expert 0"])
    bad_gate, _, good_gate = figure.caption.rpartition("; good ")
    assert ", 0.00 ± 0.00, " in bad_gate
    assert " 0.00 ±" not in good_gate
    for words in (bad_gate, good_gate):
        assert sum(float(w) for w in re.findall(r"(\d\.\d\d) ±", words)) == pytest.approx(
            1, abs=0.02
        )


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
