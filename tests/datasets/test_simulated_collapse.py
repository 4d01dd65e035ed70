"""Logs of any world, made on first use; and a world whose user table collapses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fullrank.data.datasets import simulated_collapse
from fullrank.data.datasets.simulated import SimulatedLog, ensure
from fullrank.data.datasets.simulated_collapse import WORLD, at
from fullrank.data.loader import Loader
from fullrank.data.world import World
from fullrank.errors import ConfigError
from fullrank.models.dcnv2 import DCNv2
from fullrank.ops.spectrum import effective_rank
from fullrank.workflow.data import DataOptions, open_data
from fullrank.workflow.recipe import Recipe

TINY = World(num_rows=1500, num_users=30, num_ads=25, num_categories=5, days=4.0)


def places(tmp_path: Path) -> DataOptions:
    (tmp_path / "root").mkdir(exist_ok=True)
    return DataOptions(root=tmp_path / "root", cache=tmp_path / "cache")


def test_a_log_is_made_on_first_use_and_never_in_the_data_root(tmp_path):
    options = places(tmp_path)
    first = open_data(SimulatedLog("own", TINY), options)
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    assert open_data(SimulatedLog("own", TINY), options).folder == first.folder
    assert {p: p.stat().st_mtime_ns for p in made} == made
    assert list((tmp_path / "root").iterdir()) == []
    assert sum(s.rows for s in first.splits.values()) == 1500
    assert "best possible" in first.notes[0]
    other = open_data(SimulatedLog("own", replace(TINY, seed=1)), options)  # the same name
    assert other.folder != first.folder


def test_a_log_in_the_data_root_is_used_if_it_is_of_the_same_world(tmp_path):
    options = places(tmp_path)
    assert options.root is not None
    ensure(options.root, TINY, name="own")
    open_data(SimulatedLog("own", TINY), options)
    assert list((tmp_path / "cache").glob("simulated-*")) == []
    with pytest.raises(ConfigError, match="another world") as caught:
        open_data(SimulatedLog("own", replace(TINY, taste=0.5)), options)
    assert caught.value.expected == "taste=0.5"


def test_a_log_that_another_process_makes_meanwhile_is_used(tmp_path, monkeypatch):
    from fullrank.data.datasets import simulated

    def late(world, folder, **_):
        simulate(world, folder)
        raise OSError(39, "Directory not empty")

    simulate = simulated.simulate
    monkeypatch.setattr(simulated, "simulate", late)
    log = SimulatedLog("own", TINY)
    root = log.ready(tmp_path / "root", tmp_path / "cache")
    assert log.spec_at(root) == log.SPEC


def test_a_recipe_names_a_setting_of_the_dials():
    def named(dataset) -> str:
        return Recipe(dataset=dataset, model="lr", config=None).to_dict()["dataset"]

    assert at().NAME == simulated_collapse.NAME == named("simulated_collapse")
    assert at(partner=2.0, seed=3).world == replace(WORLD, partner=2.0, seed=3)
    names = [named(at(partner=p, low_rank_fields=f)) for p in (0.0, 8.0) for f in (("ad",), ())]
    assert len({*names}) == 4
    assert all(set(name) <= {*"abcdefghijklmnopqrstuvwxyz_-=+.0123456789"} for name in names)


def ranks(world: World, folder: Path) -> dict[str, float]:
    """Table -> effective rank of its rows after a short training."""
    options = DataOptions(root=folder, cache=folder / "cache")
    data = open_data(SimulatedLog("tiny", world), options)
    torch.manual_seed(0)
    model = DCNv2(data.schema, DCNv2.Config(dim=8, num_cross=1, hidden=(16,)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for seed in range(6):
        for batch in Loader(data.splits["train"], 256, seed=seed):
            optimizer.zero_grad()
            sum(model(batch).values()).backward()
            optimizer.step()
    rows = {t: model.embeddings.weight(t)[1:].detach() for t in ("user", "ad")}
    return {t: float(effective_rank(x)) for t, x in rows.items()}


def test_the_planted_field_takes_rank_from_users_and_not_from_ads(tmp_path):
    small = replace(
        WORLD,
        num_rows=8000,
        num_users=25,
        num_ads=25,
        num_categories=5,
        num_contexts=0,
        history_length=0,
        conversion_rate=0.0,
    )
    planted = ranks(small, tmp_path)
    control = ranks(replace(small, partner=0.0), tmp_path)
    assert planted["user"] < 0.85 * control["user"]
    assert planted["ad"] > 0.9 * control["ad"]
