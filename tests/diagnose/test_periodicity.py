"""Spectral entropy: against the definition, on planted habits, and unmoved by history length."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fullrank.batch import Batch, Columns, Jagged
from fullrank.diagnose.collapse import Options, diagnose
from fullrank.diagnose.periodicity import entropies, entropy_auc, spectral_entropy
from fullrank.diagnose.records import Findings, RunContext
from fullrank.embedding import Embeddings
from fullrank.errors import MetricUndefinedError
from fullrank.schema import Categorical, Label, Schema, Sequence, Table
from fullrank.target import TargetHistory

KINDS = 12  # categories
WINDOW = 50
SCHEMA = Schema(
    tables=(Table("category", KINDS + 1),),
    fields=(Categorical("category", "category"),),
    sequences=(Sequence("past", (("category", "category"),), WINDOW),),
    labels=(Label("click"),),
)


class Ideal(nn.Module):
    """Knows which category is which, and nothing else: the table is the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.history = TargetHistory(SCHEMA)
        self.embeddings = Embeddings(SCHEMA, KINDS + 1, sequences=("past",))
        with torch.no_grad():
            self.embeddings.weight("category").copy_(torch.eye(KINDS + 1))

    def score(self, batch: Batch) -> dict[str, Tensor]:
        return {"click": self.embeddings.fields(batch).sum((1, 2))}


def make_batch(target: Tensor, label: Tensor, past: list[Tensor]) -> Batch:
    rows = len(target)
    lengths = torch.tensor([len(p) for p in past])
    return Batch(
        categorical=Columns(("category",), target[:, None].int()),
        numeric=Columns.none(rows, torch.float32),
        labels=Columns(("click",), label[:, None].float()),
        observed=Columns(("click",), torch.ones(rows, 1, dtype=torch.bool)),
        weight=torch.ones(rows),
        group=torch.arange(rows),
        time=torch.zeros(rows, dtype=torch.int64),
        sequences={
            "past": Jagged(
                {"category": torch.cat(past).int()},
                torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
            )
        },
    )


def habits(rows: int, *, noise: float = 0.3, shuffled: bool = False, seed: int = 0) -> Batch:
    """Each past holds one category every 5, 7 or 10 events, one as often without any rhythm.

    The first is clicked, the second is not; `noise` is the share of turns that were missed.
    """
    draw = torch.Generator().manual_seed(seed)

    def chance(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw)

    label = torch.arange(rows) % 2
    period = torch.tensor([5, 7, 10])[torch.randint(3, (rows,), generator=draw)]
    kinds = 1 + chance(rows, KINDS).argsort(1)
    events = kinds.gather(1, torch.randint(2, KINDS, (rows, WINDOW), generator=draw))
    turn = (WINDOW - torch.arange(WINDOW)) % period[:, None] == 0  # and the next event is one
    kept = turn & (chance(rows, WINDOW) >= noise)
    order = torch.where(turn, 2.0, chance(rows, WINDOW)).argsort(1).argsort(1)
    elsewhere = order < kept.sum(1, keepdim=True)  # as many, among the places without a turn
    events = torch.where(kept, kinds[:, :1], torch.where(elsewhere, kinds[:, 1:2], events))
    if shuffled:
        events = events.gather(1, chance(rows, WINDOW).argsort(1))
    return make_batch(torch.where(label == 1, kinds[:, 0], kinds[:, 1]), label, list(events))


def measured(batch: Batch) -> Findings:
    options = Options(rows=len(batch), information=False)
    return diagnose(Ideal(), [batch], context=RunContext(run_id="r", variant="v"), options=options)


def slow_entropy(match: list[float], valid: list[bool]) -> float:
    """H from the definition, with a transform written out."""
    size = len(match)
    real = [c for c, v in zip(match, valid, strict=True) if v]
    frequencies = size // 2
    if len(real) < 3 or frequencies < 2:
        return math.nan
    mean = sum(real) / len(real)
    x = [c - mean if v else 0.0 for c, v in zip(match, valid, strict=True)]
    power = []
    for f in range(1, frequencies + 1):
        turned = [x[j] * cmath.exp(-2j * cmath.pi * f * j / size) for j in range(size)]
        power.append(abs(sum(turned)) ** 2)
    if sum(power) <= 1e-9 * sum(c * c for c in real):
        return math.nan
    shares = [p / sum(power) for p in power]
    return -sum(p * math.log(p) for p in shares if p > 0) / math.log(frequencies)


