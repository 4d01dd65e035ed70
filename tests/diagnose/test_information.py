"""Mutual information, k-means and the discriminability probes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fullrank.diagnose import information
from fullrank.diagnose.accumulate import JointCounts
from fullrank.errors import EmptyInputError, MetricUndefinedError


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(a: torch.Tensor, b: torch.Tensor, k: int) -> torch.Tensor:
    counts = JointCounts(k, k)
    counts.update(a, b)
    return counts.counts


def test_acceptance_6_independent_labels_have_the_bias_and_no_more() -> None:
    g = gen()
    found = []
    for _ in range(5):
        a, b = (torch.randint(0, 16, (20_000,), generator=g) for _ in range(2))
        counts = table(a, b, 16)
        found.append(information.plug_in(counts))
        assert abs(information.miller_madow(counts)) < 1e-3
    assert sum(found) / 5 == pytest.approx(225 / 40_000, rel=0.15)


def test_acceptance_6_identical_labels_give_log_k() -> None:
    a = torch.randint(0, 16, (20_000,), generator=gen())
    assert information.plug_in(table(a, a, 16)) == pytest.approx(math.log(16), abs=0.01)


def test_plug_in_equals_its_definition() -> None:
    counts = torch.tensor([[3, 0, 5], [1, 4, 0]])
    n, total = 13, 0.0
    for i, j in itertools.product(range(2), range(3)):
        p = counts[i, j].item() / n
        if p:
            total += p * math.log(p * n * n / counts[i].sum().item() / counts[:, j].sum().item())
    assert information.plug_in(counts) == pytest.approx(total, abs=1e-12)
    with pytest.raises(EmptyInputError):
        information.plug_in(torch.zeros(2, 2))


def test_kmeans_finds_planted_clusters_and_is_seeded() -> None:
    centres = torch.tensor([[0.0, 0, 3], [9, 0, 3], [0, 9, 3], [9, 9, 3]])
    truth = torch.randint(0, 4, (400,), generator=gen())
    x = centres[truth] + 0.3 * torch.randn(400, 3, generator=gen(1)) * torch.tensor([1.0, 1, 0])
    for seed in range(3):
        found = information.KMeans(4, seed).fit(x[:200])
        code = found.assign(x[200:])
        assert information.plug_in(table(code, truth[200:], 4)) == pytest.approx(
            math.log(4), abs=0.02
        )
        assert torch.equal(code, information.KMeans(4, seed).fit(x[:200]).assign(x[200:]))


def test_kmeans_with_fewer_distinct_rows_than_clusters() -> None:
    x = torch.tensor([[1.0], [2.0]]).repeat(10, 1)
    code = information.KMeans(8).fit(x).assign(x)
    assert len(set(code.tolist())) == 2


def test_kmeans_does_not_touch_the_global_random_state() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    information.KMeans(3).fit(torch.rand(30, 2, generator=gen()))
    assert torch.equal(torch.rand(1), expected)


def test_label_information_sees_a_planted_label_and_nothing_in_noise() -> None:
    x = torch.randn(4000, 3, generator=gen())
    planted = information.label_information(x, (x[:, 1] > 0).float(), k=8)
    noise = information.label_information(
        x, (torch.rand(4000, generator=gen(1)) > 0.5).float(), k=8
    )
    assert planted.corrected > 0.2
    assert abs(noise.corrected) < 0.005
    assert noise.shuffled == pytest.approx(noise.plug_in, abs=0.005)
    assert planted.shuffled < 0.01
    assert (planted.n, planted.clusters) == (2000, (8, 2))


def test_token_information_finds_the_copied_token() -> None:
    x = torch.randn(3000, 3, 2, generator=gen())
    x[:, 2] = x[:, 0] + 0.1 * x[:, 2]
    found = information.token_information(x, k=8)
    assert float(found["corrected"][0, 2]) > 0.8
    assert abs(float(found["corrected"][0, 1])) < 0.03
    assert float(found["shuffled"][0, 2]) < 0.05
    assert bool(found["plug_in"].diagonal().isnan().all())
    assert torch.equal(found["plug_in"].nan_to_num(), found["plug_in"].T.nan_to_num())


def test_clusters_leave_fifty_rows_per_cell() -> None:
    assert information.clusters_for(4096) == 8
    assert information.clusters_for(50 * 32 * 32) == 32
    assert information.clusters_for(4096, labels=2) == 32
    assert information.clusters_for(10**6, most=64) == 64
    assert information.clusters_for(10) == 8


def test_auc_equals_the_quadratic_definition_with_ties() -> None:
    score = torch.randint(0, 6, (80,), generator=gen()).double()
    label = torch.randint(0, 2, (80,), generator=gen(1))
    pairs = [
        1.0 if p > q else 0.5 if p == q else 0.0
        for p, y in zip(score.tolist(), label.tolist(), strict=True)
        if y
        for q, z in zip(score.tolist(), label.tolist(), strict=True)
        if not z
    ]
    assert information.auc(score, label) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    with pytest.raises(MetricUndefinedError):
        information.auc(score, torch.ones(80))


def test_logistic_probe_finds_a_linear_rule_and_stays_at_chance_without_one() -> None:
    x = torch.randn(3000, 5, generator=gen())
    rule = (x @ torch.tensor([1.0, -2, 0, 0, 1]) > 0.3).float()
    assert information.probe_auc(x, rule) > 0.99
    chance = (torch.rand(3000, generator=gen(1)) > 0.3).float()
    assert information.probe_auc(x, chance) == pytest.approx(0.5, abs=0.06)


def test_logistic_probe_solves_its_own_objective() -> None:
    """The ridge is on the mean loss: an unregularised fit on separable rows would run away."""
    x = torch.cat([torch.full((50, 1), -1.0), torch.full((50, 1), 1.0)])[
        torch.randperm(100, generator=gen())
    ]
    assert information.probe_auc(x, (x[:, 0] > 0).float()) == 1.0


def test_separation_equals_the_traces() -> None:
    x, y = torch.randn(100, 3, generator=gen()), torch.arange(100) % 3 == 0
    x[y] += 2
    mean, between, within = x.mean(0), 0.0, 0.0
    for side in (True, False):
        rows = [row for row, flag in zip(x, y.tolist(), strict=True) if flag is side]
        centre = torch.stack(rows).mean(0)
        between += len(rows) * float(((centre - mean) ** 2).sum())
        within += sum(float(((row - centre) ** 2).sum()) for row in rows)
    assert information.separation(x, y.float()) == pytest.approx(between / within, rel=1e-5)


def test_attention_mass_is_in_percent() -> None:
    uniform = torch.full((2, 3, 4, 8), 1 / 8)
    assert information.attention_mass(uniform, 2) == pytest.approx(25.0)
