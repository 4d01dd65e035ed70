from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console
from torch import nn

from fullrank.config import to_dict
from fullrank.train.card import card_table, model_card, save_card
from fullrank.train.config import TrainConfig
from fullrank.train.loop import train
from fullrank.train.optim import build_optimizers


def card_of(net: nn.Module, config: TrainConfig) -> dict[str, dict[str, object]]:
    return model_card(net, config, build_optimizers(net, config), "float32")


def test_modules_are_counted_by_looking(world: ModuleType) -> None:
    net = world.net(dropout=0.25, std=0.05, extra_rows=3000)
    net.more = nn.Sequential(nn.BatchNorm1d(3), nn.LayerNorm(2), nn.BatchNorm1d(3))
    model = card_of(net, TrainConfig())["model"]
    assert (model["BatchNorm"], model["LayerNorm"], model["RMSNorm"]) == (2, 1, 0)
    assert model["dropout"] == [0.25]
    assert model["embedding initial scale"] == [pytest.approx(0.05, rel=0.05)]
    assert model["table rows"] == 3022
    assert model["table parameters"] == 3022 * 4
    assert model["dense parameters"] == (12 * 8 + 8) + (8 + 1) + 2 * (3 + 3) + (2 + 2)


def test_coupling_is_said(world: ModuleType) -> None:
    coupled = card_of(world.net(), TrainConfig(optimizer="adam", table_optimizer="adam"))
    apart = card_of(world.net(), TrainConfig(optimizer="adamw", table_optimizer="lazy_adam"))
    assert coupled["optimiser"]["weight decay coupling"].startswith("coupled")
    assert apart["optimiser"]["weight decay coupling"].startswith("decoupled")
    assert "every row" in coupled["optimiser"]["table L2 coupling"]
    assert "rows of the batch" in apart["optimiser"]["table L2 coupling"]


CHANGED = {
    "epochs": 3, "batch_size": 7, "optimizer": "adam", "learning_rate": 0.5, "weight_decay": 0.5,
    "table_optimizer": "lazy_adam", "table_learning_rate": 0.7, "table_l2": 0.1,
    "schedule": "cosine", "warmup_steps": 9, "final_factor": 0.3, "metric": "logloss",
    "higher_is_better": False, "patience": 5, "restore_best": False, "accumulate": 4,
    "clip_norm": 2.0, "compile": True, "keep_memory": False, "threads": 3,
    "explode_factor": 7.0, "explode_steps": 8,
}  # fmt: skip
# "precision" arrives resolved, "plateau_factor" counts with its schedule; the rest changes nothing.
SILENT = {"precision", "plateau_factor", "log_every", "save_every", "monitor_every"}


def test_every_setting_that_changes_the_result_shows(world: ModuleType) -> None:
    assert {*to_dict(TrainConfig())} == {*CHANGED, *SILENT, "tensorboard", "mlflow"}
    base = TrainConfig()
    for name, value in CHANGED.items():
        other = replace(base, **{name: value})
        assert card_of(world.net(), base) != card_of(world.net(), other), name
    plateau = replace(base, schedule="plateau")
    other = replace(plateau, plateau_factor=0.3)
    assert card_of(world.net(), plateau) != card_of(world.net(), other)


def test_saved_with_the_run_and_readable(world: ModuleType, tmp_path: Path) -> None:
    config = TrainConfig(epochs=1, batch_size=8)
    expected = card_of(world.net(), config)
    data = world.Loader(world.rows(16), 8)
    train(world.net(), data, config, folder=tmp_path, progress=False)
    assert json.loads((tmp_path / "card.json").read_text()) == expected
    save_card(tmp_path / "new", expected)
    assert json.loads((tmp_path / "new" / "card.json").read_text()) == expected


def test_the_table_names_every_line(world: ModuleType) -> None:
    card = card_of(world.net(), TrainConfig())
    console = Console(width=150, file=io.StringIO())
    console.print(card_table(card))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(name in text for section in card.values() for name in section)


def test_printed_with_the_run(world: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    data = world.Loader(world.rows(16), 8)
    train(world.net(), data, TrainConfig(epochs=1, batch_size=8))
    assert "Model card: Net" in capfd.readouterr().err
