"""One diagnostic pass: every matrix kind against a direct computation, and what it leaves alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fullrank.batch import Batch
from fullrank.diagnose.collapse import Options, diagnose, field_ranks
from fullrank.diagnose.probe import take_subset
from fullrank.diagnose.recorder import Recorder
from fullrank.diagnose.records import Findings, Record, RunContext
from fullrank.diagnose.stages import GateUse, Stages
from fullrank.embedding import Embeddings
from fullrank.errors import ConfigError, EmptyInputError
from fullrank.ops import spectrum
from tests.diagnose.tiny_ranker import SCHEMA, SIZES, Tiny, make_batch

ROWS = 300
QUICK = Options(rows=ROWS, chunk=128, information=False)


def slow(x: Tensor, metric: str, *, center: bool) -> float:
    return float(spectrum.SCALARS[metric](spectrum.singular_values(x, center=center)))


@pytest.fixture
def found(tiny: Tiny, context: RunContext) -> Findings:
    return diagnose(tiny, [make_batch(400)], context=context, counts=counts(), options=QUICK)


def counts() -> dict[str, Tensor]:
    ids = make_batch(400).categorical.block.long()
    out = {f"t{i}": torch.bincount(ids[:, i], minlength=s) for i, s in enumerate(SIZES)}
    out["t0"][20:] = 0  # pretend that training never saw half of the first table
    return out


def activations(tiny: Tiny) -> dict[str, Tensor]:
    batch = take_subset([make_batch(400)], ROWS).batch
    tiny.eval()
    with torch.no_grad():
        e = tiny.embeddings.fields(batch)
        tokens = torch.relu(tiny.mix(e))
        past, valid = tiny.embeddings.sequence(batch, "past", "item")
        h = torch.cat([tiny.norm(tokens.flatten(1)), past.sum(1)], 1)
    return {"embed": e, "tokens": tokens, "past": past, "valid": valid, "head_in": h}


def only(found: Findings, kind: str, metric: str, **wanted: object) -> Record:
    records = found.find(matrix_kind=kind, metric=metric, **wanted)
    assert len(records) == 1, (kind, metric, len(records))
    return records[0]


def test_m1_tables_are_measured_with_three_row_filters(tiny: Tiny, found: Findings) -> None:
    count = counts()["t0"].double()
    weight = tiny.embeddings.weight("t0").detach().double()
    matrices = {
        "all": weight[1:],
        "seen": weight[1:][count[1:] > 0],
        "freq": torch.cat([weight[i : i + 1].repeat(int(count[i]), 1) for i in range(1, 40)]),
    }
    for name, x in matrices.items():
        for metric in ("ia", "erank", "stable_rank"):
            record = only(found, "table:t0", metric, centred=False, row_filter=name)
            assert record.value == pytest.approx(slow(x, metric, center=False), rel=1e-6)
            assert (record.n, record.d, record.accumulator) == (len(x), 4, "A3")
    assert only(found, "table:t2", "ia", row_filter="all", centred=True).bound == 1.0


def test_without_counts_only_all_rows_are_measured(tiny: Tiny, context: RunContext) -> None:
    found = diagnose(tiny, [make_batch(50)], context=context, options=QUICK)
    filters = {r.row_filter for r in found.records if r.matrix_kind.startswith("table:")}
    assert filters == {"all"}


@pytest.mark.parametrize("center", [False, True])
def test_m2_m5_m7_columns_over_the_batch(tiny: Tiny, found: Findings, center: bool) -> None:
    seen = activations(tiny)
    wanted = [("batch_field:f1", seen["embed"][:, 1]), ("batch_field:x", seen["embed"][:, 3])]
    wanted += [(f"token_batch:tokens:{t}", seen["tokens"][:, t]) for t in range(4)]
    wanted += [("expert_out:2", seen["tokens"][:, 2])]
    for kind, x in wanted:
        record = only(found, kind, "erank", centred=center)
        assert record.value == pytest.approx(slow(x, "erank", center=center), rel=1e-5)
        assert (record.n, record.d) == tuple(x.shape)


@pytest.mark.parametrize("center", [False, True])
def test_m3_m8_flat_matrices(tiny: Tiny, found: Findings, center: bool) -> None:
    seen = activations(tiny)
    for kind, x in [("batch_flat:embed", seen["embed"].flatten(1)), ("head_in", seen["head_in"])]:
        for metric in spectrum.SCALARS:
            record = only(found, kind, metric, centred=center)
            assert record.value == pytest.approx(slow(x, metric, center=center), rel=1e-5, abs=1e-9)


def test_m3_covariance_spectrum_is_twice_the_stored_log_ratio(tiny: Tiny, found: Findings) -> None:
    x = activations(tiny)["embed"].flatten(1).double()
    values = torch.linalg.svdvals(torch.cov(x.T, correction=0))
    stored = found.array(matrix_kind="batch_flat:embed", metric="log_spectrum", centred=True)
    assert stored is not None
    real = values / values[0] > 1e-9
    assert torch.allclose(2 * stored[real].double(), (values / values[0])[real].log(), atol=1e-3)


def test_m4_is_the_mean_of_a_loop_over_samples(tiny: Tiny, found: Findings) -> None:
    for hook, x in activations(tiny).items():
        if hook in ("embed", "tokens"):
            loop = [slow(sample, "erank", center=False) for sample in x]
            record = only(found, f"sample_tokens:{hook}", "erank", centred=False)
            assert record.value == pytest.approx(sum(loop) / ROWS, rel=1e-5)
            assert (record.n, record.d, record.bound) == (4, x.shape[2], 4.0)
            histogram = found.arrays[record.array]
            assert int(histogram.sum()) == ROWS
            loop = [slow(sample, "erank", center=True) for sample in x]
            record = only(found, f"sample_tokens:{hook}", "erank", centred=True)
            assert record.value == pytest.approx(sum(loop) / ROWS, rel=1e-4)
            assert (record.n, record.d, record.bound) == (4, x.shape[2], 3.0)


def test_m6_pools_valid_positions_and_drops_padding(tiny: Tiny, found: Findings) -> None:
    seen = activations(tiny)
    assert 0 < int(seen["valid"].sum()) < seen["valid"].numel()
    record = only(found, "seq_tokens:seq", "erank", centred=True)
    x = seen["past"][seen["valid"]]
    assert (record.n, record.row_filter) == (len(x), "valid")
    assert record.value == pytest.approx(slow(x, "erank", center=True), rel=1e-5)
    padded = slow(seen["past"].flatten(0, 1), "erank", center=True)
    assert record.value != pytest.approx(padded, rel=1e-4)  # the control: padding would show


def test_m9_is_the_table_after_its_projection(tiny: Tiny, found: Findings) -> None:
    """As rows that training saw; the number x has no table, and nobody meets it by a matrix."""
    weight = tiny.embeddings.weight("t0").detach()
    for metric in ("ia", "erank", "stable_rank"):
        loop = [
            slow(weight[1:20] @ tiny.pairs[0, j].detach(), metric, center=False) for j in (1, 2)
        ]
        table = found.array(matrix_kind="sub_emb", metric=f"{metric}_map")
        assert table is not None
        assert table[0, 1:3].tolist() == pytest.approx(loop, rel=1e-5)
        record = only(found, "sub_emb:f0->*", metric)
        assert record.value == pytest.approx(sum(loop) / 2, rel=1e-5)
        assert (record.hook, record.row_filter, record.n, record.bound) == ("t0", "seen", 19, 4.0)
        assert table.isnan().nonzero().tolist() == [
            [i, j] for i in range(4) for j in range(4) if i == j or 3 in (i, j)
        ]
    every = [slow(weight[1:] @ tiny.pairs[0, j].detach(), "ia", center=False) for j in (1, 2)]
    assert found.value(matrix_kind="sub_emb:f0->*", metric="ia") != pytest.approx(
        sum(every) / 2, rel=1e-4
    )  # the control: rows that training never saw would show


def test_m9_without_counts_takes_all_rows(tiny: Tiny, context: RunContext) -> None:
    found = diagnose(tiny, [make_batch(50)], context=context, options=QUICK)
    assert only(found, "sub_emb:f0->*", "ia").row_filter == "all"
    assert only(found, "sub_emb:f0->*", "ia").n == 39


def test_m9_measures_the_embeddings_that_meet_in_pairs(context: RunContext) -> None:
    """A wrapper's linear part, although it comes first, is not what `pair_projection` projects."""

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.ModuleDict({"linear": Embeddings(SCHEMA, 1), "embeddings": wide})

        def score(self, batch: Batch) -> dict[str, Tensor]:
            return {"click": wide.fields(batch).sum((1, 2))}

        def pair_projection(self, i: int, j: int) -> Tensor:
            return torch.eye(4)

    wide = Embeddings(SCHEMA, 4)
    found = diagnose(Wrapper(), [make_batch(50)], context=context, options=QUICK)
    before, behind = (
        only(found, kind, "ia", centred=False) for kind in ("table:t0", "sub_emb:f0->*")
    )
    assert before.value == pytest.approx(behind.value, rel=1e-6)
    assert before.bound == behind.bound == 4.0


