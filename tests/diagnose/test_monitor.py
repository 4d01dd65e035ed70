"""The monitor during training: neutral to the bit, and right about what it reports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fullrank.diagnose.collapse import Options, diagnose
from fullrank.diagnose.monitor import EffectiveRank, RankMonitor
from fullrank.diagnose.probe import watch
from fullrank.diagnose.records import RunContext, read_records
from fullrank.ops.spectrum import effective_rank
from tests.diagnose.tiny_ranker import Tiny, make_batch


def train(mode: str, context: RunContext) -> tuple[list[float], list[torch.Tensor]]:
    """A plain loop with dropout, so that one draw too many would show at once."""
    torch.manual_seed(7)
    model = Tiny()
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    monitor, losses = RankMonitor(context, rows=32), []
    for step in range(6):
        batch = make_batch(64, seed=int(torch.randint(100, (1,))))
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if mode == "monitor":
            monitor(model, batch, step, 0)
        elif mode == "diagnose":
            diagnose(model, [batch], context=context, options=Options(rows=64))
        elif mode == "careless":
            model.score(batch)  # the control: in training mode this draws a dropout mask
    return losses, [p.detach().clone() for p in model.parameters()]


def test_acceptance_7_training_is_bit_identical_with_diagnostics_on_or_off(
    context: RunContext,
) -> None:
    losses, weights = train("off", context)
    for mode in ("monitor", "diagnose"):
        other_losses, other_weights = train(mode, context)
        assert other_losses == losses
        assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True))
    assert train("careless", context)[0] != losses


def test_the_monitor_reports_effective_rank_and_spread(tiny: Tiny, context: RunContext) -> None:
    batch = make_batch(100)
    found = RankMonitor(context, rows=64)(tiny, batch, 10, 2)
    tiny.eval()
    with torch.no_grad():
        part = batch.rows(torch.arange(64))
        tokens = torch.relu(tiny.mix(tiny.embeddings.fields(part)))
        expected = sum(float(effective_rank(tokens[:, t])) for t in range(4)) / 4
        spread = float(tiny.score(part)["click"].double().std(correction=0))
    assert found["rank/tokens"] == pytest.approx(expected, rel=1e-6)
    assert found["score_std/click"] == pytest.approx(spread, rel=1e-6)
    assert {"rank/embed", "rank/head_in", "rank/experts", "rank/seq"} < set(found)
    assert "rank/seq_valid" not in found


def test_the_monitor_appends_dated_records(tiny: Tiny, context: RunContext, tmp_path: Path) -> None:
    monitor = RankMonitor(context, taps="*tokens", path=tmp_path / "records.jsonl")
    for epoch in range(3):
        monitor(tiny, make_batch(40), 5 * epoch, epoch)
    records = read_records(tmp_path / "records.jsonl")
    assert records == monitor.records
    assert [(r.epoch, r.hook, r.n, r.split) for r in records] == [
        (1.0 + e, "tokens", 40, "train") for e in range(3)
    ]


def test_the_probe_stops_at_its_rows_over_several_batches(tiny: Tiny, context: RunContext) -> None:
    probe = EffectiveRank("head_in", context, rows=50)
    with watch(tiny, probe) as seen:
        for seed in range(3):
            seen.score(make_batch(20, seed))
    (record,) = probe.report()
    assert (record.n, record.bound) == (50, 28.0)


def test_a_model_without_a_matching_tap_reports_its_scores(tiny: Tiny, context: RunContext) -> None:
    found = RankMonitor(context, taps="nothing*")(tiny, make_batch(20), 0, 0)
    assert set(found) == {"score_std/click"}
