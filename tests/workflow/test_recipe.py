from __future__ import annotations

import random
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from fullrank.errors import ConfigError, UnknownNameError
from fullrank.model import model_class
from fullrank.workflow.recipe import list_recipes, load_recipe

from .small_world import write_recipe


@pytest.mark.parametrize("name", sorted(list_recipes()))
def test_every_shipped_recipe_loads_and_says_what_it_is(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert isinstance(recipe.config, model_class(recipe.model).Config)
    assert list_recipes()[name].endswith(".")
    plain = recipe.to_dict()
    assert plain["train"]["epochs"] == recipe.train.epochs
    assert plain["dataset"] == getattr(recipe.dataset, "NAME", recipe.dataset)


def test_listing_imports_no_recipe():
    loaded = {n for n in sys.modules if n.startswith("fullrank.recipes.")}
    for name in loaded:
        del sys.modules[name]
    assert "frappe_dcnv2" in list_recipes()
    assert not {n for n in sys.modules if n.startswith("fullrank.recipes.")}


def test_a_file_of_ones_own_is_a_recipe(tmp_path):
    recipe = load_recipe(str(write_recipe(tmp_path / "mine.py", tmp_path, epochs=7)))
    assert (recipe.name, recipe.model, recipe.train.epochs) == ("mine", "lr", 7)
    assert recipe.to_dict()["dataset"] == "train"  # the name that its files give it
    assert recipe.claim is not None


def test_a_file_may_hold_several_recipes(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        dedent("""
        from fullrank.train.config import TrainConfig
        from fullrank.workflow.recipe import Gain, Recipe

        def plain():
            return Recipe(dataset="frappe", model="fm", config=None)

        def long():
            train = TrainConfig(epochs=9)
            gains = (Gain(over="mine_plain"),)
            return Recipe(dataset="frappe", model="fm", config=None, train=train, gains=gains)
        """)
    )
    plain, long = load_recipe(f"{path}:plain"), load_recipe(f"{path}:long", ("train.epochs=8",))
    assert (plain.name, long.name) == ("mine_plain", "mine_long")
    assert long.train.epochs == 8
    assert [gain.over for gain in long.gains] == [plain.name]
    # What a run should be better than does not change the run.
    assert "gains" not in long.to_dict()
    with pytest.raises(UnknownNameError, match="no function wide") as caught:
        load_recipe(f"{path}:wide")
    assert "plain" in caught.value.found
    with pytest.raises(UnknownNameError, match=r"no function recipe"):
        load_recipe(str(path))


def test_a_file_does_not_take_the_place_of_a_module(tmp_path):
    load_recipe(str(write_recipe(tmp_path / "random.py", tmp_path)))
    assert sys.modules["random"] is random


def test_a_misspelt_name_suggests_the_right_one():
    with pytest.raises(UnknownNameError, match="frappe_dcnv2") as caught:
        load_recipe("frappe_dcn2")
    assert caught.value.exit_code == 2
    with pytest.raises(UnknownNameError, match="no such recipe file"):
        load_recipe("nowhere/own.py")


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("x = 1", UnknownNameError, "names x"),
        ("recipe = 3", UnknownNameError, "names recipe"),
        ("def recipe():\n    return 3", ConfigError, "int"),
        ("def recipe(:", ConfigError, "line 1"),
        ("x = 1\nimport nothing_of_this_name", ConfigError, "nothing_of_this_name"),
        ("from fullrank.models.lr import Lrr", ConfigError, "Lrr"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, error, said):
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(error, match=said) as caught:
        load_recipe(str(path))
    assert str(path) in caught.value.where


def test_a_config_of_another_model_is_refused(tmp_path):
    path = write_recipe(tmp_path / "own.py", tmp_path)
    with pytest.raises(ConfigError, match=r"a fullrank\.models\.deepfm\.\w+") as caught:
        load_recipe(str(path), ("model=deepfm",))
    assert caught.value.found.startswith("a fullrank.models.lr.")
    with pytest.raises(UnknownNameError, match="deepfm"):
        load_recipe(str(path), ("model=depfm",))


def test_a_recipe_may_leave_the_config_to_the_model(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        dedent("""
        from fullrank.workflow.recipe import Recipe

        def recipe():
            return Recipe(dataset="frappe", model="fm", config=None)
        """)
    )
    assert load_recipe(str(path)).config is None


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("train.epochs=2", "train.epochs", 2),
        ("train.learning_rate=1e-2", "train.learning_rate", 0.01),
        ("train.patience=none", "train.patience", None),
        ("train.restore_best=false", "train.restore_best", False),
        ("train.schedule=cosine", "train.schedule", "cosine"),
        ("config.hidden=(8, 4)", "config.hidden", (8, 4)),
        ("config.hidden=[8]", "config.hidden", (8,)),
        ("config.dim = 12", "config.dim", 12),
        ("seed=9", "seed", 9),
        ("dataset=frappe_log", "dataset", "frappe_log"),
    ],
)
def test_a_setting_is_typed_and_reaches_its_place(setting, path, value):
    found: object = load_recipe("frappe_dcnv2", (setting,))
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_later_settings_win_and_others_stay():
    before = load_recipe("frappe_dcnv2")
    after = load_recipe("frappe_dcnv2", ("train.epochs=2", "train.epochs=3", "config.dim=4"))
    assert (after.train.epochs, after.config.dim) == (3, 4)
    assert after.config.hidden == before.config.hidden
    assert after.train.table_l2 == before.train.table_l2


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.epocs=2", "did you mean 'epochs'"),
        ("trian.epochs=2", "did you mean 'train'"),
        ("config.dims=2", "did you mean 'dim'"),
        ("train.epochs=two", "a number of type int"),
        ("train.epochs=1.5", "a number of type int"),
        ("train.epochs", "KEY=VALUE"),
        ("train.epochs=", "a number of type int"),
        ("train.epochs=0", "above zero"),
        ("train.learning_rate=nan", "above zero"),
        ("train.schedule=cosin", "did you mean 'cosine'"),
        ("train.restore_best=maybe", "true or false"),
        ("train.epochs.x=1", "a path that ends"),
        ("seed=-1", "0 or more"),
        ("__class__=1", "does not exist"),
        ("train.__init__=1", "does not exist"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(setting, said):
    with pytest.raises(ConfigError) as caught:
        load_recipe("frappe_dcnv2", (setting,))
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_setting_is_text_and_never_run(tmp_path):
    sign = tmp_path / "executed"
    text = f"__import__('pathlib').Path('{sign}').touch()"
    with pytest.raises(ConfigError):
        load_recipe("frappe_dcnv2", (f"config.dim={text}",))
    assert load_recipe("frappe_dcnv2", (f"dataset={text}",)).dataset == text
    assert not Path(sign).exists()
