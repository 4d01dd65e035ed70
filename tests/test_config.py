from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from fullrank.config import from_dict, override, require_between, require_positive, to_dict
from fullrank.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    epochs: int = 3
    rate: float = 1e-3
    kind: Literal["adam", "sgd"] = "adam"
    hidden: tuple[int, ...] = (8, 4)
    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    train: Inner = field(default_factory=Inner)
    fast: bool = False
    name: str = "x"


def test_survives_json() -> None:
    made = Outer(train=Inner(hidden=(1, 2, 3), rank=4), fast=True)
    assert from_dict(Outer, json.loads(json.dumps(to_dict(made)))) == made


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("train.epochs=7", "epochs", 7),
        ("train.rate=2e-2", "rate", 2e-2),
        ("train.kind=sgd", "kind", "sgd"),
        ("train.hidden=(16,8)", "hidden", (16, 8)),
        ("train.hidden=16", "hidden", (16,)),
        ("train.rank=none", "rank", None),
        ("train.rank=5", "rank", 5),
    ],
)
def test_override_reads_text_as_the_declared_type(setting, path, value) -> None:
    found = getattr(override(Outer(), setting).train, path)
    assert found == value
    assert type(found) is type(value)


def test_override_leaves_the_rest() -> None:
    assert override(Outer(name="keep"), "fast=true") == Outer(name="keep", fast=True)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.epoch=2", "did you mean 'epochs'"),
        ("train.epochs=two", "a number of type int"),
        ("train.epochs=2.5", "a number of type int"),
        ("train.kind=adm", "did you mean 'adam'"),
        ("fast=maybe", "true or false"),
        ("train=3", "written as text"),
        ("train.epochs.more=3", "single setting"),
        ("train.epochs", "KEY=VALUE"),
    ],
)
def test_override_says_what_is_wrong(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(Outer(), setting)
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "plain",
    [
        {"nmae": "a"},
        {"fast": 1},
        {"train": {"epochs": True}},
        {"train": {"epochs": 2.0}},
        {"train": {"hidden": "12"}},
        {"train": 3},
    ],
)
def test_from_dict_refuses_wrong_keys_and_types(plain: dict) -> None:
    with pytest.raises(ConfigError):
        from_dict(Outer, plain)


def test_an_integer_serves_as_a_float() -> None:
    assert from_dict(Inner, {"rate": 1}).rate == 1.0


def test_requirements_name_the_setting() -> None:
    with pytest.raises(ConfigError, match="impossible") as caught:
        require_positive(Inner(hidden=(4, 0)), "hidden")
    assert "hidden" in caught.value.where
    with pytest.raises(ConfigError):
        require_between(Inner(rate=2.0), 0.0, 1.0, "rate")
    require_between(Inner(), 0.0, 1.0, "rate")