def test_a_dead_gate_shows_in_weights_and_entropy(tiny: Tiny, context: RunContext) -> None:
    values = {}
    for name, bias in (("alive", [0.0, 0.0, 0.0]), ("dead", [0.0, 9.0, 0.0])):
        tiny.gate_bias = bias
        found = diagnose(tiny, [make_batch(400)], context=context, options=QUICK)
        weights = [found.value(matrix_kind=f"gate:{k}", metric="gate_weight") for k in range(3)]
        assert sum(weights) == pytest.approx(1.0)
        record = only(found, "gate", "gate_entropy")
        assert record.bound == pytest.approx(math.log(3))
        values[name] = weights[1], record.value
        assert "gate" not in {r.hook for r in found.records if r.metric == "erank"}
    assert values["alive"][0] < 0.5 < 0.99 < values["dead"][0]
    assert values["dead"][1] < 0.05 < 0.9 < values["alive"][1]


def test_gate_use_tells_a_choice_from_a_habit() -> None:
    """Rows that choose different experts, and rows that all choose the first."""
    chosen = torch.eye(3).repeat(40, 1)
    for rows, of_mean in ((chosen, math.log(3)), (chosen[:1].repeat(120, 1), 0.0)):
        use = GateUse(3)
        for part in rows.split(7):
            use.update(part)
        assert use.entropies() == pytest.approx((0.0, of_mean), abs=1e-9)
    g = torch.Generator().manual_seed(0)
    a = torch.rand(50, 4, generator=g)  # weights that do not sum to one
    use = GateUse(4)
    for part in a.split(11):
        use.update(part)
    mean, std = use.weights()
    assert torch.allclose(mean, a.double().mean(0))
    assert torch.allclose(std, a.double().std(0, correction=0))
    loop = [sum(-float(p) * math.log(p) for p in row / row.sum()) for row in a]
    assert use.entropies()[0] == pytest.approx(sum(loop) / 50, rel=1e-5)


