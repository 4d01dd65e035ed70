"""Verdicts: every complaint is planted once, and a healthy model is left in peace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fullrank.batch import Batch, Columns
from fullrank.data.datasets.simulated import SimulatedLog
from fullrank.data.datasets.simulated_collapse import WORLD
from fullrank.data.loader import Loader
from fullrank.diagnose.collapse import Options, diagnose
from fullrank.diagnose.records import RunContext
from fullrank.diagnose.verdict import (
    Verdict,
    gaussian_ceiling,
    gaussian_tokens,
    judge,
    stage_ranks,
)
from fullrank.embedding import Embeddings
from fullrank.models.dcnv2 import DCNv2
from fullrank.ops import spectrum
from fullrank.schema import Categorical, Label, Schema, Table
from fullrank.tap import Tap
from fullrank.workflow.data import DataOptions, open_data
from tests.diagnose.tiny_ranker import SCHEMA, make_batch

D = 12


class Layered(nn.Module):
    """Two fields, two isometric layers, a head that knows the answer of `make_batch`."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings(SCHEMA, D, fields=("f0", "f1"), std=1.0)
        self.embed, self.head_in, self.experts = Tap("B F D"), Tap("B D"), Tap("B E D")
        self.block0, self.block1 = nn.Module(), nn.Module()
        self.block0.ffn, self.block1.ffn = Tap("B D"), Tap("B D")
        self.first = nn.Linear(2 * D, 2 * D, bias=False)
        self.second = nn.Linear(2 * D, 2 * D, bias=False)
        for layer in (self.first, self.second):
            nn.init.orthogonal_(layer.weight)
        self.gain, self.sign = 2.0, 1.0

    def score(self, batch: Batch) -> dict[str, Tensor]:
        e = self.embed(self.embeddings.fields(batch))
        self.experts(self.spoken(e))
        h = self.block1.ffn(self.second(self.block0.ffn(self.first(e.flatten(1)))))
        h = self.head_in(h)
        truth = (batch.categorical.block[:, :2].sum(1) % 2).float() - 0.5
        return {"click": self.gain * (self.sign * truth + 0.1 * h[:, 0])}

    def spoken(self, e: Tensor) -> Tensor:
        return e


def rows(count: int = 1500) -> Batch:
    return make_batch(count)


def verdicts(change: Callable[[Layered], object], batch: Batch | None = None) -> list[Verdict]:
    torch.manual_seed(0)
    model = Layered()
    with torch.no_grad():
        change(model)
    context = RunContext(run_id="r", variant="v")
    options = Options(rows=1500, information=False)
    return judge(diagnose(model, [batch or rows()], context=context, options=options))


def test_a_healthy_model_is_left_in_peace() -> None:
    (only,) = verdicts(lambda m: None)
    assert only.level == "healthy"
    assert "AUC 1.0" in only.measured


def set_to(tensor: Tensor, value: Tensor | float) -> None:
    tensor.copy_(torch.as_tensor(value).expand_as(tensor))


COMPLAINTS: dict[str, tuple[Callable[[Layered], object], str, str]] = {
    "Everybody gets one score": (lambda m: setattr(m, "gain", 1e-4), "collapse", "click"),
    "The model cannot tell the rows apart": (
        lambda m: setattr(m, "sign", 0.0),
        "collapse",
        "click",
    ),
    "The model ranks backwards": (lambda m: setattr(m, "sign", -1.0), "collapse", "click"),
    "All rows of a table are alike": (
        lambda m: set_to(m.embeddings.weight("t0"), m.embeddings.weight("t0")[5].clone()),
        "collapse",
        "table 't0'",
    ),
    "A table uses few of its directions": (
        lambda m: m.embeddings.weight("t0")[:, 1:].mul_(1e-3),
        "warning",
        "table 't0'",
    ),
    "A layer loses most of its rank": (
        lambda m: m.second.weight[4:].mul_(1e-4),
        "warning",
        "between 'block0.ffn' and 'block1.ffn'",
    ),
    "Rank fades from layer to layer": (
        lambda m: (m.first.weight[14:].mul_(1e-4), m.second.weight[8:].mul_(1e-4)),
        "warning",
        "between 'embed' and 'block1.ffn'",
    ),
    "A stage lives in almost one direction": (
        lambda m: m.first.weight[1:].mul_(1e-4),
        "warning",
        "'block0.ffn'",
    ),
    "Directions before the head are dead": (
        lambda m: m.second.weight[12:].mul_(1e-5),
        "warning",
        "'head_in'",
    ),
    "Experts say the same": (
        lambda m: setattr(m, "spoken", lambda e: e[:, :1, :1].expand(-1, 2, 3)),
        "warning",
        "'experts'",
    ),
}