def slow_auc(h: list[float], y: list[int], length: list[int] | None) -> tuple[float, int]:
    won, pairs = 0.0, 0
    for i in range(len(h)):
        for j in range(len(h)):
            if y[i] and not y[j] and (length is None or length[i] == length[j]):
                pairs += 1
                won += 1.0 if h[i] < h[j] else 0.5 if h[i] == h[j] else 0.0
    return won / pairs, pairs


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 13, 31]), st.integers(0, 10_000), st.data())
def test_entropy_equals_the_definition_written_out(size: int, seed: int, data: st.DataObject):
    draw = torch.Generator().manual_seed(seed)
    real = data.draw(st.integers(0, size))
    match = torch.randn(3, size, generator=draw, dtype=torch.float64) + 2
    valid = (torch.arange(size) >= size - real).expand(3, size)
    found = spectral_entropy(match, valid).tolist()
    twin = [slow_entropy(m.tolist(), v.tolist()) for m, v in zip(match, valid, strict=True)]
    assert found == pytest.approx(twin, abs=1e-9, nan_ok=True)
    assert math.isfinite(found[0]) == (real >= 3 and size >= 4)


def test_a_pure_wave_has_no_entropy_and_noise_nearly_all() -> None:
    place, every = torch.arange(WINDOW), torch.ones(1, WINDOW, dtype=torch.bool)
    for turns in (1, 4, 17, 25):
        wave = 3 + torch.cos(2 * math.pi * turns * place / WINDOW + 0.7)
        assert float(spectral_entropy(wave[None], every)) < 0.1
    noise = torch.randn(500, WINDOW, generator=torch.Generator().manual_seed(0))
    found = spectral_entropy(noise, every.expand(500, -1))
    assert float(found.mean()) > 0.8
    expected = 1 - 0.4228 / math.log(WINDOW // 2)  # of exponential powers
    assert float(found.mean()) == pytest.approx(expected, abs=0.01)


def test_padding_and_its_side_and_the_scale_of_the_match_change_nothing() -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(20, 30, generator=draw, dtype=torch.float64)
    left = torch.zeros(20, WINDOW, dtype=torch.float64)
    right = torch.full((20, WINDOW), 77.0, dtype=torch.float64)  # what stands in padding is unread
    left[:, -30:], right[:, :30] = x, x
    valid = torch.zeros(20, WINDOW, dtype=torch.bool)
    valid[:, -30:] = True
    first = spectral_entropy(left, valid)
    assert torch.allclose(first, spectral_entropy(right, valid.flip(1)), atol=1e-12)
    assert torch.allclose(first, spectral_entropy(1e-8 * left - 5e-8, valid), atol=1e-6)


def test_short_and_unvaried_histories_have_no_entropy() -> None:
    valid = torch.tensor([[0] * 6, [0] * 4 + [1] * 2, [1] * 6, [0] * 3 + [1] * 3]).bool()
    match = torch.full((4, 6), 0.1)
    match[3, -1] = 0.2
    assert spectral_entropy(match, valid).isfinite().tolist() == [False, False, False, True]


@pytest.mark.parametrize("matched", [False, True])
def test_the_auc_counts_pairs(matched: bool) -> None:
    draw = torch.Generator().manual_seed(2)
    h = torch.randint(0, 6, (60,), generator=draw).double() / 6  # with ties
    y, n = torch.randint(0, 2, (60,), generator=draw), torch.randint(3, 9, (60,), generator=draw)
    h[::9] = torch.nan
    kept = h.isfinite()
    value, pairs = slow_auc(
        h[kept].tolist(), y[kept].tolist(), n[kept].tolist() if matched else None
    )
    found = entropy_auc(h, y, length=n if matched else None)
    assert (found.value, found.pairs) == (pytest.approx(value, abs=1e-12), pairs)
    assert 0 <= found.low < found.value < found.high <= 1


def test_the_interval_holds_the_truth_19_times_of_20_whoever_the_rows_belong_to() -> None:
    """Users of 8 rows whose entropies and labels go together; without groups it would be narrow."""
    draw = torch.Generator().manual_seed(3)
    held = {"users": 0, "rows": 0}
    for _ in range(100):
        user = torch.arange(60).repeat_interleave(8)
        shared = torch.randn(2, 60, generator=draw)[:, user]
        h = shared[0] + 0.3 * torch.randn(480, generator=draw)
        y = (shared[1] + 0.3 * torch.randn(480, generator=draw) > 0).long()
        n = torch.randint(0, 2, (480,), generator=draw)
        for name, group in (("users", user), ("rows", None)):
            found = entropy_auc(h, y, length=n, group=group)
            held[name] += found.low <= 0.5 <= found.high
    assert 88 <= held["users"] <= 100
    assert held["rows"] < 75


def test_one_group_for_all_means_that_the_log_has_none() -> None:
    h, y = torch.tensor([0.1, 0.4, 0.3, 0.2]), torch.tensor([1, 0, 1, 0])
    assert entropy_auc(h, y, group=torch.zeros(4)) == entropy_auc(h, y)


def test_a_planted_habit_lowers_the_entropy_of_what_is_clicked_and_shuffling_removes_it() -> None:
    found = measured(habits(2000))
    assert found.value(metric="entropy_positive") < found.value(metric="entropy_negative") - 0.02
    for match in ("", "_matched"):  # every length is 50
        assert found.value(metric=f"entropy_auc{match}") >= 0.70
        assert found.value(metric=f"entropy_auc{match}_low") > 0.66
    still = measured(habits(8000, shuffled=True))
    assert abs(still.value(metric="entropy_auc_matched") - 0.5) <= 0.02
    low, high = (still.value(metric=f"entropy_auc_matched_{end}") for end in ("low", "high"))
    assert low < 0.5 < high


def test_lengths_that_follow_the_label_fool_the_auc_but_not_between_equal_lengths() -> None:
    """Histories without any rhythm; what is clicked comes to users with short ones."""
    draw = torch.Generator().manual_seed(4)
    rows = 4000
    label = torch.arange(rows) % 2
    short = torch.rand(rows, generator=draw) < torch.where(label == 1, 0.9, 0.1)
    length = torch.where(short, 4, 45) + torch.randint(0, 5, (rows,), generator=draw)
    past = [torch.randint(1, 4, (int(n),), generator=draw) for n in length]
    target = torch.randint(1, 4, (rows,), generator=draw)
    found = measured(make_batch(target, label, past))
    assert abs(found.value(metric="entropy_auc") - 0.5) > 0.1
    assert found.value(metric="entropy_auc_matched") == pytest.approx(0.5, abs=0.02)
    gap = [
        abs(found.value(metric=f"entropy_positive{m}") - found.value(metric=f"entropy_negative{m}"))
        for m in ("", "_matched")
    ]
    assert gap[1] < 0.003 < 0.015 < gap[0]


def test_matched_histograms_count_a_row_once_per_partner_of_its_length() -> None:
    draw = torch.Generator().manual_seed(5)
    length = torch.randint(4, 8, (120,), generator=draw)
    past = [torch.randint(1, 4, (int(n),), generator=draw) for n in length]
    label = (torch.rand(120, generator=draw) < length / 10).long()
    batch = make_batch(torch.randint(1, 4, (120,), generator=draw), label, past)
    h, found = entropies(Ideal(), batch).entropy.tolist(), measured(batch)
    for side, own in (("positive", 1), ("negative", 0)):
        bins, total = [0.0] * 50, 0.0
        for i in range(120):
            for j in range(120):
                pair = label[i] == own != label[j] and length[i] == length[j]
                if pair and math.isfinite(h[i]) and math.isfinite(h[j]):
                    bins[min(49, int(50 * h[i]))] += 1
                    total += h[i]
        wanted = torch.tensor(bins) / sum(bins)
        kept = found.array(metric=f"entropy_{side}_matched")
        assert kept is not None
        assert torch.allclose(kept, wanted, atol=1e-6)
        assert found.value(metric=f"entropy_{side}_matched") == pytest.approx(total / sum(bins))
        plain = found.array(metric=f"entropy_{side}")
        assert plain is not None
        assert not torch.allclose(plain, wanted, atol=1e-3)  # the control


def test_what_has_no_spectrum_is_left_out_and_counted() -> None:
    past = [torch.tensor(p) for p in ([], [1, 2], [1, 2, 1, 3], [2, 2, 2], [3, 1, 3, 3, 1])]
    past = [p.long() for p in past]
    batch = make_batch(torch.ones(5, dtype=torch.int64), torch.tensor([1, 0, 1, 0, 0]), past)
    found = measured(batch)
    assert found.value(metric="entropy_left_out") == 3  # two are short, one matches everywhere
    assert found.find(metric="entropy_auc")[0].n == 2
    assert found.value(metric="entropy_auc_matched") is None  # four and five events
    for side in ("positive", "negative"):
        bins = found.array(metric=f"entropy_{side}")
        assert bins is not None
        assert bins.shape == (50,)
        assert float(bins.sum()) == pytest.approx(1.0)
    with pytest.raises(MetricUndefinedError, match="as many events"):
        entropy_auc(torch.tensor([0.1, 0.2]), torch.tensor([1, 0]), length=torch.tensor([4, 5]))


def test_nothing_but_empty_histories_and_models_without_history(context: RunContext) -> None:
    empty = make_batch(
        torch.ones(4, dtype=torch.int64),
        torch.tensor([1, 0, 1, 0]),
        [torch.zeros(0, dtype=torch.int64)] * 4,
    )
    found = measured(empty)
    assert found.value(metric="entropy_left_out") == 4
    assert not found.find(metric="entropy_auc")
    plain = Ideal()
    del plain.history
    assert not diagnose(plain, [habits(20)], context=context).find(metric="entropy_left_out")


def test_however_many_rows_are_embedded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = habits(40)
    whole = entropies(Ideal(), batch)
    monkeypatch.setattr("fullrank.diagnose.periodicity.CELLS", 7 * WINDOW * (KINDS + 1))
    parts = entropies(Ideal(), batch)
    assert torch.equal(whole.entropy, parts.entropy)
    assert torch.equal(whole.length, parts.length)
    assert whole.length.tolist() == [WINDOW] * 40
