"""What happens to the tokens of a history: per layer against loops, on planted states, in words."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.diagnose.collapse import Options, diagnose
from fullrank.diagnose.figures import Section, Shown
from fullrank.diagnose.monitor import EffectiveRank
from fullrank.diagnose.probe import take_subset, watch
from fullrank.diagnose.readings import rhythm_words
from fullrank.diagnose.records import Findings, Record, RunContext
from fullrank.diagnose.report import RunFindings, render_report
from fullrank.diagnose.sequence_figures import sequences_apart, sequences_together
from fullrank.diagnose.sequences import GateValues, newest, pooled
from fullrank.diagnose.verdict import judge, stage_ranks
from fullrank.models.tokenformer import TokenFormer, TokenFormerConfig
from fullrank.ops import spectrum
from fullrank.tap import Tap
from fullrank.testing.cases import random_batch, tiny_schema
from tests.diagnose.test_periodicity import Ideal, habits
from tests.diagnose.tiny_ranker import make_batch

LAYERS, DIM, EVENTS = 3, 6, 40
QUICK = Options(rows=200, chunk=64, information=False)
CONTEXT = RunContext(run_id="r", variant="v")


class Block(nn.Module):
    """The taps of one layer of a sequence model."""

    def __init__(self) -> None:
        super().__init__()
        self.nlir_valid, self.nlir = Tap("B T"), Tap("B T D")
        self.seq_valid, self.seq = Tap("B T"), Tap("B T D")


class Toy(nn.Module):
    """States of a history that are planted: with every layer fewer directions, or as many.

    Args:
        shrink: width of the states that the layers keep, layer by layer.
        told: layer whose states say the label.
        pad: value that stands at padding; it must reach no number.
    """

    def __init__(
        self, shrink: tuple[int, ...] = (6, 6, 6), told: int | None = None, pad: float = 1e6
    ) -> None:
        super().__init__()
        self.shrink, self.told, self.pad = shrink, told, pad
        for layer in range(len(shrink)):
            self.add_module(f"block{layer}", Block())
        self.head_in = Tap("B D")
        self.seen: list[Tensor] = []

    def states(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Returns states [B, L, T, D], gates of that shape, and what is valid [B, T].

        They follow from the row alone, so that any cut into parts gives the same.
        """
        each = []
        for group in batch.group.tolist():
            draw = torch.Generator().manual_seed(int(group))
            each.append(torch.randn(len(self.shrink), EVENTS, 2 * DIM, generator=draw))
        x, g = torch.stack(each).split(DIM, dim=3)
        x = x + 3.0  # a mean that centring removes
        for layer, keep in enumerate(self.shrink):
            x[:, layer, :, keep:] = 0.0
        if self.told is not None:
            x[:, self.told, :, 0] += 2 * batch.labels["click"][:, None]
        length = batch.group % (EVENTS + 1)  # 0 is among them
        valid = torch.arange(EVENTS) >= EVENTS - length[:, None]
        x = torch.where(valid[:, None, :, None], x, self.pad)
        return x, torch.sigmoid(3 * g), valid

    def score(self, batch: Batch) -> dict[str, Tensor]:
        x, g, valid = self.states(batch)
        for layer in range(len(self.shrink)):
            block = self.get_submodule(f"block{layer}")
            block.nlir_valid(valid)
            block.nlir(g[:, layer])
            block.seq_valid(valid)
            block.seq(x[:, layer])
        last = torch.where(valid[:, -1:], x[:, 0, -1], 0.0)
        return {"click": self.head_in(last).sum(1)}


class Attentive(Toy):
    """Sees static tokens in its lower layers alone."""

    def attention_to_static(self, batch: Batch) -> Tensor:
        self.seen.append(batch.group)
        return torch.tensor([0.5, 0.25, 0.0])


def measured(model: nn.Module, rows: int = 200, *, information: bool = False) -> Findings:
    options = replace(QUICK, information=information, rows=rows)
    return diagnose(model, [make_batch(rows)], context=CONTEXT, options=options)


