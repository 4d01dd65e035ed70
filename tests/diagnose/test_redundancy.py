"""Correlation between experts, tokens and operands, against loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fullrank.diagnose.recorder import Recorder
from fullrank.diagnose.records import RunContext
from fullrank.diagnose.redundancy import GroupCorrelation, Redundancy
from fullrank.diagnose.stages import Stages
from fullrank.errors import EmptyInputError


def gauss(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_cec(x: np.ndarray) -> tuple[float, float, float]:
    """Cross-expert correlation, its square and rowmax, unit by unit."""
    per_pair, per_pair_squared, largest = [], [], []
    experts, units = x.shape[1:]
    for k, m in itertools.combinations(range(experts), 2):
        rho = [
            [np.corrcoef(x[:, k, a], x[:, m, b])[0, 1] for b in range(units)] for a in range(units)
        ]
        per_pair.append(np.mean([abs(v) for row in rho for v in row]))
        per_pair_squared.append(np.mean([v * v for row in rho for v in row]))
        largest += [max(abs(v) for v in row) for row in rho]
        largest += [max(abs(row[b]) for row in rho) for b in range(units)]
    return float(np.mean(per_pair)), float(np.mean(per_pair_squared)), float(np.mean(largest))


@pytest.mark.parametrize("chunk", [64, 13])
def test_cross_expert_correlation_equals_a_double_loop_for_any_cut(chunk: int) -> None:
    x = gauss(64, 3, 5) + 2
    x[:, 1, 2] += x[:, 0, 4]
    seen = GroupCorrelation(3, 5)
    for part in x.split(chunk):
        seen.update(part)
    found = seen.experts()
    assert (found.cec, found.squared, found.rowmax) == pytest.approx(slow_cec(x.numpy()), abs=1e-10)
    assert torch.allclose(found.matrix, found.matrix.T, atol=1e-15)
    centred = (x - x.mean(0)).numpy()
    cka = [
        np.linalg.norm(centred[:, k].T @ centred[:, m]) ** 2
        / np.linalg.norm(centred[:, k].T @ centred[:, k])
        / np.linalg.norm(centred[:, m].T @ centred[:, m])
        for k, m in itertools.combinations(range(3), 2)
    ]
    assert found.cka == pytest.approx(np.mean(cka), abs=1e-10)


def test_dead_units_are_counted_and_left_out() -> None:
    x = gauss(200, 2, 4)
    alive = GroupCorrelation(2, 3)
    alive.update(x[:, :, :3])
    x[:, 0, 3] = 0.25
    x[:, 1, 3] *= 1e-8  # alive in name only
    seen = GroupCorrelation(2, 4)
    seen.update(x)
    assert seen.experts().dead == 0.25
    assert seen.experts().cec == pytest.approx(alive.experts().cec, abs=1e-12)


def test_scaling_and_shifting_units_changes_nothing_but_the_same_expert_twice_is_seen() -> None:
    x = gauss(4000, 2, 4)
    moved = GroupCorrelation(2, 4)
    moved.update(x * torch.tensor([-3.0, 0.1, 7, 1]) + 5)
    plain = GroupCorrelation(2, 4)
    plain.update(x)
    assert moved.experts().cec == pytest.approx(plain.experts().cec, abs=1e-9)
    chance = (2 / (np.pi * 4000)) ** 0.5
    assert plain.experts().cec == pytest.approx(chance, rel=0.4)  # the negative control
    twin = GroupCorrelation(2, 4)
    twin.update(x[:, :1].expand(-1, 2, -1))
    assert twin.experts().rowmax == pytest.approx(1)
    assert twin.experts().cka == pytest.approx(1)
    assert twin.experts().cec > 1 / 4


def test_a_unit_is_not_compared_with_itself() -> None:
    seen = GroupCorrelation(2, 4)
    seen.update(gauss(4000, 2, 4))
    assert float(seen.map().max()) < 0.05


def test_one_expert_has_no_correlation() -> None:
    seen = GroupCorrelation(1, 4)
    seen.update(gauss(10, 1, 4))
    with pytest.raises(EmptyInputError):
        seen.experts()


def test_wide_tokens_are_sampled_and_said_to_be() -> None:
    seen = GroupCorrelation(8, 500)
    seen.update(gauss(50, 8, 500))
    assert seen.approx == "units:96"
    assert seen.map().shape == (8, 8)
    assert GroupCorrelation(8, 90).approx == ""


def test_merging_equals_the_whole() -> None:
    x = gauss(90, 3, 4) + 1
    left, right, whole = (GroupCorrelation(3, 4) for _ in range(3))
    left.update(x[:30])
    right.update(x[30:])
    whole.update(x)
    left.merge(right)
    assert torch.allclose(left.map(), whole.map(), atol=1e-12)
    assert left.n == 90


def test_redundancy_finds_planted_blocks_and_zeroes_constant_columns() -> None:
    left, right = gauss(3000, 6), gauss(3000, 6, seed=1)
    right[:, 2:4] = left[:, 2:4] @ gauss(2, 2, seed=2)  # field 1 of 3 is a mix of itself
    left[:, 5] = 1.5
    seen = Redundancy(3, 2)
    for a, b in zip(left.split(700), right.split(700), strict=True):
        seen.update(a, b)
    r = seen.correlation()
    standard = [(v - v.mean(0)) / v.std(0) for v in (left, right)]
    expected = (standard[0].T @ standard[1] / 2999).nan_to_num(0.0, posinf=0.0, neginf=0.0)
    assert torch.allclose(r[:5], expected[:5], atol=1e-9)
    assert bool((r[5] == 0).all())
    summary, size = seen.summary(), seen.map()
    assert summary["red_mean"] == pytest.approx(float(r.abs().mean()))
    assert summary["red_diag"] == pytest.approx(float(size.diagonal().mean()))
    assert summary["red_diag"] > 10 * summary["red_off"]
    assert int(size.argmax()) == 4


def test_operands_inside_a_block_are_paired_under_its_name() -> None:
    out = Recorder(RunContext(run_id="r", variant="v"), "hash")
    stages = Stages(out, ["a", "b"], {})
    x = torch.randn(200, 2, 3, generator=torch.Generator().manual_seed(0))
    stages.observe("block0.left", x, "B F D", None)
    stages.observe("block0.right", x, "B F D", None)
    stages.report()
    (record,) = out.findings.find(metric="red_diag")
    assert record.hook == "block0.left"
    assert record.matrix_kind == "redundancy:left x right"