@pytest.mark.parametrize("what", COMPLAINTS)
def test_a_planted_complaint_is_found_with_its_place(what: str) -> None:
    change, level, place = COMPLAINTS[what]
    found = [v for v in verdicts(change) if v.what == what]
    assert len(found) == 1, what
    assert found[0].level == level
    assert place in found[0].where
    assert any(c.isdigit() for c in found[0].measured)
    assert found[0].advice


def test_the_worst_comes_first() -> None:
    def break_both(m: Layered) -> None:
        m.second.weight[4:].mul_(1e-4)
        m.gain = 1e-4

    levels = [v.level for v in verdicts(break_both)]
    assert levels[0] == "collapse"
    assert levels == sorted(levels, key=["collapse", "warning", "healthy"].index)


def test_equal_labels_have_no_auc_and_it_says_so() -> None:
    batch = rows(200)
    ones = replace(batch, labels=Columns(("click",), torch.ones(200, 1)))
    found = verdicts(lambda m: None, ones)
    assert found[0].what == "AUC has no value"


def test_a_wide_layer_after_a_narrow_one_is_not_called_a_loss() -> None:
    """Twelve directions stay twelve in a space of 24: the bound grew, nothing was lost."""

    def narrow(m: Layered) -> None:
        m.embeddings.weight("t1").zero_()
        m.embeddings.weight("t1")[1:, 0] = torch.randn(11)

    assert not [v for v in verdicts(narrow) if v.what == "A layer loses most of its rank"]


@pytest.mark.parametrize(("n", "d"), [(64, 64), (500, 32), (20, 50)])
@pytest.mark.parametrize("metric", ["erank", "stable_rank", "ia"])
def test_the_ceiling_is_that_of_gaussian_noise(n: int, d: int, metric: str) -> None:
    g = torch.Generator().manual_seed(0)
    draws = [torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(12)]
    values = [spectrum.SCALARS[metric](spectrum.singular_values(x, center=False)) for x in draws]
    assert gaussian_ceiling(n, d, metric) == pytest.approx(float(sum(values) / 12), rel=0.12)


def test_known_ceilings_of_the_specification() -> None:
    assert gaussian_ceiling(64, 64) == pytest.approx(51.2, rel=0.02)
    assert gaussian_ceiling(8192, 64) == pytest.approx(63.9, rel=0.01)
    assert gaussian_tokens(16, 64) / 16 == pytest.approx(0.965, abs=0.01)
    assert gaussian_tokens(32, 32) / 32 == pytest.approx(0.80, abs=0.02)
    assert gaussian_tokens(16, 64, "stable_rank") / 16 == pytest.approx(0.49, abs=0.02)


def test_beyond_the_largest_reference_the_share_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from fullrank.diagnose import verdict

    direct = gaussian_ceiling(900, 300)
    gaussian_ceiling.cache_clear()
    monkeypatch.setattr(verdict, "LARGEST_REFERENCE", 100)
    assert gaussian_ceiling(900, 300) == pytest.approx(direct, rel=0.02)
    gaussian_ceiling.cache_clear()


def test_stages_are_in_the_order_of_the_model() -> None:
    torch.manual_seed(0)
    context = RunContext(run_id="r", variant="v")
    found = diagnose(Layered(), [rows()], context=context, options=Options(information=False))
    stages = stage_ranks(found)
    assert [s.name for s in stages] == ["embed", "block0.ffn", "block1.ffn", "head_in"]
    assert stages[0].leaving == found.value(
        matrix_kind="batch_flat:embed", metric="erank", centred=True
    )
    assert all(0 < s.share <= 1.05 for s in stages)


