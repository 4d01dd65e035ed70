"""What the studies rest on: the teacher's truth, the verdicts, and the page of the logs."""

from __future__ import annotations

import importlib
import json

import pytest
import torch

from fullrank.errors import ConfigError
from fullrank.models.fm import FM
from fullrank.models.ipa import IPA
from studies.logs import sections
from studies.pages import PAGES
from studies.run import trials
from studies.teacher import area_under_curve, field_aware, fit
from studies.trial import Trial, outcome


def small(seed: int, **dials):
    return field_aware(seed, rows=6000, fields=5, **dials)


def test_the_teacher_is_drawn_from_its_seed_alone():
    torch.manual_seed(0)
    first = small(3)
    torch.manual_seed(1)
    again, other = small(3), small(4)
    assert torch.equal(first.train.categorical.block, again.train.categorical.block)
    assert first.best_auc == again.best_auc
    assert not torch.equal(first.train.categorical.block, other.train.categorical.block)


def test_ids_are_rows_of_their_tables_and_follow_a_zipf_law():
    found = small(0)
    for i, table in enumerate(found.schema.tables):
        ids = found.train.categorical.block[:, i]
        assert 1 <= int(ids.min()) <= int(ids.max()) < table.size
        counts = torch.bincount(ids, minlength=table.size).sort(descending=True).values
        assert counts[0] > 1.5 * counts[1]  # 2^1.1 = 2.1 in the long run


@pytest.mark.parametrize("dials", [{}, {"order": 3}, {"context": 1.0}])
def test_its_truth_ranks_clicks_and_nothing_does_without_strength(dials):
    assert 0.75 < small(0, **dials).best_auc < 0.9
    assert abs(small(0, strength=0.0, **dials).best_auc - 0.5) < 0.02


def test_pair_specific_vectors_are_there_to_be_found():
    """Given rows without end, FmFM comes near the truth where one vector per id cannot."""
    world = field_aware(1, rows=60_000, fields=5, strength=3.0)
    reached = {}
    for name, config in (("fm", IPA.Config.fm()), ("fmfm", IPA.Config.fmfm())):
        torch.manual_seed(1)
        model = IPA(world.schema, config)
        fit(model, world.train, seed=1, epochs=3, batch_size=256, learning_rate=5e-3)
        reached[name] = area_under_curve(model, world.test)
    assert reached["fm"] + 0.01 < reached["fmfm"] < world.best_auc


def test_fitting_changes_no_global_random_state_and_ends_in_evaluation():
    world = small(0)
    model = FM(world.schema, FM.Config(dim=2))
    before = torch.get_rng_state()
    fit(model, world.train, seed=0, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [([1.0, 1.1, 0.9], "holds"), ([-1.0, -1.1], "does not hold"), ([1.0, -1.0], "undecided"),
     ([5.0], "undecided")],
)  # fmt: skip
def test_a_verdict_needs_the_whole_interval(gains, verdict):
    assert outcome(gains).verdict == verdict


def test_a_trial_without_seeds_or_with_a_path_for_a_name_is_refused():
    claim = {"claim": "c", "reference": "-", "measure": lambda seed: {}, "gain": lambda f: 0.0}
    with pytest.raises(ConfigError, match="seeds"):
        Trial(name="B1", seeds=0, **claim)
    with pytest.raises(ConfigError, match=r"Trial\.name"):
        Trial(name="../B1", **claim)


@pytest.mark.parametrize("study", [s for page in PAGES.values() for s in page.studies])
def test_every_study_names_its_trials_once(study):
    names = [trial.name for trial in trials(study)]
    assert names
    assert len({*names}) == len(names)
    assert importlib.import_module(f"studies.{study}").__doc__


def test_the_page_of_the_logs_lists_the_best_and_every_gain(tmp_path):
    def value(mean):
        return {"mean": mean, "low": mean - 0.001, "high": mean + 0.001}

    recipes = [
        {"recipe": f"frappe_{n}", "metrics": {"auc": value(v)}}
        for n, v in (("lr", 0.93), ("pfl", 0.985))
    ]
    tested = {
        "recipe": "frappe_pfl", "over": "frappe_lr", "paper": 0.01, "source": "a paper",
        "untested": "", "verdict": "holds", "mean": 0.055, "low": 0.05, "high": 0.06,
    }  # fmt: skip
    skipped = {**tested, "over": "frappe_absent", "untested": "absent"}
    page = {"recipes": recipes, "gains": [tested, skipped]}
    (tmp_path / "rankers_frappe.json").write_text(json.dumps(page))
    text = "\n".join(sections(tmp_path, PAGES["rankers"]))
    assert "`pfl` | 0.9850 ± 0.0010 | 0.9300 ± 0.0010 | - |" in text
    assert "| `pfl` over `lr` | +0.01000, a paper | **holds** +0.0550 [+0.0500, +0.0600] |" in text
    assert "absent" not in text
    assert "Not compared yet: MovieLens 100K, " in text
    assert sections(tmp_path / "empty", PAGES["rankers"]) == []