def planted(model: Toy, rows: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    return model.states(take_subset([make_batch(rows)], rows).batch)


def only(found: Findings, hook: str, metric: str, **wanted: object) -> Record:
    records = found.find(hook=hook, metric=metric, **wanted)
    assert len(records) == 1, (hook, metric, len(records))
    return records[0]


def shown(name: str, found: Findings) -> Shown:
    return Shown(name, found, found, judge(found), stage_ranks(found))


def section(runs: list[Shown], words: str) -> Section:
    every = [*sequences_together(runs), *sequences_apart(runs)]
    (found,) = [s for s in every if words in s.heading]
    return found


@pytest.mark.parametrize("centred", [False, True])
def test_m6_takes_the_newest_32_events_of_every_sample(centred: bool) -> None:
    model = Toy()
    x, _, valid = planted(model)
    found = measured(model)
    for layer in range(LAYERS):
        rows = [row[at][-32:] for row, at in zip(x[:, layer], valid, strict=True)]
        assert max(len(r) for r in rows) == 32 < int(valid.sum(1).max())
        wanted = torch.cat(rows)
        r = only(found, f"block{layer}.seq", "erank", centred=centred)
        s = spectrum.singular_values(wanted, center=centred)
        assert r.value == pytest.approx(float(spectrum.erank(s)), rel=1e-6)
        assert (r.n, r.row_filter, r.approx) == (len(wanted), "valid", "newest 32 of a sample")


def test_newest_counts_from_the_end_whichever_side_is_padded() -> None:
    draw = torch.Generator().manual_seed(0)
    valid = torch.rand(50, 12, generator=draw) < 0.6
    for row, kept in zip(valid, newest(valid, 3), strict=True):
        assert kept.nonzero().flatten().tolist() == row.nonzero().flatten().tolist()[-3:]
    assert torch.equal(newest(valid, 12), valid)


def test_a_history_is_pooled_to_the_mean_of_its_events() -> None:
    x, _, valid = planted(Toy(), 60)
    found = pooled(x[:, 0].double(), valid)
    for row, at, mean in zip(x[:, 0].double(), valid, found, strict=True):
        if at.any():
            assert torch.allclose(mean, row[at].mean(0))
        else:
            assert bool(mean.isnan().all())


def test_gates_are_summed_up_per_layer_and_are_no_stage() -> None:
    model = Toy()
    _, g, valid = planted(model)
    found = measured(model)
    for layer in range(LAYERS):
        rows = [row[at][-32:] for row, at in zip(g[:, layer], valid, strict=True)]
        wanted = torch.cat(rows).double()
        hook = f"block{layer}.nlir"
        share = float(((wanted - 0.5).abs() > 0.45).double().mean())
        assert only(found, hook, "gate_mean").value == pytest.approx(float(wanted.mean()))
        std = float(wanted.std(correction=0))
        assert only(found, hook, "gate_std").value == pytest.approx(std, rel=1e-5)
        assert only(found, hook, "gate_saturation").value == pytest.approx(share, abs=1e-9)
        assert share > 0.05
        assert not found.find(hook=hook, metric="erank")


def test_a_gate_that_stands_still_has_no_spread_and_one_that_is_shut_is_saturated() -> None:
    still, shut = GateValues(), GateValues()
    still.update(torch.full((30, 4), 0.7, dtype=torch.float64))
    shut.update(torch.tensor([[0.001, 0.999]] * 20, dtype=torch.float64))
    assert still.summary() == pytest.approx({"mean": 0.7, "std": 0.0, "saturation": 0.0}, abs=1e-7)
    assert shut.summary() == pytest.approx({"mean": 0.5, "std": 0.499, "saturation": 1.0})


def test_a_planted_collapse_from_layer_to_layer_is_found_and_judged() -> None:
    good, bad = measured(Toy()), measured(Toy((6, 4, 1)))
    ranks = [
        [only(found, f"block{i}.seq", "erank", centred=True).value for i in range(LAYERS)]
        for found in (good, bad)
    ]
    assert min(ranks[0]) > 5.9
    assert ranks[1] == pytest.approx([6, 4, 1], abs=0.1)
    assert not any("block" in v.where for v in judge(good))
    assert any("block" in v.where for v in judge(bad))


def test_information_about_the_label_is_found_in_the_layer_that_has_it() -> None:
    found = measured(Toy(told=1), 900, information=True)
    mi = [only(found, f"block{i}.seq", "mi_corrected").value for i in range(LAYERS)]
    auc = [only(found, f"block{i}.seq", "probe_auc").value for i in range(LAYERS)]
    assert mi[1] > 0.5 > math.log(2) - 0.2  # most of the one bit
    assert max(abs(mi[0]), abs(mi[2])) < 0.02
    assert auc[1] > 0.95
    assert max(abs(auc[0] - 0.5), abs(auc[2] - 0.5)) < 0.08
    kept = sum(1 for g in range(900) if g % (EVENTS + 1))  # empty histories say nothing
    assert only(found, "block1.seq", "mi_corrected").n == kept - kept // 2


def test_attention_to_static_tokens_is_recorded_in_percent() -> None:
    model = Attentive()
    found = measured(model, 700)
    values = [only(found, f"block{i}.attention", "attention_static") for i in range(LAYERS)]
    assert [r.value for r in values] == pytest.approx([50.0, 25.0, 0.0])
    assert {r.n for r in values} == {512}
    assert sum(len(g) for g in model.seen) == 512
    assert not measured(Toy()).find(metric="attention_static")


def test_parts_of_a_log_count_by_their_events(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lengths(Ideal):
        def attention_to_static(self, batch: Batch) -> Tensor:
            lengths = batch.sequences["past"].lengths().double()
            return (lengths.square().sum() / lengths.sum())[None] / 100

    batch = habits(30)
    short = batch.rows(torch.arange(30))
    short.sequences["past"] = short.sequences["past"].newest(20)
    both = [batch, short]
    values = []
    for cells in (2**24, 7 * 50 * 50):
        monkeypatch.setattr("fullrank.diagnose.sequences.ATTENTION_CELLS", cells)
        options = Options(rows=60, information=False)
        found = diagnose(Lengths(), both, context=CONTEXT, options=options)
        values.append(found.value(metric="attention_static"))
    assert values[0] == pytest.approx((50**2 + 20**2) / 70)
    assert values[1] == pytest.approx(values[0])


def test_histories_that_are_all_empty_have_scores_and_nothing_else() -> None:
    rows = make_batch(40)
    rows.group.zero_()  # what the toy takes for the length
    found = diagnose(Attentive(), [rows], context=CONTEXT, options=replace(QUICK, information=True))
    assert found.find(metric="score_std")
    assert not [r for r in found.records if r.hook.endswith(".seq")]
    assert found.value(metric="gate_mean") is None


def test_rows_with_long_histories_are_scored_a_few_at_a_time() -> None:
    sizes = []

    class Sized(Ideal):
        def score(self, batch: Batch) -> dict[str, Tensor]:
            sizes.append(len(batch))
            return super().score(batch)

    batch = habits(700)
    options = Options(rows=700, information=False)
    diagnose(Sized(), [batch], context=CONTEXT, options=options)
    assert sizes == [700]
    sizes.clear()
    model = Sized()
    model.history.length = 1000
    diagnose(model, [batch], context=CONTEXT, options=options)
    assert sizes == [131] * 5 + [45]


def test_taps_of_other_models_are_measured_the_same_way() -> None:
    """Any tap of axes "B T D" counts, whatever its name, with a mask or without one."""

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.interests = Tap("B T D")

        def score(self, batch: Batch) -> dict[str, Tensor]:
            x = torch.stack(
                [torch.randn(5, 3, generator=torch.Generator().manual_seed(int(g)))
                 for g in batch.group]
            )  # fmt: skip
            return {"click": self.interests(x).sum((1, 2))}

    found = measured(Other())
    r = only(found, "interests", "erank", centred=True)
    assert (r.n, r.row_filter, r.approx) == (1000, "all", "")


def test_tokenformer_is_measured_in_every_layer() -> None:
    schema = tiny_schema()
    batch = random_batch(schema, 300, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    config = replace(TokenFormerConfig.tiny(), schedule="2F1S", gate_init="normal")
    options = Options(rows=300, chunk=128)
    model = TokenFormer(schema, config)
    found = diagnose(model, [batch], context=CONTEXT, options=options)
    static = [only(found, f"block{i}.attention", "attention_static").value for i in range(3)]
    assert min(static[:2]) > 5
    assert static[2] == 0  # static tokens are gone
    events = batch.sequences[model.history.name].newest(model.history.length).offsets[-1]
    for layer in range(3):
        rank = only(found, f"block{layer}.seq", "erank", centred=True)
        assert 1 < rank.value < rank.d == config.dim
        assert rank.n == only(found, f"block{layer}.nlir", "gate_std").n == int(events)
        assert only(found, f"block{layer}.seq", "mi_corrected").value is not None
        bias = torch.sigmoid(torch.tensor(1.0))  # the tiny config starts its gates there
        gate = only(found, f"block{layer}.nlir", "gate_mean").value
        assert gate == pytest.approx(float(bias), abs=0.02)


def test_the_monitor_leaves_out_padding_and_gates() -> None:
    model, batch = Toy(), make_batch(100)
    probe = EffectiveRank("*", CONTEXT, rows=300)
    with watch(model, probe) as seen:
        seen.score(batch)
    found = {r.hook: r for r in probe.report()}
    assert set(found) == {"head_in", *(f"block{i}.seq" for i in range(LAYERS))}
    for i in range(LAYERS):
        r = found[f"block{i}.seq"]
        assert r.n == 300
        assert r.value > 5.8  # padding of 1e6 would be the only direction


def test_one_figure_holds_all_variants_with_one_colour_each() -> None:
    runs = [
        shown("joint", measured(Attentive((6, 4, 1), told=0), information=True)),
        shown("alone <b>", measured(Toy(), information=True)),
    ]
    (figure,) = section(runs, "layer by layer").figures
    root = ElementTree.fromstring(figure.svg)
    heads = [e.text for e in root.iter() if e.get("class") == "h"]
    for words in ("Sequence tokens", "Effective rank", "information", "static", "Gate"):
        assert any(words in str(head) for head in heads), words
    words = [str(e.text) for e in root.iter() if (e.text or "").strip()]
    assert words.count("joint") == words.count("alone <b>") == 1  # one legend
    assert words.count("block1") == 4  # the horizontal axis of each panel
    lines = re.findall(r'<path class="l(\d)"', figure.svg)
    # two in the legend; both models in three panels, and one has no attention to static tokens
    assert (lines.count("0"), lines.count("1")) == (1 + 4, 1 + 3)
    assert "joint 1.0" in figure.caption
    assert "alone <b> 6.0" in figure.caption


def test_ranks_of_unlike_widths_are_drawn_as_shares() -> None:
    class Narrow(Toy):
        def states(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
            x, g, valid = super().states(batch)
            return x[..., :3], g, valid

    runs = [shown("wide", measured(Toy())), shown("narrow", measured(Narrow()))]
    (figure,) = section(runs, "layer by layer").figures
    assert "share of noise" in figure.svg
    alike = section([shown("a", measured(Toy())), shown("b", measured(Toy((6, 4, 1))))], "layer")
    assert "share of noise" not in alike.figures[0].svg


def test_a_page_shows_what_there_is_and_leaves_out_what_there_is_not() -> None:
    one = RunFindings(name="one", findings=measured(Toy()))
    page = render_report([one], title="t")
    assert page.count("Sequence tokens, layer by layer<") == 2  # in the contents, and itself
    assert "side by side" not in page
    assert "Rhythm" not in page
    two = render_report([one, replace(one, name="two")], title="t")
    assert "Sequence tokens, layer by layer, side by side" in two
    assert two.index("layer by layer, side by side") < two.index("Verdicts")

    options = Options(rows=400, information=False)
    ideal = diagnose(Ideal(), [habits(400)], context=CONTEXT, options=options)
    page = render_report([RunFindings(name="one", findings=ideal)], title="t")
    assert "side by side" not in page
    assert "Rhythm of interest: spectral entropy<" in page
    assert "layer by layer" not in page
    assert "click: yes" in page
    both = [RunFindings(name=name, findings=ideal) for name in ("one", "two")]
    page = render_report(both, title="t")
    assert "Low entropy as the only score, between equal lengths" in page
    assert page.index("spectral entropy, side by side</h2>") < page.index("one: target and history")


def test_the_words_say_which_way_the_spectrum_leans() -> None:
    options = Options(rows=1500, information=False)

    def words(batch: Batch) -> str:
        found = diagnose(Ideal(), [batch], context=CONTEXT, options=options)
        return " ".join(rhythm_words(found))

    batch = habits(1500)
    assert "return with a rhythm" in words(batch)
    assert "no rhythm" in words(habits(1500, shuffled=True))
    batch.labels.block.copy_(1 - batch.labels.block)
    assert "break with the rhythm" in words(batch)