SIZES = {"user": 120, "ad": 90, "city": 60, "device": 9}
TABLES = Schema(
    tables=tuple(Table(name, size) for name, size in SIZES.items()),
    fields=tuple(Categorical(name, name) for name in SIZES),
    labels=(Label("click"),),
)
FALLEN = "A table lost directions that others kept"


class Tables(nn.Module):
    """Two sets of tables and nothing to complain about but them."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings(TABLES, D, std=1.0)
        self.second = Embeddings(TABLES, D, std=1.0)

    def score(self, batch: Batch) -> dict[str, Tensor]:
        return {"click": batch.labels["click"] + 0.1 * self.embeddings.fields(batch)[:, 0, 0]}


def fallen(
    change: Callable[[Tables], object], counts: Mapping[str, Tensor] | None = None
) -> list[Verdict]:
    """Returns what is said of tables below their peers, after a change to healthy ones."""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = Tables()
    with torch.no_grad():
        change(model)
    ids = torch.stack([torch.randint(0, s, (400,), generator=g) for s in SIZES.values()], 1).int()
    batch = replace(rows(400), categorical=Columns((*SIZES,), ids), sequences={})
    context = RunContext(run_id="r", variant="v")
    options = Options(information=False)
    found = diagnose(model, [batch], context=context, counts=counts, options=options)
    return [v for v in judge(found) if v.what == FALLEN]


def narrow(tables: Embeddings, *names: str) -> None:
    """Keeps a third of the columns of some tables, and a tenth of what is in the others."""
    for name in names:
        tables.weight(name)[:, D // 3 :] *= 0.1


def test_a_table_below_its_peers_is_named_with_what_it_should_have() -> None:
    assert fallen(lambda m: None) == []
    (one,) = fallen(lambda m: narrow(m.embeddings, "user"))
    assert (one.level, one.where) == ("warning", "table 'user'")
    assert "119 x 12" in one.measured
    assert "3 other tables" in one.measured
    assert "PFL" in one.advice
    (one,) = fallen(lambda m: narrow(m.embeddings, "city"))
    assert one.where == "table 'city'"


def test_a_field_of_few_values_is_not_accused() -> None:
    assert fallen(lambda m: narrow(m.embeddings, "device")) == []


def test_tables_are_held_against_those_of_their_own_set() -> None:
    """An expert whose tables are all narrow has no table that stands out."""
    assert fallen(lambda m: narrow(m.second, *SIZES)) == []
    (one,) = fallen(lambda m: narrow(m.second, "ad"))
    assert one.where == "table 'second/ad'"


def test_rows_that_training_never_saw_do_not_hide_it() -> None:
    seen = torch.arange(SIZES["user"]) < 60
    counts = {name: torch.ones(size) for name, size in SIZES.items()} | {"user": seen.int()}

    def half(m: Tables) -> None:
        m.embeddings.weight("user")[seen, D // 3 :] *= 0.1

    assert fallen(half) == []
    (one,) = fallen(half, counts)
    assert one.where == "table 'user'"
    assert "59 x 12 (seen rows)" in one.measured
    assert "3 other tables" in one.measured  # each of them once


@pytest.mark.parametrize(("partner", "named"), [(16.0, ["table 'user'"]), (0.0, [])])
def test_the_planted_collapse_is_named_and_its_control_is_not(
    partner: float, named: list[str], tmp_path: Path
) -> None:
    """After a short training on a small log of the world whose users collapse."""
    world = replace(
        WORLD, partner=partner, num_rows=12_000, num_users=60, num_ads=60, num_categories=8,
        num_contexts=1, history_length=0, conversion_rate=0.0,
    )  # fmt: skip
    data = open_data(SimulatedLog("tiny", world), DataOptions(root=tmp_path, cache=tmp_path))
    torch.manual_seed(0)
    model = DCNv2(data.schema, DCNv2.Config(dim=8, num_cross=1, hidden=(16,)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for seed in range(5):
        for batch in Loader(data.splits["train"], 256, seed=seed):
            optimizer.zero_grad()
            sum(model(batch).values()).backward()
            optimizer.step()
    found = diagnose(
        model,
        data.splits["valid"].batches(),
        context=RunContext(run_id="r", variant="v"),
        counts={t.name: data.counts(t.name) for t in data.schema.tables},
        options=Options(information=False),
    )
    assert [v.where for v in judge(found) if v.what == FALLEN] == named