def test_attainable_rank_follows_the_values_of_a_field(found: Findings) -> None:
    """Three values span three directions, two once centred; a number spans two and one."""
    ranks = field_ranks(SCHEMA, make_batch(400))
    assert (ranks["f2"], ranks["x"]) == ((3.0, 2.0), (2.0, 1.0))
    for name in ("f0", "f1", "f2", "x"):
        for center in (False, True):
            record = only(found, f"batch_field:{name}", "erank", centred=center)
            assert record.value is not None
            assert record.value <= record.bound + 1e-4
    flat = only(found, "batch_flat:embed", "erank", centred=True)
    assert flat.bound == 4 + 4 + 2 + 1


def test_values_bound_a_field_only_until_it_meets_others() -> None:
    """Two values span one direction, until what other fields say is added or multiplied in."""
    batch, x = make_batch(300), torch.randn(300, 4, 4, generator=torch.Generator().manual_seed(0))
    e = Embeddings(SCHEMA, 4).fields(batch).detach()
    half = torch.cat([e[:, :2], e[:, 2:] * e.sum(1, keepdim=True)], dim=1)
    taps = {"embed": e, "scaled": 3 * e, "half": half, "all": x}
    out = Recorder(RunContext(run_id="r", variant="v"), "hash")
    stages = Stages(out, [f.name for f in SCHEMA.fields], field_ranks(SCHEMA, batch))
    for name, value in taps.items():
        stages.observe(name, value, "B F D", batch)
    stages.report()
    bounds = {
        name: [r.bound for r in out.findings.find(hook=name, metric="erank", accumulator="A2")][
            1::2
        ]
        for name in taps
    }
    assert bounds["embed"] == bounds["scaled"] == [4, 4, 2, 1]
    assert bounds["half"] == bounds["all"] == [4, 4, 4, 4]
    for r in out.findings.find(metric="erank"):
        assert r.value <= r.bound + 1e-4


