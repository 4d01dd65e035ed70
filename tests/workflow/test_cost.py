from __future__ import annotations

import pytest
import torch

from fullrank.workflow import cost
from fullrank.workflow.cost import step_seconds
from fullrank.workflow.data import open_data
from fullrank.workflow.folder import RunFolder
from fullrank.workflow.recipe import load_recipe


@pytest.fixture
def run(trained):
    recipe = load_recipe(str(trained.recipe))
    return trained.folder, open_data(recipe.dataset, trained.options), recipe.train


def test_models_take_turns_and_the_median_counts(run, monkeypatch):
    taken: list[str] = []
    clock = iter(range(10_000))
    monkeypatch.setattr(cost.time, "process_time", lambda: float(next(clock)) ** 2)
    real = cost._seconds
    monkeypatch.setattr(cost, "_seconds", lambda step: taken.append(step.name) or real(step))
    made = iter("ab")
    plain = cost._step

    def named(*of):
        step = plain(*of)
        step.name = next(made)
        return step

    monkeypatch.setattr(cost, "_step", named)
    found = step_seconds({"a": run, "b": run}, rounds=3)
    assert taken == list("ababab")
    # The clock of reading i stands at i^2, so turn k of all takes (2k + 1)^2 - (2k)^2 = 4k + 1.
    assert found == {"a": 4 * 2 + 1, "b": 4 * 3 + 1}


def test_a_run_random_state_and_threads_are_left_as_they_were(run):
    weights = (RunFolder(run[0]).artifact / "weights.safetensors").read_bytes()
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    assert step_seconds({"one": run}, rounds=1)["one"] > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert (RunFolder(run[0]).artifact / "weights.safetensors").read_bytes() == weights


def test_the_gradient_is_taken_and_applied(run):
    step = cost._step(*run)
    model = next(
        c.cell_contents for c in step.__closure__ if isinstance(c.cell_contents, torch.nn.Module)
    )
    before = [p.detach().clone() for p in model.parameters()]
    step()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
