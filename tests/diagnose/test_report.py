"""The page: complete, self-contained, and safe with any name."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from fullrank.diagnose.collapse import Options, diagnose
from fullrank.diagnose.records import Findings, RunContext
from fullrank.diagnose.report import RunFindings, headline, render_report, write_report
from fullrank.diagnose.verdict import judge
from fullrank.errors import EmptyInputError
from tests.diagnose.tiny_ranker import Tiny, make_batch

VOID = {"meta", "path", "rect", "circle", "br"}


class Strict(HTMLParser):
    """Checks that tags nest, and collects text and links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v or "" for k, v in attrs if k in ("href", "src", "srcset", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def found() -> Findings:
    torch.manual_seed(0)
    model, out = Tiny(), Findings()
    count = {"t0": torch.ones(40, dtype=torch.int64)}
    for epoch in (1.0, 2.0):
        context = RunContext(run_id="r", variant="tiny", epoch=epoch)
        options = Options(rows=200)
        out.extend(
            diagnose(model, [make_batch(200)], context=context, counts=count, options=options)
        )
    return out


def test_the_page_is_whole_and_needs_no_network(found: Findings, tmp_path: Path) -> None:
    metrics = {"auc": 0.51234, "parameters": 1234567, "step_ms": 3.14159, "gauc": None}
    runs = [
        RunFindings(name="one", findings=found, metrics=metrics),
        RunFindings(name="two", findings=found, metrics={"auc": 0.6}),
    ]
    path = tmp_path / "new" / "report.html"
    write_report(path, runs, title="A title", subtitle="400 rows")
    page = path.read_text(encoding="utf-8")
    parser = Strict()
    parser.feed(page)
    assert parser.open == []
    assert all(link.startswith("#") for link in parser.links)
    assert not re.search(r"url\((?!#)|@import|<script", page)
    text = " ".join(parser.words)
    for words in ("A title", "400 rows", "0.5123", "1,234,567", "3.1", "n/a"):
        assert words in text, words
    for section in (
        "Effective rank through the model", "one sample", "Spectra", "Embedding tables",
        "every field, token and expert", "Redundancy", "after their projection",
        "Gate weights:", "min(T - 1, D)", "Mutual information", "Over training time",
        "Definitions", "seen rows", "all rows", "below the floor",
    ):  # fmt: skip
        assert section in text, section
    assert page.count("<figcaption>") == page.count("<svg")
    assert len(list(path.parent.iterdir())) == 1


def test_names_cannot_break_the_page(found: Findings) -> None:
    evil = '<script>alert("x")</script>'
    page = render_report([RunFindings(name=evil, findings=found)], title=evil)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_training_time_is_drawn_only_with_several_checkpoints(found: Findings) -> None:
    page = render_report([RunFindings(name="one", findings=found.latest())], title="t")
    assert "Over training time" not in page


def test_a_model_with_scores_alone_has_a_page() -> None:
    scores = Findings()
    torch.manual_seed(0)
    whole = diagnose(
        Tiny(),
        [make_batch(100)],
        context=RunContext(run_id="r", variant="v"),
        options=Options(rows=50),
    )
    for record in whole.find(hook="score"):
        scores.add(record)
    page = render_report([RunFindings(name="lr", findings=scores)], title="t")
    assert "lr" in page
    assert "<figure" not in page


def test_nothing_to_show_is_an_error() -> None:
    with pytest.raises(EmptyInputError):
        render_report([], title="t")
    with pytest.raises(EmptyInputError):
        render_report([RunFindings(name="a", findings=Findings())], title="t")


def test_the_headline_names_the_worst_first_and_joins_the_healthy(found: Findings) -> None:
    base = judge(found)[0]
    good = [replace(base, level="healthy")]
    bad = [replace(base, level="collapse", what="Everybody gets one score", where="score")]
    lines = headline({"a": good, "b": bad, "c": good, "d": good})
    assert lines[0] == ("collapse", "b is collapsing: everybody gets one score (score).")
    assert lines[1] == ("healthy", "a, c and d show no sign of collapse.")