def test_l2_rows_have_length_one(tiny: Tiny, context: RunContext) -> None:
    both = diagnose(
        tiny, [make_batch(400)], context=context, options=replace(QUICK, row_norms=("none", "l2"))
    )
    x = activations(tiny)["head_in"]
    unit = x / x.norm(dim=1, keepdim=True)
    record = only(both, "head_in", "erank", centred=False, row_norm="l2")
    assert record.value == pytest.approx(slow(unit, "erank", center=False), rel=1e-5)


def test_records_carry_the_run_and_the_subset(found: Findings, context: RunContext) -> None:
    assert {(r.run_id, r.variant, r.seed, r.epoch, r.split) for r in found.records} == {
        (context.run_id, context.variant, 3, 1.0, "valid")
    }
    assert {len(r.subset_hash) for r in found.records} == {16}
    keys = [r.key() for r in found.records]
    assert len(keys) == len(set(keys))


def test_scores_and_information_are_recorded(tiny: Tiny, context: RunContext) -> None:
    options = replace(QUICK, information=True, rows=400)
    found = diagnose(tiny, [make_batch(400)], context=context, options=options)
    for metric in ("auc", "logloss", "score_std", "top_score_share", "positive_rate"):
        assert found.value(matrix_kind="score:click", metric=metric) is not None
    for metric in ("mi_corrected", "mi_shuffled", "probe_auc", "separation"):
        assert found.value(hook="head_in", metric=metric) is not None
    table = found.array(metric="mi_corrected_map")
    assert table is not None
    assert table.shape == (4, 4)
    assert found.value(metric="cec") is not None


def test_the_same_findings_however_the_rows_arrive(tiny: Tiny, context: RunContext) -> None:
    whole = make_batch(400)
    cut = [whole.rows(torch.arange(i, i + 80)) for i in range(0, 400, 80)]
    first = diagnose(tiny, [whole], context=context, options=QUICK)
    second = diagnose(tiny, cut, context=context, options=replace(QUICK, chunk=77))
    for a, b in zip(first.records, second.records, strict=True):
        assert (a.key(), a.subset_hash) == (b.key(), b.subset_hash)
        if a.value is not None and not a.metric.startswith("dead"):
            assert a.value == pytest.approx(b.value, rel=1e-4, abs=1e-6), a.key()


def test_a_model_without_tables_and_taps_is_measured_by_its_scores(context: RunContext) -> None:
    class Constant(nn.Module):
        def score(self, batch: object) -> dict[str, Tensor]:
            return {"click": torch.zeros(len(batch))}  # type: ignore[arg-type]

    found = diagnose(Constant(), [make_batch(30)], context=context)
    assert found.value(metric="auc") == 0.5
    assert found.value(metric="logloss") == pytest.approx(math.log(2))


def test_no_rows_and_impossible_options_are_errors(tiny: Tiny, context: RunContext) -> None:
    with pytest.raises(EmptyInputError):
        diagnose(tiny, [], context=context)
    with pytest.raises(ConfigError):
        Options(rows=0)
    with pytest.raises(ConfigError):
        Options(row_norms=())


@pytest.mark.parametrize("seed", [0, 1])
def test_acceptance_8_a_partner_with_few_values_collapses_the_other_table(seed: int) -> None:
    """Two fields, an inner product, a random target: gradients lie in the span of the partner."""
    found = []
    for partner in (2, 8, 64):
        g = torch.Generator().manual_seed(seed)
        target = torch.randn(512, 16, generator=g) @ torch.randn(16, partner, generator=g)
        a = (0.01 * torch.randn(512, 16, generator=g)).requires_grad_()
        b = (0.01 * torch.randn(partner, 16, generator=g)).requires_grad_()
        optimizer = torch.optim.Adam([a, b], 0.05)
        for _ in range(300):
            loss = (a @ b.T - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append(slow(a.detach(), "ia", center=False))
    assert found[0] < 4 < found[1] < 11 < found[2]
